"""Selection from moments: planted channels are found, losses are what a refit really leaves, every step lowers what it says."""

from __future__ import annotations

import itertools

import pytest
import torch

from compress.entropy import obs, regression, swaps
from compress.entropy.moments import Moments
from compress.entropy.quadratic import Quadratic, loss, quadratic
from compress.selection.channels import entropic


def planted(channels: int = 12, taps: int = 4, rank: int = 4, seed: int = 0) -> tuple[Quadratic, torch.Tensor, torch.Tensor]:
    """A consumer in which only `rank` channels carry information; the others are noisy copies of them."""
    random = torch.Generator().manual_seed(seed)
    source = torch.randn(2000, rank, taps, generator=random)
    mixing = torch.randn(channels, rank, generator=random) * 0.4
    mixing[:rank] = torch.eye(rank)
    noise = torch.full((channels, 1), 0.5)
    noise[:rank] = 0.02
    x = torch.einsum("nrt,cr->nct", source, mixing) + noise * torch.randn(2000, channels, taps, generator=random)
    x = x.flatten(1)
    y = source.flatten(1) @ torch.randn(rank * taps, 5, generator=random) + 0.1 * torch.randn(2000, 5, generator=random)
    moments = Moments()
    moments.add(x, y)
    return quadratic(moments.centered(), None, torch.arange(channels * taps) // taps, channels, ridge=1e-6), x, y


def brute_force(form: Quadratic, keep: int) -> tuple[int, ...]:
    return min(itertools.combinations(range(form.channels), keep), key=lambda kept: loss([form], kept))


def test_the_loss_is_half_the_squared_error_of_a_real_refit():
    form, x, y = planted()
    kept = [0, 3, 7]
    columns = [c * 4 + t for c in kept for t in range(4)]
    design = torch.cat([x[:, columns], torch.ones(len(x), 1)], 1).double()
    left = y.double() - design @ torch.linalg.lstsq(design, y.double()).solution
    # Ridge 1e-6 and 0.05 % of the output directions left out.
    assert loss([form], kept) == pytest.approx(0.5 * float(left.square().sum(1).mean()), rel=2e-3)


def test_output_errors_count_as_the_weighting_says():
    _, x, y = planted()
    moments = Moments()
    moments.add(x, y)
    owner, centered = torch.arange(48) // 4, moments.centered()
    weighting = torch.diag(torch.tensor([2.0, 2, 2, 2, 2]))
    plain, weighted = quadratic(centered, None, owner, 12), quadratic(centered, weighting, owner, 12)
    assert loss([weighted], [1, 2]) == pytest.approx(2 * loss([plain], [1, 2]), rel=1e-6)


def test_a_weighting_without_full_rank_counts_as_its_sums_do():
    _, x, y = planted()
    moments = Moments()
    moments.add(x, y)
    owner, centered = torch.arange(48) // 4, moments.centered()
    line = torch.ones(5, 1)
    flat = quadratic(centered, line @ line.T, owner, 12)
    summed = Moments()
    summed.add(x, y.sum(1, keepdim=True))
    assert loss([flat], [1, 2]) == pytest.approx(loss([quadratic(summed.centered(), None, owner, 12)], [1, 2]), rel=1e-4)


def test_columns_of_other_groups_stay_in_the_regression():
    _, x, y = planted()
    moments = Moments()
    moments.add(x, y)
    centered = moments.centered()
    everything = quadratic(centered, None, torch.arange(48) // 4, 12, ridge=1e-6)
    owner = torch.where(torch.arange(48) < 24, torch.arange(48) // 4, -1)
    half = quadratic(centered, None, owner, 6, ridge=1e-6)
    assert loss([half], [0, 5]) == pytest.approx(loss([everything], [0, 5, *range(6, 12)]), rel=1e-2)  # other ridge scale


def test_channels_may_have_different_numbers_of_columns():
    _, x, y = planted()
    moments = Moments()
    moments.add(x[:, :10], y)
    uneven = quadratic(moments.centered(), None, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2]), 3, ridge=1e-6)
    only = Moments()
    only.add(x[:, 8:10], y)
    one = quadratic(only.centered(), None, torch.tensor([0, 0]), 1, ridge=1e-6)
    assert loss([uneven], [2]) == pytest.approx(loss([one], [0]), rel=1e-3)


def test_the_sweep_tells_the_loss_of_what_it_keeps():
    form, _, _ = planted()
    sweep = obs.eliminate([form])
    for n in (1, 4, 9, 12):
        assert float(sweep.losses[n]) == pytest.approx(loss([form], sweep.kept(n)), rel=1e-6, abs=1e-9)
    assert (sweep.losses[1:] <= sweep.losses[:-1] + 1e-9).all()


def test_wide_sweeps_remove_several_at_once_and_still_tell_the_loss(monkeypatch: pytest.MonkeyPatch):
    form, _, _ = planted(channels=40, taps=2, rank=6)
    monkeypatch.setattr(obs, "_WIDE", 8)
    sweep = obs.eliminate([form])
    assert sorted(sweep.order) == list(range(40))
    # Single precision from a condition number of about 1e4 on; between two removals the curve is interpolated.
    assert float(sweep.losses[6]) == pytest.approx(loss([form], sweep.kept(6)), rel=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_channels_are_found_by_all_selectors(seed: int):
    form, _, _ = planted(seed=seed)
    best = loss([form], brute_force(form, 4))
    for kept in (
        obs.eliminate([form]).kept(4),
        swaps.improve([form], regression.select([form], 4).kept),
        swaps.improve([form], [8, 9, 10, 11]),
    ):
        assert sorted(kept) == [0, 1, 2, 3]
        assert loss([form], kept) == pytest.approx(best)


def test_swaps_never_raise_the_loss_and_keep_the_number():
    form, _, _ = planted(seed=3)
    start = [5, 6, 7]
    better = swaps.improve([form], start)
    assert len(better) == 3 and loss([form], better) <= loss([form], start)


def test_two_consumers_share_one_selection():
    one, _, _ = planted(seed=0)
    other, _, _ = planted(seed=1, taps=1)
    kept = regression.select([one, other], 5).kept
    assert len(kept) == 5
    assert loss([one, other], kept) == pytest.approx(loss([one], kept) + loss([other], kept))


def apart(seed: int = 0) -> tuple[list[Quadratic], list[set[int]]]:
    """Two consumers of eight independent channels, and the two channels that each of them needs; the second errs more dearly."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, 8, generator=random)
    needed, forms = [{1, 2}, {5, 6}], []
    for scale, channels in zip((1.0, 3.0), needed, strict=True):
        moments = Moments()
        moments.add(x, scale * x[:, sorted(channels)] + 0.1 * torch.randn(2000, 2, generator=random))
        forms.append(quadratic(moments.centered(), None, torch.arange(8), 8, ridge=1e-6))
    return forms, needed


def test_what_any_consumer_needs_is_kept_and_the_dearer_one_comes_first():
    forms, (cheap, dear) = apart()
    sweep = obs.eliminate(forms)
    for order in (forms, forms[::-1]):
        assert set(obs.eliminate(order).kept(4)) == cheap | dear and set(obs.eliminate(order).kept(2)) == dear
        assert set(entropic(order, sweep, 4, exchange=False)) == cheap | dear
        assert set(entropic(order, sweep, 4)) == cheap | dear and set(entropic(order, sweep, 2)) == dear
        assert set(regression.select(order, 4).kept) == cheap | dear
        assert set(swaps.improve(order, [0, 3, 4, 7])) == cheap | dear
        assert set(swaps.improve(order, [1, 2])) == dear


def test_an_elimination_counts_the_loss_of_every_consumer():
    forms, (_, dear) = apart()
    sweep = obs.eliminate(forms)
    assert float(sweep.losses[0]) == pytest.approx(sum(form.total for form in forms))
    for n in range(1, 9):
        # One regression gives both, to the last bits of double precision.
        assert float(sweep.losses[n]) == pytest.approx(loss(forms, sweep.kept(n)), rel=1e-6, abs=1e-9)
    assert float(sweep.losses[2]) == pytest.approx(forms[0].total, rel=0.02), (
        "the first goes without; the second has all it needs"
    )
    assert set(sweep.kept(2)) == dear


def test_the_descent_never_raises_the_objective():
    form, _, _ = planted()
    scaled = regression._scaled([form])
    u = torch.ones(12, dtype=torch.float64)
    alpha, beta = regression._curvature(scaled, u)
    for weight in (0.0, 0.1, 1.0):
        before = regression.objective(u, alpha, beta, weight)
        after = regression._descend(u, alpha, beta, weight)
        assert regression.objective(after, alpha, beta, weight) <= before
        assert float(after.sum()) == pytest.approx(12)


def test_maximizing_the_entropy_spreads_the_weights_and_minimizing_it_concentrates_them():
    form, _, _ = planted()
    scaled = regression._scaled([form])
    start = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.2
    start *= 12 / start.sum()
    alpha, beta = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    assert scaled[0].channels == 12
    spread, concentrated = start, start
    for _ in range(20):
        spread = regression._descend(spread, alpha, beta, -1.0)
        concentrated = regression._descend(concentrated, alpha, beta, 1.0)
    assert float(spread.max()) < 1.05
    assert float(concentrated.max()) > 6


def test_the_path_ends_at_the_wanted_number_and_names_every_channel():
    form, _, _ = planted()
    path = regression.select([form], 3)
    assert len(path.kept) == 3 and sorted((*path.kept, *path.order)) == list(range(12))
    among = regression.select([form], 3, among=[0, 1, 2, 3, 4])
    assert set(among.kept) <= {0, 1, 2, 3, 4}


def test_directions_that_hardly_vary_are_left_out_of_the_loss():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=random)
    y = x[:, :1] @ torch.randn(1, 5, generator=random) + 1e-4 * torch.randn(500, 5, generator=random)
    moments = Moments()
    moments.add(x, y)
    form = quadratic(moments.centered(), None, torch.arange(6), 6)
    assert tuple(form.b.shape) == (6, 1), "five outputs, one direction"
