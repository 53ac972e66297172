"""How a command ends when it does not end well: stopped from outside, refused to a program, or with a model that guesses."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import compress
from compress.cli.guard import interruption, terminable
from compress.errors import BadInput, GateFailed, Infeasible, Interrupted, StageFailed, Terminated, UnsupportedModel
from compress.report import sentences
from compress.report.records import Broken, Outcome, Quality, StageRecord
from exporters.errors import MissingBackend, ParityError
from tests.runs import invoke, model_and_data

QUICK = ("--target", "params=0.5", "--align", "1", "--epochs", "0", "--rounds", "5", "--calibration", "40")


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as a person's shell has it: what is started in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a model and data in it."""
    monkeypatch.chdir(tmp_path)
    model_and_data(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("more", "why"), [(("--target", "macs=0.5"), "with a --target there is nothing to look for"), ((), "there is no --max-drop")]
)
def test_what_minimize_cannot_do_is_noted(more: tuple[str, ...], why: str):
    done = invoke("run", "model.pt", "--data", "data.npz", "--minimize", "size", "--dry-run", "--calibration", "40", *more)
    assert done.exit_code == 0 and f"--minimize size has no effect, because {why}." in done.stderr


def run(*more: object) -> Result:
    return invoke("run", "model.pt", "--data", "data.npz", *QUICK, *more)


def stopped_at(monkeypatch: pytest.MonkeyPatch, where: str, stop: int = signal.SIGINT) -> None:
    """A signal to this process where the run gets to."""
    monkeypatch.setattr(where, lambda *_, **__: os.kill(os.getpid(), stop))


# ---- stopped from outside --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "exit_code", "kind"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Terminated")]
)
def test_a_run_that_is_stopped_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch, stop: int, exit_code: int, kind: str):
    with monkeypatch.context() as patched:
        stopped_at(patched, "compress.refit.refit.refitted", stop)
        result = run("--json")
    assert result.exit_code == exit_code
    assert f"{kind}; finished stages are kept (dense, analyze): repeat the command with --resume" in result.stderr
    assert json.loads(result.stdout)["error"]["kind"] == kind
    assert not Path("out/report.json").exists() and not list(Path("out/stages").glob(".*"))
    again = run("--resume")
    assert again.exit_code == 0 and Path("out/report.json").exists(), again.output


def test_who_stops_before_the_first_stage_is_not_told_that_any_is_kept(monkeypatch: pytest.MonkeyPatch):
    for where in ("compress.pipeline.crew.prepare", "compress.pipeline.harness.Harness.record"):
        with monkeypatch.context() as patched:
            stopped_at(patched, where)
            result = run()
        assert result.exit_code == 130
        assert "Interrupted before the first stage was finished; nothing is kept." in result.stderr
        assert "--resume" not in result.stderr


