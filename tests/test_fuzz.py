"""Documents with anything in any place end in a sentence or in a result: a parser raises refusals, and nothing else."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress import edits
from compress.checkpoint import deserialize
from compress.checkpoint.load.model import load, parse_shape
from compress.data import settings as data_settings
from compress.errors import CompressError
from compress.measure.asked import parse_target
from compress.measure.units import BYTES, COUNTS, SHARES, amount
from compress.recipe import from_toml, make
from compress.report import baseline, records
from compress.report.changes import side
from exporters.standalone import checksums, contents
from tests.attacks.names import TEXTS, honest
from tests.runs import edited, made_run

FEW, MANY = 25, 400
QUICK = [pytest.param(FEW), pytest.param(MANY, marks=pytest.mark.slow)]

ODD = st.sampled_from(
    [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")]
)
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(TEXTS),
    st.sampled_from(["keep", "node", "self", "1", "nan", "9" * 5000, "\u0663", "\u00b2"]),
)
DEEP = st.integers(1, 3000).map(lambda depth: nested(depth))
VALUES = st.recursive(
    ODD | TEXT | DEEP, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


def nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


@st.composite
def changed(draw: st.DrawFn, document: Any) -> str:
    """The text of a document, one to three of its values replaced, deleted, renamed or doubled."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = draw(st.sampled_from(places(document) or [([0], 0)]))
        what = draw(st.sampled_from(["replace", "replace", "delete", "rename", "double"]))
        if what == "replace":
            holder[key] = draw(VALUES)
        elif what == "delete":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(TEXT)] = holder[key] if what == "double" else holder.pop(key)
        else:
            holder.insert(key, holder[key])
    return dumped(document)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in it; values that were put in are not gone into far."""
    found, waiting = list[tuple[Any, Any]](), [document]
    while waiting and len(found) < 2000:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            waiting.append(holder[key])
    return found


def dumped(document: Any) -> str:
    """JSON by hand where Python's own writer would end in its recursion limit."""
    if isinstance(document, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumped(value)}" for key, value in document.items()) + "}"
    if isinstance(document, list):
        depth, inner = 0, document
        while isinstance(inner, list) and len(inner) == 1:
            depth, inner = depth + 1, inner[0]
        return (
            "[" * depth + ("[" + ", ".join(map(dumped, inner)) + "]" if isinstance(inner, list) else dumped(inner)) + "]" * depth
        )
    if isinstance(document, int) and not isinstance(document, bool) and abs(document) > 10**100:
        return "1" + "0" * 5000  # beyond what Python turns into a number
    return json.dumps(document)


def answered(call: Callable[[], object]) -> None:
    """A result, or a refusal that can be read."""
    try:
        call()
    except (CompressError, checksums.Refused) as error:
        assert len(str(error)) > 10


