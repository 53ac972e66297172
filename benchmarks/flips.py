"""A single bit flipped in a file that we read: is it refused, or does it change a result without a word?

    python benchmarks/flips.py --flips 2000

All files are those of one small run on digits. Each flip, at a random place, ends in one of

    refused    a sentence
    same       the result is that of the whole file (as where the bit is in a field that nobody reads)
    told       another result, and what was read is told: a note that the format has no checksums, or a sha256 in report.json
    silent     another result without a word
    internal   any other exception

Text that people write has no checksum: there a flipped digit is another number like any other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_io import write
from safetensors.torch import save_file
from torch import nn

import compress
from compress.artifact import Artifact
from compress.artifact import apply as applied
from compress.checkpoint.load.model import load_model
from compress.commands.demo import ARCH, digits_net, make_demo
from compress.data import open_data
from compress.edits import read as read_plan
from compress.errors import CompressError
from compress.graph.trace.trace import trace
from compress.recipe import from_toml
from compress.report import baseline, records
from compress.report.changes import side

ENDS = ("refused", "same", "told", "silent", "internal")
Read = Callable[[Path], tuple[object, bool]]
"""What a reader makes of a file, as something to compare, and whether a program is told what was read."""


class Refused(CompressError):
    """A verdict that is no exception, as `compress verify` gives it."""


@dataclass
class Format:
    """One kind of file: where it is (what is opened may be its folder) and how it is read."""

    name: str
    file: Path
    read: Read
    opened: Path
    checksum: bool
    ends: Counter[str] = field(default_factory=Counter[str])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    drawn, odd = random.Random(given.seed), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        formats = made(Path(folder))
        whole = [form.read(form.opened)[0] for form in formats]
        for number in range(given.flips):
            form, expected = formats[number % len(formats)], whole[number % len(formats)]
            bit = drawn.randrange(8 * form.file.stat().st_size)
            end, said = flipped(form, bit, expected)
            form.ends[end] += 1
            if end in ("silent", "internal"):
                odd.append({"format": form.name, "bit": bit, "end": end, "said": said})
                print(json.dumps(odd[-1]), flush=True)
    rows = [{"format": f.name, "checksum": "yes" if f.checksum else "no", **{end: f.ends[end] for end in ENDS}} for f in formats]
    total = {"flips": given.flips, **{end: sum(f.ends[end] for f in formats) for end in ENDS}}
    guarded = {"flips": 0, **{end: sum(f.ends[end] for f in formats if f.checksum) for end in ENDS}}
    guarded["flips"] = sum(guarded.values())
    write("flips", {"seed": given.seed, "summary": total, "with_checksum": guarded, "formats": rows, "odd": odd})


def flipped(form: Format, bit: int, expected: object) -> tuple[str, str]:
    """How reading ends with that bit flipped, and what was said; the file is whole again afterwards."""
    before = form.file.read_bytes()
    data = bytearray(before)
    data[bit // 8] ^= 1 << bit % 8
    form.file.write_bytes(data)
    try:
        found, told = form.read(form.opened)
    except CompressError as error:
        return "refused", str(error)
    except Exception as error:
        return "internal", f"{type(error).__name__}: {error}"[:300]
    finally:
        form.file.write_bytes(before)
    return ("same", "") if found == expected else ("told" if told else "silent", "")


def made(folder: Path) -> list[Format]:
    """Every format, from one run."""
    demo, out = make_demo(folder / "demo", epochs=1), folder / "out"
    settings = {"data": "digits", "method": "magnitude", "target": "params=0.5", "align": 1, "epochs": 0, "rounds": 5}
    report = compress.run(demo.model, arch=ARCH, out=out, calibration=60, **settings)
    assert isinstance(report, records.Report), "a run gives a report"
    compress.package(out, out=folder / "package.tar.gz")
    (folder / "baseline.json").write_text(baseline.of(side(report)).to_json())
    shutil.copytree(out / "model.compressed", folder / "own")
    net, own, data = digits_net().eval(), folder / "own", folder / "data.toml"
    layers = (nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    torch.save(nn.Sequential(*layers).eval(), folder / "module.pt")
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(net.state_dict(), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), folder / "weights.safetensors")
    arrays = {"x": np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8), "y": np.arange(60) % 3}
    np.savez(folder / "plain.npz", **arrays)
    np.savez_compressed(folder / "small.npz", **arrays)
    data.write_text(
        'source = "digits"\nsize = [8, 8]\nchannels = 1\nmean = [0.3]\nstd = [0.25]\n[split]\ntest = 0.2\nheld_out = 0.1\n'
    )
    inputs = (torch.zeros(1, 1, 8, 8),)
    dense = Artifact(trace(load_model(demo.model, arch=ARCH).module, inputs), inputs)
    files: list[tuple[str, Path, Read, bool]] = [
        ("pickled module", folder / "module.pt", model, True),
        ("state_dict", folder / "weights.pt", model, True),
        ("state_dict, torch before 1.6", folder / "legacy.pt", model, False),
        (".safetensors", folder / "weights.safetensors", model, False),
        *((f"model.compressed: {path.name}", path, model, True) for path in sorted(own.iterdir())),
        (".npz", folder / "plain.npz", images, True),
        (".npz, compressed", folder / "small.npz", images, True),
        ("package", folder / "package.tar.gz", package, True),
        ("plan.json", out / "plan.json", lambda path: plan(path, dense), False),
        ("recipe.toml", out / "recipe.toml", recipe, False),
        ("data.toml", data, images, False),
        ("report.json", out / "report.json", lambda path: (records.read(path)[0].to_json(), False), True),
        ("baseline.json", folder / "baseline.json", lambda path: (baseline.read(path).to_json(), False), True),
    ]
    return [Format(name, path, read, own if path.parent == own else path, sums) for name, path, read, sums in files]


def model(path: Path) -> tuple[object, bool]:
    """Layers and numbers of a model."""
    found = load_model(path, arch=ARCH)
    numbers = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in found.module.state_dict().values()))
    return (str(found.module), numbers.hexdigest()), any("checksums" in note for note in found.notes)


def images(path: Path) -> tuple[object, bool]:
    """Inputs and targets; a report has the sha256 of a data.toml."""
    found = open_data(path, shape=(1, 8, 8))
    parts = [*found.train.batches(50, limit=50, seed=0), *found.test.batches(50, limit=50, seed=0)]
    tensors = [x for batch in parts for x in (*batch.inputs, batch.target)]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest(), path.suffix == ".toml"


def package(path: Path) -> tuple[object, bool]:
    """The digest of a package whose hashes hold."""
    found = compress.verify(path, hashes_only=True)
    if not found.passed:
        raise Refused("; ".join(found.problems))
    return found.digest, False


def plan(path: Path, dense: Artifact) -> tuple[object, bool]:
    """A plan that can be carried out; a report has its sha256, and a plan its edits."""
    found = read_plan(path)
    applied(found, dense)
    return found.to_json(), True


def recipe(path: Path) -> tuple[object, bool]:
    """Settings; a report has the sha256 of the file, and a run writes what it has read into its folder."""
    return from_toml(path).to_toml(), True


if __name__ == "__main__":
    main()
