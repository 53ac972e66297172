"""What each segment of a model would be as one layer, and what stands in the way.

A segment is taken as one map part by part (`affine`), without its numbers, every activation in it taken for linearized. Where
the border would differ, all padding has to move to its first convolution, before fine-tuning:

    p1' = p1 + s1 p2 + s1 s2 p3 + ...        p2' = p3' = ... = 0

which is the padding of the one layer, too, so that the sizes stay what they were for every input. A mean over positions commutes
with every map that treats positions alike: in front of it a 1x1 convolution goes behind it, anything else takes the linear layer
behind the mean in front of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import GraphModule

from compress.graph import linearize
from compress.graph.merge.affine import Form, after, beside, identity, objection, same_border
from compress.graph.merge.chains import barriers, is_step, names, runs
from compress.graph.merge.parts import Leaf, Part, Run, Span, sizes
from compress.graph.merge.pointwise import narrowed
from compress.graph.trace import shapes


@dataclass(frozen=True)
class Segment:
    """Layers that could become one.

    Attributes:
        layers: what a `Merge` names.
        activations: activations inside, which must be linearized first.
        pointwise: convolutions that must be reduced to 1x1 first, so that the one layer's does not grow.
        relocate: what `Relocate` edits name, in any order; empty where the border is exact as it is.
        kernel: window of the one layer; empty for a linear one.
        macs_before, macs_after: multiply-accumulates of one example, in this model and merged.
        params_before, params_after: likewise parameters, norms and linearized activations included.
        reason: why it cannot be merged; None where it can, exactly.
    """

    layers: tuple[str, ...]
    activations: tuple[str, ...]
    relocate: tuple[tuple[str, ...], ...]
    kernel: tuple[int, ...]
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int
    reason: str | None
    pointwise: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether it can be merged."""
        return self.reason is None


@dataclass(frozen=True)
class Composed:
    """Parts that follow each other, as one map.

    Attributes:
        form: of all parts so far; behind a mean over positions, of those behind it.
        head: form of those before the mean.
        pooled: whether there is a mean.
        activations: activations inside.
        inner: chains inside spans whose padding has to move.
        moves: whether its own padding has to move to the first part.
        fixed: why padding cannot move there.
        reason: why it is no exact map.
    """

    form: Form | None = None
    head: Form | None = None
    pooled: bool = False
    activations: tuple[str, ...] = ()
    inner: tuple[tuple[str, ...], ...] = ()
    moves: bool = False
    fixed: str | None = None
    reason: str | None = None

    @property
    def refusal(self) -> str | None:
        """Why it cannot be one layer."""
        return self.reason or (None if self.form is not None and self.merged.inputs else "there is nothing but pools in it")

    @property
    def merged(self) -> Form:
        """The one map."""
        assert self.form is not None
        if not self.pooled or self.head is None:
            return self.form
        # Behind the mean there are no positions: a 1x1 map is a matrix there.
        head = replace(self.head, size=(), stride=(), padding=()) if self.head.pointwise else self.head
        return after(head, self.form)


def composed(parts: Iterable[Part], so_far: Composed | None = None) -> Composed:
    """Parts that follow each other, behind those of another segment."""
    one = so_far or Composed()
    for part in parts:
        one = _span(one, part) if isinstance(part, Span) else _leaf(one, part)
    return one


def tail(run: Run, last: int) -> int:
    """Number of the last part that a merge up to part `last` takes with it: norms and linearized activations, and what lies
    between them.
    """
    end = last
    for i, part in enumerate(run.parts[last + 1 :], last + 1):
        if not isinstance(part, Leaf) or part.role not in ("norm", "silent"):
            break
        # Silent parts at the very end are not needed; they stay where they are.
        end = i if part.role == "norm" else end
    return end


def segments(module: GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Segment, ...]:
    """Every segment that could be one layer, and of those that could not the shortest.

    Args:
        module: traced model; shapes are noted in it.
        inputs: example inputs, batch first.
    """
    shapes.note_shapes(module, module.graph, inputs)
    return tuple(_segment(module, parts, one) for parts, one in _stretches(module))


def narrower(module: GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Segment, ...]:
    """Every segment of two windows with an activation inside that could be one layer if either of them were 1x1.

    Args:
        module: traced model; shapes are noted in it.
        inputs: example inputs, batch first.
    """
    shapes.note_shapes(module, module.graph, inputs)
    found: list[Segment] = []
    for parts, one in _stretches(module):
        windows = [leaf for leaf in leaves(parts) if leaf.form is not None and leaf.form.inputs and math.prod(leaf.form.size) > 1]
        # One of exactly two windows: with more, reducing one would still leave the merged window grown.
        for leaf in windows if len(windows) == 2 and one.activations else ():
            less = _without_window(parts, leaf.name)
            if less is not None and (two := composed(less)).refusal is None:
                found.append(replace(_segment(module, parts, two), pointwise=(leaf.name,)))
    return tuple(found)


def leaves(parts: Iterable[Part]) -> Iterator[Leaf]:
    """All of them, those inside spans included."""
    for part in parts:
        yield from leaves(p for run in part.branches for p in run.parts) if isinstance(part, Span) else (part,)


