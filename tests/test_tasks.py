"""Other tasks than classification go through the same stages, from a model file to ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.pipeline.run import run
from compress.recipe import make

pytestmark = pytest.mark.slow


def test_a_segmentation_model_is_compressed_and_its_mean_iou_reported(tmp_path: Path):
    images, squares = bright_squares(320)
    report = compressed(tmp_path, encoder_decoder(classes=2), images, squares.astype(np.int64))
    assert report.result.quality.metric == "miou"
    assert report.dense.quality.value > 0.8  # the squares are easy: a model that has not learnt them tests nothing
    assert report.dense.quality.value - report.result.quality.value < 0.1


def test_a_regression_model_is_compressed_and_its_absolute_error_reported(tmp_path: Path):
    images, _ = bright_squares(320)
    target = images.reshape(len(images), -1).mean(1, keepdims=True).astype(np.float32) / 255
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 1)
    )
    report = compressed(tmp_path, model, images, target)
    assert report.result.quality.metric == "mae"
    assert report.result.quality.value < 0.1


def test_an_image_to_image_model_is_compressed_and_its_psnr_reported(tmp_path: Path):
    images, _ = bright_squares(320)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1),
        nn.PixelShuffle(2),
    )  # fmt: skip
    target = np.repeat(np.repeat(images, 2, 1), 2, 2)[..., None]
    report = compressed(tmp_path, model, images, target)
    assert report.result.quality.metric == "psnr"
    assert report.result.quality.value > report.dense.quality.value - 6  # decibels: half the channels, a short training


def bright_squares(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with one brighter square each, (n, 16, 16) uint8, and where the square is."""
    random = np.random.default_rng(0)
    images = random.integers(0, 90, (count, 16, 16)).astype(np.uint8)
    masks = np.zeros_like(images)
    for mask, (x, y) in zip(masks, random.integers(0, 10, (count, 2)), strict=True):
        mask[y : y + 6, x : x + 6] = 1
    return images + 120 * masks, masks


def encoder_decoder(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.ConvTranspose2d(24, 16, 2, 2), nn.ReLU(), nn.Conv2d(16, classes, 3, padding=1),
    )  # fmt: skip


def compressed(folder: Path, model: nn.Sequential, images: np.ndarray, target: np.ndarray):
    """Train the model, then halve its MACs through the whole pipeline."""
    from compress.data import open_data
    from compress.training import train

    torch.manual_seed(0)
    np.savez(folder / "data.npz", x_train=images[:256], y_train=target[:256], x_test=images[256:], y_test=target[256:])
    settings = {"epochs": 12, "lr": 5e-3, "batch_size": 32, "data": str(folder / "data.npz")}
    data = open_data(str(folder / "data.npz"), seed=0)
    dense = train(model, data, make(**settings, distill=0.0), torch.device("cpu")).module
    torch.save(dense, folder / "model.pt")
    report = run(make(**settings, model=str(folder / "model.pt"), target="macs=0.5", rounds=5), folder / "out")
    assert report.exactness is not None and report.exactness.holds
    assert report.result.macs <= 0.51 * report.dense.macs
    assert report.exports[0].parity.worst_abs <= report.exports[0].parity.tolerance
    return report
