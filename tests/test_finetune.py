"""`compress finetune`: a model that was made smaller elsewhere, trained by file, with a dense one as its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import compress
from compress.cli.main import cli
from compress.errors import BadInput

CLASS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=12, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.body(x))
"""


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows, columns, a chessboard and nothing, in some noise: classes that a few epochs tell apart."""
    random = np.random.default_rng(seed)
    row, column = np.indices((8, 8)) % 2
    patterns = np.stack([row, column, row ^ column, 0 * row]) * 2.0
    y = np.arange(count) % 4
    return (patterns[y][:, None] + random.normal(size=(count, 1, 8, 8)) * 0.3).astype(np.float32), y


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a class, weights of a wide and of a narrow net, and one without a class."""
    folder = tmp_path_factory.mktemp("place")
    (x, y), (x_test, y_test) = stripes(240, 0), stripes(120, 1)
    np.savez(folder / "data.npz", x=x, y=y, x_test=x_test, y_test=y_test)
    np.savez(folder / "unlabeled.npz", x=x, x_test=x_test)
    (folder / "net.py").write_text(CLASS)
    space: dict[str, Any] = {"__name__": "net"}
    exec(CLASS, space)
    torch.manual_seed(0)
    wide = compress.finetune(space["Net"](), (torch.tensor(x), torch.tensor(y)), epochs=20, lr=3e-2, batch_size=40)
    torch.save(wide.state_dict(), folder / "wide.pt")
    torch.save(space["Net"](width=6).state_dict(), folder / "narrow.pt")
    torch.save(space["Net"](classes=7).state_dict(), folder / "seven.pt")
    whole = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    torch.save(whole, folder / "whole.pt")
    return folder


def narrow(place: Path) -> list[object]:
    return [place / "narrow.pt", "--arch", f"{place}/net.py:Net", "--arch-kwargs", "width=6"]


QUICK = ("--epochs", 12, "--lr", 3e-2, "--batch-size", 40)


def test_a_smaller_model_of_elsewhere_learns_from_its_teacher_and_opens_again(place: Path, tmp_path: Path):
    out = tmp_path / "tuned.compressed"
    teacher = ["--teacher", place / "wide.pt", "--teacher-arch", f"{place}/net.py:Net"]
    done = invoke("finetune", *narrow(place), *teacher, "--data", place / "data.npz", *QUICK, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["after"]["value"] > found["before"]["value"] + 0.2 and found["after"]["samples"] == 120
    low, high = found["after"]["drop_ci95"]
    assert low <= high < -10  # points lost: negative ones are gained
    assert found["teacher"]["value"] > 0.6 and any("70% the dense model's outputs" in note for note in found["notes"])
    model = compress.load(out)
    assert model.get_submodule("head").weight.shape == (4, 6)
    again = invoke("finetune", out, "--data", place / "data.npz", "--epochs", 1, "--out", tmp_path / "again.compressed")
    assert again.exit_code == 0 and "after (" in again.stdout and "again.compressed is written" in again.stdout, again.output


def test_a_model_learns_from_its_teacher_alone_where_there_are_no_labels(place: Path, tmp_path: Path):
    data = ["--data", place / "unlabeled.npz", "--epochs", 2, "--batch-size", 40]
    done = invoke("finetune", place / "whole.pt", "--teacher", place / "wide.pt", "--teacher-arch", f"{place}/net.py:Net",
                  *data, "--out", tmp_path / "tuned")  # fmt: skip
    assert done.exit_code == 0 and "agreement on" in done.stdout, done.output
    alone = invoke("finetune", place / "whole.pt", *data, "--out", tmp_path / "alone")
    assert alone.exit_code == 2 and "no labels" in alone.stderr and "--teacher DENSE" in alone.stderr
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--teacher", "seven.pt", "--teacher-arch", "net.py:Net", "--teacher-arch-kwargs", "classes=7"],
            "gives 7 for each sample",
        ),
        (["--teacher", "wide.pt"], "The teacher: "),
        (["--teacher", "nothing.pt"], "no model file nothing.pt"),
        (["--teacher-arch-kwargs", "classes"], "--teacher-arch-kwargs is 'classes'"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--out", "nowhere/tuned"], "The folder nowhere of --out does not exist"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_is_written(
    place: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    before = sorted(place.iterdir())
    done = invoke("finetune", *narrow(place), "--data", "data.npz", *words)
    assert done.exit_code == 2 and said in done.stderr and "\nError: " in f"\n{done.stderr}", done.output
    assert [p for p in sorted(place.iterdir()) if p.name != "__pycache__"] == [p for p in before if p.name != "__pycache__"]


def test_without_data_the_sentence_says_what_is_needed(place: Path, tmp_path: Path):
    done = invoke("finetune", place / "whole.pt", "--input-shape", "1x8x8", "--out", tmp_path / "tuned")
    assert done.exit_code == 2 and "There is no data; needed is --data" in done.stderr


def test_a_file_and_a_module_do_not_go_together(place: Path):
    x, y = stripes(40, 0)
    with pytest.raises(BadInput, match="needed are two files, or two modules"):
        compress.finetune(place / "whole.pt", (x, y), teacher=nn.Linear(1, 1))  # type: ignore[call-overload]
    with pytest.raises(BadInput, match=r"compress\.load opens files"):
        compress.finetune(torch.load(place / "whole.pt", weights_only=False), (x, y), teacher=place / "wide.pt")  # type: ignore[call-overload]
