"""Streaming moments are those of the data as a whole, and patches are what a convolution sees."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F

from compress.entropy.moments import Moments, Positions, Window, entries, patches, sample
from compress.entropy.ridge import ridge


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("window", "options"),
    [
        (Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))), {"padding": 1}),
        (Window((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1))), {"padding": 1, "stride": 2}),
        (Window((3, 2), (1, 2), (2, 1), ((2, 2), (0, 0))), {"padding": (2, 0), "stride": (1, 2), "dilation": (2, 1)}),
        (Window((1, 1), (2, 2), (1, 1), ((0, 0), (0, 0))), {"stride": 2}),
    ],
)
def test_patches_times_weights_are_the_convolution(window: Window, options: dict, random: torch.Generator):
    x = torch.randn(2, 3, 9, 8, generator=random)
    weight = torch.randn(4, 3, *window.kernel, generator=random)
    y = F.conv2d(x, weight, **options)
    at = sample((2, *y.shape[2:]), 10_000, random)
    found = patches(x, window, at) @ weight.flatten(1).T
    # Sums of at most 27 products in fp32.
    torch.testing.assert_close(found, entries(y, at), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_part_of_the_images_in_which_no_position_is_drawn_adds_nothing(kernel, transposed):
    """Where memory is small and images are many, a few of them go through at once, and a wide layer looks at one in ten."""
    window = Window(kernel, (1, 1), (1, 1), ((0, 0), (0, 0)), transposed=transposed)
    nowhere = torch.zeros(0, dtype=torch.long)
    rows = patches(torch.randn(2, 3, 9, 8), window, Positions(nowhere, (nowhere, nowhere)))
    assert rows.shape == (0, 3 * window.taps)
    moments = Moments()
    moments.add(rows)
    assert moments.rows == 0


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "extra"),
    [
        ((3,), (2,), (1,), (1,), (1,)),
        ((3, 2), (2, 3), (1, 0), (1, 2), (1, 2)),
        ((2, 1, 3), (1, 2, 2), (0, 0, 2), (1, 1, 1), (0, 1, 0)),
    ],
)
def test_patches_of_a_transposed_convolution(kernel, stride, padding, dilation, extra, random: torch.Generator):
    x = torch.randn(2, 3, *(5, 6, 4)[: len(kernel)], generator=random)
    weight = torch.randn(3, 4, *kernel, generator=random)
    move = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(kernel) - 1]
    y = move(x, weight, None, stride, padding, extra, 1, dilation)
    at = sample((2, *y.shape[2:]), 10_000, random)
    window = Window(kernel, stride, dilation, tuple((p, p) for p in padding), transposed=True)
    found = patches(x, window, at) @ weight.transpose(0, 1).flatten(1).T
    torch.testing.assert_close(found, entries(y, at), rtol=1e-4, atol=1e-5)  # sums of at most 18 products in fp32


def test_sampled_positions_are_different_and_inside(random: torch.Generator):
    at = sample((3, 4, 5), 30, random)
    assert len({tuple(p) for p in torch.stack([at.sample, *at.place]).T.tolist()}) == 30
    assert at.sample.max() < 3 and at.place[0].max() < 4 and at.place[1].max() < 5


def test_batches_add_up_to_the_covariance_of_all_rows(random: torch.Generator):
    x, y = torch.randn(200, 6, generator=random) + 3, torch.randn(200, 2, generator=random)
    moments = Moments()
    for part in (slice(0, 50), slice(50, 51), slice(51, 200)):
        moments.add(x[part], y[part])
    found = moments.centered()
    both = torch.cov(torch.cat([x, y], 1).double().T, correction=0)
    # Means of 3 and unit variance: fp32 batch sums leave about 1e-6.
    torch.testing.assert_close(found.xx[0], both[:6, :6], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.xy[0], both[:6, 6:], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.yy[0], both[6:, 6:], rtol=0, atol=1e-5)


def test_linear_targets_need_no_sums_of_their_own(random: torch.Generator):
    x, weight = torch.randn(300, 8, generator=random), torch.randn(3, 8, generator=random)
    given, derived = Moments(), Moments()
    given.add(x, x @ weight.T + 1)
    derived.add(x)
    for one, other in zip(given.centered()[2:], derived.centered_linear(weight)[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # fp32 products of 300 rows


def test_wide_grams_are_assembled_from_blocks(random: torch.Generator):
    x = torch.randn(40, 900, generator=random)
    moments = Moments()
    moments.add(x)
    xx = moments.centered_linear(torch.zeros(1, 900)).xx[0]
    torch.testing.assert_close(xx, torch.cov(x.double().T, correction=0), rtol=0, atol=1e-5)  # fp32 sums of 40 rows


def test_the_refit_is_the_least_squares_solution_with_an_intercept(random: torch.Generator):
    x = torch.randn(500, 7, generator=random) + 2
    y = x @ torch.randn(7, 3, generator=random) + 5 + 0.1 * torch.randn(500, 3, generator=random)
    moments = Moments()
    moments.add(x, y)
    fit = ridge(moments, ridge=1e-9)
    design = torch.cat([x, torch.ones(500, 1)], 1).double()
    best = torch.linalg.lstsq(design, y.double()).solution
    torch.testing.assert_close(fit.weight, best[:7].T.float(), rtol=0, atol=1e-4)  # fp32 moments, condition below 100
    torch.testing.assert_close(fit.bias, best[7].float(), rtol=0, atol=1e-3)
    assert 0 <= fit.error < 0.05


def test_groups_are_regressions_side_by_side(random: torch.Generator):
    x, y = torch.randn(400, 6, generator=random), torch.randn(400, 4, generator=random)
    together, second = Moments(2), Moments()
    together.add(x, y)
    second.add(x[:, 3:], y[:, 2:])
    torch.testing.assert_close(ridge(together).weight[2:], ridge(second).weight, rtol=0, atol=1e-5)  # same sums, other order


def test_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        Moments().centered()


def test_positions_may_repeat_a_sample():
    at = Positions(torch.tensor([0, 0]), (torch.tensor([0, 1]), torch.tensor([1, 0])))
    x = torch.arange(4.0).view(1, 1, 2, 2)
    assert entries(x, at).flatten().tolist() == [1, 2]


def test_small_variances_survive_large_means():
    torch.manual_seed(0)
    x = 0.01 * torch.randn(6000, 5, dtype=torch.float64) + 300
    y = x @ torch.randn(5, 3, dtype=torch.float64)
    moments = Moments()
    for rows in torch.arange(6000).split(100):
        moments.add(x[rows].float(), y[rows].float())
    found, (x, y) = moments.centered(), (x.float().double(), y.float().double())
    torch.testing.assert_close(found.mean_x[0], x.mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(found.xx[0], torch.cov(x.T, correction=0), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.xy[0], (x - x.mean(0)).T @ (y - y.mean(0)) / 6000, rtol=1e-3, atol=1e-7)


def test_all_positions_are_taken_in_order_where_no_more_are_wanted():
    generator = torch.Generator().manual_seed(0)
    for rows in (6, 7):
        at = sample((2, 3), rows, generator)
        assert at.sample.tolist() == [0, 0, 0, 1, 1, 1] and at.place[0].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(zip(*(p.tolist() for p in sample((2, 3), 5, generator)[1]), strict=True))) <= 3


def test_rows_are_added_up_and_not_kept():
    moments = Moments()
    first = torch.randn(64, 8)
    kept = weakref.ref(first)
    moments.add(first)
    del first
    for _ in range(200):
        moments.add(torch.randn(64, 8))
    assert kept() is None and moments.rows == 201 * 64
