"""What edits cost, seen without labels: how far they move the outputs of a model, before any refit or training.

    m_k = mean over images of KL(softmax(y) || softmax(y_k))        y outputs of the model, y_k of the model with edits k

for classes, the mean squared difference otherwise. For affine functions this tells far better than state entropy which
activations can go (`benchmarks/rectifiers.py`): entropy sees how often an activation switches, not what hangs on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.artifact import Artifact, apply
from compress.edits import Edit, Plan
from compress.measure import quality
from compress.stage import Context
from compress.training import distillation

_IMAGES = 512  # the order of the edits, not the last digit of what they cost, is what is needed


def moved(
    artifact: Artifact, each: Sequence[Iterable[Edit]], context: Context, progress: Callable[[float], None] = lambda share: None
) -> list[float]:
    """How far each of several sets of edits, carried out alone, moves the outputs of a model.

    Args:
        artifact: the model.
        each: sets of edits.
        context: of the run; images come from its training data.
        progress: told the share that is done.
    """
    images = replace(context.calibration, images=min(_IMAGES, len(context.data.train)))  # whatever --calibration says
    batches = list(images.inputs(quality.BATCH))
    before, found = _outputs(artifact, batches, context), list[float]()
    for number, edits in enumerate(each):
        after = _outputs(apply(Plan(tuple(edits)), artifact), batches, context)
        # Temperature 1: the divergence itself, as the docstring has it.
        found.append(float(distillation(after, before, context.data.spec.task, 1.0)))
        progress((number + 1) / len(each))
    return found


def _outputs(artifact: Artifact, batches: Sequence[tuple[Tensor, ...]], context: Context) -> Tensor:
    module = artifact.on(context.device)
    with torch.no_grad():
        return torch.cat([quality.first_output(module(*(x.to(context.device) for x in inputs))).float() for inputs in batches])
