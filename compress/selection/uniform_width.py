"""What methods share that prune a net before its training: how much is to stay, and the narrower net that this leaves.

Nothing is refitted: the weights are those that a training will begin with.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.entropy import allocate
from compress.errors import BadInput, UnsupportedModel
from compress.graph.channels.solve import Group
from compress.measure.asked import parse_target
from compress.recipe import DEFAULT_TARGET, DEFAULT_WEIGHTS, Recipe
from compress.selection import budget
from compress.stage import Context

Worth = Callable[[GraphModule, Group], Tensor]
"""What each channel of a group is worth, (channels,)."""


def goal(recipe: Recipe) -> tuple[str, float]:
    """Unit and share of the target: of the weights, or with channels of parameters or MACs.

    Raises:
        BadInput: a unit that does not fit what is pruned.
    """
    default = DEFAULT_WEIGHTS if recipe.structure == "weights" else DEFAULT_TARGET
    unit, share = parse_target(recipe.target or default)
    fitting = ("weights",) if recipe.structure == "weights" else ("params", "macs")
    if unit in fitting:
        return unit, share
    if recipe.structure == "weights":
        raise BadInput(
            f"The target {recipe.target} cannot be met by masking single weights: they stay in the file and in every "
            "multiplication. Take a target such as weights=0.1, or --structure channels."
        )
    raise BadInput(f"The target is {recipe.target}; with --structure channels needed is params=SHARE or macs=SHARE.")


def check(artifact: Artifact, context: Context) -> None:
    """Refuse what cannot be pruned and trained.

    Raises:
        BadInput: no labels, no training, a tolerance, or a target that does not fit.
        UnsupportedModel: with channels: none can be removed.
        Infeasible: with channels: a target out of reach.
    """
    recipe = context.recipe
    if not context.data.spec.labeled:
        raise BadInput(f"The method {recipe.method} trains from the beginning, which needs labels, and the data has none.")
    if recipe.epochs == 0:
        raise BadInput(f"The method {recipe.method} trains the pruned net from the beginning. Give --epochs above 0.")
    if recipe.tolerance is not None:
        raise BadInput(f"--tolerance needs a method that measures the loss, {recipe.method} does not. Give a --target instead.")
    unit, _ = goal(recipe)
    if recipe.structure == "channels":
        groups = budget.removable(artifact.module, artifact.channels)
        if not groups:
            raise UnsupportedModel("The model has no group of channels that can be removed. 'compress explain' tells why.")
        assert recipe.target is not None, "a recipe without a target is given one"
        model = budget.cost_model(artifact, groups, unit)
        # Only for its refusal: what cannot be reached should be told before training.
        budget.absolute(recipe.target, model, groups, recipe.align or 1)


def narrower(untrained: Artifact, judged: GraphModule, worth: Worth, context: Context, unit: str, share: float) -> Artifact:
    """The untrained net with the same share of each group's channels, those that are worth most in the judged one.

    Args:
        untrained: weights that a training begins with.
        judged: the same architecture.
        worth: of the channels, in the judged net.
        context: whose dense model the share is of.
        unit: "params" or "macs".
        share: that stays.
    """
    # Of the judged net: its groups are those that `worth` is asked about.
    net = Artifact(judged, untrained.inputs)
    groups = budget.removable(judged, net.channels)
    model = budget.cost_model(net, groups, unit)
    whole = getattr(context.dense.cost, unit)
    split = allocate.uniform([g.channels for g in groups], model, share * whole, context.recipe.align or 1)
    edits = [
        Keep(group.name, group.channels, tuple(sorted(worth(judged, group).topk(count).indices.tolist())))
        for group, count in zip(groups, split.counts, strict=True)
        if count < group.channels
    ]
    return apply(Plan(tuple(edits)), untrained)


def share(artifact: Artifact, dense: Artifact, unit: str) -> float:
    """Parameters or MACs as a share of the dense model's."""
    now, whole = (getattr(one.cost, unit) for one in (artifact, dense))
    return now / whole
