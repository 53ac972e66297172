"""Rule for torch.einsum: a letter of the output is an axis whose channels pass; along a letter that is summed they go as one.

bhid,bhjd->bhij      d is summed: a head goes whole        bcn,nm->bcm      n is summed, c passes
bid,bjd->bij         d is summed, and there is nothing else: both lose the same channels, which are zeros on one side
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from compress.graph.channels import op_rules
from compress.graph.channels.atom_state import State, unknown
from compress.graph.channels.atoms import varying


def einsum(s: State, node: Node, equation: Any, operands: Sequence[Tensor]) -> Any:
    """Operands are laid out as the output is, and meet there as in any product."""
    terms = _terms(equation, operands)
    if terms is None:
        return unknown(s, node, operands, "is written in a way that the solver does not know")
    *inputs, output = terms
    tables = [n.op == "get_attr" for n in _nodes(node.args[1:])]
    # What is a channel to an activation; entries of a table along any other letter are positions.
    channels = [varying(t) for t in operands]
    letters = [{term[d] for d in dims} for dims, term in zip(channels, inputs, strict=True)]
    free = {c for own, table in zip(letters, tables, strict=True) if not table for c in own}
    letter, alone = _summed(letters, tables, output)
    if letter and (alone or node.name in s.inside):
        pair = [s.atoms.per_channel(t, term.index(letter)) for t, term in zip(operands, inputs, strict=True)]
        s.atoms.unite(*pair)
        s.zeroed.append((pair[0], node.all_input_nodes[0], f"{op_rules.where(node)} sums over channels that do not vanish"))
        return s.atoms.new(1).view(()).expand(tuple(node.meta["shape"]))
    laid: list[Tensor] = []
    for t, dims, term, table in zip(operands, channels, inputs, tables, strict=True):
        one = [d for d, letter in enumerate(term) if letter not in output or (table and letter not in free)]
        if not table and dims and set(dims) <= set(one):
            return unknown(s, node, operands, "sums over channels")
        laid.append(_laid_out(s.atoms.unite_along(t, one), term, output))
    axes = [varying(t) for t in laid]
    most = max(axes, key=len)
    main = laid[axes.index(most)]
    if any(set(own) - set(most) for own in axes):
        return unknown(s, node, operands, "multiplies channels by channels")
    made = op_rules.elementwise(s, node, [main.expand(tuple(node.meta["shape"])), *(t for t in laid if t is not main)])
    if letter:
        s.heads[node.name] = made
    return made


def _summed(letters: Sequence[set[str]], tables: Sequence[bool], output: str) -> tuple[str, bool]:
    """The letter that is summed and along which both of two operands have channels; whether one of them has no others."""
    if len(letters) != 2 or any(tables):
        return "", False
    summed = (letters[0] & letters[1]) - set(output)
    return ("", False) if len(summed) != 1 else (next(iter(summed)), summed in letters)


def _terms(equation: Any, operands: Sequence[Tensor]) -> list[str] | None:
    """The letters of each operand and of the output, those of an ellipsis written out."""
    if not isinstance(equation, str) or "->" not in equation:
        return None
    left, output = equation.replace(" ", "").split("->")
    inputs = left.split(",")
    if len(inputs) != len(operands):
        return None
    spare = "".join(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation)
    most = max((t.ndim - len(term) + 3 for term, t in zip(inputs, operands, strict=True) if "..." in term), default=0)
    # An ellipsis is aligned on its right, as in any broadcast.
    axes = [spare[most - (t.ndim - len(term) + 3) : most] for term, t in zip(inputs, operands, strict=True)]
    written = [term.replace("...", letters) for term, letters in zip(inputs, axes, strict=True)]
    terms = [*written, output.replace("...", spare[:most])]
    return None if any(len(set(term)) < len(term) for term in terms) else terms


def _nodes(given: Any) -> list[Node]:
    """The operands, each as often as it is named."""
    return [given] if isinstance(given, Node) else [n for part in given for n in _nodes(part)]


def _laid_out(t: Tensor, term: str, output: str) -> Tensor:
    """An operand with the axes of the output, of size 1 where it lacks one."""
    kept = [letter for letter in output if letter in term]
    for d in reversed([d for d, letter in enumerate(term) if letter not in output]):
        t = t.select(d, 0)
    rest = [letter for letter in term if letter in output]
    t = t.permute([rest.index(letter) for letter in kept])
    for d, letter in enumerate(output):
        if letter not in term:
            t = t.unsqueeze(d)
    return t
