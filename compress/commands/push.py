"""`compress push`: the result of a run as the folder of a repository on Hugging Face, and there, where that is asked for.

    README.md  model.onnx ...  model.compressed/  report.json  report.md  plan.json

Without a repository nothing is sent: what is in the folder is what would go. recipe.toml and report.html stay at home, since
they name paths of the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.checkpoint.sums import FILES
from compress.commands.outputs import free
from compress.commands.run_files import content, exported, refuse_broken
from compress.errors import BadInput, MissingPackage, extra
from compress.pipeline.own_files import OURS, of_run
from compress.report import records
from compress.report.model_card import MADE, model_card
from compress.user import files
from exporters.standalone import leftovers

CARD = "README.md"
CHECKPOINT = "model.compressed"
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass(frozen=True)
class Pushed:
    """What was made, and where it went.

    Attributes:
        folder: what the repository holds.
        files: their paths in it.
        bytes: all of them together.
        url: the commit on the hub; empty where nothing was sent.
    """

    folder: Path
    files: tuple[str, ...]
    bytes: int
    url: str = ""


def push(
    run: str | Path,
    repository: str | None = None,
    *,
    out: str | Path = "hub",
    name: str | None = None,
    license: str = "",
    public: bool = False,
    allow_broken: bool = False,
    force: bool = False,
) -> Pushed:
    """Make the folder of a repository out of a run, and send it where a repository is named.

    Args:
        run: the folder, as `compress run` left it.
        repository: OWNER/NAME on Hugging Face; None sends nothing. It is made where there is none, private.
        out: the folder that is made.
        name: of the model, on its card; that of the repository or of the run's folder where it is left out.
        license: of the model, an identifier of the hub, such as mit.
        public: a repository that is made is public.
        allow_broken: a run that broke its contract, too; the card says so.
        force: replace an older folder of this kind.

    Raises:
        BadInput: no run, files that are not those of its report, a place that cannot be written, or a hub that refuses.
        GateFailed: the run broke its contract.
        MissingPackage: a repository is named and huggingface_hub is not installed.
    """
    if repository is not None and not REPOSITORY.fullmatch(repository):
        raise BadInput(f"The repository is '{repository}'; needed is OWNER/NAME, such as me/resnet18-half.")
    if repository is not None and find_spec("huggingface_hub") is None:
        raise MissingPackage(f"Sending to Hugging Face needs huggingface_hub, which is not installed: {extra('hub')}.")
    report, place = records.read(run)
    refuse_broken(report, allow_broken, "is not pushed")
    place, target = place.parent, Path(out)
    files.unlinked(place)
    made = _files(place, report)
    checkpoint = any(path.startswith(f"{CHECKPOINT}/") for path in made)
    models = [export.path for export in report.exports]
    if not models and not checkpoint:
        raise BadInput(f"The run {place} has no model to push. Run again with --export onnx.")
    called = name or (repository or place.resolve().name).rpartition("/")[2]
    made[CARD] = model_card(report, called, license, models, checkpoint).encode()
    free(target, force, *of_run(place))
    _write(target, made)
    url = "" if repository is None else _sent(target, repository, public)
    return Pushed(target, tuple(sorted(made)), sum(map(len, made.values())), url)


def _files(folder: Path, report: records.Report) -> dict[str, bytes]:
    found = {path: data for export in report.exports for path, data in exported(folder, export).items()}
    stored = folder / CHECKPOINT
    if stored.is_dir():
        found |= {
            f"{CHECKPOINT}/{path.name}": content(path)
            for path in sorted(stored.iterdir())
            if path.name in FILES and path.is_file()
        }
    there = (name for name in ("report.json", "report.md", "plan.json") if (folder / name).is_file())
    return found | {name: content(folder / name) for name in there}


def _of_such(target: Path, made: Mapping[str, bytes]) -> bool:
    """Whether a folder has a card that was written here, and nothing that such a folder does not have."""
    if target.is_symlink() or not target.is_dir():
        return False
    there = {str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir()}
    # An earlier run may have had other exports.
    known = {*made, *(f"{CHECKPOINT}/{name}" for name in FILES), *OURS}
    try:
        return there <= known and MADE in files.text(target / CARD)
    except (OSError, UnicodeDecodeError):
        return False


def _write(target: Path, made: dict[str, bytes]) -> None:
    """Whole or not at all; only an older folder of this kind is replaced."""
    if os.path.lexists(target) and not _of_such(target, made):
        raise BadInput(f"{target} holds files that are not of such a repository, or is none. Give another --out.")
    try:
        part = Path(tempfile.mkdtemp(prefix=leftovers.hidden(target.name), dir=target.parent))
        try:
            for path, data in made.items():
                (part / path).parent.mkdir(parents=True, exist_ok=True)
                (part / path).write_bytes(data)
            part.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise BadInput(f"{target} cannot be written ({error.strerror or error}). Give another --out.") from error


def _sent(folder: Path, repository: str, public: bool) -> str:
    """Into the repository, through the hub's own client and the login that it knows.

    Raises:
        BadInput: the hub cannot be reached, or refuses.
    """
    hub: Any = import_module("huggingface_hub")
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        sent = api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="Upload by compress push")
    except Exception as error:  # its client raises kinds of its own, those of HTTP and those of the system
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(
            f"{repository} does not take the folder ({told}). It is in {folder}: log in by 'hf auth login', look at the network "
            "and at your rights, and repeat with --force."
        ) from error
    return str(sent)
