"""The axes of operands as letters, as torch.einsum writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SPARE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def of_einsum(equation: Any, axes: Sequence[int]) -> list[str] | None:
    """The letters of each operand and of the output, those of an ellipsis written out; None where they are written otherwise.

    Args:
        equation: as in "bhid,bhjd->bhij".
        axes: how many each operand has.
    """
    if not isinstance(equation, str):
        return None
    left, arrow, output = equation.replace(" ", "").partition("->")
    inputs = left.split(",")
    if len(inputs) != len(axes):
        return None
    if not arrow:  # what is named once, in the order of the alphabet
        named = left.replace(",", "").replace("...", "")
        output = "..." * ("..." in left) + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    spare = "".join(c for c in _SPARE if c not in equation)
    # An ellipsis is aligned on its right, as in any broadcast.
    hidden = [n - len(term) + 3 if "..." in term else 0 for term, n in zip(inputs, axes, strict=True)]
    most = max(hidden, default=0)
    if most > len(spare) or any(n < 0 for n in hidden):
        return None
    written = [term.replace("...", spare[most - n : most]) for term, n in zip(inputs, hidden, strict=True)]
    terms = [*written, output.replace("...", spare[:most])]
    return None if any(len(set(term)) < len(term) for term in terms) else terms


def of_matmul(one: int, other: int) -> list[str] | None:
    """The letters of (..., i, k) @ (..., k, j), where each side has so many axes; a vector has k alone. None for too many."""
    batch = max(one, other, 2) - 2
    if min(one, other) < 1 or batch > len(_SPARE):
        return None
    lead = _SPARE[:batch]
    left = "k" if one == 1 else lead[batch - (one - 2) :] + "ik"
    right = "k" if other == 1 else lead[batch - (other - 2) :] + "kj"
    return [left, right, lead + "i" * (one > 1) + "j" * (other > 1)]


def of_tensordot(dims: Any, one: int, other: int) -> list[str] | None:
    """The letters of torch.tensordot over so many axes, or over these of one side and those of the other."""
    if isinstance(dims, int):
        dims = [list(range(one - dims, one)), list(range(dims))]
    pair = [[d % n for d in each] for each, n in zip(dims, (one, other), strict=True)]
    left = _SPARE[:one]
    rest = iter("abcdefghijklmnopqrstuvwxyz")
    right = [next(rest) for _ in range(other)]
    for here, there in zip(*pair, strict=True):
        right[there] = left[here]
    summed = {left[d] for d in pair[0]}
    return [left, "".join(right), "".join(c for c in (*left, *right) if c not in summed)]
