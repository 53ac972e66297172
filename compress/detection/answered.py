"""A detector whose part is computed by something else, such as its ONNX file in a runtime: to count boxes with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from compress.detection.set_prediction import Queries
from compress.detection.wholes import OneStage, Yolo, found

Answer = Callable[[Tensor], list[Tensor]]
"""Images in, what the part says of them out, in its order."""


@contextmanager
def answering(model: nn.Module, answer: Answer) -> Iterator[bool]:
    """The detector's boxes come from `answer` while the block lasts; False where its kind cannot be answered for.

    The part itself is computed as well, for the sizes that anchors are made of.
    """
    whole = found(model)
    if whole is None or not isinstance(whole.part, OneStage | Yolo | Queries):
        yield False
        return
    if not isinstance(whole.part, Yolo):
        hooks = _of_queries(model, whole.part, answer) if isinstance(whole.part, Queries) else _of_one_stage(model, answer)
        try:
            yield True
        finally:
            for hook in hooks:
                hook.remove()
        return
    seen: list[Tensor] = []
    head = cast(Any, model).model[-1]
    if hasattr(head, "proto") or hasattr(head, "input_proj"):
        yield False
        return
    own = head.forward_head
    hook = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def said(maps: Any, **parts: Any) -> dict[str, Any]:
        computed = own(maps, **parts)
        names = [name for name in computed if name != "feats"]
        # Those of the head that trains come first, of the one that needs no choice of boxes afterwards.
        first = 0 if next(iter(parts.values())) is next(iter(head.one2many.values())) else len(names)
        given = answer(seen[-1])[first : first + len(names)]
        return {**computed, **dict(zip(names, given, strict=True))}

    head.forward_head = said
    try:
        yield True
    finally:
        hook.remove()
        del head.forward_head


def _of_queries(model: nn.Module, part: Queries, answer: Answer) -> list[RemovableHandle]:
    given: list[Tensor] = []

    def ahead(_: Any, __: Any, call: dict[str, Any]) -> None:
        given[:] = answer(call["pixel_values"])

    ends = [end.register_forward_hook(lambda _, __, ___, i=i: given[i]) for i, end in enumerate(part.ends)]
    return [model.register_forward_pre_hook(ahead, with_kwargs=True), *ends]


def _of_one_stage(model: nn.Module, answer: Answer) -> list[RemovableHandle]:
    detector, seen = cast(Any, model), list[Tensor]()
    return [
        detector.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        detector.head.register_forward_hook(lambda _, __, said: tree_unflatten(answer(seen.pop()), tree_flatten(said)[1])),
    ]
