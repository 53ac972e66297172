"""Every parser of what somebody gives, on inputs that coverage guides: does each end in a result or in a sentence?

    pip install atheris
    python benchmarks/fuzz.py --until 30

libFuzzer changes bytes of a good file and keeps what reaches new code of `compress` and `exporters`. Parsers take turns, the one
with the fewest minutes next, each turn in a process of its own with a timeout and a limit on memory; what reached new code stays
for the next turn. A failure is any exception that is no refusal, an input that takes longer than 30 s, or a process that ends
otherwise. Minutes are the processor's. Minutes, inputs and failures add up over calls.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARSERS = (
    "graph", "plan", "report", "report of schema 1", "baseline", "manifest", "recipe.toml", "data.toml", "amounts and shapes",
    "weights.safetensors", "model.pt", "data.npz", "package",
)  # fmt: skip
SLOWEST_S, MEMORY_MB = 30, 6000
Parser = tuple[Callable[[bytes], object], list[bytes]]
"""What takes the bytes, and good ones to begin with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=float, default=30.0, help="minutes that every parser should have had")
    parser.add_argument("--turn", type=float, default=5.0, help="minutes of one turn")
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "compress-corpus", help="kept between turns")
    parser.add_argument("--parser", choices=PARSERS, help="only this one, in this process")
    parser.add_argument("--answer", type=Path, help="where its counts go")
    given = parser.parse_args()
    if given.parser:
        fuzzed(given.parser, 60 * given.turn, given.answer, given.corpus)
        return
    from results_io import known, write

    rows = {row["parser"]: row for row in known("fuzz").get("parsers", ())}
    rows = {name: rows.get(name, {"parser": name, "minutes": 0.0, "inputs": 0, "failures": []}) for name in PARSERS}
    while (old := min(rows.values(), key=lambda row: row["minutes"]))["minutes"] < given.until - 0.1:
        name = old["parser"]
        row = in_a_process(name, min(given.turn, given.until - old["minutes"]), given.corpus)
        failures = [*old["failures"], *row["failures"]]
        rows[name] = {
            "parser": name, "minutes": round(old["minutes"] + row["minutes"], 2), "inputs": old["inputs"] + row["inputs"],
            "failed": len(failures), "failures": failures,
        }  # fmt: skip
        print(json.dumps(rows[name])[:600], flush=True)
        total = {key: round(sum(row.get(key, 0) for row in rows.values()), 1) for key in ("minutes", "inputs", "failed")}
        write("fuzz", {"summary": {**total, "parsers": len(rows)}, "parsers": list(rows.values())})


