"""Rule for torch.einsum: a letter of the output is an axis whose channels pass; along a letter that is summed they go as one.

bhid,bhjd->bhij      d is summed: a head goes whole        bcn,nm->bcm      n is summed, c passes
bid,bjd->bij         d is summed, and there is nothing else: both lose the same channels, which are zeros on one side
bnd,de->bne          a table of numbers loses its rows likewise; along letters that have no channels it has positions

A product by matmul with a table is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from compress.graph import letters
from compress.graph.channels import matrix_products, op_rules
from compress.graph.channels.atom_state import State, of_tables, unknown
from compress.graph.channels.atoms import varying


def einsum(s: State, node: Node, equation: Any, operands: Sequence[Tensor]) -> Any:
    """Operands are laid out as the output is, and meet there as in any product."""
    terms = letters.of_einsum(equation, [t.ndim for t in operands])
    if terms is None:
        return unknown(s, node, operands, "is written in a way that the solver does not know")
    return _product(s, node, terms, operands, [of_tables(n) for n in _nodes(node.args[1:])])


def matmul(s: State, node: Node, a: Tensor, b: Tensor) -> Any:
    """A product of two activations, or of one with a table of numbers: an adjacency, a basis."""
    tables = [of_tables(n) for n in _nodes([n for n in (*node.args, *node.kwargs.values()) if isinstance(n, Node)])]
    terms = letters.of_matmul(a.ndim, b.ndim)
    if terms is None or len(tables) != 2 or tables[0] == tables[1]:
        if terms is not None:
            s.products[node.name] = [list(zip(terms, (a, b), strict=False))]
        return matrix_products.matmul(s, node, a, b)
    return _product(s, node, terms, [a, b], tables)


def _product(s: State, node: Node, terms: list[str], operands: Sequence[Tensor], tables: list[bool]) -> Any:
    *inputs, output = terms
    s.products[node.name] = [list(zip(inputs, operands, strict=True))]
    # What is a channel to an activation; entries of a table along any other letter are positions.
    channels = [varying(t) for t in operands]
    along = [{term[d] for d in dims} for dims, term in zip(channels, inputs, strict=True)]
    free = {c for own, table in zip(along, tables, strict=True) if not table for c in own}
    letter, alone = _summed(along, tables, output)
    if letter and (alone or node.name in s.inside):
        pair = [s.atoms.per_channel(t, term.index(letter)) for t, term in zip(operands, inputs, strict=True)]
        s.atoms.unite(*pair)
        s.summed.add(node.name)
        s.zeroed.append((pair[0], node.all_input_nodes[0], f"{op_rules.where(node)} sums over channels that do not vanish"))
        return s.atoms.new(1).view(()).expand(tuple(node.meta["shape"]))
    laid: list[Tensor] = []
    for t, dims, term, table in zip(operands, channels, inputs, tables, strict=True):
        one = [d for d, c in enumerate(term) if c not in output or (table and c not in free)]
        if not table and dims and set(dims) <= set(one):
            s.atoms.freeze(t, f"{op_rules.where(node)} sums over channels")
        laid.append(_laid_out(s.atoms.unite_along(t, one), term, output))
    laid = _beside_each_other(s, node, laid)
    axes = [varying(t) for t in laid]
    main = laid[axes.index(max(axes, key=len))]
    made = op_rules.elementwise(s, node, [main.expand(tuple(node.meta["shape"])), *(t for t in laid if t is not main)])
    if letter:
        s.heads[node.name] = made
    return made


def _beside_each_other(s: State, node: Node, laid: list[Tensor]) -> list[Tensor]:
    """Operands whose channels lie on the same axes: of those on different ones whole heads go, where all have heads.

    Without heads what has most channels passes, and all on other axes stay.
    """
    axes = [set(varying(t)) for t in laid]
    most = max(axes, key=len)
    if all(own <= most for own in axes):
        return laid
    wide = [own for own in axes if own]
    if heads := set.intersection(*wide):
        return [s.atoms.unite_along(t, own - heads) for t, own in zip(laid, axes, strict=True)]
    sizes = [max((t.shape[d] for d in own), default=0) for t, own in zip(laid, axes, strict=True)]
    passes = axes[sizes.index(max(sizes))]
    made: list[Tensor] = []
    for t, own in zip(laid, axes, strict=True):
        if not own <= passes:
            s.atoms.freeze(t, f"{op_rules.where(node)} multiplies channels by channels")
            t = s.atoms.unite_along(t, own)
        made.append(t)
    return made


def _summed(along: Sequence[set[str]], tables: Sequence[bool], output: str) -> tuple[str, bool]:
    """The letter that is summed and along which both of two operands have channels; whether one of them has no others."""
    if len(along) != 2:
        return "", False
    summed = (along[0] & along[1]) - set(output)
    alone = summed in [own for own, table in zip(along, tables, strict=True) if not table]
    # A table loses its entries for the channels that go; there are no heads in it.
    return ("", False) if len(summed) != 1 or (any(tables) and not alone) else (next(iter(summed)), alone)


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
