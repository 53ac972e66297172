"""Entropic regression: a probability vector over the channels, driven to low entropy along one warm-started path.

A consumer's weights are Lambda D(u), u = C w, w on the probability simplex over the C channels still in play. With the moments of
`quadratic` (outputs whitened by the Fisher matrix, explained loss and mean input variance scaled to 1) the path minimizes

    J(u, Lambda) = explained(u, Lambda) + ridge ||Lambda||^2 + h * H(w) / log C,      H(w) = -sum w log w

    Lambda-step:  (U A U + ridge I) Lambda^T = U B                                      one Cholesky factorisation
    w-step:       f(u) = u^T alpha u - 2 beta u + h H(w) / log C  by exponentiated gradient with backtracking,
                  alpha = block sums of (Lambda^T Lambda) o A,   beta = block sums of Lambda^T o B,  summed over consumers

Entropy is minimized: h > 0 with the sign above. (The sign of the older SPArtAn objective maximizes it and makes w uniform.) A
uniform w is a stationary point of the entropy and too large an h at once lands in a poor vertex, hence the path: h grows by a
factor per step, channels with u below a threshold leave for good, and the problem shrinks with every step. The ridge penalty
together with the simplex already acts as a group quasi-norm (w ~ ||weights||^{2/3} at a fixed point), so the path begins
sparse-minded even at h = 0. What is left is refitted without any shrinkage elsewhere.

Source: Barisin & Horenko, "Towards Generalized Entropic Sparsification for Convolutional Neural Networks", arXiv:2404.04734, of
which the objective is known to us from abstract and introduction only; solver, scaling, schedule and dropping are our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compress.entropy.quadratic import Quadratic, columns

_RIDGE = 1e-2  # lambda of the Lambda-step, on inputs and outputs scaled to 1
_START = 3e-3  # first weight of the entropy
_GROW = 1.2  # per step in which nothing left
_GROW_SLOWLY = 1.05  # per step in which something left
_GONE = 0.02  # u below it: the channel leaves for good (the mean of u is 1)
_DESCENTS = 12  # exponentiated gradient steps per factorisation
_WIDE = 640  # columns beyond which every step must shrink the problem
_AT_LEAST, _AT_MOST = 0.08, 0.3  # shares of the channels that leave per step of a wide problem, and at most of any


@dataclass(frozen=True)
class Path:
    """The way down.

    Attributes:
        kept: channels left, ascending.
        order: channels in the order in which they left.
        weight: (channels,), last u of each channel before it left or the path ended.
    """

    kept: tuple[int, ...]
    order: tuple[int, ...]
    weight: Tensor


def select(forms: Sequence[Quadratic], keep: int, among: Sequence[int] | None = None, max_steps: int = 400) -> Path:
    """Follow the entropic path until `keep` channels are left.

    Args:
        forms: the consumers of one group; all share one w.
        keep: channels to keep, at least 1.
        among: channels that enter the path; all by default.
        max_steps: after that many the smallest of the rest leave at once.
    """
    last = torch.zeros(forms[0].channels, dtype=torch.float64)
    alive, order = torch.arange(len(last)) if among is None else torch.tensor(sorted(among)), []
    forms = _scaled(forms if among is None else [_restricted(form, alive) for form in forms])
    # u = 1 is uniform w; the entropy weight starts small, as uniform w is a stationary point of the entropy.
    u, entropy_weight = torch.ones(len(alive), dtype=torch.float64), _START
    for step in range(max_steps):
        if len(alive) <= keep:
            break
        alpha, beta = _curvature(forms, u)
        # Lambda is refitted at the present u and held while u descends: alternating minimization.
        u = _descend(u, alpha, beta, entropy_weight)
        last[alive] = u
        gone = _leaving(u, keep, forms, final=step == max_steps - 1)
        # Slower growth after a loss of channels gives the rest time to settle.
        entropy_weight *= _GROW if not len(gone) else _GROW_SLOWLY
        if len(gone):
            order += alive[gone].tolist()
            stay = torch.ones(len(alive), dtype=torch.bool)
            stay[gone] = False
            forms = [_restricted(form, torch.nonzero(stay)[:, 0]) for form in forms]
            alive, u = alive[stay], u[stay]
            # Back to mean 1 over those still there: w is a probability vector on them.
            u = u * (len(u) / u.sum())
    return Path(tuple(alive.tolist()), tuple(order), last)


def _scaled(forms: Sequence[Quadratic]) -> list[Quadratic]:
    """Mean input variance 1 per consumer, explained loss of all together 1."""
    explained = 0.0
    for form in forms:
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(form.a), form.b, upper=False)
        explained += float(half.square().sum())
    explained = max(explained, 1e-30)
    scaled = []
    for form in forms:
        spread = float(form.a.diagonal().mean())
        scaled.append(replace(form, a=form.a / spread, b=form.b / math.sqrt(spread * explained), total=form.total / explained))
    return scaled


def _restricted(form: Quadratic, stay: Tensor) -> Quadratic:
    at = columns(stay, form.taps)
    return replace(form, a=form.a[at][:, at], b=form.b[at], channels=len(stay))


def _curvature(forms: Sequence[Quadratic], u: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha (C, C) and beta (C,) at the refitted Lambda."""
    alpha, beta = torch.zeros(len(u), len(u), dtype=torch.float64), torch.zeros_like(u)
    for form in forms:
        each = u.repeat_interleave(form.taps)
        fitted = _fitted(form, each)
        product = (fitted @ fitted.T).mul_(form.a)
        # Taps of a channel share its u, so their block is summed.
        alpha += product.view(len(u), form.taps, len(u), form.taps).sum((1, 3))
        beta += (fitted * form.b).sum(1).view(len(u), form.taps).sum(1)
    return alpha, beta


