"""Spatial entropy: small maps by hand, what must not change it, and maps that say nothing."""

from __future__ import annotations

import math

import pytest
import torch

from compress.entropy import spatial as spatial_module
from compress.entropy.spatial import DEFINITIONS, LEVELS, entropies, spatial


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def each(maps: torch.Tensor, definition: str, levels: int = LEVELS) -> list[float]:
    """Entropies of maps (c, h, w)."""
    return entropies(maps[None], definition, levels)[0][0].tolist()


def checkerboard(size: int = 8) -> torch.Tensor:
    return ((torch.arange(size)[:, None] + torch.arange(size)) % 2).float()[None]


def test_a_checkerboard_tells_each_neighbor_and_has_one_bit_of_aura():
    # Pairs are (0, 1) and (1, 0), half each: 1 bit, as much as the pixels alone.
    assert each(checkerboard(), "pairwise") == pytest.approx([0.0], abs=1e-3)
    assert each(checkerboard(), "aura") == pytest.approx([1.0], abs=1e-6)


def test_stripes_of_two_rows_by_hand():
    # Rows 0 0 1 1: to the right always (g, g), 1 bit like the pixels. Downwards (0,0), (0,1), (1,1), a third each: log2 3 bits.
    stripes = torch.tensor([0.0, 0.0, 1.0, 1.0])[:, None].expand(4, 4)[None]
    assert each(stripes, "pairwise") == pytest.approx([(math.log2(3) - 1) / 2], abs=1e-5)
    # Of 24 neighbors 10 are (0, 0), 10 are (1, 1) and 4 mixed; pooled both ways these are 2 of each kind.
    shares = (10 / 24, 10 / 24, 2 / 24, 2 / 24)
    assert each(stripes, "aura") == pytest.approx([-sum(p * math.log2(p) for p in shares)], abs=1e-5)


def test_a_gradient_of_as_many_levels_tells_each_neighbor():
    ramp = torch.arange(16.0)[:, None].expand(16, 16)[None]
    assert each(ramp, "pairwise", 16) == pytest.approx([0.0], abs=1e-5)
    # Half of the neighbors stand in one row, (g, g); the others are (g, g + 1) or (g + 1, g), 30 kinds.
    assert each(ramp, "aura", 16) == pytest.approx([1 + math.log2(16) / 2 + math.log2(30) / 2], abs=1e-4)


def test_independent_pixels_tell_nothing_of_their_neighbors():
    drawn = torch.randint(0, 2, (2, 256, 256), generator=torch.Generator().manual_seed(0)).float()
    assert each(drawn, "pairwise", 2) == pytest.approx([1.0, 1.0], abs=0.01)
    assert each(drawn, "aura", 2) == pytest.approx([2.0, 2.0], abs=0.01)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_smooth_maps_have_less_than_rough_ones(definition: str):
    rough = noise(4, 32, 32)
    smooth = torch.nn.functional.avg_pool2d(noise(4, 38, 38), 7, 1)
    assert max(each(smooth, definition)) < min(each(rough, definition))


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_scale_shift_mirror_and_transposition_change_nothing(definition: str):
    maps = torch.nn.functional.avg_pool2d(noise(5, 14, 14), 3, 1)
    expected = each(maps, definition)
    # Powers of two scale exactly, so no pixel changes its level by rounding.
    for same in (maps * 4, maps * 0.125, maps.flip(2), maps.flip(1), maps.transpose(1, 2)):
        assert each(same, definition) == pytest.approx(expected, abs=1e-5)
    assert each(maps[[3, 1, 0, 4, 2]], definition) == pytest.approx([expected[i] for i in (3, 1, 0, 4, 2)])


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_constant_maps_have_none_and_are_reported(definition: str):
    maps = torch.stack([torch.zeros(6, 6), torch.full((6, 6), 7.3), noise(6, 6), 1e4 + 1e-4 * noise(6, 6)])[None]
    values, constant = entropies(maps, definition)
    assert constant.tolist() == [[True, True, False, True]]  # the last varies by less than its own rounding
    assert values[0, [0, 1, 3]].tolist() == [0, 0, 0] and values[0, 2] > 0
    found = spatial(maps, definition)
    assert (found.maps, int(found.varied), found.constant) == (4, 1, 0.75)
    assert found.value == pytest.approx(float(values[0, 2]))
    assert found.credited(2.0) == pytest.approx((3 * 2.0 + float(values[0, 2])) / 4)


def test_maps_that_are_not_numbers_count_as_constant():
    values, constant = entropies(torch.full((1, 1, 4, 4), float("nan")))
    assert values.item() == 0 and constant.item()


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("levels", [2, LEVELS, 256])
def test_maps_of_any_range_of_float32_are_counted(definition: str, levels: int):
    plain = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = entropies(plain, definition, levels)[0]
    scales = [1e-45, 1e-40, 1e-38, 1e-37, 1e-30, 1.0, 1e30, 6e38]  # the first are rounded away, the last has no finite range
    found, constant = entropies(torch.cat([plain.double().mul(s).float() for s in scales], 1), definition, levels)
    assert constant[0].tolist() == [True] * 4 + [False] * 3 + [True]
    # A pixel in 64 may fall into the level beside it, because the product is rounded.
    torch.testing.assert_close(found[0, 4:7], expected[0].expand(3), rtol=0.05, atol=0)
    for scale in scales:  # with no other map beside it
        assert entropies(plain.double().mul(scale).float(), definition, levels)[0].isfinite().all()


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_batches_and_parts_of_a_batch_add_up(definition: str, monkeypatch: pytest.MonkeyPatch):
    maps = noise(12, 5, 8, 8)
    whole = spatial(maps, definition)
    parts = spatial(maps[:5], definition) + spatial(maps[5:], definition)
    assert parts.value == pytest.approx(whole.value) and parts.maps == whole.maps == 60
    monkeypatch.setattr(spatial_module, "_PART", 600)  # map by map
    assert spatial(maps, definition).value == pytest.approx(whole.value)


def test_every_value_is_within_its_bounds():
    maps = torch.cat([noise(20, 3, 5, 5), noise(20, 3, 5, 5).relu(), noise(20, 3, 5, 5).sign()])
    for definition, most in (("pairwise", 1.0), ("aura", 2 * math.log2(LEVELS))):
        values, _ = entropies(maps, definition)
        assert float(values.min()) >= 0 and float(values.max()) <= most


def test_maps_without_neighbors_are_refused():
    with pytest.raises(ValueError, match="two axes of 2"):
        spatial(torch.randn(2, 3, 1, 8))
