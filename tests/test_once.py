"""Statistics, loss curves and fits are computed once; quality is counted by what answers quickest, if it answers the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import invoke, model_and_data
from torch import nn

from compress import artifact
from compress.artifact import Artifact
from compress.graph.trace.trace import trace
from compress.measure.latency import Timing
from compress.pipeline import sequence
from compress.pipeline.answers import quickest
from compress.pipeline.prepare import prepare
from compress.pipeline.rounding import with_widths_that_pay
from compress.progress import silent
from compress.recipe import make
from compress.refit import refit
from compress.selection import channels as selection
from compress.selection import choice
from compress.stage import Findings, once
from compress.stages.remove import Remove
from exporters import onnx_for_timing

CPU = torch.device("cpu")


def test_a_finding_is_of_one_model_and_of_what_it_depends_on():
    findings, found = Findings(), Counter[str]()

    def find(name: str) -> Any:
        found[name] += 1
        return name, found[name]

    one, other = nn.ReLU(), nn.ReLU()
    for _ in range(2):
        assert once(findings, one, ("curve", 3), lambda: find("a")) == ("a", 1)
        assert once(findings, one, ("curve", 4), lambda: find("b")) == ("b", 1)
        assert once(findings, other, ("curve", 3), lambda: find("c")) == ("c", 1)
    assert [once(None, one, (), lambda: find("d")) for _ in range(2)] == [("d", 1), ("d", 2)]


@pytest.mark.parametrize("faster", [True, False])
def test_two_widths_are_tried_with_one_look_at_the_images_and_one_fit(
    faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 20, 3), nn.ReLU(), nn.Conv2d(20, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10))
    torch.save(net, tmp_path / "net.pt")
    settings = {"model": str(tmp_path / "net.pt"), "data": "digits", "epochs": 0, "calibration": 100, "device": "cpu"}
    context, _ = prepare(make(target="macs=0.5", **settings), silent)
    calls = Counter[str]()
    for module, name in ((refit, "statistics"), (selection, "sweeps"), (choice, "_chosen"), (refit, "refit")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, name=name, **k: calls.update([name]) or real(*a, **k))
    timing = Timing(1.0, 1.5, (1.4, 1.6), 5) if faster else Timing(1.0, 1.0, (0.9, 1.1), 5)
    context = replace(context, race=lambda *_: timing)
    result = with_widths_that_pay(Remove(), context.dense, context, None)
    # What is raced has sizes; which channels stay is asked of the width that is taken.
    assert calls == {"statistics": 1, "sweeps": 1, "_chosen": 1, "refit": 1}
    alone = Remove()(context.dense, replace(context, recipe=context.recipe.model_copy(update={"align": 8 if faster else 1})))
    assert result.plan.digest == alone.plan.digest
    after = result.module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in alone.module.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "passes"), [([], 1), (["--iterations", "2", "--epochs", "0.1"], 2), (["--method", "magnitude"], 1)]
)
def test_analysis_goes_over_the_images_for_the_stage_behind_it(
    flags: list[str], passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model_and_data(tmp_path)
    calls, real = list[tuple[int, bool]](), refit.collect

    def collect(module: Any, batches: Any, paths: Any, **told: Any) -> Any:
        calls.append((len(paths), told["states"]))
        return real(module, batches, paths, **told)

    monkeypatch.setattr(refit, "collect", collect)

    def run(out: str) -> list[bytes]:
        place = tmp_path / out
        told = ["run", tmp_path / "model.pt", "--data", tmp_path / "data.npz", "--target", "params=0.7", "--align", 1]
        done = invoke(*told, *(flags if "--epochs" in flags else [*flags, "--epochs", 0]), "--out", place)
        assert done.exit_code == 0, done.output
        return [(place / name).read_bytes() for name in ("plan.json", "model.compressed/weights.safetensors")]

    together = run("together")
    assert len(calls) == passes and calls[0] == ("magnitude" not in flags, True)
    calls.clear()
    monkeypatch.setattr(sequence, "_looking_ahead", tuple)
    # Statistics belong to the model and the images, whoever has counted them.
    assert run("each") == together and len(calls) == passes + ("magnitude" not in flags)


def test_a_model_is_counted_once_whatever_its_notes_and_another_one_anew(monkeypatch: pytest.MonkeyPatch):
    counted: list[nn.Module] = []
    real = artifact.cost
    monkeypatch.setattr(artifact, "cost", lambda module, inputs: counted.append(module) or real(module, inputs))
    nets = [trace(nn.Sequential(nn.Linear(4, n)), (torch.zeros(1, 4),)) for n in (3, 5)]
    one, other = (Artifact(net, (torch.zeros(1, 4),)) for net in nets)
    assert [one.cost.macs, one.noting("a note").cost.macs, other.cost.macs, one.cost.macs] == [12, 12, 20, 12]
    assert counted == nets


def test_a_file_counts_quality_only_where_it_answers_as_the_model(tmp_path: Path):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    artifact = Artifact(trace(net, (x[:1],)), (x[:1],))
    onnx_for_timing.write(artifact.module, artifact.inputs, tmp_path / "net.onnx", 18)
    answer = quickest(artifact, tmp_path / "net.onnx", CPU, [(x,)])
    assert answer is not artifact.module
    with torch.no_grad():
        assert torch.allclose(answer(x), net(x), atol=1e-5)
    with torch.no_grad():
        artifact.module.get_submodule("3").bias += 1
    assert quickest(artifact, tmp_path / "net.onnx", CPU, [(x,)]) is artifact.module
    assert quickest(artifact, tmp_path / "absent.onnx", CPU, [(x,)]) is artifact.module
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    assert quickest(artifact, tmp_path / "broken.onnx", CPU, [(x,)]) is artifact.module
