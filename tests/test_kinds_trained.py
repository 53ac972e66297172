"""Networks beyond pictures and classes: trained on data that they can learn, compressed by a whole run, and still good at it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_kinds as kinds
import torch
import torch.nn.functional as F
from torch import Tensor

import compress

pytestmark = pytest.mark.slow

COUNT, TRAINED = 640, 512
HOW: dict[str, Any] = {"epochs": 6, "lr": 5e-3, "batch_size": 64, "rounds": 5, "allow_doubtful": True}
Samples = tuple[Any, Tensor]


def classes(number: int) -> Tensor:
    return torch.arange(COUNT) % number


def corners() -> Samples:
    """Noise that is brighter in one quarter."""
    y = classes(4)
    x = torch.randn(COUNT, 3, 2, 4, 2, 4)
    x[torch.arange(COUNT), :, y // 2, :, y % 2] += 1.5
    return x.reshape(COUNT, 3, 8, 8), y


def frequencies() -> Samples:
    y = classes(3)
    angles = torch.arange(32) * (0.3 + 0.4 * y[:, None]) + 6 * torch.rand(COUNT, 1)
    return torch.stack([angles.sin(), angles.cos()], 1) + 0.7 * torch.randn(COUNT, 2, 32), y


def slabs() -> Samples:
    """A brighter layer across one of three axes."""
    y = classes(3)
    x = torch.randn(COUNT, 1, 8, 8, 8)
    for one, axis, place in zip(x, y.tolist(), torch.randint(8, (COUNT,)).tolist(), strict=True):
        one.select(axis + 1, place).add_(2)
    return x, y


def chirps() -> Samples:
    """Energies whose loudest band rises, falls or stays."""
    y = classes(3)
    x = 0.5 * torch.randn(COUNT, 20, 32)
    band = 10 + (y[:, None] - 1) * (torch.arange(32) - 16) // 4
    x.scatter_add_(1, band[:, None], 2 + torch.rand(COUNT, 1, 32))
    return x, y


def waves() -> Samples:
    """A signal with noise, and what it was without, now and up to three steps ago."""
    time = torch.arange(-3, 24) * (0.4 + 0.4 * torch.rand(COUNT, 1)) + 6 * torch.rand(COUNT, 1)
    clean = time.sin()
    noisy = clean + 0.3 * torch.randn_like(clean)
    return noisy[:, None, 3:], torch.stack([clean[:, 3 - d : 27 - d] for d in range(4)], 1)


def blobs(size: int = 16, at: Tensor | None = None) -> Tensor:
    """Pictures of three round spots, one in each color, where `at` (n, 3, 2) says."""
    at = torch.rand(COUNT, 3, 2) if at is None else at
    place = torch.linspace(0, 1, size)
    across, down = (torch.exp(-30 * (place - at[..., k : k + 1]) ** 2) for k in (0, 1))
    return down[..., None] * across[..., None, :]


def enlarged() -> Samples:
    large = blobs()
    return F.avg_pool2d(large, 2), large


def drawn() -> Samples:
    """Vectors, of which the first six say where the spots are."""
    z = torch.randn(COUNT, 10, 1, 1)
    return z, blobs(at=z[:, :6, 0, 0].sigmoid().reshape(COUNT, 3, 2)) * 2 - 1


def noised() -> Samples:
    """Pictures under as much noise as a time says, and that noise."""
    time, noise = 10 * torch.rand(COUNT), torch.randn(COUNT, 3, 8, 8)
    share = (time / 10).view(-1, 1, 1, 1)
    return ((1 - share) * blobs(8) * 2 + share.sqrt() * noise, time), noise


def clouds() -> Samples:
    """Points on a line, on a plane, in a ball or on its shell."""
    y = classes(4)
    x = torch.randn(COUNT, 3, 20)
    x[y == 0, 1:] *= 0.2
    x[y == 1, 2:] *= 0.2
    x[y == 3] = 1.5 * F.normalize(x[y == 3], dim=1)
    return x, y


CASES: list[tuple[Callable[[], Any], Callable[[], Samples]]] = [
    (kinds.without_norms, corners),
    (kinds.signals, frequencies),
    (kinds.volumes, slabs),
    (kinds.spectra, chirps),
    (kinds.gated_waves, waves),
    (kinds.super_resolution, enlarged),
    (kinds.generator, drawn),
    (kinds.diffusion, noised),
    (kinds.points, clouds),
]


@pytest.mark.parametrize(("kind", "samples"), CASES, ids=lambda one: one.__name__)
def test_it_learns_is_compressed_and_is_still_good_at_it(kind: Any, samples: Any, tmp_path: Path):
    torch.manual_seed(0)
    (x, y), model = samples(), kind()[0]
    parts = [slice(0, TRAINED), slice(TRAINED, None)]
    train, test = ((tuple(one[part] for one in x) if isinstance(x, tuple) else x[part], y[part]) for part in parts)
    model = compress.finetune(model, train, epochs=30, lr=1e-2, batch_size=32, distill=0.0)
    result = compress.run(model, data={"train": train, "test": test}, target="macs=0.6", out=tmp_path / "out", **HOW)
    report = result.report
    assert report.exactness is not None and report.exactness.holds and report.result.macs <= 0.6 * report.dense.macs
    parity = report.exports[0].parity
    assert parity is not None and parity.worst_abs <= parity.tolerance
    dense, small = report.dense.quality, report.result.quality
    if y.is_floating_point():
        # Decibels: 2 more than the mean of all pictures has, of which half may be lost.
        assert dense.metric == "psnr" and dense.value > 2 + decibels(y[TRAINED:], y.mean(0)) and small.value > dense.value - 1
    else:
        assert dense.metric == "top1" and dense.value > 0.7 and small.value > dense.value - 0.05


def decibels(one: Tensor, other: Tensor) -> float:
    return -10 * float((one - other).square().mean().log10())
