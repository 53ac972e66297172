"""What a solved model looks like: groups of channels, and the parameter axes that each of them touches."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from compress.errors import PlanMismatch
from compress.graph.channels.atom_state import Sized

WITHIN = " within heads"
"""How the names of groups end whose channels are the same ones of all heads, where whole heads can go, too."""


@dataclass(frozen=True)
class Member:
    """One parameter axis that a group touches.

    Attributes:
        tensor: state_dict name, e.g. `layer1.0.conv1.weight`.
        dim: the axis.
        role: "out" makes the channels, "in" consumes them, "through" passes them on (norms, depthwise convolution).
        index: channel of the group at each position of the axis; -1 where the position belongs to another group.
    """

    tensor: str
    dim: int
    role: str
    index: Tensor

    @property
    def module(self) -> str:
        """Path of the module that holds the tensor; empty for a parameter of the model itself."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """Channels that touch the same axes. `frozen` says why none of them can go (None: all can, but one).

    `labels` are the classes of its channels, in `Channels.within` where `inner` is true: those positions have a head as well.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    frozen: str | None
    labels: tuple[int, ...]
    inner: bool = False

    def modules(self, role: str) -> tuple[str, ...]:
        """Paths of the modules that hold an axis of this role, in graph order, each once."""
        return tuple(dict.fromkeys(m.module for m in self.members if m.role == role))

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose outputs these channels are."""
        return self.modules("out")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Modules that read these channels."""
        return self.modules("in")


@dataclass(frozen=True)
class Product:
    """Two activations multiplied, such as queries and keys.

    Attributes:
        macs: multiply-accumulates, up to a factor that all products of a node have in common.
        axes: class of each position along every axis that has channels, summed or not.
    """

    macs: int
    axes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Channels:
    """The solved model.

    Attributes:
        groups: in graph order, frozen ones included.
        axes: (state_dict name, axis) -> (role, class of each position).
        sized: node name -> its constant arguments that count channels, with the classes of its input and output.
        tied: state_dict name -> first name of the same tensor.
        thinned: weights of grouped layers that lose the same positions of every group; the others lose whole groups.
        products: nodes that multiply activations with each other -> the products that they are.
        counted: nodes that compute a plain number from a count of channels.
        zeroed: classes that count as zeros in the statistics of norms where they go.
        classes: how many labels there are; each is below this number.
        within: the same model where attention loses the same channels of all heads; None where it does so anyway.
        inner: groups that it has beyond `groups`, which can go as well, each position with its head or with its channel.
        inputs: what the model was solved for.
    """

    groups: tuple[Group, ...]
    axes: Mapping[tuple[str, int], tuple[str, Tensor]]
    sized: Mapping[str, Sized]
    tied: Mapping[str, str]
    thinned: frozenset[str]
    products: Mapping[str, tuple[Product, ...]]
    counted: frozenset[str]
    zeroed: frozenset[int]
    classes: int
    within: Channels | None = None
    inner: tuple[Group, ...] = ()
    inputs: tuple[Tensor, ...] = ()

    @property
    def every(self) -> tuple[Group, ...]:
        """All groups, those within heads behind the others."""
        return (*self.groups, *self.inner)

    @property
    def removable(self) -> tuple[Group, ...]:
        """Groups that can lose channels."""
        return (*(g for g in self.groups if g.frozen is None), *self.inner)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanMismatch: there is none.
        """
        if name not in self._by_name:
            raise PlanMismatch(f"The plan names layer {name}, which this model does not have. Run 'compress plan' on this model.")
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Group]:
        return {g.name: g for g in self.every}
