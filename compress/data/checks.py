"""Does the data fit the model: its inputs, and what the outputs can say of its labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from compress.data.splits import Data
from compress.data.stores import WHOLE
from compress.data.targets import OTHERWISE
from compress.errors import BadInput
from compress.user.wording import many


def check_input(data: Data, shape: Sequence[int]) -> None:
    """Refuse data whose inputs have another shape (channels, height, width) than the model's.

    Raises:
        BadInput: with both shapes.
    """
    if tuple(shape) != data.spec.shape:
        raise BadInput(
            f"The input shape is {_by(shape)}, the data has {_by(data.spec.shape)}. "
            f"Correct --input-shape, or spell channels and size in a data.toml."
        )


def check_output(data: Data, shape: Sequence[int], own: bool = False) -> tuple[str, ...]:
    """Refuse labels that the model's output, of `shape` (n, ...), cannot express; notes about what looks odd but can be right.

    Args:
        data: labels and their names.
        shape: of the model's output for one sample or more.
        own: metric and loss are the user's own, who knows what the outputs mean.

    Raises:
        BadInput: more classes than outputs, or targets of another shape.
    """
    task, classes = data.spec.task, len(data.spec.classes or ())
    if not data.spec.labeled:
        lone = task == "classification" and torch.Size(shape[1:]).numel() == 1
        return (f"The model has one output, taken as a logit of two classes; {OTHERWISE}.",) if lone else ()
    if task in WHOLE:
        outputs = 1 if len(shape) < 2 else shape[-1 if task == "text" else 1]
        if outputs == 1 and classes == 2:
            return (_binary(data.spec.classes or ()),)
        found = f"The labels of {data.spec.source} reach class {classes - 1}, the model has {many(outputs, 'output')}"
        if classes > outputs and own:
            return (f"{found}: what they mean is left to the metric and loss given; --distill 0 leaves the dense model's out.",)
        if classes > outputs:
            raise BadInput(
                f"{found}. Give the data the model was trained on, list its classes in a data.toml, or give --metric and --loss "
                f"of your own."
            )
        # Names that are not their numbers are told with more weight (`by_position`).
        return () if classes == outputs or by_position(data, shape) else (_fewer_classes(classes, outputs),)
    target = next(data.train.batches(1)).target
    if not own and target is not None and target[0].numel() != torch.Size(shape[1:]).numel():
        whole = target.numel() == len(target) and bool((target == target.round()).all())
        remedy = (
            "If they are numbers of classes, make them whole numbers: y.long() in torch, y.astype(int) in numpy"
            if whole
            else "Give a value for each output, or --metric and --loss of your own"
        )
        raise BadInput(f"The targets have the shape {tuple(target.shape[1:])}, the model's outputs {tuple(shape[1:])}. {remedy}.")
    several = f"A label holds where its output is above 0: outputs are taken as logits of {classes} labels."
    return (several,) if task == "multilabel" else ()


def _binary(names: Sequence[str]) -> str:
    return (
        f"The model has one output for two classes, taken as a logit: above 0 it is class 1 ({names[1]}), else class 0 "
        f"({names[0]}), and the loss is the binary cross entropy."
    )


def _fewer_classes(classes: int, outputs: int) -> str:
    return (
        f"The data has {classes} classes, the model {outputs} outputs: labels are taken as outputs 0 to {classes - 1}; "
        "list all classes in a data.toml if that is wrong."
    )


def by_position(data: Data, shape: Sequence[int]) -> str | None:
    """What to say where named classes, such as those of folders, are fewer than the outputs, of `shape` (n, ...).

    Which outputs they are nobody knows: they are taken as the first ones, in the order of the names.
    """
    names = data.spec.classes or ()
    outputs = 1 if len(shape) < 2 else shape[-1 if data.spec.task == "text" else 1]
    if data.spec.task not in WHOLE or not 1 < len(names) < outputs or names == tuple(map(str, range(len(names)))):
        return None
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"The data has {len(names)} classes ({some}) and the model {outputs} outputs, so labels are taken by position, as "
        f"outputs 0 to {len(names) - 1}. If the model knows them at other places, every quality is of wrong labels: list all of "
        "its classes, in the order of its outputs, as classes = [...] in a data.toml."
    )


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
