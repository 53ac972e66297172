"""`compress init` writes a recipe that a run takes as it stands; the schemas beside it say what the classes say."""

from __future__ import annotations

import json
import os
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import compress
from compress.cli.main import cli
from compress.cli.options import given
from compress.cli.running import nearest
from compress.commands.found_here import architectures
from compress.commands.setting_schemas import data_schema, recipe_schema
from compress.data.settings import Settings
from compress.errors import BadInput
from compress.recipe import Recipe, from_toml, make
from compress.report.html.command_line import command_line
from tests.runs import invoke, untrained

QUICK = ("--target", "params=0.5", "--align", "1", "--epochs", "0", "--rounds", "5", "--calibration", "40")
NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
"""
FAMILY = """
from torch import nn
class Block(nn.Module):
    def __init__(self, channels, stride): ...
class ResNet(nn.Module):
    def __init__(self, blocks, classes=10): ...
def resnet8(classes=10):
    return ResNet(1, classes)
def resnet20(classes=10) -> ResNet:
    return ResNet(3, classes)
def _hidden():
    return ResNet(3)
def loss(net, x):
    return nn.functional.relu(net(x))
def main():
    print(ResNet(3))
def data():
    return {"x": 1}
class Small(nn.Module):
    def __init__(self, classes=10): ...
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    untrained(tmp_path)
    random = np.random.default_rng(0)
    np.savez("arrays.npz", x=random.integers(0, 255, (90, 8, 8), dtype=np.uint8), y=np.arange(90) % 10)
    return tmp_path


def test_without_a_question_the_only_model_and_the_only_data_are_taken_and_a_run_needs_no_argument():
    result = invoke("init", "--yes")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "next     compress run"
    assert from_toml(Path("recipe.toml")) == make(model="model.pt", data="data.toml", max_drop=1.0, target="macs=0.5")
    assert tomllib.loads(Path("data.toml").read_text()) == {"source": "arrays.npz"}
    assert "# " in Path("recipe.toml").read_text() and "Normalization inferred" in Path("data.toml").read_text()
    shown = invoke("run", "--dry-run")
    assert shown.exit_code == 0 and "1 group of channels made smaller" in shown.stdout, shown.output


def test_answers_stand_in_the_files():
    torch.save(torch.load("model.pt", weights_only=False).state_dict(), "weights.pt")
    Path("net.py").write_text(NET)
    result = invoke("init", answers="weights.pt\nnet.py:net\nmnist\n0.5\n")
    assert result.exit_code == 0, result.output
    made = tomllib.loads(Path("recipe.toml").read_text())
    assert made == {"model": "weights.pt", "arch": "net.py:net", "data": "data.toml", "max_drop": 0.5, "target": "macs=0.5"}
    assert tomllib.loads(Path("data.toml").read_text()) == {"source": "arrays.npz", "normalize": "mnist"}
    # The recipe names code, which counts only where it is trusted; the line that is printed works.
    command = result.stdout.splitlines()[-1].removeprefix("next     ")
    assert command == "compress run --trust-recipe" and invoke(*command.split()[1:], "--dry-run").exit_code == 0
    assert invoke("run", "--dry-run").exit_code == 2


def test_a_wrong_answer_is_told_why_and_asked_for_again():
    torch.save(torch.load("model.pt", weights_only=False).state_dict(), "weights.pt")
    Path("model.pt").unlink()
    Path("net.py").write_text(NET)
    result = invoke("init", answers="net.py:nothing\nnet.py:net\nimagenette\ninfer\nmuch\n0.5\n")
    assert result.exit_code == 0, result.output
    assert "'much' is no number of points, 0 or more, such as 0.5. How many" in result.stderr
    assert "net.py has no function 'nothing'" in result.stderr or "nothing" in result.stderr
    made = tomllib.loads(Path("recipe.toml").read_text())
    assert (made["arch"], made["max_drop"]) == ("net.py:net", 0.5)


def test_a_class_beside_weights_is_named_and_not_run():
    torch.save(torch.load("model.pt", weights_only=False).state_dict(), "weights.pt")
    code = "open('it-ran', 'w')\nfrom torch import nn\nclass Net(nn.Module): pass\nclass Other: pass\n"
    Path("net.py").write_text(code)
    Path("broken.py").write_text("def")
    result = invoke("init", "weights.pt", "--yes")
    assert result.exit_code == 2 and result.stderr.rstrip().endswith("Here net.py:Net may be it: add --arch net.py:Net.")
    assert not Path("it-ran").exists()


def test_what_can_be_called_is_proposed_first_and_what_is_named_like_the_weights_before_all(here: Path):
    Path("net.py").write_text(FAMILY)
    assert [one.arch for one in architectures(here, "resnet20-best.pt")] == [
        "net.py:resnet20",
        "net.py:resnet8",
        "net.py:Small",
        "net.py:ResNet",
        "net.py:Block",
    ]
    assert [one.needs for one in architectures(here)] == [(), (), (), ("channels", "stride"), ("blocks",)]


