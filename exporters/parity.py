"""Is the exported file the model? Both run on the same inputs, and the worst difference decides.

    |y_file - y_model| <= atol + rtol * max|y_model|      for every output, over all samples

Both compute in fp32, but sum in another order, fold batch norms into convolutions and use other kernels. Each layer then adds a
relative error of some eps = 1.2e-7 that random signs let grow with the root of depth and fan-in: 1e-6 to 1e-5 of the output's
scale for nets of up to hundreds of layers. rtol = 1e-4 leaves a factor of ten above that and lies a factor of hundreds below what
a wrong operator, a lost bias or a wrong epsilon do. atol = 1e-12 only serves outputs that are zero.
The scale is that of the whole output, not of each number: a logit near zero is a sum of large terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from exporters.errors import ParityError
from exporters.exported import Parity

RTOL, ATOL = 1e-4, 1e-12

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""The exported file as a function: inputs in the model's order to outputs in the model's order."""


def check(
    run: Run,
    model: nn.Module,
    batches: Iterable[Sequence[Tensor]],
    outputs: Callable[[object], Sequence[Tensor]],
    *,
    names: Sequence[str],
    rtol: float = RTOL,
    atol: float = ATOL,
) -> Parity:
    """Compare on every batch as given, and on the first sample alone; a lone sample is also run as a batch of three.

    Args:
        run: the exported file.
        model: in eval mode.
        batches: real inputs, one sequence of (batch, ...) tensors each; at least one.
        outputs: flattens what the model returns into the order of the file's outputs.
        names: of the outputs, for the message.
        rtol: allowed difference as a share of the output's largest absolute value.
        atol: allowed difference on top of that.

    Raises:
        ParityError: an output differs by more than it may, has another shape, or is not finite where the model's is.
        ValueError: no batch.
    """
    worst, scale = np.zeros(len(names)), np.zeros(len(names))
    samples, sizes = 0, set[int]()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for batch in _with_other_sizes(batches):
        with torch.inference_mode():
            expected = [y.float().cpu().numpy() for y in outputs(model(*(x.to(device) for x in batch)))]
        found = run([x.detach().cpu().contiguous().numpy() for x in batch])
        for i, (name, y, z) in enumerate(zip(names, expected, found, strict=True)):
            if y.shape != z.shape:
                raise ParityError(float("inf"), 0.0, f"{name} has the shape {z.shape} instead of {y.shape}; it")
            worst[i] = max(worst[i], _difference(y, np.asarray(z, dtype=np.float32)))
            scale[i] = max(scale[i], float(np.max(np.abs(y), initial=0.0, where=np.isfinite(y))))
        samples, sizes = samples + len(batch[0]), sizes | {len(batch[0])}
    if not sizes:
        raise ValueError("parity needs at least one batch of inputs")
    tolerance = atol + rtol * scale
    i = int(np.argmax(worst / tolerance))
    if worst[i] > tolerance[i]:
        raise ParityError(float(worst[i]), float(tolerance[i]), names[i])
    return Parity(float(worst[i]), float(tolerance[i]), samples, tuple(sorted(sizes)))


def _with_other_sizes(batches: Iterable[Sequence[Tensor]]) -> Iterable[Sequence[Tensor]]:
    """A dynamic batch is only shown by two sizes: the first batch comes back as one sample, or a lone sample as three."""
    for i, batch in enumerate(batches):
        yield batch
        if i == 0:
            yield tuple(x[:1] for x in batch) if len(batch[0]) > 1 else tuple(torch.cat([x, x, x]) for x in batch)


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest absolute difference; infinite where only one of the two is finite."""
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return float("inf")
    finite = np.isfinite(expected)
    return float(np.max(np.abs(expected[finite] - found[finite]), initial=0.0))
