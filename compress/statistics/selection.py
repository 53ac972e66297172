"""From statistics to channels: the loss of every group, how many of its channels stay, and which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.entropy import obs, quadratic, regression, swaps
from compress.entropy.obs import Sweep
from compress.entropy.quadratic import Quadratic
from compress.graph.channels import Group, Member
from compress.statistics.collect import Statistics
from compress.statistics.layers import Layer, as_matrix, layers

_WIDE = 1500  # columns beyond which the entropic path starts from what a sweep leaves, twice as many as wanted
_FLOOR = 1e-2  # of the mean of G's diagonal, in every direction: few gradients leave directions that look free


@dataclass(frozen=True)
class Losses:
    """Quadratic losses of the groups, built when they are needed: one group's matrices at a time."""

    module: GraphModule
    statistics: Statistics

    def of(self, group: Group) -> list[Quadratic]:
        """One quadratic per consumer that regression understands; none where there is no such consumer."""
        known = layers(self.module)
        return [self._one(group, member, known[member.module]) for member in measured(group, known)]

    def _one(self, group: Group, member: Member, one: Layer) -> Quadratic:
        weight = as_matrix(self.module.get_submodule(one.path))
        moments = self.statistics.moments[one.path].centred_linear(weight)
        owner = member.index.repeat_interleave(one.window.taps)
        fisher = self.statistics.fisher[one.path]
        floor = _FLOOR * float(fisher.diagonal().mean()) * torch.eye(len(fisher), dtype=fisher.dtype)
        return quadratic.quadratic(moments, fisher + floor, owner, group.channels)


def measured(group: Group, known: dict[str, Layer]) -> list[Member]:
    """Weights that consume the group and that regression understands."""
    weights = [m for m in group.members if m.role == "in" and m.module in known and m.tensor.endswith(".weight")]
    return [m for m in weights if m.dim == known[m.module].reads and known[m.module].groups == 1]


def consumers(module: GraphModule, groups: Sequence[Group]) -> list[str]:
    """Module paths of all measured consumers, in graph order."""
    known = layers(module)
    wanted = {m.module for g in groups for m in measured(g, known)}
    return [path for path in known if path in wanted]


def sweeps(losses: Losses, groups: Sequence[Group], progress: Callable[[float], None]) -> dict[str, Sweep]:
    """Loss curve and order of elimination of every group that has a measured consumer."""
    found: dict[str, Sweep] = {}
    for number, group in enumerate(groups):
        forms = losses.of(group)
        if forms:
            found[group.name] = obs.eliminate(forms)
        progress((number + 1) / len(groups))
    return found


def entropic(forms: Sequence[Quadratic], sweep: Sweep, keep: int, exchange: bool = True) -> list[int]:
    """Channels by entropic regression. With `exchange` the path is finished by swaps, and whichever is better of it and the
    greedy sweep, finished alike, is taken: the path alone loses to the sweep on most layers.
    """
    wide = max(form.a.shape[0] for form in forms) > _WIDE
    among = sweep.kept(min(2 * keep, forms[0].channels)) if wide else None
    path = sorted(regression.select(forms, keep, among).kept)
    if not exchange:
        return path
    candidates = [swaps.improve(forms, path), swaps.improve(forms, sweep.kept(keep))]
    return min(candidates, key=lambda kept: quadratic.loss(forms, kept))


def magnitude(module: nn.Module, group: Group) -> Tensor:
    """Sum of |w| of each channel's filters over all producers, (channels,)."""
    return _per_channel(group, {name: p.detach() for name, p in module.named_parameters()})


def taylor(module: GraphModule, group: Group, products: dict[str, Tensor]) -> Tensor:
    """First-order loss of zeroing a channel's filters, |sum of w g|, averaged over batches; `products` from `weight_products`."""
    return _per_channel(group, products)


def weight_products(
    module: GraphModule, batches: Iterable[tuple[tuple[Tensor, ...], Tensor | None]], device: torch.device, seed: int
) -> dict[str, Tensor]:
    """Mean over batches of |w * gradient|, by parameter name. Labels from the data where there are any, else from the model.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, per weight instead of per gate.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    number = 0
    for inputs, target in batches:
        output = module(*(x.to(device) for x in inputs))
        if output.ndim == 2 and (target is None or (target.ndim == 1 and not target.is_floating_point())):
            drawn = torch.multinomial(output.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
            loss = F.cross_entropy(output, (drawn if target is None else target).to(device))
        else:
            loss = (output * torch.randn(output.shape, generator=generator).to(device)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for (name, p), g in zip(parameters.items(), gradients, strict=True):
            if g is not None:
                sums[name] += (p.detach() * g).abs()
        number += 1
    return {name: (total / max(number, 1)).cpu() for name, total in sums.items()}


def _per_channel(group: Group, values: dict[str, Tensor]) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    made = [m for m in group.members if m.role == "out" and m.tensor.endswith(".weight")] or [
        m for m in group.members if m.tensor in values
    ]
    for member in made:
        rows = values[member.tensor].abs().double().cpu().movedim(member.dim, 0).flatten(1).sum(1)
        here = member.index >= 0
        total.index_add_(0, member.index[here], rows[here])
    return total
