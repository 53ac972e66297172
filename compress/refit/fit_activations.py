"""One streaming pass that fits affine functions to activations, and the edits that put them in place.

    what an activation sees and gives, over all calibration images  ->  sums  ->  slope and offset of each channel

All activations are fitted at once, on the model as it is. What the first ones change in front of later ones is for a refit of the
layers between them to repair. Fitting one after another, each behind those before it, takes a pass per activation, and without a
refit is better on some networks and worse on others (`benchmarks/linearize.py` has both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.data.calibration import STATISTICS
from compress.edits import Linearize, Plan
from compress.entropy.closest_affine import AffineSums, Fit
from compress.errors import EmptyData, UnsupportedModel
from compress.graph.linearize import Activation, activations, channels_at
from compress.ranks import ALONE, Ranks, Share
from compress.recipe import Recipe
from compress.refit import refit
from compress.refit.tape import needed_bytes
from compress.stage import Context
from compress.statistics.activation_states import observed

_FEWEST = 2  # values per channel; through one alone goes any affine function
_DIGITS = 7  # significant ones of a plan's numbers: float32 has no more


def linearized(artifact: Artifact, context: Context, wanted: Sequence[str], kind: str | None = None) -> Artifact:
    """The model with affine functions at some activations, without training.

    Behind the closest affine function ("affine") every layer is refitted to what the dense model does. An identity is left as
    it is, for the training that the papers give it; so is an affine function that fine-tuning is to approach ("gradual", unless
    there are no epochs).

    Args:
        artifact: the model that the activations are in.
        context: of the run.
        wanted: paths of activations; with none the model stays as it is.
        kind: "affine", "gradual" or "identity"; by default what the recipe says.

    Raises:
        UnsupportedModel: a activation does not exist or cannot be linearized; tells why.
        EmptyData: there are too few images for an affine function.
    """
    if not wanted:
        # Nothing to do: the pass over the images would be for nothing.
        return artifact
    straight = apply(Plan(fitted(artifact, context, wanted, kind)), artifact)
    return refit.refitted(straight, context) if refits(context.recipe, kind) else straight


def refits(recipe: Recipe, kind: str | None = None) -> bool:
    # Gradual fine-tuning bends the activation step by step; with no epochs it is put in place at once.
    """Whether layers behind affine functions of some kind are refitted at once, instead of left for fine-tuning."""
    kind = kind or recipe.linearize
    return kind == "affine" or (kind == "gradual" and recipe.epochs == 0)


def fitted(artifact: Artifact, context: Context, wanted: Sequence[str], kind: str | None = None) -> tuple[Linearize, ...]:
    """The edits that linearize some activations.

    Args:
        artifact: the model that the activations are in.
        context: of the run; affine functions are fitted on the calibration images.
        wanted: paths of activations.
        kind: "affine" and "gradual" give the closest affine function, "identity" gives identities; by default what the recipe
            says.

    Raises:
        UnsupportedModel: a activation does not exist or cannot be linearized; tells why.
        EmptyData: there are too few images for an affine function.
    """
    known = checked(artifact.module, wanted)
    if not known or (kind or context.recipe.linearize) == "identity":
        nodes = {node.name: node for node in artifact.module.graph.nodes}
        return tuple(Linearize(path, channels_at(nodes[activation.node], activation.axis)) for path, activation in known.items())
    return tuple(edit(path, fit) for path, fit in fits(artifact, context, wanted).items())


def edit(path: str, fit: Fit) -> Linearize:
    """The edit that puts a fit in place."""
    # Rounded, so that a plan reads well and gives the same numbers back.
    slope, offset = (tuple(float(f"{x:.{_DIGITS}g}") for x in numbers.tolist()) for numbers in (fit.slope, fit.offset))
    return Linearize(path, len(slope), slope, offset)


def fits(artifact: Artifact, context: Context, wanted: Sequence[str]) -> dict[str, Fit]:
    """The closest affine function of every channel of some activations, by path.

    Raises:
        UnsupportedModel: a activation does not exist or cannot be linearized; tells why.
        EmptyData: there are too few images for an affine function.
    """
    known = checked(artifact.module, wanted)
    sums = context.together(_sums, artifact, tuple(known.values()))
    few = next((path for path in known if path not in sums or sums[path].seen < _FEWEST), None)
    if few is not None:
        seen = sums[few].seen if few in sums else 0
        raise EmptyData(
            f"The affine function at {few} would be fitted to {seen} values per channel; needed are at least {_FEWEST}. "
            "Give more images with --data or --calibration, or take --linearize identity."
        )
    return {path: sums[path].fit() for path in known}


def _sums(artifact: Artifact, wanted: Sequence[Activation], context: Context) -> dict[str, AffineSums]:
    """Of all calibration images, each process's share of them added to those of the others."""
    # Streaming, as the values of all activations at once would not fit into memory.
    fits_in = context.room().images(2 * needed_bytes(artifact.module))
    size, ranks = min(STATISTICS, *context.ranks.gathered(fits_in)), context.ranks
    return affine_sums(
        artifact.module,
        context.calibration.inputs(size, share=context.calibration.share(ranks, size)),
        wanted,
        context.device,
        lambda seen: context.progress("fit activations", min(seen * ranks.count / max(context.calibration.images, 1), 1.0), ""),
        context.calibration.inputs(size, share=Share(range(1), frozenset())) if ranks.count > 1 else (),
        ranks,
    )


def affine_sums(
    module: GraphModule,
    batches: Iterable[tuple[Tensor, ...]],
    wanted: Sequence[Activation],
    device: torch.device,
    progress: Callable[[int], None] = lambda seen: None,
    about: Iterable[tuple[Tensor, ...]] = (),
    ranks: Ranks = ALONE,
) -> dict[str, AffineSums]:
    """What affine functions are fitted to, by path.

    Args:
        module: the model; not changed.
        batches: of the images, or this process's share of them.
        wanted: activations of the model.
        device: where it runs.
        progress: told the number of images seen.
        about: a batch whose means the sums are taken about, the same in every process; by default the first of `batches`.
        ranks: the processes that share the images.
    """
    module = observed(module, device)
    sums: dict[str, AffineSums] = {}
    adding = False

    def watching(activation: Activation) -> Callable[..., None]:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            one = sums.setdefault(activation.path, AffineSums(activation.axis))
            (one.add if adding else one.about)(args[0], output)

        return hook

    for activation in wanted:
        module.get_submodule(activation.path).register_forward_hook(watching(activation))
    seen = 0
    with torch.no_grad():
        for inputs in about:
            module(*(x.to(device) for x in inputs))
        adding = True
        for inputs in batches:
            module(*(x.to(device) for x in inputs))
            seen += len(inputs[0])
            progress(seen)
    if ranks.count > 1:
        for one in sums.values():
            one.join(ranks)
    return sums


def checked(module: GraphModule, wanted: Sequence[str]) -> dict[str, Activation]:
    """The named activations in graph order.

    Raises:
        UnsupportedModel: one does not exist or cannot be linearized; tells why.
    """
    known = {activation.path: activation for activation in activations(module)}
    for path in wanted:
        if path not in known:
            listed = ", ".join(list(known)[:5]) + (" and more" if len(known) > 5 else "")
            have = f"its activations are {listed}" if known else "it has none left"
            raise UnsupportedModel(f"The model has no activation {path}; {have}.")
        if (reason := known[path].refused) is not None:
            raise UnsupportedModel(f"The activation {path} cannot be linearized: {reason}. Choose others.")
    return {path: activation for path, activation in known.items() if path in wanted}
