"""The Dockerfile, as far as it can be judged without a daemon; .ci/replay_dockerfile.py carries its steps out."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from compress.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text()


def replay_script() -> ModuleType:
    """.ci/replay_dockerfile.py, which is a script and no package."""
    name = "replay_dockerfile"
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


def stages() -> dict[str, dict[str, str]]:
    """Stage -> instruction -> the last one of that kind."""
    found: dict[str, dict[str, str]] = {}
    for word, rest in replay_script().instructions(TEXT):
        if word == "FROM":
            found[rest.split()[-1]] = {}
        if found:
            found[list(found)[-1]][word] = rest
    return found


def test_the_default_image_is_the_slim_one():
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("stage", ["cpu", "cuda"])
def test_an_image_runs_the_command_as_a_user_without_rights_and_checks_itself(stage: str):
    found = stages()[stage]
    assert found["USER"] == "1000" and found["ENTRYPOINT"] == '["compress"]' and '["compress", "doctor"]' in found["HEALTHCHECK"]
    assert found["WORKDIR"] == "/work"


def test_base_images_are_pinned_to_a_version():
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    assert len(images) == 2 and all(re.search(r":\d+\.\d+", image) for image in images)
    assert all(line.split()[1].startswith("${") for line in TEXT.splitlines() if line.startswith("FROM "))


def test_what_is_copied_exists_and_is_let_through():
    copied = [rest.split()[:-1] for word, rest in replay_script().instructions(TEXT) if word == "COPY" and "--from" not in rest]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    names = {name for words in copied for name in words}
    assert names == let_through and all((ROOT / name).exists() for name in names)


def test_a_target_needs_the_stages_it_copies_from():
    script = replay_script()
    steps = list(script.instructions("FROM a AS one\nRUN x \\\n  && y\nFROM b AS two\nCOPY --from=one /x /x\nFROM c AS three\n"))
    assert steps[1] == ("RUN", "x    && y")
    assert script.needed(steps, "two") == {"one", "two"} and script.needed(steps, "three") == {"three"}
    with pytest.raises(SystemExit, match="no stage four"):
        script.needed(steps, "four")
    with pytest.raises(SystemExit, match="VOLUME"):
        list(script.instructions("VOLUME /x"))


def test_hadolint_has_nothing_to_say():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_quick_start_calls_the_command_as_it_is():
    """What stands behind the image's name is a line of the command."""
    page = (ROOT / "docs" / "how-to" / "notebooks.md").read_text()
    runs = re.findall(r"^docker run .*? compress(?::cuda)? (.*)$", page, re.MULTILINE)
    assert len(runs) == 3 and len(re.findall(r"^docker build -t compress", page, re.MULTILINE)) == 2
    for line in runs:
        command, *rest = line.split()
        cli.commands[command].make_context(command, rest)
