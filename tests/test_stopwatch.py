"""Races: measured once per structure, setting and machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from compress.artifact import Artifact
from compress.graph.trace.trace import trace
from compress.measure.latency import Timing
from compress.pipeline import latency_cache
from compress.pipeline.latency_cache import LatencyCache
from compress.recipe import make
from compress.user import cache_folder


def net(width: int, seed: int = 0) -> Artifact:
    torch.manual_seed(seed)
    inputs = (torch.zeros(1, 8),)
    return Artifact(trace(nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4)), inputs), inputs)


def watch(**settings: object) -> LatencyCache:
    return LatencyCache(make(runtime="torch", rounds=5, **settings), torch.device("cpu"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache_folder.CACHE, str(tmp_path))
    return tmp_path / "latency.json"


def test_a_known_outcome_is_not_measured_again(cache: Path, monkeypatch: pytest.MonkeyPatch):
    # What others do on this machine meanwhile is no question here.
    monkeypatch.setattr("exporters.standalone.machine.MOST_WAITED", float("inf"))
    monkeypatch.setattr("exporters.standalone.machine.MOST_STOLEN", float("inf"))
    monkeypatch.setattr("compress.measure.latency.MOST_SCATTER", float("inf"))
    first = watch()
    found = first.race(net(4), net(4096))
    assert first.measured == 1
    assert found.ratio > 1
    again = watch()
    assert again.race(net(4, seed=1), net(4096, seed=2)) == found, "weights do not matter"
    assert again.measured == 0
    assert cache.exists()


@pytest.mark.parametrize(
    ("settings", "one", "other"),
    [
        ({}, net(5), net(16)),
        ({}, net(4), net(17)),
        ({}, net(16), net(4)),
        ({"batch": 2}, net(4), net(16)),
        ({"threads": 1}, net(4), net(16)),
    ],
)
def test_another_model_or_setting_is_another_race(settings: dict[str, object], one: Artifact, other: Artifact):
    if "threads" in settings and latency_cache.threads_of(0) == 1:
        pytest.skip("all cores are one core here")
    watch().race(net(4), net(16))
    second = watch(**settings)
    second.race(one, other)
    assert second.measured == 1


def test_a_smaller_model_wins_in_onnx_runtime_too():
    second = LatencyCache(make(runtime="ort", rounds=5, batch=2), torch.device("cpu"))
    assert isinstance(second.race(net(4), net(8192)), Timing)
    assert second.race(net(4), net(8192)).ratio > 1


@pytest.mark.parametrize("text", ["", "[]", '{"key": 3}', '{"key": {"ratio": 1}}'])
def test_a_damaged_cache_is_done_without(cache: Path, text: str):
    cache.write_text(text)
    first = watch()
    first.race(net(4), net(16))
    assert first.measured == 1
    again = watch()
    again.race(net(4), net(16))
    assert again.measured == 0


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(cache_folder.CACHE, str(file))
    assert watch().race(net(4), net(16)).samples >= 5


def test_a_race_too_noisy_to_tell_is_repeated_and_not_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch):
    outcomes = [Timing(1.0, 3.0, (2.0, 4.0), 5, scatter=s) for s in (6.0, 6.0, 6.0, 1.1)]
    monkeypatch.setattr(latency_cache, "compare", lambda *args, **settings: {"one": outcomes.pop(0)})
    noisy = watch().race(net(4), net(16))
    assert noisy.noisy and not noisy.faster and len(outcomes) == 2 and not cache.exists()
    assert watch().race(net(4), net(16)).faster and not outcomes
    assert watch().race(net(4), net(16)).faster, "remembered"


def test_the_same_block_elsewhere_is_the_same_race():
    def block(name: str, width: int = 4) -> Artifact:
        inputs = (torch.zeros(1, 8),)
        layers = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))
        return Artifact(trace(Wrapped(name, layers), inputs), inputs)

    one = watch()
    one.race(block("first"), block("first", 16))
    one.race(block("second"), block("second", 16))
    assert one.measured == 1
    one.race(block("second"), block("second", 17))
    assert one.measured == 2


class Wrapped(nn.Module):
    """A block under a name, called twice, the second time with what the first gave."""

    def __init__(self, name: str, layers: nn.Module) -> None:
        super().__init__()
        self.add_module(name, layers)
        self.within = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = self.get_submodule(self.within)
        return x + layers(layers(x))


def test_a_race_is_shared_by_sessions_since_memory_lies_elsewhere_in_each(monkeypatch: pytest.MonkeyPatch):
    opened, budgets, dense_ms = list[Path](), list[float](), [2.0, 2.1, 2.9, 2.1]  # one of the four is far off

    def compare(runs: dict[str, object], reference: str, *, rounds: int, budget_s: float, **_: object) -> dict[str, Timing]:
        budgets.append(budget_s)
        ms = {"one": 1.0, "other": dense_ms.pop(0)}
        return {name: Timing(one, 1.0, (1.0, 1.0), rounds, rounds_ms=(one,) * rounds) for name, one in ms.items()}

    monkeypatch.setattr(latency_cache, "runner", lambda runtime, path, *_: opened.append(path))
    monkeypatch.setattr(latency_cache, "compare", compare)
    found = LatencyCache(make(runtime="ort", rounds=40), torch.device("cpu")).race(net(4), net(16))
    assert found.ratio == pytest.approx(2.1) and found.samples == 40
    assert [path.name for path in opened] == ["one.onnx", "other.onnx"] * 4
    assert sum(budgets) == 60, "no longer than a single session"