def test_who_stops_a_resumed_run_early_still_has_what_was_there(monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        stopped_at(patched, "compress.refit.refit.refitted")
        run()
    with monkeypatch.context() as patched:
        stopped_at(patched, "compress.pipeline.crew.prepare")
        assert "whatever was finished before is kept" in run("--resume").stderr
    assert run("--resume").exit_code == 0


def test_commands_without_stages_say_nothing_of_them(monkeypatch: pytest.MonkeyPatch):
    stopped_at(monkeypatch, "compress.api.explain")
    result = invoke("explain", "model.pt", "--input-shape", "1x8x8")
    assert result.exit_code == 130 and result.stderr == "Error: Interrupted.\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Terminated()])
def test_what_stopped_a_command_is_called_by_its_name_wherever_it_is_told(error: KeyboardInterrupt):
    word = "Terminated" if isinstance(error, Terminated) else "Interrupted"
    for resume, join in ((None, False), (None, True), (True, False), (False, False)):
        assert interruption(error, resume, join)[0].startswith(word)


def test_sigterm_is_as_before_when_a_command_is_over_and_in_other_threads():
    before = signal.getsignal(signal.SIGTERM)
    with terminable(True):
        assert signal.getsignal(signal.SIGTERM) is not before
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    seen: list[Any] = []

    def inside() -> None:
        with terminable(True):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


def test_in_python_an_interrupted_run_is_a_keyboard_interrupt_that_names_its_stages(monkeypatch: pytest.MonkeyPatch):
    stopped_at(monkeypatch, "compress.refit.refit.refitted")
    with pytest.raises(KeyboardInterrupt) as caught:
        compress.run("model.pt", data="data.npz", target="params=0.5", align=1, epochs=0, rounds=5, calibration=40)
    assert isinstance(caught.value, Interrupted) and caught.value.done == ("dense", "analyze")


# ---- refusals for programs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "exit_code"),
    [
        (BadInput("x is y."), "BadInput", 2),
        (Infeasible("x is y."), "Infeasible", 3),
        (UnsupportedModel("x is y."), "UnsupportedModel", 4),
        (GateFailed("x is y."), "GateFailed", 5),
        (ParityError(1.0, 0.1, "output"), "ParityError", 5),
        (MissingBackend("x", "y", "z"), "MissingBackend", 4),
        (StageFailed("remove", [], ValueError("x")), "StageFailed", 1),
        (OSError(28, "No space left on device"), "BadInput", 2),
        (RuntimeError("x\ny"), "InternalError", 1),
    ],
)
def test_with_json_a_refusal_is_a_document_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str, exit_code: int
):
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("compress.api.explain", fail)
    result = invoke("explain", "model.pt", "--json")
    told = json.loads(result.stdout)["error"]
    assert result.exit_code == exit_code and told == {"kind": kind, "message": told["message"], "exit_code": exit_code}
    assert result.stderr == f"Error: {told['message']}\n" and "\n" not in told["message"]
    assert invoke("explain", "model.pt").stdout == ""


@pytest.mark.parametrize(
    "words_given", [("run", "--nonsense"), ("nonsense",), ("run", "model.pt", "--epochs", "many"), ("apply",)]
)
def test_with_json_a_wrong_option_is_one_too(words_given: tuple[str, ...]):
    result = invoke(*words_given, "--json")
    told = json.loads(result.stdout)["error"]
    assert result.exit_code == told["exit_code"] == 2 and told["kind"] == "BadInput" and told["message"] in result.stderr
    assert invoke(*words_given).stdout == ""


def test_with_json_what_works_is_as_before():
    result = invoke("methods", "--json")
    assert result.exit_code == 0 and "entropic" in {row["method"] for row in json.loads(result.stdout)}
    helped = invoke("methods", "--json", "--help")
    assert helped.exit_code == 0 and "Usage" in helped.stdout


# ---- a model that guesses --------------------------------------------------------------------------------------------------


def top(value: float, samples: int = 10_000, metric: str = "top1") -> Quality:
    return Quality(metric=metric, value=value, higher_is_better=True, samples=samples, points=100)


def test_guessing_is_told_from_knowing():
    ten = tuple("0123456789")
    assert sentences.guessing(top(0.1), ten) and sentences.guessing(top(0.02), ten) and sentences.guessing(top(0.104), ten)
    assert sentences.guessing(top(0.12), ten) is None
    assert sentences.guessing(top(0.2, samples=20), ten) and sentences.guessing(top(0.5, samples=20), ten) is None
    assert sentences.guessing(top(0.5, metric="top5"), ten) and sentences.guessing(top(0.6, metric="top5"), ten) is None
    assert sentences.guessing(top(1.0, metric="top5"), ten[:5]) is None  # the best five of five hold everything
    # Of three samples, all right is what one guess in eight comes to.
    said = sentences.guessing(top(1.0, samples=3), ("a", "b"))
    assert said is not None and said.startswith("Of 2 classes 3 test samples are too few to tell") and "no better" not in said
    assert not sentences.guesses(top(1.0, samples=3), 0.5) and sentences.guessing(top(1.0, samples=8), ("a", "b")) is None
    assert sentences.guessing(top(0.05, metric="miou"), ten) is None and sentences.guessing(top(0.1), None) is None
    assert sentences.guessing(None, ten) is None


