"""`compress package`: everything that a device needs, and needs to check it, in one archive.

    models/  samples/  manifest.json  report.json  plan.json  verify.py ...  sbom.cdx.json  README.txt  SHA256SUMS  SHA256SUMS.sig

The same run gives the same bytes: the archive holds nothing of the time or the machine that packed it. It is checked by its own
script before it is written; what does not verify here is not shipped.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress import edits
from compress.checkpoint.load import load
from compress.checkpoint.load.model import parse_shape
from compress.commands.outputs import apart, free, write_bytes
from compress.commands.run_files import broken, exported, refuse_broken
from compress.commands.run_files import content as content_of
from compress.data import open_data
from compress.errors import BadInput, GateFailed
from compress.measure.quality import first_output
from compress.packaging import archive, manifest, sbom
from compress.packaging.readme import readme
from compress.packaging.samples import COUNT, Samples, files, from_file
from compress.pipeline.own_files import of_run
from compress.recipe import code_in, make, settings_in
from compress.report import records, sentences
from compress.report.records import ExportRecord
from compress.user.files import unlinked
from exporters.errors import ExportError
from exporters.standalone import checksums, inference, leftovers, verify

RELATIVE = {"onnx": 1e-4, "onnx-fp16": 1e-2, "onnx-int8": 1e-2, "onnx-int8-symmetric": 1e-2}
"""Format -> allowed difference as a share of the largest output. Other processors sum floats in another order (the parity of
the exporters says why 1e-4); half precision rounds to 1e-3 a layer. Integers come out alike, so 8 bits leave room for two steps
of the output's 255 only. Where products of 8 bits saturate (x86 with AVX2, without VNNI) the file computes something else: that
has to be found, not allowed."""
OTHER = 1e-2


@dataclass(frozen=True)
class Packed:
    """A finished package.

    Attributes:
        digest: sha256 of its list of hashes, which names all of its content; `compress verify --digest` checks it.
        signed: a signature is in it.
        broken: the contract that the run broke; empty where it kept all.
        warnings: of the run, which make its figures doubtful.
    """

    path: Path
    sha256: str
    bytes: int
    digest: str
    models: tuple[str, ...]
    files: int
    signed: bool
    broken: str = ""
    warnings: tuple[str, ...] = ()


def package(
    run: str | Path,
    *,
    out: str | Path = "package.tar.gz",
    samples: str | Path | None = None,
    name: str = "model",
    license: str = sbom.NOASSERTION,
    sign: str | Path | None = None,
    allow_broken: bool = False,
    force: bool = False,
) -> Packed:
    """Pack the folder of a run.

    Args:
        run: the folder, as 'compress run' left it.
        out: the archive.
        samples: inputs that travel along; without it, the first of the run's test data.
        name: of the model, for manifest and bill of materials.
        license: of the model, as an SPDX expression.
        sign: a private key of OpenSSH; its signature of the list of hashes travels along.
        allow_broken: pack a run that broke its contract, too; the package says so first of all.
        force: replace an older archive.

    Raises:
        BadInput: no run, files that are not those of its report, no samples, or a place that cannot be written.
        GateFailed: the run broke its contract, or a model does not give its expected outputs here.
    """
    free(Path(out), force, samples, sign)
    report, place = records.read(run)
    refuse_broken(report, allow_broken, "is not packed")
    folder = place.parent
    unlinked(folder)
    apart(Path(out), *of_run(folder))
    models = {f"models/{export.path}": export for export in report.exports}
    if not models:
        raise BadInput(f"The run {folder} has no exported model. Run again with --export onnx.")
    plan = content_of(folder / "plan.json")
    if report.plan_sha256 and edits.from_json(plan.decode(errors="replace")).digest != report.plan_sha256:
        raise BadInput(f"{folder / 'plan.json'} is not the plan that the report of the run is about. Give the folder as it was.")
    content = {f"models/{path}": data for export in report.exports for path, data in exported(folder, export).items()}
    chosen = _from_data(folder) if samples is None else _with_known(from_file(Path(samples)), folder)
    expected = {path: _expected(folder, path, export, chosen) for path, export in models.items() if path.endswith(".onnx")}
    relative = {path: RELATIVE.get(models[path].format, OTHER) for path in expected}
    arrays, entries = files(chosen, expected, relative)
    content |= {**arrays, "report.json": content_of(place), "plan.json": plan, **_scripts()}
    outputs = next(iter(expected.values()))[0][0].shape if expected else ()
    content["README.txt"] = readme(name, report, chosen, outputs, list(models))
    content["sbom.cdx.json"] = manifest.text(sbom.sbom(name, license, content, list(models), report.environment))
    content[checksums.MANIFEST] = manifest.text(
        manifest.manifest(name, license, report, models, chosen, outputs, entries, content)
    )
    content[checksums.SUMS] = manifest.sums(content)
    if sign is not None:
        content[checksums.SIGNATURE] = _signature(Path(sign), content[checksums.SUMS])
    packed = archive.packed(content)
    _prove(packed)
    write_bytes(Path(out), packed, "Make room, or give another --out.")
    digests = (hashlib.sha256(data).hexdigest() for data in (packed, content[checksums.SUMS]))
    about = broken(report), sentences.doubtful(report)
    return Packed(Path(out), next(digests), len(packed), next(digests), tuple(models), len(content), sign is not None, *about)


def _from_data(folder: Path) -> Samples:
    """The first samples of the run's test data, and what is known about them."""
    try:
        recipe = make(**settings_in(folder / "recipe.toml"))
        if named := code_in({"data": recipe.data}):
            raise BadInput(f"It is code ({named}), which a run's folder does not run.")
        data = open_data(recipe.data, seed=recipe.seed, shape=_shape(recipe.input_shape))
    except BadInput as error:
        raise BadInput(f"The run's own data gives no samples: {error} Or give --samples FILE.npz.") from error
    batches = data.test.batches(1, limit=COUNT, seed=recipe.seed)
    inputs = tuple(tuple(x.numpy() for x in batch.inputs) for batch in batches)
    return Samples(inputs, data.spec.mean, data.spec.std, data.spec.classes, data.spec.task, data.spec.preparation)


