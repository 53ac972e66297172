"""What makes every figure of a run doubtful, looked for before anything slow: inputs as the model was not trained with, and
a model that guesses.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch

from compress.artifact import Artifact
from compress.data import Data, DataSpec
from compress.data.settings import PRESETS
from compress.errors import BadInput, CompressWarning
from compress.measure import quality
from compress.method_table import METHODS
from compress.pipeline.given import IN_MEMORY, spoken
from compress.recipe import Recipe
from compress.report import sentences
from compress.report.records import Quality
from compress.stage import Context
from compress.user.wording import many

INSIST = "add --allow-doubtful to go on all the same"
_LOOKED_AT = 64  # samples: this stands in front of every command that opens data
_BETTER = 0.2
"""Share of right answers by which another normalization has to be better; far beyond what so few samples scatter."""
_GUESSED = (256, 2000)
"""Samples that tell guessing from knowing: most models show on the first number that they know something."""
_ENOUGH = 100  # test samples; among fewer a model that knows something may look like one that guesses


def uncounted(dense: Artifact) -> Artifact:
    """With a warning of layers that multiply and were not counted: shares, targets and gates in MACs leave them out."""
    if not (passed := dense.cost.uncounted):
        return dense
    more = f" and {len(passed) - 3} more" if len(passed) > 3 else ""
    return warned(dense, f"The MACs of {', '.join(passed[:3])}{more} could not be counted: every figure in MACs leaves them out.")


def warned(dense: Artifact, odd: str) -> Artifact:
    """With a warning, which is told at once."""
    warnings.warn(odd, CompressWarning, stacklevel=3)
    return dense.warning(odd)


@dataclasses.dataclass(frozen=True)
class Other:
    """A normalization with which the model does far better than with that of the data.

    Attributes:
        name: of `PRESETS`.
        said: both shares, in a sentence.
        sure: whether the other one was only inferred or written down; real numbers are what somebody made them.
    """

    name: str
    said: str
    sure: bool


def other_normalization(dense: Artifact, data: Data, metric: quality.Metric) -> Other | None:
    """The usual normalization with which the model does far better; None where none does, or nobody can tell."""
    spec = data.spec
    if metric.name != "top1" or not spec.labeled:
        return None
    # Drawn, not the first ones: folders are sorted by class.
    batch = next(iter(data.train.batches(_LOOKED_AT, limit=_LOOKED_AT)))
    (x,), target = batch.inputs[:1], batch.target
    if len(batch.inputs) > 1 or target is None or x.ndim != 2 + len(spec.shape[1:]) or len(spec.mean) not in (0, x.shape[1]):
        return None
    normalized = _normalized(spec)
    if not normalized and not _as_from_a_picture(x):
        return None
    given = _right(dense, x, target)
    if given > 1 - _BETTER:
        return None  # nothing can be so much better
    plain = x * _beside(spec.std, x) + _beside(spec.mean, x) if normalized else x
    found = {
        name: _right(dense, (plain - _beside(mean, x)) / _beside(std, x), target)
        for name, (mean, std) in PRESETS.items()
        if len(mean) == x.shape[1] or name == "none"
    }
    best = max(found, key=lambda name: found[name])
    # A model that answers the same to everything is right on one class, whichever the normalization makes it.
    alone = float(target.flatten().bincount().max()) / target.numel()
    if found[best] < max(given, alone) + _BETTER:
        return None
    whose = next(
        said
        for said, holds in (
            ("that was inferred", spec.inferred),
            ("of the data settings", spec.stated),
            ("of their data set", normalized),
            ("that they come with", True),
        )
        if holds
    )
    with_other = "with none" if best == "none" else f"with that of {best}"
    return Other(
        best,
        f"The model is right on {given:.0%} of {len(x)} training samples with the normalization {whose}, and on "
        f"{found[best]:.0%} {with_other}",
        normalized or bool(spec.stated),
    )


def _normalized(spec: DataSpec) -> bool:
    """Something is subtracted or divided by here, and not by whoever made the inputs."""
    return spec.inferred or any(spec.mean) or any(value != 1 for value in spec.std)


def _as_from_a_picture(x: torch.Tensor) -> bool:
    """Real numbers of one or three channels from 0 to 1, as `ToTensor` leaves them."""
    return x.is_floating_point() and x.shape[1] in (1, 3) and float(x.min()) >= 0 and float(x.max()) <= 1


def _beside(values: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    """A value for each channel, or one for all, in the shape of a batch."""
    return torch.tensor(values).view(1, -1, *[1] * (x.ndim - 2))


def _right(dense: Artifact, x: torch.Tensor, target: torch.Tensor) -> float:
    with torch.no_grad():
        found = quality.first_output(dense.module(x)).argmax(1)
    return float((found == target).float().mean()) if found.shape == target.shape else 0.0


def told_or_refused(dense: Artifact, data: Data, metric: quality.Metric, recipe: Recipe, refusing: bool) -> Artifact:
    """With a warning where another normalization is far better.

    Raises:
        BadInput: it is, and with `refusing` nobody insists on this one.
    """
    other = other_normalization(dense, data, metric)
    if other is None:
        return dense
    line = f'normalize = "{other.name}"'
    if recipe.data.endswith(".toml"):
        instead = f", in the place of {data.spec.stated}" if data.spec.stated else ""
        remedy = f"Write {line} into {recipe.data}{instead}"
    elif recipe.data.startswith(IN_MEMORY):
        remedy = f"Give samples that are normalized as in training ({other.name}), as real numbers"
    else:
        remedy = f'Write a data.toml with source = "{recipe.data}" and {line}, and give --data data.toml'
    if refusing and other.sure and not recipe.allow_doubtful:
        raise BadInput(f"{other.said}, so that every figure would be of the wrong inputs. {remedy}; or {INSIST}.")
    return warned(dense, f"{other.said}: the inputs are probably not those of its training. {remedy}.")


def seen_in_training(context: Context, metric: quality.Metric) -> str | None:
    """What to say of quality that is counted on samples which the model was probably trained on; None where it is not."""
    data = context.data
    if data.own_test or not data.spec.labeled or _begins_anew(context.recipe):
        return None
    if context.recipe.data.startswith(IN_MEMORY):
        how = 'data={"train": ..., "test": ...}'
    else:
        how = "folders train/ and test/, or arrays x_test and y_test beside x_train and y_train"
    return (
        f"The data has no part for testing: {metric.name} is counted on {many(len(data.test), 'sample')} set aside from it, and "
        f"says too much if the model was trained on them. Give samples to test on that it has not seen: {how}."
    )


def guessing(context: Context, metric: quality.Metric) -> str | None:
    """Refuse a dense model that is no better than guessing; what to say of it where somebody insists, or few samples tell.

    Raises:
        BadInput: it only guesses, and its weights are what the method goes by.
    """
    recipe = context.recipe
    if metric.name not in sentences.GUESSED or not context.data.spec.labeled:
        return None
    odd, samples = None, 0
    for limit in _GUESSED:
        batches = context.data.test.batches(quality.BATCH, limit=limit, seed=recipe.seed, device=context.device)
        counted = quality.finished(quality.count(context.dense.module, batches, metric, context.device), metric)
        odd = guesses(Quality(**dataclasses.asdict(counted)), context)
        samples = counted.samples
        if odd is None or samples < limit:
            break
    if odd and not recipe.allow_doubtful and samples >= _ENOUGH and not _begins_anew(recipe):
        raise BadInput(f"{odd} Nothing can be told of what compressing it costs: correct that, or {INSIST}.")
    return odd


def guesses(dense: Quality | None, context: Context) -> str | None:
    """What to say of a dense model of this quality that only guesses; None where it does not."""
    odd = sentences.guessing(dense, context.data.spec.classes)
    return odd and spoken(odd, context.recipe)


def _begins_anew(recipe: Recipe) -> bool:
    """The weights are drawn or trained anew, so that nothing need be known by those that are given."""
    return recipe.from_scratch or recipe.initial is not None or METHODS[recipe.method].weights_target is not None