def test_a_model_that_guesses_is_noted_at_once_and_in_the_report():
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    said = next(line for line in lines if line.startswith("Warning: "))
    assert "no better than guessing among 10 classes (10 %): wrong normalization" in said
    assert lines.index(said) < next(i for i, line in enumerate(lines) if line.endswith("statistics ..."))
    assert json.loads(Path("out/report.json").read_text())["warnings"] == [said.removeprefix("Warning: ")]


def test_a_dry_run_warns_of_it_as_the_run_does_and_tells_the_time():
    dry, done = run("--dry-run"), run()
    told = [next(line for line in one.stderr.splitlines() if line.startswith("Warning: ")) for one in (dry, done)]
    assert told[0] == told[1] and "no better than guessing" in told[0]
    assert re.search(
        r"The run will take about [\d.]+ s here, perhaps half or three times that, and what timing and exports take\.", dry.stdout
    )
    assert 0 < json.loads(run("--dry-run", "--json").stdout)["seconds"] < 600


def test_a_finished_run_that_is_resumed_warns_again_under_quiet():
    first, again = run("--quiet"), run("--quiet", "--resume")
    warned = [[line for line in one.stderr.splitlines() if line.startswith("Warning: ")] for one in (first, again)]
    assert warned[0] == warned[1] and len(warned[0]) == 1
    refused = run("--resume", "--dry-run")
    assert refused.exit_code == 2 and "--dry-run carries nothing out" in refused.stderr


def test_a_folder_that_cannot_be_taken_is_refused_before_anything_slow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.pipeline.crew.prepare", lambda *_, **__: pytest.fail("opened"))
    Path("taken").mkdir()
    Path("taken/notes.txt").touch()
    for out, said in (
        ("model.pt", "is a file"),
        ("taken", "holds files that are not of a run"),
        ("model.pt/x", "cannot be written"),
    ):
        refused = run("--out", out)
        assert refused.exit_code == 2 and said in refused.stderr, refused.output


def test_of_three_samples_the_verdict_promises_nothing():
    row = StageRecord(stage="x", params=1, macs=1, file_bytes=1, peak_memory_bytes=1, quality=top(1.0, samples=3), seconds=0)
    assert sentences.reached(row, row, chance=0.5).endswith("top1 too few samples (3) to tell.")
    assert sentences.reached(row, row.model_copy(update={"quality": top(1.0)}), chance=0.1).endswith("top1 +0.00.")


def test_a_result_that_guesses_reads_as_that_wherever_it_is_told():
    result = run()
    assert "The result is no better than guessing." in result.stdout
    assert json.loads(Path("out/report.json").read_text())["verdict"].startswith("The result is no better than guessing (10 %): ")
    told = Path("out/report.md").read_text()
    assert "**The result is no better than guessing (10 %): " in told and "- The result is no better than guessing." in told
    assert "The result is no better than guessing." in Path("out/report.html").read_text()
    judged = invoke("gate", "out", "--max-drop", 100)
    assert judged.exit_code == 0 and "Note: The result is no better than guessing." in judged.stdout


def test_after_a_broken_contract_the_table_and_the_closing_block_stay(monkeypatch: pytest.MonkeyPatch):
    broken = Broken(outcome=Outcome.QUALITY_LOST, lost=4.0, allowed=0.5, metric="top1")
    monkeypatch.setattr("compress.pipeline.final_report.lost_too_much", lambda *_: broken)
    result, told = run("--quiet"), run("--force")
    assert result.exit_code == told.exit_code == 5, result.output
    assert told.stdout.startswith("stage ") and "The result is worse than was allowed." in told.stdout
    assert told.stderr.splitlines()[-1].startswith("Error: The result loses")
    assert "stage " not in result.stdout and result.stdout.startswith("The result is worse than was allowed.")
    assert [line.partition(":")[0] for line in result.stderr.splitlines()] == ["Warning", "Error"]  # the net was never trained
    following = next(line for line in told.stdout.splitlines() if line.startswith("next "))
    assert "compress run model.pt" in following and following.endswith("--out out-longer")
