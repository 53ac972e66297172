"""What a stage that fits weights needs from the run: the images, both models folded, and which channels are left."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.data import calibration
from compress.data.room import Room, told
from compress.edits import Plan
from compress.errors import EmptyData
from compress.graph.channels.solve import Group
from compress.graph.merge.batch_norm import fold, pairs, unfold
from compress.ranks import ALONE, Ranks
from compress.refit.inputs import Images
from compress.refit.output_sums import OutputSums, watched
from compress.refit.tape import needed_bytes
from compress.refit.walk import Kept, refit
from compress.stage import Context, once
from compress.statistics.collect import Sampling, Statistics, collect, fit_bytes
from compress.statistics.consumers import consumers
from compress.statistics.layers import Layer, layers
from compress.user import memory
from compress.user.wording import many


@dataclass(frozen=True)
class Both:
    """The dense and the smaller model, folded, and the images they are compared on."""

    dense: GraphModule
    small: GraphModule
    kept: dict[str, Kept]
    batches: Images

    @property
    def samples(self) -> int:
        """Number of images."""
        return self.batches.samples

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said about the memory that was taken."""
        room = self.batches.room
        if not room.away:
            return ()
        return (f"{told(room.away)} of activations went through files, as the reconstruction had {room.said} of memory.",)


def both(small: Artifact, context: Context, in_place: bool = False) -> Both:
    """Prepare for fitting the weights of `small` to the behavior of the dense model, or of what a turn began with.

    Args:
        small: the smaller model.
        context: of the run.
        in_place: whether its weights are changed where they lie, and not replaced one after the other.
    """
    before = context.before
    dense = fold(before.module, read=True).to(context.device).requires_grad_(False)
    # The edits since then: what stood in the plan before has shaped `before` already.
    since = replace(small.plan, edits=small.plan.edits[len(before.plan.edits) :])
    folded = fold(small.module, read=not in_place).to(context.device).requires_grad_(False)
    align(dense, folded)
    left = kept(before, since)
    # Last: the copies of the model that tell what is left have gone again.
    return Both(dense, folded, left, images(context))


def align(dense: GraphModule, small: GraphModule) -> None:
    """Give the dense model the nodes that its smaller one has more, so that both are walked alike, in place.

    Each makes up for a number of channels that a result depends on, as a mean over them does: a factor, in the dense model 1.
    """
    there = {node.name: node for node in dense.graph.nodes}
    for node in [node for node in small.graph.nodes if node.name not in there]:
        source = there[node.all_input_nodes[0].name]
        with dense.graph.inserting_after(source):
            same = dense.graph.create_node("call_function", operator.mul, (source, 1.0), name=node.name)
        same.meta = dict(source.meta)
        source.replace_all_uses_with(same, lambda user, of=same: user is not of)
        there[same.name] = same


def statistics(
    artifact: Artifact, context: Context, groups: Sequence[Group], states: bool = False, ahead: bool = False
) -> Statistics:
    """One streaming pass over the calibration images, for all consumers of some groups, by all processes of the run.

    What another stage has counted of the same model is not counted again.

    Args:
        artifact: the model.
        context: of the run.
        groups: whose consumers' moments and Fisher matrices are wanted.
        states: whether to count activation states.
        ahead: whether it is kept for a stage that asks for the same groups.

    Raises:
        EmptyData: there are no images.
    """
    key = ("statistics", *asked(context, groups))
    if context.findings is not None and not states and context.findings.knows(artifact.module, key):
        known: Statistics = context.findings.of(artifact.module, key, Statistics)
        # The other processes keep one thing at a time.
        if context.team.keeps(known):
            return known

    def count() -> Statistics:
        return context.together(_counted, artifact, tuple(groups), states, keep=True)

    return once(context.findings, artifact.module, key, count) if ahead else count()


def asked(context: Context, groups: Sequence[Group]) -> tuple[object, ...]:
    """What statistics of some groups depend on, beside the model."""
    recipe = context.recipe
    size = 0 if recipe.entropy == "pooled" else recipe.batch_size
    return (id(context.data), recipe.calibration, recipe.seed, size, context.device, tuple(g.name for g in groups))


def _counted(artifact: Artifact, groups: Sequence[Group], states: bool, context: Context) -> Statistics:
    """The pass of one process. Published estimates of the entropy depend on the size of the batches: it is that of training."""
    recipe = context.recipe
    # EASIER and EGP average over mini-batches, so their estimate follows the batch size.
    size = calibration.STATISTICS if recipe.entropy == "pooled" else recipe.batch_size
    share = context.calibration.share(context.ranks, size)
    return collect(
        artifact.module,
        lambda: context.calibration.inputs(size, share=share),
        consumers(artifact.module, groups),
        images=context.calibration.images,
        device=context.device,
        task=context.data.spec.task,
        sampling=Sampling(seed=recipe.seed),
        room=_room(context, artifact.module, 2 * needed_bytes(artifact.module)),
        states=states,
        estimator=recipe.entropy,
        progress=lambda done: context.progress("statistics", done, ""),
        ranks=context.ranks,
        share=share,
    )


