"""What single channels are worth by criteria that do not measure the consumers' loss: a number each, the smallest go first.

    random          drawn
    magnitude       sum of |w| over the channel's filters
    taylor          |sum of w g| over the channel's filters, averaged over batches
    state-entropy   bits of the activations behind the channel; one that is always off comes before all others

How many channels of each group stay is another matter: these numbers do not compare across layers, bits do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.graph.channels.solve import Group
from compress.graph.liveness import value_bytes
from compress.measure.labels import drawn, scores, surprise
from compress.refit import refit
from compress.selection import depth
from compress.stage import Context
from compress.statistics.portions import cut

Scores = dict[str, Tensor]
"""By name of the group: (channels,), float64."""


def _random(artifact: Artifact, context: Context, groups: Sequence[Group]) -> Scores:
    generator = torch.Generator().manual_seed(context.recipe.seed)
    return {g.name: torch.rand(g.channels, generator=generator, dtype=torch.float64) for g in groups}


def _magnitude(artifact: Artifact, context: Context, groups: Sequence[Group]) -> Scores:
    return {g.name: magnitude(artifact.module, g) for g in groups}


def _taylor(artifact: Artifact, context: Context, groups: Sequence[Group]) -> Scores:
    batches = ((b.inputs, b.target) for b in context.calibration.batches())
    most = context.room().images(2 * sum(map(value_bytes, artifact.module.graph.nodes)), share=1 / 4)
    how = context.device, context.recipe.seed, context.data.spec.task, most
    products = weight_products(artifact.on(context.device), batches, *how)
    return {g.name: taylor(artifact.module, g, products) for g in groups}


def state_entropy(artifact: Artifact, context: Context, groups: Sequence[Group]) -> Scores:
    """Mean bits of the activations behind each channel; -1 where it is off in all of them, which can go without any loss.

    Groups without an activation of their own width are left out. The other common reading of EASIER, whose own unit is the layer:
    Quetu, Liao, Tartaglione, ECML PKDD 2024.
    """
    states = refit.statistics(artifact, context, (), states=True).states
    behind = depth.behind(artifact.module, artifact.channels, states)
    found: Scores = {}
    for group in groups:
        if here := [states[path] for path in behind.get(group.name, ())]:
            bits = torch.stack([one.entropy for one in here]).mean(0)
            # Off in every one of them, or the channel still says something somewhere.
            off = torch.stack([one.on == 0 for one in here]).all(0)
            found[group.name] = torch.where(off, -1.0, bits)
    return found


SCORES: Mapping[str, Callable[[Artifact, Context, Sequence[Group]], Scores]] = {
    "random": _random,
    "magnitude": _magnitude,
    "taylor": _taylor,
    "state-entropy": state_entropy,
}


def magnitude(module: nn.Module, group: Group) -> Tensor:
    """Sum of |w| of each channel's filters over all producers, (channels,)."""
    return _per_channel(group, {name: p.detach() for name, p in module.named_parameters()})


def taylor(module: GraphModule, group: Group, products: dict[str, Tensor]) -> Tensor:
    """First-order loss of zeroing a channel's filters, |sum of w g|, averaged over batches; `products` from `weight_products`."""
    return _per_channel(group, products)


def weight_products(
    module: GraphModule,
    batches: Iterable[tuple[tuple[Tensor, ...], Tensor | None]],
    device: torch.device,
    seed: int,
    task: str = "classification",
    most: int = 1 << 30,
) -> dict[str, Tensor]:
    """Mean over batches of |w * gradient|, by parameter name. Labels from the data where there are any, else from the model.

    `most` images go through the model at once: the gradient of a batch is the sum of those of its parts.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, per weight instead of per gate.
    """
    generator = torch.Generator().manual_seed(seed)
    # A copy: frozen layers lose channels like others, and stay frozen.
    module = copy.deepcopy(module)
    for p in module.parameters():
        p.requires_grad_(p.is_floating_point())
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    number = 0
    for inputs, target in batches:
        parts = cut(len(inputs[0]), most)
        results = [_output(module, part.of(inputs), device, len(parts) == 1) for part in parts]
        about, decided = _about(torch.cat(results), target, task, generator)
        gradients: dict[str, Tensor] = {}
        for part in parts:
            output = results[0] if len(parts) == 1 else _output(module, part.of(inputs), device, True)
            (mine,) = part.of((about,))
            loss = surprise(output, mine, task) if decided else (output * mine).sum(1).mean()
            # allow_unused: parameters that the output does not depend on have no gradient.
            found = torch.autograd.grad(loss * (part.images / part.whole), list(parameters.values()), allow_unused=True)
            for name, g in zip(parameters, found, strict=True):
                if g is not None:
                    gradients[name] = gradients[name] + g if name in gradients else g
        for name, g in gradients.items():
            # |w g|, as the signed products of a filter's entries would cancel.
            sums[name] += (parameters[name].detach() * g).abs()
        number += 1
    return {name: (total / max(number, 1)).cpu() for name, total in sums.items()}


def _output(module: nn.Module, inputs: tuple[Tensor, ...], device: torch.device, differentiated: bool) -> Tensor:
    with torch.set_grad_enabled(differentiated):
        return module(*(x.to(device) for x in inputs))


def _about(output: Tensor, target: Tensor | None, task: str, generator: torch.Generator) -> tuple[Tensor, bool]:
    """What the loss of a batch is about, and whether these are labels, instead of a direction."""
    # Labels that the outputs cannot express are for a metric and a loss of the user's own.
    beyond = target is not None and task == "classification" and int(target.max()) >= scores(output).shape[1]
    labels = drawn(output, task, generator) if target is None or beyond else target.to(output.device)
    if labels is not None and task in ("classification", "multilabel") and output.ndim <= 2:
        return labels, True
    return torch.randn(output.shape, generator=generator).to(output.device), False


def _per_channel(group: Group, values: dict[str, Tensor]) -> Tensor:
    total = torch.zeros(group.channels, dtype=torch.float64)
    known = [m for m in group.members if m.tensor in values]
    # Filters by whatever name: a recurrent layer has several, and a weight may be made of parameters.
    made = [m for m in known if m.role == "out" and values[m.tensor].ndim > 1] or known
    for member in made:
        entries = values[member.tensor].abs().double().cpu().movedim(member.dim, 0)
        rows = entries.reshape(len(entries), -1).sum(1)
        here = member.index >= 0
        total.index_add_(0, member.index[here], rows[here])
    return total
