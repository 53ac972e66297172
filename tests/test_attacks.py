"""Nothing that a file says is executed, and what is wrong with it ends in a sentence: tests/attacks by every entrance."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import tests.attacks.graphs
import tests.attacks.names
import tests.attacks.pickles  # noqa: F401  (each fills MODELS)
from compress.checkpoint.load.model import open_artifact
from compress.cli.main import cli
from compress.errors import CompressError
from tests.attacks import CANARY, MODELS
from tests.attacks.names import TEXTS, layer_named, small

SECONDS, MEGABYTES = 30, 400
IN_KILOBYTES = 1 if sys.platform == "linux" else 1024  # what ru_maxrss counts in

BY_EVERY_ENTRANCE = (
    "names.layer_named-0",
    "names.layer_in_graph-0",
    "names.attribute_named-4",
    "names.class_in_graph-10",
    "pickles.call_in_a_new_file",
    "pickles.method_replaced-0",
    "pickles.layer_inside_itself",
    "pickles.zip_bomb",
    "pickles.fifo",
    "graphs.built-5",
)
"""One of each kind; the others differ in what the loader says."""

ENTRANCES = {
    "explain": "explain {} --input-shape 3x8x8",
    "analyze": "analyze {} --input-shape 3x8x8 --data images.npz",
    "plan": "plan {} --input-shape 3x8x8 --method magnitude --target params=0.5",
    "run": "run {} --input-shape 3x8x8 --method magnitude --target params=0.5 --epochs 0 --rounds 5",
    "export": "export {} --input-shape 3x8x8",
    "bench": "bench {} --input-shape 3x8x8 --rounds 5",
    "apply": "apply {} plan.json --input-shape 3x8x8",
    "package": "package {}",
    "verify": "verify {}",
    "compare": "compare {} {}",
    "gate": "gate {} --max-drop 1",
    "diff": "diff {} {}",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def answered(result: Result) -> None:
    """A sentence and an exit code, or a result; no traceback, nothing internal."""
    said = result.output + result.stderr
    assert result.exit_code in (0, 2, 3, 4, 5), said
    assert "Traceback" not in said and "Internal failure" not in said, said
    assert "\x1b" not in said and "\x07" not in said, "a terminal would obey this"


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_hostile_model_file_is_opened_or_refused_and_executes_nothing(name: str, here: Path, capfd: pytest.CaptureFixture[str]):
    MODELS[name](here / "model")
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        open_artifact("model", input_shapes=[(3, 8, 8)])
    except CompressError as error:
        assert len(str(error)) < 1500
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / IN_KILOBYTES
    assert not (here / CANARY).exists(), "it ran"
    assert time.monotonic() - start < SECONDS and grown < MEGABYTES
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", BY_EVERY_ENTRANCE)
def test_every_entrance_answers_a_hostile_model(name: str, entrance: str, here: Path):
    MODELS[name](here / "model")
    (here / "plan.json").write_text('{"format": "compress.plan", "schema": 1, "edits": []}')
    answered(CliRunner().invoke(cli, ENTRANCES[entrance].format("model", "model").split()))
    assert not list(here.rglob(CANARY)), "it ran"


def test_the_attacks_would_succeed_on_a_program_that_believes_them(here: Path):
    """Without the checks of names, torch.fx itself executes the first of them."""
    import torch
    from torch import fx

    layer_named(here / "model", TEXTS[0])
    with pytest.raises(Exception):  # noqa: B017  (whatever the spoiled code ends in)
        fx.symbolic_trace(torch.load("model", weights_only=False))(torch.zeros(1, 3, 8, 8))
    assert (here / CANARY).exists()


def test_an_honest_model_of_the_same_layers_opens(here: Path):
    import torch

    torch.save(small(), "model")
    assert open_artifact("model", input_shapes=[(3, 8, 8)]).notes == ()