def written(read: Callable[[Path], object], name: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        answered(lambda: read(Path(folder) / name))


def graph(path: Path) -> object:
    (path.parent / "weights.safetensors").write_bytes(honest()[1])
    return load(path.parent)


def manifest(path: Path) -> object:
    return contents.read(path.parent)


def report() -> records.Report:
    with tempfile.TemporaryDirectory() as folder:
        return records.read(made_run(Path(folder)))[0]


REPORT = report()
PLAN = edits.Plan(
    (
        edits.Keep("a", 4, (0, 2)),
        edits.Linearize("b", 2, (0.5, 1.0), (0.0, 0.1)),
        edits.Pointwise("c"),
        edits.Relocate(("a", "b")),
        edits.Merge(("a", "b")),
        edits.Factor("d", 2),
    ),
    "m",
)
MANIFEST = {
    "schema": 1,
    "latency": {"batch": 2, "p50_ms": 1.0, "runtime": "ort", "device": "cpu"},
    "models": [
        {
            "path": "manifest.json",
            "format": "onnx",
            "runtime": "onnxruntime",
            "samples": [{"inputs": ["manifest.json"], "outputs": ["manifest.json"], "tolerance": [0.1]}],
        }
    ],
}
DOCUMENTS: dict[str, tuple[Callable[[Path], object], str, Any]] = {
    "graph": (graph, "graph.json", json.loads(honest()[0])),
    "expected tensors": (lambda path: deserialize.expected_tensors(path.read_text()), "g.json", json.loads(honest()[0])),
    "plan": (edits.read, "plan.json", json.loads(PLAN.to_json())),
    "report": (records.read, "report.json", json.loads(edited(REPORT.to_json()))),
    "report with its checksum": (records.read, "report.json", json.loads(REPORT.to_json())),
    "report of schema 1": (
        records.read,
        "report.json",
        json.loads(edited(REPORT.to_json())) | {"schema": 1, "verdict": "--max-drop"},
    ),
    "baseline": (baseline.read, "baseline.json", json.loads(edited(baseline.of(side(REPORT)).to_json()))),
    "manifest": (manifest, "manifest.json", MANIFEST),
}


@pytest.mark.parametrize("examples", QUICK)
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_document_with_anything_in_any_place_is_read_or_refused(kind: str, examples: int):
    read, name, document = DOCUMENTS[kind]
    written(read, name, json.dumps(document))

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(changed(document))
    def law(text: str) -> None:
        written(read, name, text)

    law()


TOML = st.recursive(
    st.one_of(
        st.sampled_from(
            ["0", "-1", "1e400", "nan", "-inf", "true", "9" * 5000, "0x1F", "1979-05-27T07:32:00Z", "07:32:00", '""']
        ),
        st.text(max_size=12).map(json.dumps),
        st.sampled_from(["params=0.5", "size=1e400MB", "size=6.5MB", "digits", "1x8x8", "\u0663x\u00b2x8"]).map(json.dumps),
        st.integers(1, 2000).map(lambda depth: "[" * depth + "]" * depth),
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[" + ", ".join(parts) + "]")
        | inner.map(lambda value: "{a = " + value + "}")
    ),
    max_leaves=4,
)


def lines(keys: list[str]) -> st.SearchStrategy[str]:
    """Known keys and sections with anything behind them."""
    pairs = st.dictionaries(st.sampled_from(keys), TOML, min_size=1, max_size=4)
    return pairs.map(lambda found: "".join(f"{key} = {value}\n" for key, value in found.items()))


TOMLS = {
    "recipe": (from_toml, lines([*make(model="a.pt").model_dump(), "turns", "arms", "odd"])),
    "data": (
        data_settings.from_toml,
        lines([*data_settings.Settings.model_fields, "augment.flip", "split.test", "odd"]).map('source = "digits"\n{}'.format)
        | lines([*data_settings.Settings.model_fields]),
    ),
}


@pytest.mark.parametrize("examples", QUICK)
@pytest.mark.parametrize("kind", TOMLS)
def test_settings_with_anything_in_any_place_are_read_or_refused(kind: str, examples: int):
    read, texts = TOMLS[kind]

    @settings(max_examples=2 * examples, suppress_health_check=list(HealthCheck))
    @given(texts | st.text(max_size=40))
    def law(text: str) -> None:
        written(read, "settings.toml", text)

    law()


WORDS = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"(params|macs|size|activations|weights|odd)=[0-9.e+-]{0,9} ?(MB|GiB|%|K)?", fullmatch=True),
    st.from_regex(r"[0-9\u0663\u00b2\u2460 -]{1,4}([xX,][0-9\u0663\u00b2\u2460]{1,4}){0,4}", fullmatch=True),
    st.sampled_from(["9" * 5000, "1x" + "9" * 5000, "params=" + "9" * 5000, "size=1e" + "9" * 5000, "size=9e999GB"]),
)


@pytest.mark.parametrize("examples", QUICK)
@pytest.mark.parametrize(
    "parse", [parse_target, parse_shape, *(lambda text, units=units: amount(text, units) for units in (BYTES, COUNTS, SHARES))]
)
def test_amounts_and_shapes_of_any_text_are_read_or_refused(parse: Callable[[str], object], examples: int):
    @settings(max_examples=2 * examples)
    @given(WORDS)
    def law(text: str) -> None:
        answered(lambda: parse(text))

    law()