def test_what_needs_arguments_is_never_proposed_as_a_line_that_is_ready(here: Path):
    Path("net.py").write_text("from torch import nn\nclass Net(nn.Module):\n    def __init__(self, width, *, depth, n=1): ...\n")
    torch.save(torch.load("model.pt", weights_only=False).state_dict(), "weights.pt")
    result = invoke("init", "weights.pt", "--data", "arrays.npz", "--yes")
    assert "Here net.py:Net (width, depth) may be it: add --arch FILE:CLASS, and --arch-kwargs" in result.stderr


def test_the_recipe_names_the_command_that_carries_it_out():
    assert invoke("init", "--yes").stdout.splitlines()[-1] == "next     compress run"
    assert "# 'compress run' in this folder carries this out" in Path("recipe.toml").read_text()
    Path("net.py").write_text("import torch\ndef made():\n    return torch.load('model.pt', weights_only=False)\n")
    torch.save(torch.load("model.pt", weights_only=False).state_dict(), "weights.pt")
    Path("out").mkdir()
    made = invoke("init", "weights.pt", "--arch", "net.py:made", "--yes", "--force")
    assert made.stdout.splitlines()[-1] == "next     compress run --trust-recipe --out out-2", made.output
    assert "# 'compress run --trust-recipe' in this folder carries this out" in Path("recipe.toml").read_text()


def test_a_data_toml_that_stays_is_said():
    assert invoke("init", "--yes").exit_code == 0
    Path("data.toml").write_text('source = "arrays.npz"\nnormalize = "mnist"\n')
    again = invoke("init", "--yes", "--force")
    assert again.exit_code == 0 and "Note: data.toml was here and stays as it is" in again.stdout, again.output
    assert "mnist" in Path("data.toml").read_text()
    anew = invoke("init", "--yes", "--force", "--data", "arrays.npz")
    assert anew.exit_code == 0 and "stays as it is" not in anew.stdout and "mnist" not in Path("data.toml").read_text()


def test_what_is_given_is_not_asked_for_and_is_written():
    result = invoke("init", "model.pt", "--data", "arrays.npz", "--max-drop", "2", "--export", "onnx,pt2", answers="infer\n")
    assert result.exit_code == 0, result.output
    assert tomllib.loads(Path("recipe.toml").read_text())["export"] == ["onnx", "pt2"]