def in_a_process(name: str, minutes: float, corpus: Path) -> dict[str, Any]:
    """Counts of one parser; a process that ends otherwise is a failure."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        where = ["--corpus", str(corpus.resolve()), "--answer", str(answer)]
        command = [sys.executable, __file__, "--parser", name, "--turn", str(minutes), *where]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if not answer.exists():
            sys.exit(f"{name} did not begin: {ended.stderr[-2000:]}")
        row = json.loads(answer.read_text())
        if ended.returncode:
            row["failures"].append({"said": f"ended with {ended.returncode}: {ended.stderr[-600:]}"})
        return row


def fuzzed(name: str, seconds: float, answer: Path, kept: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["compress", "exporters"]):
        import compress.api
        import compress.checkpoint.load.model
        import compress.commands.verify
        import compress.report.baseline  # noqa: F401
    from compress.errors import CompressError
    from exporters.errors import ExportError
    from exporters.standalone import checksums

    warnings.simplefilter("ignore")
    folder = Path.cwd()
    read, seeds = made(name, folder)
    corpus = kept / name.replace(" ", "-")
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"good-{number}").write_bytes(seed)
    counts: dict[str, Any] = {"inputs": 0, "minutes": 0.0, "failures": []}
    places, began = set[str](), time.process_time()

    def told() -> None:
        counts["minutes"] = (time.process_time() - began) / 60
        answer.write_text(json.dumps(counts))

    def one(data: bytes) -> None:
        counts["inputs"] += 1
        try:
            read(data)
        except (CompressError, ExportError, checksums.Refused):
            pass
        except Exception as error:
            place = "".join(traceback.format_tb(error.__traceback__)[-1:])
            place = place.replace(f"{ROOT}/", "").replace(f"{sys.base_prefix}/", "")
            if place not in places:
                places.add(place)
                said = f"{type(error).__name__}: {error}"[:300]
                counts["failures"].append({"said": said, "at": place, "input": data[:400].hex()})
        if counts["inputs"] % 20 == 0:
            told()

    told()
    limits = [f"-max_total_time={max(int(seconds), 1)}", f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MEMORY_MB}", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
    atheris.Fuzz()


def made(name: str, folder: Path) -> Parser:
    """A parser by its name; good files are those of the tests and of one small model."""
    from tests.test_fuzz import DOCUMENTS, dumped

    if name in DOCUMENTS:
        read, file, document = DOCUMENTS[name]
        call = as_file(folder / file, read)
        good = dumped(document).encode()
        # Half of the inputs are the text, half say what to change in the good document: bytes alone hardly leave the JSON parser.
        return lambda data: call(data[1:] if data[:1] < b"\x80" else dumped(altered(document, data[1:])).encode()), [
            b"\0" + good,
            *(b"\xff" + bytes(range(start, start + 24)) for start in range(0, 240, 24)),
        ]
    return {"recipe.toml": settings, "data.toml": settings, "amounts and shapes": amounts}.get(name, binary)(name, folder)


ODD = (None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, -0.0, 1e308, 1e-320, "", "nan", "keep", "1", [], {}, [[]])


def altered(document: Any, data: bytes) -> Any:
    """A document with up to four places that hold something else, are gone, or are there twice."""
    import atheris

    from tests.test_fuzz import places

    document, drawn = copy.deepcopy(document), atheris.FuzzedDataProvider(data)
    for _ in range(drawn.ConsumeIntInRange(1, 4)):
        there = places(document)
        if not there:
            break
        holder, key = there[drawn.ConsumeIntInRange(0, len(there) - 1)]
        what = drawn.ConsumeIntInRange(0, 4)
        if what == 0:
            del holder[key]
        elif what == 1:
            holder[key] = drawn.ConsumeUnicodeNoSurrogates(12)
        elif what == 2:
            holder[key] = drawn.ConsumeInt(8)
        elif what == 3 and isinstance(holder, dict):
            holder[drawn.ConsumeUnicodeNoSurrogates(8)] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(drawn.PickValueInList([*ODD, there[drawn.ConsumeIntInRange(0, len(there) - 1)][0]]))
    return document


def as_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def call(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return call


def settings(name: str, folder: Path) -> Parser:
    from compress.data.settings import from_toml as data_from_toml
    from compress.recipe import from_toml, make

    seeds = [make(model="a.pt", data="digits", target="macs=0.5").to_toml().encode(), (ROOT / "examples/data.toml").read_bytes()]
    recipe = name == "recipe.toml"
    return as_file(folder / name, from_toml if recipe else data_from_toml), seeds[:1] if recipe else seeds[1:]


def amounts(name: str, folder: Path) -> Parser:
    from compress.checkpoint.load.model import parse_shape
    from compress.measure.units import BYTES, COUNTS, SHARES, amount
    from compress.recipe import parse_target

    parsers = [parse_target, parse_shape, *(lambda text, units=units: amount(text, units) for units in (BYTES, COUNTS, SHARES))]

    def call(data: bytes) -> object:
        return parsers[data[0] % len(parsers)](data[1:].decode(errors="replace")) if data else None

    return call, [b"\0params=0.5", b"\x011x8x8", b"\x026.5MB", b"\x031.2G", b"\x0450%"]


def binary(name: str, folder: Path) -> Parser:
    """Files of torch, numpy, safetensors, and packages."""
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from torch import nn

    import compress
    from compress.checkpoint.load.model import load_model
    from compress.data import open_data
    from tests.runs import made_run

    good, opened = folder / f"good-{name}", folder / name
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
    if name == "weights.safetensors":
        save_file(net.state_dict(), good)
        arch = "compress.commands.demo:digits_net"
        return as_file(opened, lambda path: load_model(path, arch=arch)), [good.read_bytes()]
    if name == "model.pt":
        torch.save(net, good)
        return as_file(opened, load_model), [good.read_bytes()]
    if name == "data.npz":
        np.savez(good, x=np.zeros((6, 8, 8), np.uint8), y=np.arange(6) % 2)
        return as_file(opened, lambda path: open_data(path, shape=(1, 8, 8))), [good.read_bytes()]
    compress.package(made_run(folder / "run"), out=folder / "good.tar.gz")
    return as_file(folder / "package.tar.gz", lambda path: compress.verify(path, hashes_only=True)), [
        (folder / "good.tar.gz").read_bytes()
    ]


if __name__ == "__main__":
    main()
