"""The thing that every stage takes and gives back: a traced model and how it came to be."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.curves import ActivationStates, Curve, Observed, TrainingCurve
from compress.edits import Edit, Factor, Keep, Linearize, Merge, Plan, Pointwise, Relocate
from compress.graph.channels.groups import Channels
from compress.graph.channels.solve import solve
from compress.graph.linearize import linearize
from compress.graph.merge.low_rank import factor
from compress.graph.merge.merge import merge, relocate
from compress.graph.merge.pointwise import pointwise
from compress.graph.surgery import constant_channels, remove
from compress.graph.trace.shapes import note_shapes
from compress.measure.cost import Cost, cost
from compress.measure.device import placed

_CHANGES: dict[type[Edit], Callable[..., GraphModule]] = {
    Linearize: linearize,
    Pointwise: pointwise,
    Relocate: relocate,
    Merge: merge,
    Factor: factor,
}
_SOLVED: WeakKeyDictionary[GraphModule, Channels] = WeakKeyDictionary()
_COUNTED: WeakKeyDictionary[GraphModule, Cost] = WeakKeyDictionary()
"""By module, since an artifact with another note holds the same one; they go when the module does."""


@dataclass(frozen=True)
class Artifact:
    """A model between two stages. It never changes, its device included: a stage returns a new one.

    Attributes:
        module: traced model, fp32, in eval mode.
        inputs: example inputs, batch of 1, on the CPU; one tensor per model input.
        plan: every edit that led from the dense model to this one.
        notes: findings that a reader of the report should see, one sentence each.
        warnings: what makes the figures doubtful, likewise.
        curves: findings that are to be drawn.
        observed: those that belong to one activation or one training.
    """

    module: GraphModule
    inputs: tuple[Tensor, ...]
    plan: Plan = field(default_factory=Plan)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    observed: Observed = field(default_factory=Observed)

    @property
    def channels(self) -> Channels:
        """Which channels belong together: solved once for a module, and kept with it."""
        if self.module not in _SOLVED:
            _SOLVED[self.module] = solve(self.module, self.inputs)
        return _SOLVED[self.module]

    @property
    def cost(self) -> Cost:
        """Parameters, multiply-accumulates and bytes: counted once for a module, and kept with it."""
        if self.module not in _COUNTED:
            _COUNTED[self.module] = cost(self.module, self.inputs)
        return _COUNTED[self.module]

    def on(self, device: torch.device | str) -> GraphModule:
        """The module on a device, in eval mode: itself where it is there already, else a copy."""
        return placed(self.module, device)

    def noting(self, *notes: str) -> Artifact:
        """The same artifact with further notes."""
        return replace(self, notes=self.notes + notes)

    def warning(self, *warnings: str) -> Artifact:
        """The same artifact with further warnings."""
        return replace(self, warnings=self.warnings + warnings)

    def showing(self, *curves: Curve) -> Artifact:
        """The same artifact with further curves."""
        return replace(self, curves=self.curves + curves)

    def observing(self, activations: tuple[ActivationStates, ...] = (), trainings: tuple[TrainingCurve, ...] = ()) -> Artifact:
        """The same artifact with more that was observed."""
        return replace(self, observed=self.observed.then(activations, trainings))


def apply(plan: Plan, artifact: Artifact) -> Artifact:
    """Carry out a plan: pure, no data needed. The dense artifact stays as it was.

    Channels that are removed and layers that are merged change nothing but rounding; linearized activations, reduced kernels
    and moved padding change the model.

    Raises:
        PlanMismatch: an edit names a layer, a number of channels or a chain that the model does not have.
    """
    module, notes = artifact.module, ()
    for edits in runs(plan.edits):
        module, said = _carry_out(replace(artifact, module=module), edits)
        notes += said
    plan = replace(plan, edits=artifact.plan.edits + plan.edits)
    return replace(artifact, module=module, plan=plan).noting(*notes)


def runs(edits: Sequence[Edit]) -> Iterator[tuple[Edit, ...]]:
    """Edits that are carried out together: of one kind, and no layer twice, because each speaks of the model before its run."""
    for _, alike in itertools.groupby(edits, type):
        run: dict[str, Edit] = {}
        for edit in alike:
            if edit.layer in run:
                yield tuple(run.values())
                run = {}
            run[edit.layer] = edit
        yield tuple(run.values())


def _carry_out(artifact: Artifact, edits: Sequence[Any]) -> tuple[GraphModule, tuple[str, ...]]:
    """One run on a copy of the model, and what a reader should know of it."""
    module, inputs = artifact.module, artifact.inputs
    match edits[0]:
        case Keep():
            channels = artifact.channels
            folded, notes = constant_channels.fold(module, channels, edits, inputs)
            return remove.keep(folded, channels if folded is module else solve(folded, inputs), edits), notes
        case Linearize() | Pointwise() | Relocate() | Merge() | Factor():
            if any("shape" not in node.meta for node in module.graph.nodes):
                note_shapes(module, module.graph, inputs)
            change = _CHANGES[type(edits[0])]
            return change(module, edits), ()
        case other:
            raise TypeError(f"{type(other).__name__} is no edit")