@pytest.mark.parametrize(
    ("arguments", "answers", "part"),
    [
        (("nothing.pt", "--yes"), "", "There is no model file nothing.pt"),
        (("model.pt", "--data", "nowhere", "--yes"), "", "nowhere"),
        (("model.pt",), "", "Nobody answered, so nothing was written"),
        (("model.pt",), "infer\nmuch\n-1\nnan\nnan\n", "'nan' is no number of points"),
        (("model.pt", "--target", "macs=7", "--yes"), "", "macs=7"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(arguments: tuple[str, ...], answers: str, part: str):
    before = sorted(Path().iterdir())
    result = invoke("init", *arguments, answers=answers)
    assert result.exit_code == 2 and part in result.stderr, result.output
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("name", [".compress", ".compress/recipe.schema.json", "data.toml"])
def test_nothing_is_written_through_a_link(name: str, here: Path, tmp_path_factory: pytest.TempPathFactory):
    victim = tmp_path_factory.mktemp("victim")
    (victim / "recipe.schema.json").write_text("precious")
    place = here / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(victim if name == ".compress" else victim / "recipe.schema.json")
    done = invoke("init", "--yes", "--data", "arrays.npz", "--force")
    assert done.exit_code == 2 and f"{name} is" in done.stderr and not (here / "recipe.toml").exists()
    assert [path.read_text() for path in victim.iterdir()] == ["precious"]


@pytest.mark.parametrize("name", [".compress", ".compress/data.schema.json"])
def test_where_one_file_cannot_be_written_none_is(name: str, here: Path):
    if name == ".compress":
        (here / name).write_text("mine")
    else:
        (here / name).mkdir(parents=True)
    done = invoke("init", "--yes")
    assert done.exit_code == 2 and f"{name} is" in done.stderr and not (here / "recipe.toml").exists()


def test_a_name_that_text_cannot_hold_is_told_and_nothing_is_written(here: Path):
    (here / "arrays.npz").rename(here / os.fsdecode(b"arrays-\xff.npz"))
    done = invoke("init", "--yes")
    assert done.exit_code == 2 and "not UTF-8" in done.stderr and "Internal" not in done.stderr
    assert not (here / "recipe.toml").exists() and not (here / ".compress").exists()


def test_several_models_need_a_choice_and_a_recipe_that_is_there_is_kept():
    torch.save({}, "other.pt")
    assert "model.pt, other.pt: any of these may be the model" in invoke("init", "--yes").stderr
    Path("recipe.toml").write_text("epochs = 1")
    assert "recipe.toml exists already" in invoke("init", "model.pt", "--yes").stderr
    assert Path("recipe.toml").read_text() == "epochs = 1"
    with pytest.raises(BadInput, match="exists already"):
        compress.init("model.pt")


# ---- recipes that are meant ------------------------------------------------------------------------------------------------


def test_resume_takes_the_recipe_of_its_folder():
    first = invoke("run", "model.pt", "--data", "arrays.npz", *QUICK)
    assert first.exit_code == 0, first.output
    again = invoke("run", "--resume")
    assert again.exit_code == 0 and "other settings" not in again.output, again.output
    other = invoke("run", "--resume", "--seed", "3")
    assert other.exit_code == 2 and "started with other settings (--seed 0, now 3)" in other.stderr


def test_a_recipe_here_counts_only_without_a_model(here: Path):
    assert nearest(None, Path("out"), False) is None
    Path("recipe.toml").write_text("")
    assert nearest(None, Path("out"), False) == Path("recipe.toml") and nearest("model.pt", Path("out"), False) is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target": "macs=0.3", "epochs": 0.5, "lr": 3e-5, "export": ("onnx", "pt2"), "input_shape": ("3x8x8", "4")},
        {"tolerance": 0.1, "entropy_guidance": -0.25, "cheap": True, "seed": 7, "plan": "a folder/plan.json"},
        {"max_drop": 0.5, "arch": "net.py:net", "arch_kwargs": {"width": 3, "name": "it's", "deep": True}},
    ],
)
def test_the_printed_line_repeats_the_run(settings: dict[str, Any]):
    recipe = make(model="model.pt", data="images", **settings)
    words = shlex.split(command_line(recipe.model_dump(mode="json"), "out again"))
    parsed = cli.commands["run"].make_context("run", words[2:]).params
    kept = {name: value for name, value in parsed.items() if name in Recipe.model_fields and name != "model"}
    assert make(model=parsed["model"], **given(kept)) == recipe
    assert parsed["out"] == Path("out again")


# ---- schemas ---------------------------------------------------------------------------------------------------------------


def test_every_setting_is_in_its_schema_and_no_other():
    known = {name for name, value in recipe_schema()["properties"].items() if not value.get("deprecated")}
    assert known == set(Recipe.model_fields)
    assert set(data_schema()["properties"]) == set(Settings.model_fields)
    for schema in (recipe_schema(), data_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "text",
    ["", 'export = "onnx,pt2"', 'input_shape = "3x8x8"', "input_shape = [3, 8, 8]", 'arch_kwargs = {a = 1}', "epochs = 1",
     make(max_drop=1, tolerance=0.5).to_toml(), make(method="lottery").to_toml()],
)  # fmt: skip
def test_what_a_run_takes_its_schema_takes(text: str):
    Path("recipe.toml").write_text(text)
    from_toml(Path("recipe.toml"))
    jsonschema.validate(tomllib.loads(text), recipe_schema())


@pytest.mark.parametrize(
    "text", ["epoch = 1", 'epochs = "many"', "epochs = -1", 'optimizer = "adam"', "export = 3", "seed = -1", "tolerance = 1"]
)
def test_what_a_run_refuses_its_schema_refuses(text: str):
    Path("recipe.toml").write_text(text)
    with pytest.raises(BadInput):
        from_toml(Path("recipe.toml"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), recipe_schema())


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('source = "images"\nsize = 224', True),
        ('source = "x.npz"\nmean = [0.5]\nstd = [0.5]\n[augment]\nflip = true', True),
        ('source = "x"\nsize = [1, 2, 3]', False),
        ('source = "x"\n[augment]\nspin = true', False),
        ('means = [0.5]', False),
    ],
)  # fmt: skip
def test_the_schema_of_data_agrees_with_what_is_read(text: str, good: bool):
    from compress.data.settings import from_toml as data_settings

    Path("data.toml").write_text(text)
    if good:
        data_settings(Path("data.toml"))
        jsonschema.validate(tomllib.loads(text), data_schema())
        return
    with pytest.raises(BadInput):
        data_settings(Path("data.toml"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), data_schema())


def test_the_files_name_schemas_that_lie_beside_them():
    compress.init("model.pt", data="arrays.npz")
    for name in ("recipe.toml", "data.toml"):
        place = Path(name).read_text().splitlines()[0].removeprefix("#:schema ")
        jsonschema.validate(tomllib.loads(Path(name).read_text()), json.loads(Path(place).read_text()))