def _with_known(samples: Samples, folder: Path) -> Samples:
    """Samples of a file, with what the run's own data says of them, where it is still there."""
    try:
        known = _from_data(folder)
    except BadInput:
        return samples
    return replace(known, inputs=samples.inputs)


def _shape(texts: tuple[str, ...]) -> tuple[int, ...] | None:
    return parse_shape(texts[0]) if texts else None


def _expected(folder: Path, path: str, export: ExportRecord, samples: Samples) -> list[list[np.ndarray]]:
    """What the model makes of the samples: torch's word for a float file where the checkpoint is there, else the file's own."""
    checkpoint = folder / "model.compressed"
    try:
        if export.format == "onnx" and checkpoint.is_dir():
            return [_by_torch(load(checkpoint), inputs) for inputs in samples.inputs]
        with inference.bounded(inference.session(folder / export.path, 1)) as call:
            return [[np.asarray(y) for y in call(list(inputs))] for inputs in samples.inputs]
    except (BadInput, ExportError):
        raise
    except Exception as error:  # a runtime's own kinds
        shapes = " and ".join(str(x.shape) for x in samples.inputs[0])
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"{path} does not run on the samples, of {shapes} ({told}). Give inputs as the model takes them."
        ) from error


def _by_torch(module: torch.nn.Module, inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        found: Any = module(*(torch.from_numpy(x) for x in inputs))
    several = list(found.values()) if isinstance(found, dict) else found if isinstance(found, tuple | list) else [found]
    return [first_output(y).numpy() for y in several]


def _scripts() -> dict[str, bytes]:
    """The scripts that run on a device."""
    place = resources.files("exporters.standalone")
    return {f.name: f.read_bytes() for f in place.iterdir() if f.name.endswith(".py") and f.name != "__init__.py"}


def _signature(key: Path, content: bytes) -> bytes:
    """Of the list of hashes, by `ssh-keygen -Y sign`; a passphrase is asked for by ssh-keygen or its agent, never here."""
    if not key.is_file():
        raise BadInput(
            f"There is no key {key}. Give a private key of OpenSSH (ssh-keygen -t ed25519), or its public half with an agent."
        )
    command = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", checksums.NAMESPACE]
    try:
        done = subprocess.run(command, input=content, capture_output=True, check=False)
    except OSError as error:
        raise BadInput(f"The package cannot be signed ({error.strerror}). Install ssh-keygen of OpenSSH 8.2 or newer.") from error
    if done.returncode or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        told = done.stderr.decode(errors="replace").strip().splitlines() or ["no signature came back"]
        raise BadInput(f"{key} does not sign ({told[-1]}). Give a private key of OpenSSH that you may use.")
    return done.stdout


def _prove(packed: bytes) -> None:
    """Unpack and verify what would be shipped, as a device does."""
    with leftovers.folder() as folder:
        path = folder / "package.tar.gz"
        path.write_bytes(packed)
        try:
            found = verify.verify(path, rounds=0, threads=1)
        except checksums.Refused as error:
            raise BadInput(f"This run makes no package that a device opens: {error}") from error
    wrong = [*found.problems, *(f"{m.path}: {m.detail}" for m in found.models if m.status == "differs")]
    if wrong:
        raise GateFailed(f"The package does not verify here ({wrong[0]}), so it is not written. Run again.")
