"""Is the exported file the model? Both run on the same inputs, and the worst difference decides.

    |y_file - y_model| <= atol + rtol * max|y_model|      for every output, over all samples

Both compute in fp32, but sum in another order, fold batch norms into convolutions and use other kernels. Each layer then adds a
relative error of some eps = 1.2e-7 that random signs let grow with the root of depth and fan-in: 1e-6 to 1e-5 of the output's
scale for nets of up to hundreds of layers. rtol = 1e-4 leaves a factor of ten above that and lies a factor of hundreds below what
a wrong operator, a lost bias or a wrong epsilon do. atol = 1e-12 only serves outputs that are zero.
The scale is that of the whole output, not of each number: a logit near zero is a sum of large terms.
A model whose large weights cancel each other rounds more than that in its own float32, and no file can be closer to it than it is
to itself. Where a file is further off, the model is run once more in float64, and its own error decides with the same factor of
ten, up to 1 % of the scale: a model that is less exact than that cannot be compared with anything.

A format with fewer bits than the model cannot keep that. It is held to its error on the whole instead, over all outputs and
samples:

    relative = sqrt(sum (y_file - y_model)^2 / sum y_model^2) <= allowed

and the share of samples on which both choose the same class is told beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exporters.capture import Subject
from exporters.errors import ExportError, ParityError
from exporters.exported import Closeness, Parity

RTOL, ATOL = 1e-4, 1e-12
_OWN, _MOST = 10.0, 1e-2  # times the model's own rounding, and of the scale at most

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""The exported file as a function: inputs in the model's order to outputs in the model's order."""


@dataclass(frozen=True)
class Compared:
    """What one pass over the samples shows; `parity` is None for a format with fewer bits."""

    parity: Parity | None
    closeness: Closeness


