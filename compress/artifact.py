"""The thing that every stage takes and gives back: a traced model and how it came to be."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.fx import GraphModule

from compress.graph import constants, surgery
from compress.graph.channels import solve
from compress.plan import Plan


@dataclass(frozen=True)
class Artifact:
    """A model between two stages. Immutable by convention: a stage returns a new one and leaves this one as it was.

    Attributes:
        module: traced model, fp32, in eval mode.
        inputs: example inputs, batch of 1, on the CPU; one tensor per model input.
        plan: every edit that led from the dense model to this one.
        notes: findings that a reader of the report should see, one sentence each.
    """

    module: GraphModule
    inputs: tuple[Tensor, ...]
    plan: Plan = field(default_factory=Plan)
    notes: tuple[str, ...] = ()

    def noting(self, *notes: str) -> Artifact:
        """The same artifact with further notes."""
        return replace(self, notes=self.notes + notes)


def apply(plan: Plan, artifact: Artifact) -> Artifact:
    """Carry out a plan: pure, exact, no data needed. The dense artifact stays as it was.

    Raises:
        PlanMismatch: an edit names a group or a channel count that the model does not have.
    """
    module, rest = artifact.module, list(plan.edits)
    notes: tuple[str, ...] = ()
    while rest:
        # An edit speaks of the model as the edits before it left it: one solve serves all up to a layer's second turn.
        layers = [edit.layer for edit in rest]
        turn = next((i for i, layer in enumerate(layers) if layer in layers[:i]), len(rest))
        channels = solve(module, artifact.inputs)
        folded, said = constants.fold(module, channels, rest[:turn], artifact.inputs)
        module = surgery.keep(folded, channels if folded is module else solve(folded, artifact.inputs), rest[:turn])
        rest, notes = rest[turn:], notes + said
    plan = replace(plan, edits=artifact.plan.edits + plan.edits)
    return replace(artifact, module=module, plan=plan).noting(*notes)
