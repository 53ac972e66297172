"""Lottery tickets: iterative magnitude pruning, with the original initial weights or with others.

    theta_0 = the initial weights, m = 1
    at each level:  train theta_0 m, with m held;  the largest |theta| of what is left stay in m
    variant `original`  begins each level with theta_0, or with the weights after --rewind epochs of the first training
    variant `random`    begins each level with weights drawn anew

Sources: Frankle and Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; rewinding: Frankle et al., "Stabilizing the Lottery
Ticket Hypothesis", arXiv:1903.01611. The best epoch is chosen on held-out data, the optimizer is new at each level, biases are
never pruned, and the sign of a weight does not matter. Departs in that a rewound net is trained with the whole schedule, and,
with `--structure channels`, in that filters are ranked (sum of |w|) and go: the same question of nets that are really smaller.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.checkpoint.load.pickles import unpickle
from compress.checkpoint.load.sniff import Kind, identify
from compress.curves import Curve, Series
from compress.entropy import ranking
from compress.errors import BadInput
from compress.measure import quality
from compress.recipe import DRAWN, Recipe
from compress.selection import depth, scores, uniform_width
from compress.stage import Context, Decides, Traits
from compress.training import reinitialized
from compress.training.initial_weights import beginning
from compress.training.masks import masked, prunable, unmasked
from compress.training.together import How, train_together
from exporters import atomic

_REDRAWN = 1000  # added to the seed per level, so that no level of `random` begins where another one did
_FIRST = "first"


@dataclass(frozen=True)
class Level:
    """A trained net of one variant.

    Attributes:
        left: share of the weights, or of the target's unit, that is left.
        artifact: trained; weights that are held at zero are zeros.
        held_out: its quality on held-out data.
    """

    variant: str
    number: int
    left: float
    artifact: Artifact
    held_out: quality.Quality


@dataclass(frozen=True)
class _Ticket:
    """What a level begins with: initial weights, and which of them are held at zero. Without masks, channels go."""

    artifact: Artifact
    masks: ranking.Masks


@dataclass(frozen=True)
class Lottery:
    """The stage."""

    name: str = "lottery"
    traits: Traits = Traits(Decides.IN_TRAINING, frozenset({"width"}), trains=True, once=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse what has no initial weights to go back to, no labels, no training, or a target that does not fit.

        Raises:
            BadInput: see above; says what is still possible.
            UnsupportedModel, Infeasible: with channels: none can go, or not so many.
        """
        recipe = context.recipe
        uniform_width.check(artifact, context)
        if recipe.initial is None and "original" in recipe.variants:
            raise BadInput(
                "The initial weights of the model are not known, and the variant 'original' begins with them. Give their "
                f"checkpoint with --initial FILE, or take --initial {DRAWN}: weights are drawn, and the dense net is trained "
                "here. Without either, --variants random is possible."
            )
        if recipe.rewind and recipe.initial != DRAWN:
            raise BadInput(
                f"--rewind {recipe.rewind} needs the first training, which is carried out with --initial {DRAWN} only."
            )
        if recipe.rewind >= recipe.epochs:
            raise BadInput(f"--rewind is {recipe.rewind}; needed is less than --epochs, which is {recipe.epochs:g}.")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        found = list(self.levels(artifact, context))
        # The first variant is the result; the others are there to be compared with it.
        result = [level for level in found if level.variant == context.recipe.variants[0]][-1]
        curve, said = _told(found, context.recipe)
        return result.artifact.noting(*said).showing(curve)

    def levels(self, artifact: Artifact, context: Context) -> Iterator[Level]:
        """Every level of every variant, variant by variant from the dense net down to the target, each trained.

        A level that lies in the scratch directory already is not trained again.
        """
        recipe = context.recipe
        unit, target = uniform_width.goal(recipe)
        shares = ranking.levels(target, recipe.prune, recipe.prune_of)
        begun = beginning(artifact, context) if recipe.initial is not None else artifact
        masks = prunable(begun.module) if recipe.structure == "weights" else {}
        first, dense = _Ticket(begun, masks), artifact
        # The dense net's first training also gives the weights to rewind to.
        if recipe.initial == DRAWN:
            dense, rewound = _trained(first, context, _FIRST, f"{shares[0]:.0%} left")
            first = replace(first, artifact=rewound)
        for variant in recipe.variants:
            # Each variant begins with all weights, not where the last one ended.
            ticket, trained = first, dense
            yield Level(variant, 0, 1.0, dense, depth.held_out(dense, context))
            for number, share in enumerate(shares[1:], 1):
                ticket = _thinner(ticket, trained, context, unit, share)
                if variant == "random":
                    # Drawn anew at every level, under the mask of the level before.
                    drawn, _ = reinitialized(ticket.artifact.module, recipe.seed + _REDRAWN * number)
                    ticket = replace(ticket, artifact=replace(ticket.artifact, module=cast(GraphModule, drawn)))
                trained, _ = _trained(ticket, context, f"{variant}-{number}", f"{variant}, level {number} of {len(shares) - 1}")
                yield Level(variant, number, _left(ticket, context, unit), trained, depth.held_out(trained, context))


