"""model.compressed folders: what graph.json and the weights beside it may claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.attacks import CANARY, model, models
from tests.attacks.names import graph_with

WRONG: dict[str, Any] = {
    "text": "x",
    "none": None,
    "list": [[]],
    "number": -1,
    "float": 1e308,
    "huge": 10**18,
    "digits": int("9" * 4000),
    "true": True,
    "object": {"node": "nobody"},
}


def _set(document: Any, place: str, value: Any) -> None:
    *keys, last = place.split("/")
    for key in keys:
        document = document[int(key) if isinstance(document, list) else key]
    document[int(last) if isinstance(document, list) else last] = value


PLACES = (
    "schema",
    "name",
    "layers",
    "layers/0",
    "layers/0/class",
    "layers/0/args",
    "layers/0/args/in_channels",
    "layers/0/args/kernel_size",
    "layers/1/args/num_features",
    "tensors",
    "tensors/0.weight",
    "tensors/0.weight/shape",
    "tensors/0.weight/dtype",
    "tensors/0.weight/kind",
    "nodes",
    "nodes/0",
    "nodes/0/op",
    "nodes/0/shape",
    "nodes/1/name",
    "nodes/1/target",
    "nodes/1/args",
    "nodes/1/args/0",
    "nodes/2/kwargs",
    "nodes/7/args",
)


def value_wrong(path: Path, which: str) -> None:
    """A value of another kind or size than belongs in its place."""
    place, kind = which.split(" ")
    graph_with(path, lambda document: _set(document, place, WRONG[kind]))


models((f"{place} {kind}" for place in PLACES for kind in WRONG), value_wrong)


def built(path: Path, what: str) -> None:
    """A layer that is built with sizes of the file's choice."""

    def change(document: dict[str, Any]) -> None:
        kind, arguments = json.loads(what)
        document["layers"]["2"] = {"class": kind, "args": arguments}

    graph_with(path, change)


models(
    map(
        json.dumps,
        (
            ("LSTM", {"input_size": 1, "hidden_size": 1, "num_layers": 10**8}),
            ("LSTM", {"input_size": 10**9, "hidden_size": 10**9}),
            ("Linear", {"in_features": 60000, "out_features": 30000}),
            ("Transformer", {"d_model": 512, "nhead": 8, "num_encoder_layers": 10**6}),
            ("Embedding", {"num_embeddings": 10**12, "embedding_dim": 100}),
            ("AdaptiveAvgPool2d", {"output_size": 10**6}),
            ("Upsample", {"scale_factor": 10**5}),
            ("ZeroPad2d", {"padding": 10**6}),
            ("ConstantPad2d", {"padding": [10**5, 10**5, 10**5, 10**5], "value": 0.0}),
            ("Sequential", {}),
            ("Module", {}),
            ("os.mkdir", {"path": CANARY}),
            ("Conv2d", {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "device": "cpu"}),
            ("Conv2d", {"in_channels": 4, "out_channels": 4, "kernel_size": 10**6}),
            ("PReLU", {"num_parameters": 10**12}),
            ("Softmax", {"dim": 10**9}),
            ("Unflatten", {"dim": 1, "unflattened_size": [2] * 60}),
            ("ReLU", {"inplace": {"dict": [[i * (2**61 - 1), 1] for i in range(1000)]}}),
        ),
    ),
    built,
)


def called(path: Path, what: str) -> None:
    """A node that calls something with arguments of the file's choice."""

    def change(document: dict[str, Any]) -> None:
        op, target, args = json.loads(what)
        source = {"node": document["nodes"][0]["name"]}
        document["nodes"][3].update(op=op, target=target, args=[source if a == "x" else a for a in args])

    graph_with(path, change)


models(
    map(
        json.dumps,
        (
            ("call_function", "getattr", ["x", "__class__"]),
            ("call_function", "getattr", ["x", "register_hook"]),
            ("call_function", "os.mkdir", [CANARY]),
            ("call_function", "torch.load", [CANARY]),
            ("call_function", "operator.attrgetter", ["x"]),
            ("call_method", "register_hook", ["x", "x"]),
            ("call_method", "apply_", ["x", "x"]),
            ("call_method", "map_", ["x", "x", "x"]),
            ("call_method", "numpy", ["x"]),
            ("call_method", "tolist", ["x"]),
            ("call_method", "repeat", ["x", 10**9]),
            ("call_method", "expand", ["x", 10**9, 10**9, 8, 8]),
            ("call_method", "new_zeros", ["x", 10**12]),
            ("call_function", "F.interpolate", ["x", None, 10**6]),
            ("call_function", "F.pad", ["x", [10**9, 10**9]]),
            ("call_function", "torch.eye", [10**9]),
            ("call_function", "operator.pow", [10**9, 10**9]),
            ("call_function", "operator.mul", ["a" * 500, 10**12]),
            ("call_function", "math.prod", [[10**9] * 50_000]),
            ("call_module", "", ["x"]),
            ("get_attr", "0.weight.data", []),
            ("get_attr", "forward", []),
        ),
    ),
    called,
)


@model
def many_nodes(path: Path) -> None:
    """A million nodes."""

    def change(document: dict[str, Any]) -> None:
        first, *rest = document["nodes"]
        relus = [
            {"op": "call_function", "name": f"n{i}", "target": "F.relu", "args": [{"node": first["name"]}]} for i in range(10**6)
        ]
        document["nodes"] = [first, *relus, *rest]

    graph_with(path, change)


@model
def deep_values(path: Path) -> None:
    """Arguments nested deeper than recursion goes."""
    graph_with(path, lambda document: None)
    text = (path / "graph.json").read_text()
    (path / "graph.json").write_text(
        text.replace('"args": [{"node"', '"args": [' + "[" * 100_000 + "]" * 100_000 + ', {"node"', 1)
    )


@model
def text_that_is_no_json(path: Path) -> None:
    """Half of a document."""
    graph_with(path, lambda document: None)
    text = (path / "graph.json").read_text()
    (path / "graph.json").write_text(text[: len(text) // 2])


@model
def weights_of_another_model(path: Path) -> None:
    """Sizes that disagree."""
    graph_with(path, lambda document: None)
    save_file({"other": torch.zeros(3)}, path / "weights.safetensors")


@model
def weights_that_lead_elsewhere(path: Path) -> None:
    """A link out of the folder, to a device."""
    graph_with(path, lambda document: None)
    (path / "weights.safetensors").unlink()
    (path / "weights.safetensors").symlink_to("/dev/zero")


@model
def graph_that_is_a_device(path: Path) -> None:
    """A file without an end."""
    graph_with(path, lambda document: None)
    (path / "graph.json").unlink()
    (path / "graph.json").symlink_to("/dev/zero")


@model
def header_that_claims(path: Path) -> None:
    """A safetensors file that says its header is 2^60 bytes."""
    path.write_bytes((2**60).to_bytes(8, "little") + b'{"a":')


@model
def layer_in_a_circle(path: Path) -> None:
    """Layers that stand for each other."""

    def change(document: dict[str, Any]) -> None:
        document["layers"]["2"] = {"same_as": "3"}
        document["layers"]["3"] = {"same_as": "2"}

    graph_with(path, change)
