"""What a stage that fits weights needs from the run: the images, both models folded, and which channels are left."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.data import calibration
from compress.edits import Plan
from compress.errors import EmptyData
from compress.graph.channels.solve import Group
from compress.graph.merge.batch_norm import fold, pairs, unfold
from compress.refit.tape import alive_bytes
from compress.refit.walk import Kept, refit
from compress.stage import Context
from compress.statistics.collect import Sampling, Statistics, collect
from compress.statistics.consumers import consumers
from compress.statistics.layers import Layer, layers
from compress.user.wording import many

_MEMORY = 5e9  # bytes of activations that both models may hold between two layers


@dataclass(frozen=True)
class Both:
    """The dense and the smaller model, folded, and the images they are compared on."""

    dense: GraphModule
    small: GraphModule
    kept: dict[str, Kept]
    batches: list[tuple[Tensor, ...]]
    notes: tuple[str, ...]

    @property
    def samples(self) -> int:
        """Number of images."""
        return sum(len(inputs[0]) for inputs in self.batches)


def both(small: Artifact, context: Context) -> Both:
    """Prepare for fitting the weights of `small` to the behavior of the dense model, or of what a turn began with."""
    batches, notes = images(context)
    before = context.before
    dense = fold(before.module).to(context.device).requires_grad_(False)
    # The edits since then: what stood in the plan before has shaped `before` already.
    since = replace(small.plan, edits=small.plan.edits[len(before.plan.edits) :])
    return Both(dense, fold(small.module).to(context.device).requires_grad_(False), kept(before, since), batches, notes)


def statistics(artifact: Artifact, context: Context, groups: Sequence[Group], states: bool) -> Statistics:
    """One streaming pass over the calibration images, for all consumers of some groups.

    Published estimates of the entropy depend on the size of the batches; for them it is that of training.

    Raises:
        EmptyData: there are no images.
    """
    recipe = context.recipe
    # EASIER and EGP average over mini-batches, so their estimate follows the batch size.
    size = calibration.STATISTICS if recipe.entropy == "pooled" else recipe.batch_size
    return collect(
        artifact.module,
        lambda: context.calibration.inputs(size),
        consumers(artifact.module, groups),
        images=context.calibration.images,
        device=context.device,
        task=context.data.spec.task,
        sampling=Sampling(seed=recipe.seed),
        states=states,
        estimator=recipe.entropy,
        progress=lambda share: context.progress("statistics", share, ""),
    )


def images(context: Context) -> tuple[list[tuple[Tensor, ...]], tuple[str, ...]]:
    """Calibration inputs on the run's device, fewer than asked for where the activations would not fit.

    Raises:
        EmptyData: there is none.
    """
    asked = context.recipe.calibration
    # 2: both models hold their values at once.
    room = max(1, int(_MEMORY / (2 * max(alive_bytes(context.before.module), 1))))
    batches = list(context.calibration.inputs(min(calibration.ROWS, asked, room), most=room, device=context.device))
    if not batches:
        raise EmptyData("The refit needs at least one training image and there is none. Give images with --data.")
    if room < context.calibration.images:
        return batches, (f"Weights were refitted on {room} of {asked} calibration images, as many as fit into memory.",)
    return batches, ()


def kept(dense: Artifact, plan: Plan) -> dict[str, Kept]:
    """Which outputs and inputs of each dense layer a plan leaves, found by removing from weights that hold their own position."""
    known = layers(dense.module)
    found: dict[str, list[Tensor]] = {path: [] for path in known}
    for dim in (0, 1):
        # Weights are replaced by their own position on an axis; after the edits each entry tells where it came from.
        numbered = copy.deepcopy(dense.module)
        for path in found:
            weight = getattr(numbered.get_submodule(path), "weight").data  # noqa: B009 (a Module's attribute has no type)
            place = torch.arange(weight.shape[dim], dtype=weight.dtype)
            middle = weight.zero_()[(..., *(n // 2 for n in weight.shape[2:]))]  # one entry: a layer may be reduced to 1x1
            middle.copy_(place.view(-1, *[1] * (1 - dim)).expand_as(middle))
        left = apply(plan, Artifact(numbered, dense.inputs)).module
        for path in found:
            weight = getattr(left.get_submodule(path), "weight").data  # noqa: B009
            # amax: all entries but one are 0, and that one is the position.
            found[path].append(weight.movedim(dim, 0).reshape(weight.shape[dim], -1).amax(1).round().long())
    return {path: _kept(known[path], *sides) for path, sides in found.items()}


def _kept(one: Layer, first: Tensor, second: Tensor) -> Kept:
    """From what is left along a weight's two axes: (out, in of a group), or (in, out of a group) where transposed."""
    if not one.window.transposed:
        return Kept(first, second)
    into, out = one.inputs // one.window.taps, one.outputs // one.groups
    left = torch.unique(first.div(into, rounding_mode="floor"))  # a transposed convolution loses whole groups
    return Kept((left[:, None] * out + second).flatten(), first[first < (left[0] + 1) * into] - left[0] * into)


def refitted(small: Artifact, context: Context) -> Artifact:
    """Every layer behind the first change refitted to the dense model, norms consistent with the new weights.

    Where the context asks for no fitting, the model comes back as it is.
    """
    if not context.fitting:
        return small
    pair = both(small, context)
    done = refit(
        pair.dense,
        pair.small,
        pair.kept,
        pair.batches,
        device=context.device,
        seed=context.recipe.seed,
        sequential=context.recipe.inputs == "sequential",
        progress=lambda share, name: context.progress("refit", share, name),
    )
    result = replace(small, module=written_back(small, pair.small, pair.batches)).noting(*pair.notes)
    if not done.recalibrated:
        return result
    return result.noting(
        f"Running statistics of {many(len(done.recalibrated), 'norm')} were taken anew on the calibration images: the layers "
        "before them lost inputs and cannot be refitted."
    )


def written_back(small: Artifact, fitted: GraphModule, batches: Sequence[tuple[Tensor, ...]]) -> GraphModule:
    """The smaller model with the folded, fitted weights taken apart into layers and norms again."""
    outputs = output_moments(fitted, [pair.layer for pair in pairs(small.module)], batches)
    device = next(small.module.parameters(), torch.empty(0)).device
    return unfold(small.module, copy.deepcopy(fitted).to(device), outputs)


def output_moments(
    module: nn.Module, paths: Sequence[str], batches: Sequence[tuple[Tensor, ...]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance per channel of some layers' outputs, over images and positions."""
    sums: dict[str, list[Tensor]] = {}
    seen: dict[str, int] = {}

    def watch(path: str):
        def hook(part: nn.Module, args: object, y: Tensor) -> None:
            dims = [d for d in range(y.ndim) if d != (y.ndim - 1 if isinstance(part, nn.Linear) else 1)]
            # float64 on the CPU, since the variance below is a difference.
            new = [y.sum(dims).cpu().double(), y.square().sum(dims).cpu().double()]
            sums[path] = [a + b for a, b in zip(sums[path], new, strict=True)] if path in sums else new
            seen[path] = seen.get(path, 0) + y.numel() // len(new[0])

        return hook

    handles = [module.get_submodule(path).register_forward_hook(watch(path)) for path in paths]
    try:
        with torch.no_grad():
            for inputs in batches:
                module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    means = {path: total / seen[path] for path, (total, _) in sums.items()}
    return {path: (means[path], (sums[path][1] / seen[path] - means[path].square()).clamp_min(0)) for path in sums}