def _thinner(ticket: _Ticket, trained: Artifact, context: Context, unit: str, share: float) -> _Ticket:
    """What stays of a ticket, by the weights that its training came to."""
    if not ticket.masks:
        return _Ticket(uniform_width.narrower(ticket.artifact, trained.module, scores.magnitude, context, unit, share), {})
    sizes = {path: cast(Tensor, trained.module.get_submodule(path).weight).detach().abs() for path in ticket.masks}
    return replace(ticket, masks=ranking.stay(sizes, ticket.masks, share, together=context.recipe.scope == "global"))


def _left(ticket: _Ticket, context: Context, unit: str) -> float:
    return ranking.left(ticket.masks) if ticket.masks else uniform_width.share(ticket.artifact, context.dense, unit)


class _Rewinding:
    """Keeps the weights as they are after some epochs of a training."""

    def __init__(self, epochs: int):
        self.left, self.state = epochs, dict[str, Tensor]()

    def step(self, student: nn.Module) -> None:
        """Nothing."""

    def epoch(self, student: nn.Module) -> None:
        if self.left == 0:
            self.state = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}
        self.left -= 1


def _trained(ticket: _Ticket, context: Context, name: str, detail: str) -> tuple[Artifact, Artifact]:
    """A ticket after its training, and as it was after `--rewind` epochs of that (0: before it)."""
    place = None if context.scratch is None else context.scratch / f"{name}.pt"
    if place is not None and place.exists():
        return _again(place, ticket.artifact)
    observer, plain = _Rewinding(context.recipe.rewind), ticket.artifact.on("cpu")
    done = train_together(ticket.artifact.module, context, How("lottery", detail, masks=ticket.masks, observer=observer))
    held = masked(plain, ticket.masks)
    held.load_state_dict(observer.state)
    results = [replace(ticket.artifact, module=cast(GraphModule, m)) for m in (done.module, unmasked(held, plain))]
    if place is not None:
        _keep(place, {which: one.module.state_dict() for which, one in zip(("trained", "rewound"), results, strict=True)})
    return results[0], results[1]


def _again(place: Path, plain: Artifact) -> tuple[Artifact, Artifact]:
    """What a training that ended before the run was cut off came to; somebody else may have written the file.

    Raises:
        BadInput: it is no file of weights, or not of this model.
    """
    kind = identify(place)
    if kind is not Kind.ZIP:
        raise BadInput(f"{place} is {kind.value}, needed are the weights of a training. Start again with --force.")
    states = unpickle(place, kind, trust=False)
    try:
        return _with(plain, states["trained"]), _with(plain, states["rewound"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:  # RuntimeError: weights of another model
        why = str(error).splitlines()[0]
        raise BadInput(f"{place} does not hold the weights of this training ({why}). Start again with --force.") from error


def _with(artifact: Artifact, state: dict[str, Tensor]) -> Artifact:
    # A module of the same structure; its weights are replaced at once.
    module = cast(GraphModule, reinitialized(artifact.module, 0)[0])
    module.load_state_dict(state)
    return replace(artifact, module=module.eval())


def _keep(place: Path, states: dict[str, dict[str, Tensor]]) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    torch.save(states, content)
    atomic.write(place, content.getvalue())


def _told(found: Sequence[Level], recipe: Recipe) -> tuple[Curve, tuple[str, ...]]:
    """The picture of all variants, and what to say of it."""
    dense, unit = found[0].held_out, uniform_width.goal(recipe)[0]
    variants = {variant: [level for level in found if level.variant == variant] for variant in recipe.variants}
    no_worse = {variant: _no_worse(levels) for variant, levels in variants.items()}
    series = tuple(
        Series(variant, tuple(100 * one.left for one in levels), tuple(dense.points * one.held_out.value for one in levels))
        for variant, levels in variants.items()
    )
    sparsest = no_worse.get("original") or ()
    marks = {"sparsest winning ticket": 100 * sparsest[-1].left} if sparsest else {}
    note = f"Held-out {dense.metric}; a winning ticket is no worse than the dense net, {dense.value:.4f}."
    curve = Curve(
        "Lottery tickets",
        f"{unit} left, %",
        f"{dense.metric}, points",
        series,
        levels={"dense": dense.points * dense.value},
        marks=marks,
        note=note,
        log_x=True,
    )
    said = [
        f"Variant {variant}: {len(won)} of {len(variants[variant]) - 1} levels are no worse than the dense net on held-out data"
        + (f", the sparsest with {won[-1].left:.1%} of the {unit} left ({won[-1].held_out.value:.4f})." if won else ".")
        for variant, won in no_worse.items()
    ]
    if recipe.structure == "weights":
        said.append("The pruned weights are zeros in the file: nothing is smaller or faster by them.")
    return curve, tuple(said)


def _no_worse(levels: Sequence[Level]) -> list[Level]:
    """Levels that are no worse than the dense net, in the order of sparsity."""
    dense = levels[0].held_out
    return [level for level in levels[1:] if level.held_out.value == dense.value or quality.better(level.held_out, dense)]
