"""What a package says it holds (manifest.json), believed only as far as it is of the right form.

A hash tells that nobody changed the manifest, not that whoever made it meant well: every field that a script uses is checked
here, before it is used. Needs Python 3.8 or newer, nothing else but checksums.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__:
    from exporters.standalone import checksums
else:
    import checksums  # type: ignore[no-redef,import-not-found]

SCHEMA = 1
MOST_BATCH = 65536
MOST_ENTRIES = 100
"""Models, samples of a model, inputs and outputs of a sample."""
MOST_MANIFEST = 16 << 20  # bytes
MOST_NUMBER = 1e30
MOST_WORDS = 200  # characters that are printed


class Malformed(Exception):
    """What is wrong with a manifest."""


def read(folder: Path) -> dict[str, Any]:
    """The manifest of an unpacked package whose hashes hold.

    Raises:
        checksums.Refused: it cannot be read, is of another schema, or a field is missing, of another kind, or beyond its limits.
    """
    path = folder / checksums.MANIFEST
    try:
        if path.stat().st_size > MOST_MANIFEST:
            raise Malformed(f"it has more than {MOST_MANIFEST >> 20} MiB")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        schema = field(manifest, "the manifest", "schema")
        if schema != SCHEMA:
            told = f"The package has schema {str(schema)[:20]!r}, this script reads {SCHEMA}."
            raise checksums.Refused(f"{told} Use the verify.py inside it.")
        models = entries(manifest, "the manifest", "models")
        for number, model in enumerate(models):
            check_model(folder, model, f"models[{number}]")
        latency = field(manifest, "the manifest", "latency")
        if latency is not None:
            check_latency(latency)
    # A nesting of thousands of lists ends the reader of JSON itself.
    except (OSError, ValueError, RecursionError, Malformed) as error:
        raise checksums.Refused(f"{checksums.MANIFEST} cannot be used: {error}. Make the package again.") from error
    return manifest


def check_model(folder: Path, model: Any, where: str) -> None:
    """One entry of `models`, with its samples."""
    words(model, where, "format")
    file(folder, field(model, where, "path"), f"{where}.path")
    # What no script here runs has no samples; what is run without one would be equal to nothing.
    least = 1 if words(model, where, "runtime") == "onnxruntime" else 0
    samples = entries(model, where, "samples", least)
    for number, sample in enumerate(samples):
        place = f"{where}.samples[{number}]"
        for key in ("inputs", "outputs"):
            for name in entries(sample, place, key):
                file(folder, name, f"{place}.{key}")
        allowed = entries(sample, place, "tolerance")
        for value in allowed:
            between(value, f"{place}.tolerance", 0, MOST_NUMBER)
        if len(allowed) != len(sample["outputs"]) or len(sample["inputs"]) != len(samples[0]["inputs"]):
            raise Malformed(f"{place} needs a tolerance for every output, and as many inputs as the other samples")


def check_latency(latency: Any) -> None:
    """What was measured where the package was made."""
    batch = field(latency, "latency", "batch")
    between(batch, "latency.batch", 1, MOST_BATCH)
    if not isinstance(batch, int):
        raise Malformed(f"latency.batch is {batch!r}, needed is a whole number")
    between(field(latency, "latency", "p50_ms"), "latency.p50_ms", 0, MOST_NUMBER)
    for key in ("runtime", "device"):
        words(latency, "latency", key)


def field(holder: Any, where: str, key: str) -> Any:
    """A field that has to be there."""
    if not isinstance(holder, Mapping):
        raise Malformed(f"{where} is {shown(holder)}, needed is an object")
    if key not in holder:
        raise Malformed(f"{where} has no {key!r}")
    return holder[key]


def entries(holder: Any, where: str, key: str, least: int = 1) -> list[Any]:
    """A list of a few things."""
    found = field(holder, where, key)
    if not isinstance(found, list) or not least <= len(found) <= MOST_ENTRIES:
        told = f"a list of {len(found)}" if isinstance(found, list) else shown(found)
        raise Malformed(f"{where}.{key} is {told}, needed is a list of {least} to {MOST_ENTRIES}")
    return found


def words(holder: Any, where: str, key: str) -> str:
    """A short text that can be printed."""
    found = field(holder, where, key)
    if not isinstance(found, str) or len(found) > MOST_WORDS or not found.isprintable():
        raise Malformed(f"{where}.{key} is {shown(found)}, needed is a text of at most {MOST_WORDS} characters")
    return found


def file(folder: Path, name: Any, where: str) -> None:
    """The name of a file in the package; never a way out of it."""
    if not isinstance(name, str) or not checksums.NAME.fullmatch(name):
        raise Malformed(f"{where} is {shown(name)}, needed is the name of a file in the package")
    if not (folder / name).is_file():
        raise Malformed(f"{where} names {name}, which is not in the package")


def between(value: Any, where: str, low: float, high: float) -> None:
    """A number within limits; True is none, and neither is NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise Malformed(f"{where} is {shown(value)}, needed is a number from {low} to {high:g}")


def shown(value: Any) -> str:
    """A value as a message has it."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
