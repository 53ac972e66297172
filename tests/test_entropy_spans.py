"""The choice of segments, against trying every subset."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from compress.entropy.spans import Span, choose


def disjoint(spans: list[Span]) -> bool:
    ordered = sorted(spans, key=lambda s: s.start)
    return all(a.stop <= b.start for a, b in itertools.pairwise(ordered))


def best_by_trying(spans: list[Span], limit: float) -> float:
    best = 0.0
    for size in range(len(spans) + 1):
        for subset in itertools.combinations(spans, size):
            if disjoint(list(subset)) and sum(s.loss for s in subset) <= limit + 1e-9:
                best = max(best, sum(s.gain for s in subset))
    return best


@pytest.mark.parametrize("seed", range(20))
def test_no_subset_saves_more(seed: int):
    draw = random.Random(seed)
    limit, spans = draw.choice([0.5, 1.0, 8.0]), list[Span]()
    for _ in range(9):
        start = draw.randrange(8)
        loss = limit * draw.randrange(0, 60) / 100  # whole steps of the limit: nothing is rounded
        spans.append(Span(start, start + draw.randint(1, 4), draw.uniform(-1, 3), loss))
    chosen = [spans[i] for i in choose(spans, limit)]
    assert disjoint(chosen)
    assert sum(s.loss for s in chosen) <= limit + 1e-12
    assert sum(s.gain for s in chosen) == pytest.approx(best_by_trying(spans, limit), abs=1e-9)


def test_limits():
    spans = [Span(0, 2, 1.0, 0.0), Span(2, 4, 5.0, 1.0), Span(1, 3, 3.0, -0.1)]
    assert choose(spans, 0.0) == (2,)
    assert choose(spans, 1.0) == (0, 1)
    assert choose(spans, math.inf) == (0, 1)
    assert choose([Span(0, 1, 0.0, 0.0), Span(0, 1, -1.0, 0.0)], 9.0) == ()
    assert choose([], 1.0) == ()


def test_many_candidates_are_no_burden():
    draw = random.Random(0)
    spans = [Span(i, i + length, draw.random(), draw.random()) for i in range(150) for length in range(1, min(12, 151 - i))]
    chosen = [spans[i] for i in choose(spans, 10.0)]
    assert disjoint(chosen)
    assert 5 < sum(s.loss for s in chosen) <= 10
