"""What a person takes along from a run: the model as a pickle; and what they gave without knowing: inputs twice normalized."""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.data.settings import PRESETS
from compress.errors import BadInput, CompressWarning

QUICK: dict[str, Any] = {"epochs": 0, "rounds": 5, "calibration": 64, "device": "cpu", "align": 1, "depth": 0}


def samples(count: int = 400) -> tuple[Tensor, Tensor]:
    """Classes told by the mean brightness alone, which a wrong normalization shifts."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (count,), generator=random)
    noise = torch.rand(count, 1, 8, 8, generator=random) * 0.1
    return 0.1 + 0.25 * y.view(-1, 1, 1, 1).float() + noise, y


@pytest.fixture(scope="module")
def learned() -> nn.Module:
    return fitted(*samples())


def fitted(x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert float((net(x).argmax(1) == y).float().mean()) > 0.95
    return net.eval()


def test_the_smaller_model_is_saved_and_loaded_as_any_module(learned: nn.Module):
    x, y = samples()
    made = compress.remove(learned, (x, y), target="macs=0.5", **QUICK).model
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(x), made(x)) and again.state_dict().keys() == made.state_dict().keys()
    again.train()(x).sum().backward()


def test_a_contract_is_nothing_that_a_single_step_looks_for(learned: nn.Module):
    with pytest.raises(BadInput, match=r"goes down to its target \(macs=0.5\) .* take compress.run"):
        compress.remove(learned, samples(), max_drop=1, **QUICK)


def test_words_are_no_samples(learned: nn.Module):
    with pytest.raises(BadInput, match="which is no number"):
        compress.plan(learned, data=["a", "b"], target="macs=0.5", out=None)


@pytest.mark.parametrize("raw", [True, False])
def test_a_normalization_that_the_model_was_not_trained_with_is_told(raw: bool, learned: nn.Module, tmp_path: Path):
    x, y = samples()
    parts = {"x_train": x[:300], "y_train": y[:300], "x_test": x[300:], "y_test": y[300:]}
    np.savez(tmp_path / "data.npz", **{name: part.numpy() for name, part in parts.items()})
    torch.save(learned, tmp_path / "net.pt")
    data = tmp_path / "data.npz"
    if not raw:
        data = tmp_path / "data.toml"
        data.write_text(f'source = "{tmp_path / "data.npz"}"\nmean = [0]\nstd = [1]\n')
    how: dict[str, Any] = {"data": str(data), "target": "macs=0.5", "out": tmp_path / "out", **QUICK}
    if raw:
        for command in (compress.run, compress.plan):
            with pytest.raises(BadInput, match=r'and on \d+% with none, .*data.npz" and normalize = "none".*allow_doubtful=True'):
                command(tmp_path / "net.pt", **how)
        assert not (tmp_path / "out").exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = compress.run(tmp_path / "net.pt", allow_doubtful=True, **how)
    said = [w for w in report.warnings if "probably not those of its training" in w]
    assert len(said) == raw and sum(w.category is CompressWarning and str(w.message) in said for w in caught) == raw
    assert (report.dense.quality.value > 0.9) != raw
    # What nobody should overlook stays with the result wherever it goes.
    assert report.verdict.startswith("Doubtful, see the warnings: ") == raw
    assert any(said[0] in note for note in compress.gate(tmp_path / "out", max_params=1.0).notes) if raw else True
    packed = compress.package(tmp_path / "out", out=tmp_path / "package.tar.gz")
    assert list(packed.warnings) == said
    with tarfile.open(packed.path) as archive:
        names = {Path(name).name: name for name in archive.getnames()}
        told, known = (archive.extractfile(names[name]).read().decode() for name in ("README.txt", "manifest.json"))  # type: ignore[union-attr]
    assert json.loads(known)["warnings"] == said and ("WARNING: The model is right on" in told) == raw


def test_the_usual_normalization_that_fits_is_named_and_one_that_somebody_wrote_is_doubted_too(tmp_path: Path):
    x, y = samples()
    mean, std = PRESETS["mnist"]
    net = fitted((x - mean[0]) / std[0], y)
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=y.numpy())
    torch.save(net, tmp_path / "net.pt")
    (tmp_path / "data.toml").write_text('source = "data.npz"\nmean = [0.9]\nstd = [0.1]\n')
    for given, line in (("data.npz", 'normalize = "mnist", and give'), ("data.toml", 'Write normalize = "mnist" into')):
        with pytest.raises(BadInput, match=line):
            compress.run(tmp_path / "net.pt", data=str(tmp_path / given), target="macs=0.5", out=tmp_path / "out", **QUICK)


def test_a_model_that_guesses_is_refused_before_anything_slow(tmp_path: Path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
    x, y = samples(600)
    how: dict[str, Any] = {"data": (x, y), "target": "macs=0.5", "out": tmp_path / "out", **QUICK}
    with pytest.raises(BadInput, match=r"no better than guessing among 4 classes .* allow_doubtful=True"):
        compress.run(net, **how)
    assert not (tmp_path / "out").exists()
    with pytest.warns(CompressWarning, match="no better than guessing"):
        assert compress.run(net, allow_doubtful=True, **how).report.warnings
    few = {name: part[:60] for name, part in (("x_train", x), ("y_train", y), ("x_test", x), ("y_test", y))}
    with pytest.warns(CompressWarning, match="no better than guessing"):  # so few samples tell no model from one that guesses
        compress.run(net, **{**how, "data": few, "out": tmp_path / "few"})


def test_samples_sorted_by_class_hide_no_wrong_normalization(learned: nn.Module, tmp_path: Path):
    x, y = samples()
    order = y[:300].argsort()
    parts = {"x_train": x[:300][order], "y_train": y[:300][order], "x_test": x[300:], "y_test": y[300:]}
    np.savez(tmp_path / "data.npz", **{name: part.numpy() for name, part in parts.items()})
    with pytest.raises(BadInput, match='normalize = "none"'):
        compress.run(learned, data=str(tmp_path / "data.npz"), target="macs=0.5", out=tmp_path / "out", **QUICK)


@pytest.mark.parametrize(
    ("stated", "part"),
    [
        (
            'normalize = "none"',
            r"of the data settings, and on \d+% with that of mnist, .*data.toml, in the place of normalize; or",
        ),
        ("mean = [0.9]\nstd = [0.1]", r"of the data settings, and on .*data.toml, in the place of mean and std; or"),
        ("", r"that was inferred, and on .*data.toml; or"),
    ],
)
def test_a_wrong_normalization_that_somebody_stated_is_refused_and_the_line_that_stands_there_named(
    stated: str, part: str, learned: nn.Module, tmp_path: Path
):
    x, y = samples()
    mean, std = PRESETS["mnist"]
    torch.save(fitted((x - mean[0]) / std[0], y) if "none" in stated else learned, tmp_path / "net.pt")
    pictures = (x.clamp(0, 1) * 255).to(torch.uint8)
    np.savez(tmp_path / "data.npz", x=pictures.numpy(), y=y.numpy())
    (tmp_path / "data.toml").write_text(f'source = "data.npz"\n{stated}\n')
    with pytest.raises(BadInput, match=part):
        compress.plan(tmp_path / "net.pt", data=str(tmp_path / "data.toml"), target="macs=0.5", out=None, **QUICK)


def test_pictures_as_real_numbers_that_were_not_normalized_are_told(tmp_path: Path):
    x, y = samples()
    mean, std = PRESETS["mnist"]
    net, pictures = fitted((x - mean[0]) / std[0], y), x.clamp(0, 1)
    with pytest.warns(CompressWarning, match=r"normalization that they come with, and on \d+% with that of mnist.*real numbers"):
        compress.run(net, data=(pictures, y), target="macs=0.5", out=tmp_path / "out", **QUICK)
    normalized = (x - mean[0]) / std[0]
    parts = {"train": (normalized[:300], y[:300]), "test": (normalized[300:], y[300:])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress.run(net, data=parts, target="macs=0.5", out=tmp_path / "right", **QUICK)