def _fitted(form: Quadratic, each: Tensor) -> Tensor:
    """Lambda of the columns at these weights."""
    # In place: of wide layers a matrix more counts.
    system = (form.a * each[:, None]).mul_(each)
    system.diagonal().add_(_RIDGE)
    return torch.cholesky_solve(form.b * each[:, None], torch.linalg.cholesky(system))


def objective(u: Tensor, alpha: Tensor, beta: Tensor, entropy_weight: float) -> float:
    """f(u) of the w-step."""
    w = u / len(u)
    entropy = float(torch.special.entr(w).sum()) / math.log(max(len(u), 2))  # entr is 0 at 0, where w log w is not a number
    return float(u @ alpha @ u - 2 * beta @ u) + entropy_weight * entropy


def _descend(u: Tensor, alpha: Tensor, beta: Tensor, entropy_weight: float) -> Tensor:
    """Exponentiated gradient on the simplex; a step that raises the objective is halved, so f never rises."""
    size, now, rate = len(u), objective(u, alpha, beta, entropy_weight), 0.5
    for _ in range(_DESCENTS):
        w = u / size
        # Derivative of h H(w) / log C by u; the clamp keeps log 0 out, where w stays 0 in any case.
        slope = 2 * (alpha @ u - beta) - entropy_weight / (size * math.log(max(size, 2))) * (w.clamp_min(1e-300).log() + 1)
        # Projected on the simplex, so that equal slopes move nothing.
        slope = slope - w @ slope
        # Scaled by the largest entry: `rate` then means the same on every problem.
        slope = slope / slope.abs().max().clamp_min(1e-30)
        while rate > 1e-6:
            tried = w * torch.exp(-rate * slope)
            tried = tried * (size / tried.sum())
            value = objective(tried, alpha, beta, entropy_weight)
            if value <= now:
                # Carries over to the next descent step, so that few halvings are needed.
                u, now, rate = tried, value, min(rate * 1.7, 4.0)
                break
            rate /= 2
    return u


def _leaving(u: Tensor, keep: int, forms: Sequence[Quadratic], final: bool) -> Tensor:
    """Positions that leave now, smallest u first."""
    ranked, excess = u.argsort(), len(u) - keep
    if final:
        return ranked[:excess]
    # Below the threshold, but at least some of a wide problem, never below what is to be kept, and never many at once.
    below = int((u < _GONE).sum())
    if max(form.a.shape[0] for form in forms) > _WIDE:
        below = max(below, int(_AT_LEAST * len(u)))
    return ranked[: min(below, excess, max(1, int(_AT_MOST * len(u))))]
