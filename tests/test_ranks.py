"""Several processes that share a run: the same results as one, and a sentence where one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from in_ranks import CPU
from runs import invoke, model_and_data, over
from test_leftovers import processes, until
from torch import nn

import compress
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.ranks import ALONE, Ranks
from compress.ranks.parcel import packed, unpacked
from compress.ranks.ranks import LANES

HERE = Path(__file__).parent
COUNT = 3


def in_ranks(check: str, count: int = COUNT, **more: str) -> dict[str, Any]:
    """What the first of several processes found out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo", **more}
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "in_ranks.py"), check],
            env={**os.environ, **place, "RANK": str(number), "LOCAL_RANK": str(number), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    told = [one.communicate(timeout=240) for one in started]
    assert started[0].returncode == 0, told[0][1]
    return json.loads(told[0][0])


@pytest.mark.parametrize("batches", [0, 1, 2, 7, 24, 25, 100, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_every_batch_is_somebodys_and_lanes_do_not_depend_on_who_looks(batches: int, count: int):
    shares = [Ranks(number, count).share(batches) for number in range(count)]
    assert [number for share in shares for number in share.numbers] == list(range(batches))
    assert {share.ends for share in shares} == {ALONE.share(batches).ends}
    assert len(shares[0].ends) == min(batches, LANES) and all(
        share.numbers.stop - 1 in share.ends for share in shares if share.numbers
    )


def test_sums_of_several_processes_are_those_of_one():
    found = in_ranks("moments")
    # Float64 sums in another order, of values of 100 with a scatter of 0.01.
    assert found["many"] < 1e-10 and found["none"] < 1e-10
    assert found["many rows"] == [5000, 5000] and found["none rows"] == [1000, 1000]
    assert found["few"] is True


def test_quality_is_counted_over_all_samples_in_their_order():
    assert in_ranks("quality")["same"] == [True, True]


def test_a_process_that_fails_is_told_by_the_first_one():
    first, second = in_ranks("errors")["told"]
    assert first == "BadInput: This is not what was needed."
    assert second.startswith("ProcessLost: One of the 3 processes") and "--resume" in second


def test_a_step_is_that_of_the_whole_batch():
    found = in_ranks("training")
    assert found["apart"] < 1e-5 < 1e-2 < found["moved"]


def test_weights_in_parts_learn_what_whole_ones_learn():
    found = in_ranks("in parts")
    # Adam divides by the root of gradients that are next to nothing: their last digits count.
    assert found["apart"] < 1e-4 < 1e-3 < found["moved"]
    assert found["qualities"][0] == pytest.approx(found["qualities"][1], abs=0.02)
    assert found["held"] == pytest.approx(1 / COUNT, rel=0.1) and found["plain"]


def test_blocks_and_masked_weights_learn_what_they_learn_in_one_process():
    found = in_ranks("stages")
    assert max(found["apart"]) < 1e-4 < 1e-2 < min(found["moved"]) and found["masked"] == 0
    # Sums of float64 in another order: a plan writes 7 digits.
    assert found["lines"] < 1e-12 and found["lines are"] == [8, 8]


@pytest.mark.parametrize("what", ["model", "rounds", "data"])
def test_processes_that_work_on_something_else_are_told_apart_at_once(what: str):
    told = in_ranks(f"other {what}", 2, TORCHELASTIC_RUN_ID="here")["told"]
    assert told.startswith(f"Process 1 of 2 has another {what} than the first") and "Give every machine the same files" in told


class Gated(nn.Module):
    """A residual block with keyword arguments, a slice and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.register_buffer("scale", torch.tensor([2.0, 3.0]).view(1, 2, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        a, b, c = y.split(2, dim=1)
        return torch.cat([a * torch.sigmoid(b), self.scale * c[:, :, 1:-1].mean((2, 3), keepdim=True) + a], dim=1)


def test_a_traced_model_arrives_as_it_was_sent():
    module = trace(Gated().eval(), (torch.randn(1, 3, 8, 8),))
    here, x = object(), torch.randn(4, 3, 8, 8)
    sent = unpacked(packed((module, {"own": here}), {id(here): "here"}), {"here": here})
    arrived, beside = sent  # type: ignore[misc]
    assert beside["own"] is here
    assert torch.equal(arrived(x), module(x))
    assert [(n.name, n.op, n.meta.get("shape")) for n in arrived.graph.nodes] == [
        (n.name, n.op, n.meta.get("shape")) for n in module.graph.nodes
    ]
    assert list(arrived.state_dict()) == list(module.state_dict()) and arrived.code == module.code
    arrived.train()
    assert arrived.norm.training


def command(folder: Path, out: str, *more: str) -> list[str]:
    files = [str(folder / "model.pt"), "--data", str(folder / "data.npz"), "--out", str(folder / out)]
    how = ["--target", "macs=0.5", "--epochs", "2", "--batch-size", "16", "--export", "", "--rounds", "5", "--trust-pickle"]
    return ["run", *files, *over(how, *more), "--allow-doubtful", "--align", "1", "--depth", "0"]


def ran(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "compress", *words], capture_output=True, text=True, timeout=300)


def test_several_processes_make_the_plan_that_one_makes(tmp_path: Path):
    model_and_data(tmp_path)
    assert invoke(*command(tmp_path, "one")).exit_code == 0
    found = ran(command(tmp_path, "two", "--nproc", "2"))
    assert found.returncode == 0, found.stderr
    one, two = ((tmp_path / out / "plan.json").read_bytes() for out in ("one", "two"))
    assert one == two
    until(lambda: not processes("follow_stdin"), 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("--method", "lottery", "--target", "weights=0.5", "--initial", "drawn"),
        ("--method", "sensitivity", "--target", "params=0.5", "--structure", "channels", "--initial", "drawn"),
        ("--method", "easier", "--target", "activations=0.5"),
        ("--method", "nepenthe", "--target", "activations=0.5"),
        ("--reconstruct", "20", "--epochs", "0"),
        ("--fsdp",),
        ("--export", "onnx-int8", "--qat", "1", "--max-drop", "0", "--int8-error", "0.9"),
    ],
    ids=" ".join,
)
def test_every_method_that_trains_goes_through_in_several_processes(tmp_path: Path, settings: tuple[str, ...]):
    model_and_data(tmp_path)
    found = ran(command(tmp_path, "out", *settings, "--nproc", "2"))
    assert found.returncode in (0, 5), found.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["stages"][-1]["quality"]
    until(lambda: not processes("follow_stdin"), 10)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.0, 3.0, 9.0])
def test_a_run_that_loses_a_process_ends_in_a_sentence_and_goes_on(tmp_path: Path, moment: float):
    model_and_data(tmp_path)
    words = command(tmp_path, "out", "--epochs", "1000", "--nproc", "2")
    running = subprocess.Popen([sys.executable, "-m", "compress", *words], stderr=subprocess.PIPE, text=True)
    until(lambda: processes("follow_stdin"))
    time.sleep(moment)
    for other in processes("follow_stdin"):
        os.kill(other, signal.SIGKILL)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 1 and "One of the 2 processes of this run ended" in told and "Traceback" not in told, told
    again = ran([*words, "--resume"] if (tmp_path / "out" / "stages").exists() else [*words, "--force"])
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--nproc", "0"), "--nproc is 0; needed is a number of processes, at least 1."),
        (("--nproc", "4000"), "--nproc is 4000, and each process begins with"),
        (("--nproc", "2", "--dry-run"), "--nproc does not go with --dry-run."),
        (("--nproc", "2", "--methods", "l1,entropic"), "--nproc does not go with --methods."),
        (("--fsdp", "--entropy-guidance", "0.1"), "--fsdp does not go with --entropy-guidance"),
    ],
)
def test_what_does_not_go_with_several_processes_is_said(tmp_path: Path, more: tuple[str, ...], told: str):
    model_and_data(tmp_path)
    found = invoke(*command(tmp_path, "out", *more))
    assert found.exit_code == 2 and told in found.output, found.output
    assert not (tmp_path / "out").exists()


def test_what_is_in_memory_is_for_torchrun():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).to(CPU)
    with pytest.raises(BadInput, match="torchrun --nproc-per-node 2"):
        compress.run(net, data=(torch.randn(60, 1, 6, 6), torch.arange(60) % 3), nproc=2)


def test_torchrun_around_a_command_for_one_process_is_refused():
    found = subprocess.run(
        [sys.executable, "-m", "compress", "bench", "nosuch.onnx"],
        env={**os.environ, "TORCHELASTIC_RUN_ID": "here", "WORLD_SIZE": "2", "RANK": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 2
    assert "torchrun has started 2 processes, and 'compress bench' works in one" in found.stderr
