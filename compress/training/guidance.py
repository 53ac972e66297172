"""Entropy guidance: training that asks its layers to keep the volume of what goes through them.

    loss = task loss - lambda (V_linear + V_conv)

    V_linear = sum over linear layers of sum log s_i  /  number of singular values s_i
    V_conv   = sum over convolutions of P sum over filters log |c11|  /  sum of P times filters;   P: positions in the output

Both are nats per value, so lambda means the same in networks of every size and at every resolution. A lambda below 0 asks for
less volume.

Source: Meni, White, Mayo, Pilkiewicz, 2023, arXiv:2308.14938 (L = L_acc + lambda_1 L_dense + lambda_2 L_conv). Readings of ours:
one lambda for both terms, their normalization, and the sign (above 0 rewards volume). A transposed convolution counts the
positions of its input, as its map is the other one's transpose. A layer that is called several times counts its positions each
time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.entropy.volume import corner_nats, singular_nats

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Guidance:
    """The layers of a model whose volume is asked for, and at how many positions each convolution acts."""

    linear: tuple[nn.Module, ...]
    convolutions: tuple[tuple[nn.Module, int], ...]

    def volumes(self) -> tuple[Tensor | None, Tensor | None]:
        """(V_linear, V_conv), nats per value, differentiable; None where there is no such layer."""
        flat = [_nats(layer) for layer in self.linear]
        spatial = [(_nats(layer), positions) for layer, positions in self.convolutions]
        linear = torch.cat(flat).mean() if flat else None
        if not spatial:
            return linear, None
        values = sum(len(nats) * positions for nats, positions in spatial)
        return linear, torch.stack([nats.sum() * (positions / values) for nats, positions in spatial]).sum()

    def reward(self) -> Tensor:
        """V_linear + V_conv."""
        return torch.stack([v for v in self.volumes() if v is not None]).sum()

    def said(self) -> str:
        """The volumes in words."""
        with torch.no_grad():
            named = zip(("linear layers", "convolutions"), self.volumes(), strict=True)
            return ", ".join(f"{name} {float(v):.3f}" for name, v in named if v is not None)


def guidance(module: nn.Module, run: Callable[[], object]) -> Guidance | None:
    """What guides a model; None where it has neither a linear layer nor a convolution.

    Args:
        module: its layers are referred to, not copied.
        run: calls it once on one example.
    """
    # A dict as an ordered set: a layer that is called twice counts once.
    linear: dict[nn.Module, None] = {}
    positions: dict[nn.Module, int] = {}

    def seen(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            linear[layer] = None
        else:
            # A transposed convolution is the other one's transpose: its matrix has a diagonal entry per input position.
            where = args[0] if isinstance(layer, _TRANSPOSED) else output
            positions[layer] = positions.get(layer, 0) + where[0, 0].numel()

    kinds = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)
    handles = [part.register_forward_hook(seen) for part in module.modules() if isinstance(part, kinds)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = Guidance(tuple(linear), tuple(positions.items()))
    return found if linear or positions else None


def log_volume(layer: nn.Module) -> float | None:
    """Mean nats per value by which a layer stretches (above 0) or squeezes its input; None for other kinds of layers."""
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)):
        return None
    with torch.no_grad():
        return float(_nats(layer).mean())


def _nats(layer: nn.Module) -> Tensor:
    # float32: singular values are not computed in half precision.
    weight = getattr(layer, "weight").float()  # noqa: B009 (a Module's attribute has no type)
    if isinstance(layer, nn.Linear):
        return singular_nats(weight)
    return corner_nats(weight.transpose(0, 1) if isinstance(layer, _TRANSPOSED) else weight)
