"""Swaps: a finished selection is improved by exchanging channels while the refitted loss falls.

    best to add:   max over absent c of  tr R_c^T S_cc^{-1} R_c,   S = A_oo - A_ok A_kk^{-1} A_ko,  R = B_o - A_ok A_kk^{-1} B_k
    then to drop:  the cheapest of the larger set by block-OBS

A swap is made where the channel dropped is not the one just added and the loss falls; the loss strictly falls, so this ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compress.entropy.quadratic import Quadratic, block_norms, blocks, columns, loss

_WORK = 1e11  # multiply-adds that one group's swaps may take
_TRIES = 4  # candidates tried before the search ends


def improve(forms: Sequence[Quadratic], kept: Sequence[int], rounds: int | None = None) -> list[int]:
    """Exchange channels while that lowers the estimated loss.

    Args:
        forms: the consumers of one group.
        kept: the selection to start from.
        rounds: at most that many exchanges; by default as many as a fixed amount of arithmetic allows.

    Returns:
        As many channels as before, ascending.
    """
    kept = list(kept)
    # A Cholesky factorization of n columns takes about n^3 operations, and a round takes several.
    work = sum(float(form.a.shape[0]) ** 3 for form in forms)
    limit = int(_WORK / (_TRIES * work)) if rounds is None else rounds
    limit = min(limit, 4 * len(kept)) if rounds is None else limit
    best = loss(forms, kept) if limit else 0.0
    for _ in range(limit):
        found = _swap(forms, kept, best)
        if found is None:
            break
        kept, best = found
    return sorted(kept)


def _swap(forms: Sequence[Quadratic], kept: list[int], best: float) -> tuple[list[int], float] | None:
    absent = sorted(set(range(forms[0].channels)) - set(kept))
    if not absent:
        return None
    gains = torch.stack([_gains(form, kept, absent) for form in forms]).sum(0)
    for place in gains.argsort(descending=True)[:_TRIES].tolist():
        larger = [*kept, absent[place]]
        out = int(torch.stack([_costs(form, larger) for form in forms]).sum(0).argmin())
        # The cheapest is the one just added: this candidate changes nothing.
        if out == len(kept):
            continue
        tried = larger[:out] + larger[out + 1 :]
        now = loss(forms, tried)
        # Strictly, by more than rounding: so the search ends.
        if now < best * (1 - 1e-6):
            return tried, now
    return None


def _gains(form: Quadratic, kept: list[int], absent: list[int]) -> Tensor:
    k, o = columns(kept, form.taps), columns(absent, form.taps)
    factor = torch.linalg.cholesky(form.a[k][:, k])
    side = torch.linalg.solve_triangular(factor, form.a[k][:, o], upper=False)
    fitted = torch.linalg.solve_triangular(factor, form.b[k], upper=False)
    # Only the diagonal blocks of S are needed.
    per_channel = side.T.reshape(len(absent), form.taps, -1)
    within = blocks(form.a[o][:, o], form.taps) - per_channel @ per_channel.mT
    return block_norms(within, form.b[o] - side.T @ fitted)


def _costs(form: Quadratic, kept: list[int]) -> Tensor:
    k = columns(kept, form.taps)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(form.a[k][:, k]))
    return block_norms(blocks(inverse, form.taps), inverse @ form.b[k])
