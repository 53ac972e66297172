"""Lines from sums, the entropy of published code, and entropy without data: checked against what their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.entropy.closest_affine import AffineSums
from compress.entropy.estimators import easier, egp, from_norm
from compress.entropy.state import binary_entropy, count


def seeded(*shape, seed=0, shift=0.0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


def fitted(act, *batches, channel_dim=1):
    sums = AffineSums(channel_dim)
    for z in batches:
        sums.add(z, act(z))
    return sums.fit()


# ---- lines -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU(), nn.Hardswish(), nn.ReLU6(), nn.ELU()])
def test_lines_are_those_of_least_squares(act):
    z = seeded(40, 3, 5, 5, scale=2.0) + torch.tensor([-1.0, 0.5, 3.0]).view(3, 1, 1)
    fit = fitted(act, z[:7], z[7:8], z[8:])
    for c in range(3):
        x, y = z[:, c].double().flatten(), act(z[:, c]).double().flatten()
        expected = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[:, 0]
        residual = (expected[0] * x + expected[1] - y).square().mean()
        # Products of single values are float32: seven digits, of which the variance takes one or two.
        torch.testing.assert_close(torch.stack([fit.slope[c], fit.offset[c]]), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fit.residual[c], residual, rtol=1e-4, atol=1e-6)
    assert fit.error == pytest.approx(float(fit.residual.sum() / fit.variance.sum()))


@pytest.mark.parametrize("shape", [(50, 3), (10, 3, 7), (10, 3, 4, 4), (5, 3, 2, 3, 4)])
def test_always_on_is_the_identity_and_always_off_is_zero_exactly(shape):
    z = seeded(*shape, seed=1).abs() + 0.1
    z[:, 1] *= -1
    fit = fitted(nn.ReLU(), z[:3], z[3:])
    assert fit.slope[:2].tolist() == [1, 0] and fit.offset[:2].tolist() == [0, 0]
    assert fit.residual[:2].tolist() == [0, 0]


def test_a_constant_input_has_no_slope():
    z = seeded(20, 3, 4, 4)
    z[:, 0], z[:, 1] = 1000.3, -2.0
    z[::2, 0] = torch.nextafter(z[::2, 0], torch.tensor(2000.0))  # as far as float32 tells 1000.3 from its neighbor
    fit = fitted(nn.GELU(), z[:10], z[10:])
    assert fit.slope[:2].tolist() == [0, 0]
    torch.testing.assert_close(fit.offset[:2].float(), torch.nn.functional.gelu(torch.tensor([1000.3, -2.0])))


def test_a_small_spread_around_a_large_mean_is_not_lost():
    z = seeded(50, 1, 6, 6, scale=0.01, shift=100.0)
    fit = fitted(lambda x: 3 * (x - 100), z[:25], z[25:])
    assert fit.slope.item() == pytest.approx(3, rel=1e-3)  # float32 leaves 100 +- 0.01 three digits


def test_channels_may_be_the_last_axis_of_a_line():
    z = seeded(6, 7, 4)
    one, other = fitted(nn.GELU(), z, channel_dim=-1), fitted(nn.GELU(), z.transpose(1, 2))
    torch.testing.assert_close(one.slope, other.slope)
    torch.testing.assert_close(one.offset, other.offset)


def test_lines_do_not_depend_on_the_batches():
    z = seeded(30, 4, 5, 5)
    whole, parts = fitted(nn.SiLU(), z), fitted(nn.SiLU(), *z.split(7))
    torch.testing.assert_close(whole.slope, parts.slope, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(whole.offset, parts.offset, rtol=1e-6, atol=1e-7)


def test_lines_without_data_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        AffineSums().fit()


# ---- three regimes ---------------------------------------------------------------------------------------------------------


def test_the_upper_regime_of_relu6_is_counted():
    z = torch.tensor([3.0, 7.0, -1.0, 8.0]).repeat(5, 1)  # a channel each
    z[:2, 3] = 3.0
    states = count(z[:2], high=6.0) + count(z[2:], high=6.0)
    assert states.on.tolist() == [5, 5, 0, 5] and states.upper is not None and states.upper.tolist() == [0, 5, 0, 3]
    assert states.entropy.tolist() == [0, 0, 0, 0]
    assert (states.always_on, states.always_off) == (0.5, 0.25)


def test_the_lower_limit_need_not_be_zero():
    assert count(torch.tensor([-2.0, -0.5, 0.5, 2.0]).view(4, 1), low=-1.0, high=1.0).on.tolist() == [3]


# ---- published estimates ---------------------------------------------------------------------------------------------------


def plain_easier(z):
    """As the formula reads, position by position."""
    on = (z >= 0).double().mean(0).flatten(1).mean(1)
    return float(binary_entropy(on).mean())


def plain_egp(z):
    on = (z > 0).double().mean((0, 2, 3))
    on = on[(on != 0) & (on != 1)]
    return float(binary_entropy(on).mean()) if len(on) else 0.0


def odd_input():
    z = seeded(9, 6, 4, 4, seed=3)
    z[:, 0] = z[:, 0].abs() + 0.1  # always on
    z[:, 1] = -z[:, 1].abs() - 0.1  # always off
    z[:, 2] = z[:, 2].clamp_min(0)  # zeros: on for one code, off for the other
    return z


@pytest.mark.parametrize(("estimate", "plain"), [(easier, plain_easier), (egp, plain_egp)])
def test_published_estimates_are_means_of_batch_entropies(estimate, plain):
    z = odd_input()
    parts = [z[:4], z[4:8], z[8:]]  # the last batch is short, and counts as much as the others
    found = estimate(parts[0], 1) + estimate(parts[1], 1) + estimate(parts[2], 1)
    assert found.value == pytest.approx(sum(plain(p) for p in parts) / 3, abs=1e-6)
    assert found.batches == 3


def test_the_two_published_estimates_differ_from_each_other_and_from_the_pooled_one():
    z = odd_input()
    pooled = float(count(z).entropy.mean())
    mean = sum(plain_easier(p) for p in z.split(3)) / 3
    found = [sum((e(p, 1) for p in z.split(3)[1:]), e(z[:3], 1)).value for e in (easier, egp)]
    assert found[0] == pytest.approx(mean) and found[0] < pooled < found[1]


def test_egp_of_a_layer_that_never_switches_is_zero():
    z = odd_input()[:, :2]
    assert egp(z).value == 0 and easier(z).value == 0


def test_published_estimates_take_the_last_axis_too():
    z = odd_input()[:, :, 0]
    for estimate in (easier, egp):
        assert estimate(z.transpose(1, 2), -1).value == pytest.approx(estimate(z, 1).value)


# ---- without data ----------------------------------------------------------------------------------------------------------


def test_entropy_without_data_is_that_of_a_normal_input():
    gamma, beta = torch.tensor([1.0, -2.0, 0.5, 0.0, 0.0]), torch.tensor([0.0, 1.0, -1.5, 0.3, -0.3])
    found = from_norm(gamma, beta)
    assert found[0] == 1 and found[3:].tolist() == [0, 0]
    z = seeded(200_000, 3) * gamma[:3] + beta[:3]
    # The standard error of a share over 200,000 samples is 0.001.
    torch.testing.assert_close(found[:3], count(z).entropy, atol=5e-3, rtol=0)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e30])
def test_entropy_from_a_norm_does_not_depend_on_its_scale(scale: float):
    gamma, beta = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(from_norm(gamma * scale, beta * scale), from_norm(gamma, beta))
    assert from_norm(torch.zeros(3), torch.tensor([1.0, 0.0, -1.0])).tolist() == [0, 0, 0]
