"""Candidates in processes of their own: figures of each, gaps with their reasons, and nothing claimed from noise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import exporters
from compress import bench as verb
from compress.commands.bench import chosen, named, numbers, steady
from compress.errors import BadInput, Unsteady
from compress.measure import interleaved
from compress.measure.interleaved import Candidate, Figures, race
from compress.measure.latency import judge
from exporters.standalone import machine, racing
from exporters.standalone.racing import Measured, Timed


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("turns") / "net.onnx"
    exporters.export("onnx", nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval(), (torch.zeros(2, 16),), path)
    return path


def candidate(path: Path) -> Candidate:
    return Candidate(path.name, "ort", path, 3, 1)


def test_every_candidate_has_its_figures_and_a_broken_one_its_reason(file: Path):
    wrong = file.with_name("wrong.onnx")
    wrong.write_text("<html>")
    bad, first, other = race([candidate(wrong), candidate(file), candidate(file)], rounds=5)
    assert bad.reason is not None and "does not open" in bad.reason and bad.p50_ms is None
    assert first.reason is None and first.ratio == 1 and first.ci95 == (1, 1)  # the first that runs is the reference
    assert first.p50_ms and first.p90_ms and first.p99_ms and first.p50_ms <= first.p90_ms * 1.5 and first.p90_ms <= first.p99_ms
    assert first.per_second == pytest.approx(3e3 / first.p50_ms) and first.samples >= 5 and first.threads == 1
    assert first.load_ms and first.first_ms and first.version
    # Python, numpy and ONNX Runtime: some 60 MB; with torch it would be several hundred.
    assert first.peak_bytes is not None and 2e7 < first.peak_bytes < 2e8
    assert other.verdict in ("faster", "slower", "cannot tell") and other.ratio is not None and other.ratio > 0


def process(code: str) -> Timed:
    started = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    return Timed(started)


@pytest.mark.parametrize(
    ("code", "seconds", "part"), [("raise SystemExit(7)", 60, r"ended \(7\)"), ("import time; time.sleep(60)", 0.1, "no answer")]
)
def test_a_process_that_ends_or_is_silent_says_so_and_is_stopped(code: str, seconds: float, part: str):
    one = process(code)
    assert one.ask({"do": "calls", "count": 1}, seconds) == {}
    assert one.measured.failed is not None and one.process.poll() is not None
    with pytest.raises(AssertionError, match=part):
        raise AssertionError(one.measured.failed)


def test_what_a_process_complained_about_is_its_reason():
    code = "import sys; print('one', file=sys.stderr); print('no memory', file=sys.stderr); raise SystemExit(3)"
    (found,) = racing.race([{"path": "x"}], [sys.executable, "-c", code])
    assert found.failed == "the process ended (3: no memory)"


@pytest.mark.parametrize(("ms", "calls"), [(60, 1), (20, 3), (6, 6), (1, 21)])
def test_the_call_that_finds_the_caches_full_of_another_model_is_not_counted(ms: float, calls: int):
    class Fake:
        def __init__(self) -> None:
            self.measured = Measured()

        def ask(self, order: dict[str, int]) -> dict[str, list[float]]:
            count = order.get("count", 0)
            return {"seconds": [ms / 1e3 * (3 if number == 0 and count > 1 else 1) for number in range(count)]}

    one: Any = Fake()
    racing._warm(one, {})
    assert one.measured.calls == calls
    racing._rounds([one], 5, 60.0, 0)
    assert [seconds for found in one.measured.rounds for seconds in found] == pytest.approx([ms / 1e3] * (5 * max(calls - 1, 1)))


def test_rounds_go_on_without_a_candidate_that_dies(monkeypatch: pytest.MonkeyPatch):
    class Fake:
        def __init__(self, answers: int) -> None:
            self.measured, self.answers = Measured(), answers

        def ask(self, order: object) -> dict[str, list[float]]:
            self.answers -= 1
            self.measured.failed = "died" if self.answers < 0 else None
            return {"seconds": [1.0]}

    one, other = Fake(2), Fake(99)
    racing._rounds([one, other], 6, 60.0, 0)  # type: ignore[list-item]
    assert one.measured.failed == "died" and len(one.measured.rounds) == 3 and len(other.measured.rounds) == 6


def rounds(spread: float) -> Measured:
    values = np.tile([1.0, spread], 10)
    one = Measured({"load_s": 1.0, "first_s": 1.0, "version": "1"})
    one.rounds, one.joules = [[float(v)] for v in values], [2.0, None, 4.0]
    one.wall_s = one.processor_s = float(values.sum())
    return one


X = Candidate("x", "ort", Path("x"), 1, 1)


@pytest.mark.parametrize(("spread", "noisy"), [(1.2, False), (2.0, True)])
def test_a_first_candidate_whose_rounds_scatter_is_noisy(spread: float, noisy: bool):
    one = rounds(spread)
    (found,) = interleaved.judged([X], [one], machine.State(1.0, None), machine.State(2.0, None))
    assert found.noisy is noisy and found.joules == 3.0 and found.mhz == (1.0, 2.0)
    if noisy:
        with pytest.raises(Unsteady, match="scatter too much"):
            steady([found])
    else:
        steady([found])


@pytest.mark.parametrize(("own", "first", "noisy"), [(0.95, 1.0, False), (0.5, 1.0, True), (1.0, 0.5, True)])
def test_a_process_without_a_core_claims_nothing_however_steady_it_was(own: float, first: float, noisy: bool):
    one = rounds(1.0)
    one.processor_s *= own
    timing = judge({"0": np.full(20, 5.0), "1": np.full(20, 1.0)}, "0")["1"]
    found = interleaved._figures(X, one, timing, False, first)
    assert timing.faster and found.noisy is noisy and found.held == min(own, first)
    assert found.verdict == ("cannot tell" if noisy else "faster")


def test_clock_temperature_and_energy_are_read_where_the_machine_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    put("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "2000000\n")
    put("devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "3000000\n")
    put("class/thermal/thermal_zone0/temp", "41000\n")
    put("class/thermal/thermal_zone1/temp", "52000\n")
    put("class/powercap/intel-rapl:0/energy_uj", "5000000\n")
    put("class/powercap/intel-rapl:0:0/energy_uj", "4000000\n")  # a part of the package: not counted twice
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    assert machine.state() == machine.State(2500.0, 52.0)
    assert machine.joules() == 5.0
    assert machine.spent(5.0, 7.5) == 2.5 and machine.spent(7.5, 5.0) is None and machine.spent(None, 5.0) is None


def test_a_machine_that_tells_nothing_has_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(machine, "PROCESSOR", tmp_path / "cpuinfo")
    assert machine.state() == machine.State(None, None) and machine.joules() is None


@pytest.mark.parametrize("value", ["1,32", [1, 32], "1,32,1"])
def test_several_numbers_are_a_list(value: str | list[int]):
    assert numbers("batch", value, 1) == [1, 32]


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: numbers("batch", "1,x", 1), "--batch is '1,x'"),
        (lambda: numbers("threads", -1, 0), "whole numbers from 0"),
        (lambda: chosen("ort,caffe"), "The runtime is 'caffe'; known are auto, ort"),
        (lambda: chosen("ort,ort-cuda"), "in a call of its own"),
        (lambda: verb("model.engine", runtime="ort"), "on its own device"),
        (lambda: verb("net.pte", runtime="ort,openvino"), "no file that ort runs: it opens .onnx"),
    ],
)
def test_what_cannot_be_timed_is_refused(call: Callable[[], object], part: str):
    with pytest.raises(BadInput) as caught:
        call()
    assert part in str(caught.value)


def test_names_tell_what_differs():
    rows = [Figures("a.onnx", "ort", 1, 1), Figures("a.onnx", "openvino", 1, 1)]
    assert list(named(rows)) == ["a.onnx runtime=ort", "a.onnx runtime=openvino"]
    assert list(named(rows[:1])) == ["a.onnx"]


def test_a_gap_stands_beside_what_was_timed_and_batches_are_compared_apart(file: Path):
    found = verb(file, file.with_name("none.pte"), runtime="ort", batch="1,2", threads=1, rounds=5)
    assert [(f.batch, f.reason is None) for f in found.values()] == [(1, True), (1, False), (2, True), (2, False)]
    timed = [f for f in found.values() if f.reason is None]
    assert [f.ratio for f in timed] == [1, 1] and all(f.runtime == "ort" for f in timed)
