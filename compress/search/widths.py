"""How many channels each group of a model may keep: the steps of an episode, and the walls that hold it to a budget.

Groups come one after the other in the order of the graph. An action a in [0, 1] is the share of its channels that a group keeps:

    n_t = allowed count nearest to a C_t, between the smallest and the largest with

          cost(n_1 ... n_t, C_{t+1} ... C_T) >= target >= cost(n_1 ... n_t, least_{t+1} ... least_T)

so that every episode spends the budget and none exceeds it, whatever the actions. A group keeps at least a share `LEAST` of its
channels, which also keeps a reward from being earned by an empty layer.

Source: He et al., AMC (ECCV 2018), Algorithm 1. Departs from it: an action is for a group of channels that can only go together
(a residual stream is one), costs are those of the whole model and exact, a count is never rounded to 0, and there is a wall from
below: a reward that does not ask for quality would rather leave a budget unspent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.artifact import Artifact
from compress.entropy.allocate import CostModel, choices
from compress.errors import Infeasible
from compress.graph.channels.solve import Channels, Group
from compress.measure.asked import parse_target
from compress.selection.budget import absolute, cost_model, of

LEAST = 0.2
FACTS = (
    "place in the order",
    "producers",
    "consumers",
    "channels",
    "pixels of a map",
    "weights per channel",
    "taps of the widest consumer",
    "share of the model's cost",
)
"""What is known of a group beforehand, each scaled to [0, 1] over the groups."""
PROGRESS = ("cost saved so far", "cost that later groups can still save", "last action")
"""What else is observed at each step; shares."""


@dataclass(frozen=True)
class Widths:
    """The choice.

    Attributes:
        groups: in the order of the episode.
        cost: of any choice.
        target: what it may cost at most.
        allowed: counts that each group may keep, ascending.
        facts: (groups, len(FACTS)), in [0, 1].
    """

    groups: tuple[Group, ...]
    cost: CostModel
    target: float
    allowed: tuple[tuple[int, ...], ...]
    facts: np.ndarray

    @property
    def full(self) -> float:
        """Cost of the dense model."""
        return self.cost(self._with([], last=True))

    def kept(self, decided: Sequence[int], share: float) -> int:
        """Channels that the next group keeps, between the walls."""
        wanted, most = share * self.groups[len(decided)].channels, self.most(decided)
        # No count may lie between the walls: then the budget comes first.
        least = min(self.least(decided), most)  # the last group may find no count in between
        return min((n for n in self.allowed[len(decided)] if least <= n <= most), key=lambda n: abs(n - wanted))

    def most(self, decided: Sequence[int]) -> int:
        """Most channels that the next group may keep: all later ones could keep the fewest."""
        counts = self.allowed[len(decided)]
        fits = [n for n in counts if self.cost(self._with([*decided, n], last=False)) <= self.target]
        return fits[-1] if fits else counts[0]

    def least(self, decided: Sequence[int]) -> int:
        """Fewest channels that the next group may keep: all later ones could keep all."""
        counts = self.allowed[len(decided)]
        spends = (n for n in counts if self.cost(self._with([*decided, n], last=True)) >= self.target)
        return next(spends, counts[-1])

    def observe(self, decided: Sequence[int]) -> np.ndarray:
        # A terminal observation is needed too, for the agent's memory.
        """What an agent sees before it decides on the next group; after the last one: what is known of that."""
        place = min(len(decided), len(self.groups) - 1)
        now, least = (self.cost(self._with(decided, last)) for last in (True, False))
        last = decided[-1] / self.groups[len(decided) - 1].channels if len(decided) else 1.0
        progress = (1 - now / self.full, (now - least) / self.full, last)
        return np.array([*self.facts[place], *progress], dtype=np.float32).clip(0, 1)

    def replay(self, shares: Sequence[float]) -> dict[str, int]:
        """Channels by group that a row of actions leads to."""
        decided: list[int] = []
        for share in shares:
            decided.append(self.kept(decided, share))
        return {group.name: n for group, n in zip(self.groups, decided, strict=True)}

    def _with(self, decided: Sequence[int], last: bool) -> np.ndarray:
        """Counts of all groups: those decided, then the most or the fewest."""
        rest = [allowed[-1 if last else 0] for allowed in self.allowed[len(decided) :]]
        return np.array([*decided, *rest], dtype=float)


def widths(
    artifact: Artifact, channels: Channels, groups: Sequence[Group], target: str, align: int = 1, dense: Artifact | None = None
) -> Widths:
    """The choice for a target such as "macs=0.5", a share of `dense`, or of the model itself.

    Raises:
        BadInput: a target in activations.
        Infeasible: out of reach, also for a share `LEAST` of every group; tells the reachable range.
    """
    unit, amount = parse_target(target)
    model = cost_model(artifact, groups, unit)
    # 1e-9: a share of a count is not exact in floating point.
    allowed = tuple(
        tuple(n for n in choices(g.channels, align) if n >= math.ceil(LEAST * g.channels - 1e-9)) or (g.channels,) for g in groups
    )
    whole = of((dense or artifact).cost, unit)
    least = model(np.array([counts[0] for counts in allowed], dtype=float))
    if (amount if unit == "size" else amount * whole) < least:
        share = math.ceil(1000 * least / whole) / 1000
        reachable = f"size={math.ceil(least / 100) / 10}KB" if unit == "size" else f"{unit}={share:.3g}"
        raise Infeasible(
            f"The target {target} is out of reach of this search, which leaves every group {LEAST:.0%} of its channels at least: "
            f"it goes down to {reachable}. Choose such a target, or --method entropic, which goes further."
        )
    # For its refusal of a target at or above the dense model; the wall below was checked above.
    wanted = absolute(target, model, groups, align, whole)
    return Widths(tuple(groups), model, wanted, allowed, _facts(artifact, groups, model))


def _facts(artifact: Artifact, groups: Sequence[Group], model: CostModel) -> np.ndarray:
    made = {one.name: one.output_shape for one in artifact.cost.layers}
    sizes = {name: tensor.shape for name, tensor in artifact.module.named_parameters()}
    full = np.array([g.channels for g in groups], dtype=float)
    saved = model.saved(full, full - 1)
    rows: list[tuple[float, ...]] = []
    for place, group in enumerate(groups):
        pixels = max((math.prod(made[path][1:]) for path in group.producers if path in made), default=1)
        weights = sum(math.prod(sizes[m.tensor]) / sizes[m.tensor][m.dim] for m in group.members if m.tensor in sizes)
        taps = max((math.prod(sizes[m.tensor][2:]) for m in group.members if m.role == "in" and m.tensor in sizes), default=1)
        rows.append((place, len(group.producers), len(group.consumers), group.channels, pixels, weights, taps, saved[place]))
    table = np.array(rows, dtype=float)
    low, high = table.min(0), table.max(0)
    # a fact that is the same for all groups tells nothing: 0
    return np.where(high > low, (table - low) / np.where(high > low, high - low, 1.0), 0.0)