def check(
    run: Run,
    subject: Subject,
    batches: Iterable[Sequence[Tensor]],
    *,
    allowed: float | None = None,
    fixed: bool = False,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> Compared:
    """Compare on every batch as given, and on the first sample alone; a lone sample is also run as a batch of three.

    Args:
        run: the exported file.
        subject: the model, on the CPU.
        batches: real inputs, one sequence of (batch, ...) tensors each; at least one.
        allowed: relative error of a format with fewer bits than the model; None asks for parity.
        fixed: the file takes the batch size of `batches` only.
        rtol: allowed difference as a share of the output's largest absolute value.
        atol: allowed difference on top of that.

    Raises:
        ParityError: an output differs by more than it may, has another shape, or is not finite where the model's is.
        ValueError: no batch.
    """
    names = subject.outputs
    # Per output: a small one must not be judged by the scale of a large one.
    worst, scale, own = np.zeros(len(names)), np.zeros(len(names)), np.zeros(len(names))
    sums, undefined, same, places, samples, sizes = np.zeros(2), np.zeros(2), 0, 0, 0, set[int]()
    for batch in batches if fixed else _with_other_sizes(batches):
        with torch.inference_mode():
            # in float32, as files give halves and doubles, too
            expected = [y.float().numpy() for y in subject.flatten(subject.model(*(x.cpu() for x in batch)))]
        found = [np.asarray(z, np.float32) for z in run([x.detach().cpu().contiguous().numpy() for x in batch])]
        for i, (name, y, z) in enumerate(zip(names, expected, found, strict=True)):
            # numpy would broadcast a wrong shape and find a difference of another kind.
            if y.shape != z.shape:
                raise ParityError(float("inf"), 0.0, f"{name} has the shape {z.shape} instead of {y.shape}; it")
            finite = np.isfinite(y)
            if y.size and not finite.any():
                raise ExportError(
                    f"The model gives no number (NaN or infinite) anywhere in {name} for these inputs, so a file cannot be "
                    "compared with it. Look for what divides by 0 in it, or give --data that it was trained for."
                )
            undefined += np.array([y.size - finite.sum(), y.size])
            worst[i] = max(worst[i], _difference(y, z))
            scale[i] = max(scale[i], float(np.max(np.abs(y), initial=0.0, where=finite)))
            sums += _squares(y, z)
        if allowed is None and (worst > atol + rtol * scale).any():
            own = np.maximum(own, _rounding(subject, batch, expected))
        chosen = _agreeing(expected[0], found[0])
        same, places = same + chosen[0], places + chosen[1]
        samples, sizes = samples + len(batch[0]), sizes | {len(batch[0])}
    if not sizes:
        raise ValueError("parity needs at least one batch of inputs")
    # A file that gives NaN is infinitely far off, whatever the finite rest says.
    relative = float(np.sqrt(sums[0] / max(sums[1], 1e-30))) if np.isfinite(worst).all() else float("inf")
    no_number = float(undefined[0] / max(undefined[1], 1))
    closeness = Closeness(relative, same / places if places else None, samples, allowed, no_number)
    if allowed is not None:
        return Compared(None, _within(closeness, allowed))
    tolerance = atol + np.maximum(rtol * scale, np.minimum(_OWN * own, _MOST * scale))
    # The output that came closest to its tolerance, which is the one to tell.
    i = int(np.argmax(worst / tolerance))
    if worst[i] > tolerance[i]:
        raise ParityError(float(worst[i]), float(tolerance[i]), names[i])
    return Compared(Parity(float(worst[i]), float(tolerance[i]), samples, tuple(sorted(sizes))), closeness)


def _rounding(subject: Subject, batch: Sequence[Tensor], found: Sequence[np.ndarray]) -> np.ndarray:
    """How far the model is off its float64 twin on a batch, for each output; 0 where there is none."""
    try:
        twin = copy.deepcopy(subject.model).double()
        with torch.inference_mode():
            exact = subject.flatten(twin(*(x.cpu().double() if x.is_floating_point() else x.cpu() for x in batch)))
    except (RuntimeError, TypeError):  # a step that mixes precisions, or exists in one only
        return np.zeros(len(found))
    off = (_difference(y, z.double().numpy()) for y, z in zip(found, exact, strict=True))
    return np.array([one if np.isfinite(one) else 0.0 for one in off])


def _within(closeness: Closeness, allowed: float) -> Closeness:
    if closeness.relative > allowed:
        raise ParityError(closeness.relative, allowed, "the output as a whole, as a share of its size,")
    return closeness


def _squares(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Sums of squares of the difference and of the model's output, where that is finite."""
    # float64: squares of many small differences are added.
    finite = np.isfinite(expected) & np.isfinite(found)
    y, z = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    return np.array([((z - y) ** 2).sum(), (y**2).sum()])


def _agreeing(expected: np.ndarray, found: np.ndarray) -> tuple[int, int]:
    """Places (samples, pixels of maps, tokens) where both choose the same class, and how many there are.

    Classes are axis 1; of three axes, as of a text (n, tokens, classes), the last one.
    """
    axis = -1 if expected.ndim == 3 else 1
    if expected.ndim < 2 or expected.shape[axis] < 2:
        return 0, 0
    same = expected.argmax(axis) == found.argmax(axis)
    return int(same.sum()), same.size


def _with_other_sizes(batches: Iterable[Sequence[Tensor]]) -> Iterable[Sequence[Tensor]]:
    """A dynamic batch is only shown by two sizes: the first batch comes back as one sample, or a lone sample as three."""
    for i, batch in enumerate(batches):
        yield batch
        if i == 0:
            yield tuple(x[:1] for x in batch) if len(batch[0]) > 1 else tuple(torch.cat([x, x, x]) for x in batch)


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Largest absolute difference; infinite where only one of the two is finite."""
    # NaN against a number compares as no difference at all.
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return float("inf")
    finite = np.isfinite(expected)
    return float(np.max(np.abs(expected[finite] - found[finite]), initial=0.0))
