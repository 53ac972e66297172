"""Graphs whose sizes become numbers and sequences without end, for every size or for some alone: refused before they are made."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compress.artifact import Artifact
from compress.checkpoint.load.model import open_artifact
from compress.errors import BadInput
from tests.attacks.names import graph_with
from tests.runs import stopped_after

Nodes = list[dict[str, Any]]


def node(op: str, name: str, target: str, *args: Any) -> dict[str, Any]:
    return {"op": op, "name": name, "target": target, "args": list(args)}


def of(name: str) -> dict[str, str]:
    return {"node": name}


def size(axis: int) -> dict[str, Any]:
    return node("call_method", "first", "size", of("INPUT"), axis)


def often(what: str, first: dict[str, Any], times: int, *more: Any) -> Nodes:
    """A function of two values, over and over: of the last value with itself, or with something else."""
    names = [first["name"], *(f"n{i}" for i in range(times))]
    steps = itertools.pairwise(names)
    return [first, *(node("call_function", b, f"operator.{what}", of(a), *(more or (of(a),))) for a, b in steps)]


ENDLESS: dict[str, Nodes] = {
    "a power": often("pow", size(2), 1, 10**9),
    "a text of a gigabyte": [size(2), node("call_function", "n0", "operator.mod", "%1000000000d", of("first"))],
    "a list that is repeated": [size(2), node("call_function", "n0", "operator.mul", {"tuple": [0] * 1000}, of("first"))],
    "a tuple for each sample": [size(0), node("call_function", "n0", "operator.mul", {"tuple": [1]}, of("first"))],
    "a tuple for each axis, a thousand times over": [
        node("call_function", "first", "getattr", of("INPUT"), "ndim"),
        node("call_function", "n1", "operator.mul", of("first"), 10**4),
        node("call_function", "n0", "operator.mul", {"tuple": [1]}, of("n1")),
    ],
    "squares of a batch of one": often("mul", size(0), 60),
    "powers of a batch of one": often("pow", size(0), 8, 60),
    "a power of a size": often("pow", size(0), 1, of("first")),
    "sizes behind sizes": often("add", node("call_method", "first", "size", of("INPUT")), 40),
}


def method(name: str, target: str, *args: Any) -> dict[str, Any]:
    return node("call_method", name, target, *args)


def function(name: str, target: str, *args: Any) -> dict[str, Any]:
    return node("call_function", name, target, *args)


SHAPE = function("first", "getattr", of("INPUT"), "shape")
TEXT = method("first", "type", of("INPUT"))
LONG = method("first", "new_empty", of("INPUT"), [2**27])
ENDLESS |= {
    "a shape that is repeated by its method": [SHAPE, method("n0", "__mul__", of("first"), 3 * 10**8)],
    "sizes behind sizes by their method": [SHAPE, *(method(f"n{i}", "__add__", of("first"), of("first")) for i in range(2))],
    "a text behind itself": often("add", TEXT, 36),
    "a product of lists": [SHAPE, function("n0", "math.prod", [10**9, of("first")])],
    "a product that begins with a list": [
        SHAPE,
        function("n0", "math.prod", of("first")) | {"kwargs": {"start": {"tuple": [0, 1]}}},
    ],
    "a hundred million tensors": [LONG, method("n0", "unbind", of("first"))],
    "as many parts": [LONG, method("n0", "split", of("first"), 1)],
    "as many chunks": [LONG, method("n0", "chunk", of("first"), 2**27)],
}
POSITIVE = function("mask", "operator.gt", of("INPUT"), 0.0)
LARGE: dict[str, Nodes] = {
    "a square of sizes": [
        size(2),
        function("side", "operator.mul", of("first"), 2**12),
        function("n0", "torch.ones", of("side"), of("side")),
    ],
    "a row of numbers": [size(2), function("n0", "torch.linspace", 0, of("first"), 2**34)],
    "behind what needs entries": [
        POSITIVE | {"name": "first"},
        method("some", "masked_select", of("INPUT"), of("first")),
        method("n0", "new_ones", of("some"), [2**31]),
    ],
    "pairs behind what needs entries": [
        method("first", "nonzero", of("INPUT")),
        method("many", "new_ones", of("INPUT"), [2**16, 2]),
        function("n0", "torch.cdist", of("many"), of("many")),
    ],
}


def opened(path: Path, nodes: Nodes) -> Artifact:
    def put(document: dict[str, Any]) -> None:
        known = document["nodes"]
        texts = json.dumps(nodes).replace('"INPUT"', json.dumps(known[0]["name"]))
        known[1:1] = json.loads(texts)
        known[-1]["args"] = [{"tuple": [*known[-1]["args"], of(nodes[-1]["name"])]}]

    graph_with(path, put)
    with stopped_after(60):
        return open_artifact(path, input_shapes=[(3, 8, 8)], output="0")


@pytest.mark.parametrize("what", ENDLESS)
def test_numbers_and_sequences_without_end_are_refused_before_they_are_made(tmp_path: Path, what: str):
    with pytest.raises(BadInput, match="of numbers that are no sizes"):
        opened(tmp_path / "model.compressed", ENDLESS[what])


@pytest.mark.parametrize("what", LARGE)
def test_tensors_are_as_large_as_there_is_room_for(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch):
    if "entries" in what:
        monkeypatch.setattr("compress.graph.trace.shapes.SAFE_VALUES", 2**20)  # so that it is seen with little memory
    with pytest.raises(BadInput, match=r"The model makes \d+ values at 'n0'"):
        opened(tmp_path / "model.compressed", LARGE[what])


@pytest.mark.parametrize("first", [{"tuple": [1]}, 5, "a", None])
def test_code_that_no_program_has_is_refused(tmp_path: Path, first: Any):
    with pytest.raises(BadInput, match="is not one that this program wrote"):
        opened(tmp_path / "model.compressed", [function("first", "operator.iadd", first, of("INPUT"))])


@pytest.mark.parametrize("nodes", [often("add", size(2), 3), often("mul", size(2), 4), often("pow", size(2), 2, 3)])
def test_what_networks_compute_of_sizes_is_not(tmp_path: Path, nodes: Sequence[dict[str, Any]]):
    assert opened(tmp_path / "model.compressed", list(nodes)).inputs[0].shape == (1, 3, 8, 8)


def test_a_shape_of_numbers_that_no_line_holds_is_not_quoted(tmp_path: Path):
    def put(document: dict[str, Any]) -> None:
        next(iter(document["tensors"].values()))["shape"] = [int("7" * 4000)] * 3000

    graph_with(tmp_path / "model.compressed", put)
    with pytest.raises(BadInput, match="shape is none") as refused:
        open_artifact(tmp_path / "model.compressed", input_shapes=[(3, 8, 8)])
    assert len(str(refused.value)) < 1000
