"""NEPENTHE: weights are pruned where activations hardly switch, until whole layers do not switch at all.

    until held-out quality is more than --max-drop points below where it began, or no activation switches:
        half of the weights that are left go, shared out by entropy (`entropy.collapse`), the smallest of each layer first
        train --epochs epochs, with these weights held at zero
    every activation of entropy 0 is linearized, which is exact on the calibration images

What is returned is the last model that kept to the limit. The zeros bring no speed by themselves; the activations that go, and
the layers merged across them, do. Sources, and what is our reading: see `entropy.collapse`. Departs from EGP in that the entropy
is taken in eval mode over the calibration images, and in affine functions instead of identities (an always-off channel stays
off).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.artifact import Artifact, apply
from compress.edits import Plan
from compress.entropy.collapse import budgets, layer_entropy, smallest
from compress.measure.points import drop
from compress.recipe import Recipe
from compress.refit import fit_activations, refit
from compress.selection import depth
from compress.stage import Context, Decides, Traits
from compress.training.together import How, train_together

_SHARE = 0.5  # of the weights that are left, per round, as published
_ROUNDS = 9  # as published: 0.2 % of the weights are left
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Nepenthe:
    """The stage."""

    name: str = "nepenthe"
    traits: Traits = Traits(Decides.IN_TRAINING, frozenset({"depth"}), trains=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse a model without activations that can go, and a target that depth alone does not reach.

        Raises:
            UnsupportedModel: no activation can be linearized.
            Infeasible: the target is not in activations, or leaves fewer than have to stay.
        """
        depth.spared(artifact, context.recipe.target)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe = context.recipe
        most = len(depth.free(artifact)) - depth.spared(artifact, recipe.target)
        limit = depth.MAX_DROP if recipe.max_drop is None else recipe.max_drop
        start = depth.held_out(artifact, context)
        best, curve = artifact, [f"0 %: {start.value:.4f}"]
        bits = _bits(best, context)
        for number in range(_ROUNDS):
            masks = _masks(best.module, bits)
            # Enough layers have collapsed, or nothing is left to prune.
            if not masks or sum(h == 0 for h in bits.values()) >= most:
                break
            pruned = 100 * (1 - 0.5 ** (number + 1))
            detail = f"round {number + 1}, {pruned:.0f} % of the weights pruned"
            trained = train_together(best.module, context, How(self.name, detail, taught=True, masks=masks))
            # From the last good model: a round that breaks the limit is thrown away.
            sparser = replace(best, module=cast(GraphModule, trained.module))
            sparser = sparser.observing(trainings=trained.curves(self.name))
            now = depth.held_out(sparser, context)
            curve.append(f"{pruned:.0f} %: {now.value:.4f}")
            if drop(start, now) > limit:
                break
            best, bits = sparser, _bits(sparser, context)
        gone = [path for path, h in bits.items() if h == 0][:most]
        shallower = apply(Plan(tuple(fit_activations.fitted(best, context, gone))), best) if gone else best
        return shallower.noting(
            f"NEPENTHE brought {len(gone)} of {most} activations to entropy 0 and linearized them, within {limit:g} points of "
            f"held-out {start.metric}. Held-out {start.metric} by pruned weights: {', '.join(curve)}."
        )


def _bits(artifact: Artifact, context: Context) -> dict[str, float]:
    """Mean entropy of the channels that switch, by path of the activation."""
    states = refit.statistics(artifact, context, (), states=True).states
    return {
        activation.path: layer_entropy(states[activation.path].entropy)
        for activation in depth.free(artifact)
        if activation.path in states
    }


def _masks(module: GraphModule, bits: Mapping[str, float]) -> dict[str, Tensor]:
    """What is left of each pruned layer's weights after this round."""
    behind = {path: layer for path in bits if (layer := _layer_before(module, path)) is not None}
    # A layer in front of two activations has two entropies, and neither is its own.
    paths = [path for path in behind if list(behind.values()).count(behind[path]) == 1]
    weights = [cast(Tensor, module.get_submodule(behind[path]).weight).detach() for path in paths]
    counts = budgets([bits[path] for path in paths], weights, _SHARE)
    if not any(counts):
        return {}
    return {behind[path]: smallest(weight, count) for path, weight, count in zip(paths, weights, counts, strict=True)}


def _layer_before(module: GraphModule, path: str) -> str | None:
    """The layer whose output the activation switches, looked for backwards through norms, linearized activations and whatever
    has one input.
    """
    node = next(n for n in module.graph.nodes if n.op == "call_module" and n.target == path)
    while len(node.all_input_nodes) == 1:
        node = cast(Node, node.all_input_nodes[0])
        if node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), _LAYERS):
            return str(node.target)
    return None