def _without_window(parts: Sequence[Part], name: str) -> tuple[Part, ...] | None:
    """The same parts, one convolution among them taken for a 1x1; None where it cannot be one."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, Span):
            inner = [_without_window(run.parts, name) for run in part.branches]
            if None in inner:
                return None
            branches = [replace(run, parts=found or ()) for run, found in zip(part.branches, inner, strict=True)]
            made.append(replace(part, branches=(branches[0], branches[1])))
        elif part.name == name and part.form is not None:
            if (form := narrowed(part.form)) is None:
                return None
            made.append(replace(part, form=form))
        else:
            made.append(part)
    return tuple(made)


def blocked(module: GraphModule) -> dict[str, str]:
    """Activations that lie in no segment, so that an affine function in their place would save no layer, with the reason.

    Args:
        module: traced model with its shapes noted.
    """
    found = linearize.activations(module)
    why = {activation.path: activation.refused for activation in found if activation.refused}
    free: set[str] = set()
    for _, one in _stretches(module):
        if one.refusal is None:
            free.update(one.activations)
        for activation in one.activations:
            why.setdefault(activation, one.refusal or "")
    for run in runs(module):
        steps = [i for i, part in enumerate(run.parts) if is_step(part)]
        for i, part in enumerate(run.parts):
            if isinstance(part, Leaf) and part.role == "activation":
                # No layer on one side is a reason of the run, not of the activation.
                before = any(step < i for step in steps)
                end, reason = ("behind", run.stops) if before else ("before", run.starts)
                why.setdefault(part.name, f"no layer {end} it to merge with: {reason}")
    why = barriers(module) | why
    return {activation.path: why[activation.path] for activation in found if activation.path not in free}


def _stretches(module: GraphModule) -> Iterator[tuple[tuple[Part, ...], Composed]]:
    """What a merge would take, and all of it but norms and linearized activations at its end as one map."""
    for run in runs(module):
        steps = [i for i, part in enumerate(run.parts) if is_step(part)]
        for number, first in enumerate(steps):
            one = composed(run.parts[first : first + 1])
            if isinstance(run.parts[first], Span):
                yield run.parts[first : tail(run, first) + 1], one
            for before, last in itertools.pairwise(steps[number:]):
                # What is no exact map with these steps will not become one with more.
                if one.reason is not None:
                    break
                one = composed(run.parts[before + 1 : last + 1], one)
                yield run.parts[first : tail(run, last) + 1], one


def _segment(module: GraphModule, parts: Sequence[Part], one: Composed) -> Segment:
    layers = names(parts)
    modules = [module.get_submodule(str(n.target)) for part in parts for n in part.nodes if n.op == "call_module"]
    possible = one.refusal is None
    merged = one.merged if possible else Form(0, 0)
    return Segment(
        layers=layers,
        activations=one.activations,
        relocate=() if not possible else (*one.inner, layers) if one.moves else one.inner,
        kernel=merged.size,
        macs_before=sum(map(_macs, parts)),
        macs_after=merged.weights * _positions(parts, one) if possible else 0,
        params_before=sum(p.numel() for m in modules for p in m.parameters()),
        params_after=merged.params,
        reason=one.refusal,
    )


def _macs(part: Part) -> int:
    if isinstance(part, Span):
        return sum(_macs(inner) for run in part.branches for inner in run.parts)
    if part.role != "layer" or part.form is None or not part.form.inputs:
        return 0
    return part.form.weights * (math.prod((sizes(part.node) or ())[1:]) // part.form.outputs)


def _positions(parts: Sequence[Part], one: Composed) -> int:
    """At which the one map is computed: those of the last part, or in front of the mean."""
    means = [i for i, part in enumerate(parts) if isinstance(part, Leaf) and part.role == "mean"]
    if means and one.head is not None and not one.head.pointwise:
        return math.prod((sizes(parts[means[0]].node.all_input_nodes[0]) or ())[2:])
    return math.prod((sizes(parts[-1].node) or ())[1:]) // one.merged.outputs


def _leaf(one: Composed, part: Leaf) -> Composed:
    if part.role == "mean":
        return replace(one, head=one.form, form=None, pooled=True)
    if part.role == "activation":
        return replace(one, activations=(*one.activations, part.name))
    if part.form is None:
        return one
    # The first part of a segment is where all padding must go; a norm or a pool cannot take another.
    if one.form is None:
        convolution = part.role == "layer" and part.form.inputs > 0
        return replace(one, form=part.form, fixed=None if convolution else f"padding cannot move to {part.name}")
    return _behind(one, part.form, one.fixed)


def _span(one: Composed, part: Span) -> Composed:
    two = [composed(run.parts) for run in part.branches]
    forms = [branch.form or identity(0) for branch in two]
    inner = [chain for branch in two for chain in branch.inner]
    inner += [names(run.parts) for run, branch in zip(part.branches, two, strict=True) if branch.moves]
    differ = objection(*forms)
    reasons = [branch.reason for branch in two if branch.reason] + ([f"in {part.node.name}, {differ}"] if differ else [])
    activations = tuple(activation for branch in two for activation in branch.activations)
    one = replace(
        one, activations=one.activations + activations, inner=(*one.inner, *inner), reason=one.reason or next(iter(reasons), None)
    )
    if one.reason is not None:
        return one
    # Padding inside a sum belongs to one branch, and the other would see other positions.
    form, stuck = beside(*forms), f"padding cannot move across the sum {part.node.name}"
    if one.form is None:
        return replace(one, form=form, fixed=stuck)
    return _behind(one, form, one.fixed or (stuck if form.padded else None))


def _behind(one: Composed, form: Form, fixed: str | None) -> Composed:
    assert one.form is not None
    moves = one.moves or not same_border(one.form, form)
    return replace(one, form=after(one.form, form), moves=moves, fixed=fixed, reason=one.reason or (fixed if moves else None))
