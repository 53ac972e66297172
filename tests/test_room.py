"""Bounded memory: what does not fit goes to files and comes back the same, results do not depend on it, too little is told."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.artifact import Artifact, apply
from compress.data import from_arrays
from compress.data.room import Held, Room, room
from compress.edits import Plan
from compress.entropy.moments import Moments
from compress.entropy.narrowed import narrowed, taps
from compress.entropy.ridge import ridge
from compress.errors import BadInput, NotEnoughMemory, NotWritten
from compress.graph.channels.solve import solve
from compress.graph.merge.batch_norm import fold
from compress.graph.trace.trace import trace
from compress.measure.asked import parse_memory
from compress.pipeline.workspace import open_workspace
from compress.ranks import Ranks
from compress.recipe import make
from compress.refit import refit
from compress.selection.budget import removable
from compress.selection.channels import Losses
from compress.selection.choice import Choice
from compress.stage import Context
from compress.stages.reconstruct import Reconstruct
from compress.statistics.activation_states import observed
from compress.user import memory

CPU = torch.device("cpu")
INPUT = (torch.zeros(1, 3, 16, 16),)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.second, self.after = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.after(self.second(torch.relu(self.norm(self.first(x))))))


def net() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), Block(16), nn.MaxPool2d(2), Block(16),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 24), nn.ReLU(), nn.Linear(24, 5),
    )  # fmt: skip
    made(torch.randn(64, 3, 16, 16))
    return made.eval()


def context(memory: str, folder: Path | None = None, **settings: object) -> Context:
    random = np.random.default_rng(0)
    images, labels = random.standard_normal((460, 3, 16, 16)).astype(np.float32), np.arange(460) % 5
    data = from_arrays({"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]})
    recipe = make(epochs=0, calibration=400, target="macs=0.5", memory=memory, **settings)
    return Context(Artifact(trace(net(), INPUT), INPUT), data, recipe, CPU, scratch=folder)


def test_what_does_not_fit_comes_back_from_a_file_as_it_was(tmp_path: Path):
    place = Room(40_000.0, tmp_path / "scratch")
    held = Held(place)
    values = [(torch.randn(5, 300, generator=torch.Generator().manual_seed(n)), torch.arange(2000), 7, "x") for n in range(6)]
    for value in values:
        held.append(value)
    assert place.away > 0 and len(held) == 6
    for number, (x, y, *rest) in enumerate(values):
        found = held[number]
        assert torch.equal(found[0], x) and torch.equal(found[1], y) and [*found[2:]] == rest
    assert not (tmp_path / "scratch").exists(), "a file without a name lies in no folder"
    held.drop()
    assert place.take(20_000, True), "what was dropped gives its room back"


def test_rows_are_taken_across_parts_in_the_order_asked_for():
    place = Room(2 * 20_000.0)
    held, whole = Held(place), torch.randn(30, 500)
    for part in whole.split(9):
        held.append(part)
    index = torch.tensor([29, 0, 17, 8, 9, 0])
    assert place.away > 0 and torch.equal(held.rows(index), whole[index]) and held.samples == 30


def test_values_that_are_changed_in_place_do_not_change_the_file():
    held = Held(Room(0.0))
    held.append(torch.ones(2000))
    held[0].zero_()
    assert torch.equal(held[0], torch.ones(2000))


@pytest.mark.parametrize(("needed", "told"), [(2.7e6, "--memory 3MB."), (2.71e9, "--memory 2.8GB.")])
def test_a_limit_that_is_too_small_is_told_with_one_that_just_does(needed: float, told: str):
    with pytest.raises(NotEnoughMemory) as error:
        Room(1e6).check(needed, "A layer")
    assert str(error.value).endswith(told)


def test_nothing_is_left_after_a_kill(tmp_path: Path):
    code = (
        "import os, sys, torch; from pathlib import Path; from compress.data.room import Held, Room; "
        "held = Held(Room(0.0, Path(sys.argv[1]))); held.append(torch.ones(100_000)); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "scratch")]).returncode
    assert ended == -signal.SIGKILL and list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Room, "file", lambda self: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(
        NotWritten, match=r"takes no more \(No space left on device\). Make room there, or give more --memory"
    ) as told:
        Held(Room(0.0, tmp_path)).append(torch.ones(5000))
    assert isinstance(told.value.__cause__, OSError) and told.value.__cause__.errno == errno.ENOSPC


def outputs(told: Context) -> tuple[torch.Tensor, Artifact, tuple[str, ...]]:
    """What the network gives after statistics, selection, refit and block reconstruction."""
    groups = removable(told.dense.module, solve(told.dense.module, told.dense.inputs))
    found = refit.statistics(told.dense, told, groups, states=True)
    edits, _ = Choice().decide(told.dense, told, Losses(told.dense.module, found))
    small = Reconstruct()(refit.refitted(apply(Plan(edits), told.dense), told), told)
    x = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return small.module(x).detach(), small, tuple(str(e) for e in edits)


@pytest.mark.parametrize("free", [None, 10**5])
def test_results_are_the_same_with_little_memory_and_all_images_are_used(
    free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if free is not None:  # what files have no room for is computed again
        monkeypatch.setattr(Room, "_free_for_files", lambda self: free)
    plenty, little = context("100GB", reconstruct=15), context("10MB", tmp_path / "scratch", reconstruct=15)
    expected, _, edits = outputs(plenty)
    found, small, same = outputs(little)
    assert same == edits
    # 1e-5 of the largest output: sums of another order in float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert any("went through files" in note and "10.0 MB (--memory)" in note for note in small.notes)
    images = refit.images(little)
    assert images.samples == 400 and max(part.images for part in images.parts) < 250


@pytest.mark.parametrize(
    ("asked", "each", "said"),
    [(None, 2e9, "2.0 GB (its part of half of what is free, of 3 processes)"), ("4GB", 4e9, "4.0 GB (--memory)")],
)
def test_processes_of_a_machine_share_what_is_free_and_not_what_was_asked_for(
    asked: str | None, each: float, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "free", lambda: 12_000_000_000)
    shared = replace(context("1GB"), ranks=Ranks(0, 3, 3))
    found = replace(shared, recipe=shared.recipe.model_copy(update={"memory": asked})).room()
    assert (found.limit, found.said) == (each, said)


def test_too_little_memory_says_what_is_needed():
    told = context("1MB")
    with pytest.raises(NotEnoughMemory, match=r"alone needs .* of memory, more than 1.0 MB \(--memory\). Give at least --memory"):
        refit.images(told)


@pytest.mark.parametrize("text", ["4 bananas", "", "-1GB", "0GB", "12", "GB", "1e400GB"])
def test_a_malformed_size_is_refused(text: str):
    with pytest.raises(BadInput, match="needed is a size such as 4GB"):
        make(memory=text)


def test_sizes_are_read_as_people_write_them():
    assert [parse_memory(text) for text in ("4GB", "512MiB", "1.5 gb")] == [4e9, 512 * 2**20, 1.5e9]


def test_half_of_what_is_free_is_the_default_and_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("2000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    monkeypatch.setattr(memory, "_control_groups", lambda: [tmp_path])
    monkeypatch.setattr(memory, "_left_on_the_machine", lambda: 8_000_000_000)
    assert memory.free() == 1_500_000_000
    assert room(None, CPU, None).limit == 750e6 and room(None, CPU, None).said == "0.8 GB (half of what is free)"
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free() == 8_000_000_000


def moments(x: torch.Tensor, y: torch.Tensor | None) -> Moments:
    found = Moments()
    found.add(x, y)
    return found


@pytest.mark.parametrize("at_once", [4096, 20])
def test_fewer_rows_than_columns_give_the_same_fit_without_a_matrix_of_columns(at_once: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[ridge.__module__], "_COLUMNS", at_once)
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 90, generator=random) + 3, torch.randn(40, 4, generator=random)
    by_rows, by_sums = moments(x, y), moments(x, y)
    assert by_rows.few
    by_sums.nbytes  # noqa: B018 (makes the sums)
    assert not by_sums.few
    one, other = ridge(by_rows), ridge(by_sums)
    # The sums are of float32 products of about 10, and the fit goes through every row.
    assert by_rows.centered_linear(torch.zeros(1, 90)).xx.shape == (1, 90, 90)
    assert by_rows.few, "their products are not kept"
    torch.testing.assert_close(one.weight, other.weight, rtol=0, atol=2e-4)
    torch.testing.assert_close(one.bias, other.bias, rtol=0, atol=1e-3)
    assert one.error == pytest.approx(other.error, rel=0.1)


@pytest.mark.parametrize("rows", [40, 200])
def test_sums_and_few_rows_that_are_put_away_are_what_they_were(rows: int):
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 90, generator=random), torch.randn(4, 90, generator=random)
    here, away = moments(x, None), moments(x, None)
    files: list[torch.Tensor] = []

    def put(value: torch.Tensor):
        files.append(kept := value.clone())
        return lambda: kept

    away.put_away(put)
    assert files and away.few == here.few == (rows == 40)
    for one, other in zip(here.centered_linear(weight), away.centered_linear(weight), strict=True):
        assert torch.equal(one, other)
    if here.few:
        assert torch.equal(*(torch.cat([x for x, _ in one.parts()]) for one in (here, away)))


def test_weights_that_are_only_read_are_in_memory_once():
    model = trace(net(), INPUT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    looked_at, folded = observed(model, CPU), fold(model, read=True)
    assert looked_at.get_parameter("8.weight").data_ptr() == model.get_parameter("8.weight").data_ptr()
    assert folded.get_parameter("8.weight").data_ptr() == model.get_parameter("8.weight").data_ptr()
    assert not looked_at.get_parameter("8.weight").requires_grad and model.get_parameter("8.weight").requires_grad
    x = torch.randn(8, 3, 16, 16)
    torch.testing.assert_close(folded(x), model(x))
    looked_at(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model itself is not changed"


def test_all_directions_of_every_channel_keep_all_second_moments():
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(30, 24, generator=random), torch.randn(5, 24, generator=random)
    owner = torch.arange(6).repeat(4)
    assert taps(owner, 6) == 4 and taps(owner[:-1], 6) is None and taps(owner - 1, 6) is None
    found, owners = narrowed(lambda: x.split(7), weight, owner, 6)
    expected = moments(x, None).centered_linear(weight)
    torch.testing.assert_close(found.yy, expected.yy, rtol=1e-4, atol=1e-4)  # float32 products
    for channel in range(6):
        here, there = (torch.nonzero(o == channel)[:, 0] for o in (owners, owner))
        explained = [
            m.xy[0][at].T @ torch.linalg.solve(m.xx[0][at][:, at], m.xy[0][at]) for m, at in ((found, here), (expected, there))
        ]
        torch.testing.assert_close(*explained, rtol=1e-3, atol=1e-3)


def test_a_run_is_resumed_with_another_memory(tmp_path: Path):
    recipe = make(model="m", data="d", memory="1GB")
    with open_workspace(tmp_path / "out", recipe, resume=False, force=False) as workspace:
        workspace.folder(0, "dense").mkdir(parents=True)
    with open_workspace(tmp_path / "out", replace_memory(recipe, "2GB"), resume=True, force=False):
        assert 'memory = "2GB"' in (tmp_path / "out" / "recipe.toml").read_text()


def replace_memory(recipe: Any, text: str) -> Any:
    return recipe.model_copy(update={"memory": text})