def images(context: Context) -> Images:
    """All calibration inputs, in parts that go through both models in the memory that there is.

    Raises:
        EmptyData: there is none.
        NotEnoughMemory: not even one image goes through, or one layer cannot be fitted.
    """
    module = context.before.module
    # 2: both models.
    each = 2 * needed_bytes(module)
    room = _room(context, module, each)
    size = min(calibration.ROWS, context.calibration.images)
    share = context.calibration.share(context.ranks, size)
    inputs = context.calibration.inputs(size, device=context.device, share=share)
    found = Images(inputs, room, room.images(each), context.ranks, share)
    if not found.samples:
        raise EmptyData("The refit needs at least one training image and there is none. Give images with --data.")
    return found


def _room(context: Context, module: GraphModule, each: float) -> Room:
    """The memory of a stage, said and known to be enough.

    Raises:
        NotEnoughMemory: not even one image goes through, or one layer cannot be fitted.
    """
    room, images = context.room(), context.calibration.images
    # The same for all: how many passes there are follows from it.
    room = replace(room, limit=min(context.ranks.gathered(room.limit)))
    room.check(each, "One image on its way through the model")
    for path, one in layers(module).items():
        room.check(fit_bytes(module, one, images), f"The layer {path}")
    context.progress("memory", 0.0, room.said)
    memory.let_go(_bytes(module))
    return room


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.parameters())


def kept(dense: Artifact, plan: Plan) -> dict[str, Kept]:
    """Which outputs and inputs of each dense layer a plan leaves, found by removing from weights that hold their own position."""
    known = layers(dense.module)
    found: dict[str, list[Tensor]] = {path: [] for path in known}
    for dim in (0, 1):
        for path, places in _places(dense, plan, known, dim).items():
            found[path].append(places)
        memory.let_go(_bytes(dense.module))  # of the copies
    return {path: _kept(known[path], *sides) for path, sides in found.items()}


def _places(dense: Artifact, plan: Plan, known: Iterable[str], dim: int) -> dict[str, Tensor]:
    """Which entries along an axis of each weight are left: every entry says where it stood, and says so after the edits."""
    numbered = copy.deepcopy(dense.module)
    for path in known:
        weight = getattr(numbered.get_submodule(path), "weight").data  # noqa: B009 (a Module's attribute has no type)
        place = torch.arange(weight.shape[dim], dtype=weight.dtype)
        middle = weight.zero_()[(..., *(n // 2 for n in weight.shape[2:]))]  # one entry: a layer may be reduced to 1x1
        middle.copy_(place.view(-1, *[1] * (1 - dim)).expand_as(middle))
    left, found = apply(plan, Artifact(numbered, dense.inputs)).module, dict[str, Tensor]()
    for path in known:
        weight = getattr(left.get_submodule(path), "weight").data  # noqa: B009
        # amax: all entries but one are 0, and that one is the position.
        found[path] = weight.movedim(dim, 0).reshape(weight.shape[dim], -1).amax(1).round().long()
    return found


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
    return context.together(_refitted, small) if context.fitting else small


def _refitted(small: Artifact, context: Context) -> Artifact:
    pair = both(small, context)
    # A layer runs on every image once its weights are fitted: what follows is fitted behind it.
    with watched(pair.small, [one.layer for one in pairs(small.module)]) as sums:
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
    result = replace(small, module=written_back(small, pair.small, pair.batches, context.ranks, sums)).noting(*pair.notes)
    if not done.recalibrated:
        return result
    return result.noting(
        f"Running statistics of {many(len(done.recalibrated), 'norm')} were taken anew on the calibration images: the layers "
        "before them lost inputs and cannot be refitted."
    )


def written_back(
    small: Artifact,
    fitted: GraphModule,
    batches: Sequence[tuple[Tensor, ...]],
    ranks: Ranks = ALONE,
    sums: OutputSums | None = None,
) -> GraphModule:
    """The smaller model with the folded, fitted weights taken apart into layers and norms again.

    Args:
        small: the smaller model as it was.
        fitted: the same folded, its weights fitted since.
        batches: calibration inputs.
        ranks: the processes that share them.
        sums: of the outputs of layers with norms, if they were added up on the way; not used where a batch is missing.
    """
    paths = [pair.layer for pair in pairs(small.module)]
    whole = sums is not None and all(sums.calls[path] == len(batches) for path in paths)
    outputs = sums.moments(ranks) if sums is not None and whole else output_moments(fitted, paths, batches, ranks)
    device = next(small.module.parameters(), torch.empty(0)).device
    there = next(fitted.parameters(), torch.empty(0)).device == device
    return unfold(small.module, fitted if there else copy.deepcopy(fitted).to(device), outputs)


def output_moments(
    module: nn.Module, paths: Sequence[str], batches: Iterable[tuple[Tensor, ...]], ranks: Ranks = ALONE
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance per channel of some layers' outputs, over images and positions; the batches are those of one process."""
    with watched(module, paths) as sums, torch.no_grad():
        for inputs in batches:
            module(*inputs)
    return sums.moments(ranks)
