"""Names of layers and tensors, which torch.fx writes into source code, and programs into pages, shells and paths."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint.save import save
from compress.graph.trace.trace import trace
from tests.attacks import CANARY, models

CODE = f'getattr(__import__("os"),"mkdir")("{CANARY}")'
TEXTS = (
    f'2") if {CODE} else getattr(self, "2',  # ends the string in getattr(self, "2")
    f'2"); {CODE}; getattr(self, "2',
    f"2'); {CODE}; getattr(self, '2",
    f"2\n    {CODE}\n    ",  # a line of its own
    f"2 = {CODE} #",
    f"x: {CODE} = 0",
    f"{{{CODE}}}",  # in an f-string
    f"$(mkdir {CANARY})",  # in a shell
    f"`mkdir {CANARY}`",
    f"; mkdir {CANARY}",
    "<script>alert(1)</script>",
    "a|b](javascript:alert(1))",
    "\x1b]0;title\x07",
    "a\r\nb",
    "a\0b",
    "\\",
    "\u202eright to left",
    "\ud800",  # half of a character: cannot be written as UTF-8
    "\ufb01",  # a ligature, which Python reads as "fi"
    "../../etc/passwd",
    "/etc/passwd",
    "",
    "a" * 100_000,
    "__class__",
    "__dict__",
    "forward",
    "_modules",
    "class",
    "%s%s%s%n",
)


def small() -> nn.Sequential:
    """A network of torch's own layers that takes 3x8x8."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


def renamed(mapping: dict[str, Any], old: str, new: str) -> None:
    """The same entries in the same order, one of them under another name."""
    entries = [(new if key == old else key, value) for key, value in mapping.items()]
    mapping.clear()
    mapping.update(entries)


def layer_named(path: Path, text: str) -> None:
    """A pickled network, one of whose layers has this name."""
    net = small()
    renamed(net._modules, "2", text)
    torch.save(net, path)


def inner_layer_named(path: Path, text: str) -> None:
    """The same, inside another layer."""
    net = nn.Sequential(small())
    renamed(net[0]._modules, "2", text)
    torch.save(net, path)


def parameter_named(path: Path, text: str) -> None:
    """A pickled layer with one more parameter."""
    net = small()
    net[0]._parameters[text] = nn.Parameter(torch.zeros(1))
    torch.save(net, path)


def buffer_named(path: Path, text: str) -> None:
    """A pickled layer with one more buffer."""
    net = small()
    net[0]._buffers[text] = torch.zeros(1)
    torch.save(net, path)


def attribute_named(path: Path, text: str) -> None:
    """A pickled layer with one more attribute."""
    net = small()
    vars(net[2])[text] = 1
    torch.save(net, path)


def weight_named(path: Path, text: str) -> None:
    """A state_dict with one more tensor."""
    torch.save({**small().state_dict(), text: torch.zeros(1)}, path)


def graph_with(path: Path, change: Any) -> None:
    """A model.compressed folder whose graph.json was changed."""
    graph, weights = honest()
    document = json.loads(graph)
    change(document)
    path.mkdir()
    (path / "graph.json").write_text(json.dumps(document))
    (path / "weights.safetensors").write_bytes(weights)


@functools.cache
def honest() -> tuple[str, bytes]:
    """The graph and the weights of `small`."""
    with tempfile.TemporaryDirectory() as folder:
        stored = save(trace(small(), (torch.zeros(1, 3, 8, 8),)), Path(folder) / "model")
        return (stored / "graph.json").read_text(), (stored / "weights.safetensors").read_bytes()


def layer_in_graph(path: Path, text: str) -> None:
    """A layer of graph.json."""

    def change(document: dict[str, Any]) -> None:
        renamed(document["layers"], "2", text)
        for node in document["nodes"]:
            node["target"] = text if node["target"] == "2" else node["target"]

    graph_with(path, change)


def node_in_graph(path: Path, text: str) -> None:
    """A node of graph.json, and all who use it."""

    def change(document: dict[str, Any]) -> None:
        old = document["nodes"][1]["name"]
        document["nodes"] = json.loads(json.dumps(document["nodes"]).replace(json.dumps(old), json.dumps(text)))

    graph_with(path, change)


def target_in_graph(path: Path, text: str) -> None:
    """What a node of graph.json calls: an operation by name."""

    def change(document: dict[str, Any]) -> None:
        document["nodes"][3].update(op="call_function", target=text)

    graph_with(path, change)


def method_in_graph(path: Path, text: str) -> None:
    """What a node of graph.json calls: a tensor method by name."""

    def change(document: dict[str, Any]) -> None:
        document["nodes"][3].update(op="call_method", target=text)

    graph_with(path, change)


def argument_in_graph(path: Path, text: str) -> None:
    """A keyword argument of a node."""

    def change(document: dict[str, Any]) -> None:
        document["nodes"][3]["kwargs"] = {text: 1}

    graph_with(path, change)


def class_in_graph(path: Path, text: str) -> None:
    """The name of the model, which becomes that of a class."""
    graph_with(path, lambda document: document.update(name=text))


for write in (layer_named, inner_layer_named, parameter_named, buffer_named, attribute_named, weight_named):
    models(TEXTS, write)
for write in (layer_in_graph, node_in_graph, target_in_graph, method_in_graph, argument_in_graph, class_in_graph):
    models(TEXTS, write)
