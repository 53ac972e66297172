"""Rule for recurrent layers: they read channels by columns, and their hidden units are channels that they read themselves.

    gates = W_ih x + b_ih + W_hh h + b_hh        a block of rows per gate, each with a row for every unit
    h     = W_hr h'                              where an LSTM has a projection

A unit whose column of W_hh nobody reads touches no other unit: it goes with its rows of all gates. A layer has one number of
units for all of its layers and directions, so the same units go everywhere.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from compress.graph.channels.atom_state import State, shaped, unknown, where

CELLS = (nn.RNNCell, nn.LSTMCell, nn.GRUCell)


def recurrent(s: State, node: Node, m: Any, path: str, given: list[Tensor]) -> Any:
    """RNN, LSTM and GRU, and their cells. `given`: the input and, where the caller keeps it, the state."""
    x, *states = given
    cell = isinstance(m, CELLS)
    shapes = node.meta["shape"]
    if x.shape[-1] != m.input_size:  # a packed sequence
        return unknown(s, node, given, "is called in a way that the solver does not know")
    units = s.atoms.new(m.hidden_size)
    projected = 0 if cell else m.proj_size
    out = s.atoms.new(projected) if projected else units
    if projected:
        # torch holds a layer to fewer projections than units.
        s.atoms.freeze(units, f"{where(node)} projects its units, which must stay more than the projections")
    _weights(s, m, path, s.atoms.per_channel(x, -1), units, out)
    # The hidden state has the channels of the output, the cell state of an LSTM those of the units.
    for state, atoms in zip(states, (out, units), strict=False):
        s.atoms.unite(shaped(atoms, state.shape, -1), state)
    return _outputs(shapes, out, units, cell)


def _weights(s: State, m: Any, path: str, into: Tensor, units: Tensor, out: Tensor) -> None:
    for name, tensor in m.named_parameters(recurse=False):
        gates = len(tensor) // len(units)
        if name.startswith("weight_hr"):
            s.axis(f"{path}.{name}", 0, "out", out)
            s.axis(f"{path}.{name}", 1, "in", units)
            continue
        s.axis(f"{path}.{name}", 0, "out", units.repeat(gates))
        if name.startswith("weight_hh"):
            s.axis(f"{path}.{name}", 1, "in", out)
        elif name.startswith("weight_ih"):
            first = isinstance(m, CELLS) or name in ("weight_ih_l0", "weight_ih_l0_reverse")
            s.axis(f"{path}.{name}", 1, "in", into if first else out.repeat(tensor.shape[1] // len(out)))


def _outputs(shapes: Any, out: Tensor, units: Tensor, cell: bool) -> Any:
    if cell and isinstance(shapes[0], tuple):
        return tuple(shaped(atoms, shape, -1) for atoms, shape in zip((out, units), shapes, strict=True))
    if cell:
        return shaped(out, shapes, -1)
    sequence = shaped(out.repeat(shapes[0][-1] // len(out)), shapes[0], -1)
    return sequence, _outputs(shapes[1], out, units, True)
