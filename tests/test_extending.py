"""What the guide for extending promises: one file and one line each, and whatever is forgotten, a test here names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from models import MODELS, random_model
from oracles import distance, outputs, random_edits
from pages import ROOT
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.checkpoint.deserialize import stored_tensors
from compress.checkpoint.serialize import from_json, to_json
from compress.commands import bench_files
from compress.graph import operations
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace
from compress.method_table import METHODS, Step
from exporters import FORMATS, runtimes

GUIDE = ROOT / "docs" / "extending.md"
EXACT = 2e-5
"""Relative; as in test_surgery.py: float32 adds the same numbers in another order."""
CHANNELS = 8


# A method


def test_every_file_of_a_stage_is_a_step_of_a_method():
    files = {path.stem for path in (ROOT / "compress/stages").glob("*.py")} - {"__init__"}
    steps = {step.file for method in METHODS.values() for step in method.steps if isinstance(step, Step)}
    by_hand = set(re.findall(r"from compress\.stages\.(\w+)", (ROOT / "compress/pipeline/sequence.py").read_text()))
    assert files - steps - by_hand == set(), "a line in compress/method_table.py is missing"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_says_what_goes(name: str):
    assert METHODS[name].what.endswith("."), "one sentence, for 'compress methods' and the table of methods"


# An exporter


def modules_with(folder: Path, function: str, argument: str) -> set[str]:
    """Files that define a function of this name on their top level, whose first argument is called so."""
    return {
        path.stem
        for path in folder.glob("[!_]*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == function and node.args.args[0].arg == argument
    }


def test_every_file_that_exports_is_a_format():
    known = {format.module.removeprefix("exporters.") for format in FORMATS.values()}
    assert modules_with(ROOT / "exporters", "export", "request") - known == set(), "a line in exporters/formats.py is missing"


def test_every_file_that_opens_is_a_runtime():
    known = {runtime.module.removeprefix("exporters.runtimes.") for runtime in runtimes.RUNTIMES.values()}
    opening = modules_with(ROOT / "exporters/runtimes", "load", "path")
    assert opening == known, "a line in RUNTIMES of exporters/runtimes/__init__.py is missing"


@pytest.mark.parametrize(
    ("runtime", "format"),
    [("ort", "onnx"), ("openvino", "onnx"), ("executorch", "executorch"), ("litert", "litert"), ("torch", "pt2")],
)
def test_a_runtime_gets_a_torch_model_in_full_precision(runtime: str, format: str):
    assert bench_files.written_for(runtime) == format


# A layer kind or an operation


class Between(nn.Module):
    """Something between a layer that makes channels along axis 1 and one that consumes what comes out."""

    def __init__(self, part: Callable[..., Any], axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.part = part
        self.first = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes](3, CHANNELS, *[1][:axes])
        self.x = torch.rand(2, 3, *[8] * axes) + 0.1
        made = self.between(self.x)
        self.last = nn.Linear(made.shape[1], 2)
        if made.ndim > 2:
            self.last = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[made.ndim - 3](made.shape[1], 2, 1)

    def between(self, x: Tensor) -> Tensor:
        return self.part(torch.sigmoid(self.first(x)) + 0.1).float()  # above 0, where every function is defined

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(x))


def holds(net: Between) -> None:
    """Channels can go, removed == masked, and the smaller model is saved and comes back."""
    x = net.x
    artifact = Artifact(trace(net.eval(), (x,)), (x[:1],))
    group = artifact.channels.group("first")
    assert group.frozen is None, group.frozen
    edits = random_edits([group], 0)
    small, masked = (change(artifact.module, artifact.channels, edits) for change in (keep, mask))
    assert small.get_submodule("first").weight.shape[0] < CHANNELS
    assert distance(outputs(small, [x]), outputs(masked, [x])) < EXACT
    again = from_json(to_json(small), {name: t.detach().clone() for name, t, _ in stored_tensors(small)})
    assert distance(outputs(again, [x]), outputs(small, [x])) == 0


FROZEN = {"", "last axes norm", "joint norm", "embedding"}
"""Rules of layers that keep the channels whole: they look them up, or take statistics over channels that are never zeros here."""
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("in_channels", "out_channels", "in_features", "out_features"), CHANNELS),
    **dict.fromkeys(("num_features", "num_channels", "channels", "input_size", "hidden_size"), CHANNELS),
    **dict.fromkeys(("kernel_size", "output_size", "norm_type", "upscale_factor", "downscale_factor", "groups"), 2),
    **{"num_groups": 4, "padding": 1, "threshold": 0.5, "value": 0.2, "p": 0.5, "mode": "batch", "axis": 1},
}
"""A value for every argument of a layer that has no default."""
BY_CLASS: dict[str, dict[str, Any]] = {
    **{name: {"scale_factor": 2} for name in ("Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d")},
    **{name: {"dim": -1} for name in ("Softmax", "LogSoftmax", "Softmin")},
    **{
        name: {"input_size": CHANNELS, "hidden_size": CHANNELS} for name in ("RNN", "GRU", "LSTM")
    },  # their arguments have no names
    "GLU": {"dim": 1},
    "Fold": {"output_size": (2, 4), "kernel_size": 1},
    "PReLU": {"num_parameters": CHANNELS},
}
"""Where the default says nothing, or too little."""
KINDS = {name: (row, kind) for row in operations.LAYERS for name, kind in operations.classes(row).items()}
NOT_SAVED = {"device", "dtype", "process_group", "init", "min_value", "max_value", "_weight", "_freeze"}
"""Arguments that say where and how weights are made, or that torch has given up."""


def arguments_of(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    gathering = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: one for name, one in inspect.signature(kind).parameters.items() if one.kind not in gathering}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_layer_names_every_argument_that_a_checkpoint_needs(name: str):
    row, kind = KINDS[name]
    fields = {re.split("[?<]", field)[0] for field in row.fields.split()}
    missing = set(arguments_of(kind)) - fields - NOT_SAVED
    assert missing == set(), f"'fields' of {name} in compress/graph/operations.py"


@pytest.mark.parametrize("name", sorted(name for name, (row, _) in KINDS.items() if row.rule not in FROZEN))
@pytest.mark.filterwarnings("ignore")  # torch warns of what it will change
def test_a_layer_with_a_rule_loses_channels_and_is_saved(name: str):
    row, kind = KINDS[name]
    wanted = [key for key, one in arguments_of(kind).items() if one.default is one.empty]
    missing = [key for key in wanted if key not in ARGUMENTS]
    assert missing == [], f"a value in ARGUMENTS of {Path(__file__).name}"
    layer = kind(**{key: ARGUMENTS[key] for key in wanted} | BY_CLASS.get(name, {}))
    axes = int(digit[0]) if (digit := re.findall(r"(\d)d$", name)) else 0 if name == "Linear" or row.rule == "recurrent" else 2
    if name == "Fold":  # (samples, channels, places) -> pictures
        layer, axes = nn.Sequential(layer, nn.Flatten(2)), 1
    holds(Between(First(layer) if name in ("RNN", "GRU", "LSTM", "LSTMCell") else layer, axes))


class First(nn.Module):
    """The first of what a layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


Calls = Callable[[Callable[..., Any], Tensor], Any]
WAYS: dict[str, tuple[Calls, ...]] = {
    "elementwise": (
        *(lambda f, x: f(x), lambda f, x: f(x, x + 0.5), lambda f, x: f(x, 0.5), lambda f, x: f(x, x + 0.5, 0.3)),
        *(lambda f, x: f(x, x, x + 0.5), lambda f, x: f(x > 0.5), lambda f, x: f(x > 0.5, x < 0.7)),
        *(lambda f, x: f(x > 0.5, x, x + 0.5), lambda f, x: f(x, x > 0.5, 0.3), lambda f, x: f(x, 0.2, 0.7)),
    ),
    "cast": (lambda f, x: f(x), lambda f, x: f(torch.float32), lambda f, x: f(x, torch.float32), lambda f, x: f(x, x)),
    "spatial": (lambda f, x: f(x, 2), lambda f, x: f(x, 2, 2), lambda f, x: f(x, scale_factor=2)),
    "reduction": (
        *(lambda f, x: f(x, (2, 3)), lambda f, x: f(x, dim=(2, 3)), lambda f, x: f(x, -1), lambda f, x: f(x, 0.5, -1)),
        lambda f, x: f(x, (2, 3))[1],
    ),
    "selection": (*(lambda f, x: f(x, 2), lambda f, x: f(x, 2)[0], lambda f, x: f(x, dim=2)[1], lambda f, x: f(x, 2, dim=2)[0]),),
    "gathered": (
        *(lambda f, x: f(x, 2, (x * 3).long()), lambda f, x: f(x, (x * 3).long(), 2)),
        lambda f, x: f(x, 2, torch.tensor([1, 0, 1])),
    ),
    "along": (lambda f, x: f(x, dim=-1), lambda f, x: f(x, 1, -1)),
}
"""By rule, what an operation of it may be called with; the first that works is taken. Those that only move data are called as
they are on the channels."""
BY_NAME: dict[str, Calls] = {"elementwise torch.nn.functional.dropout": lambda f, x: f(x, 0.5, training=False)}
PAIRS = {"spatial torch.adaptive_max_pool1d"}
"""Gives where the values were, too, which keeps the channels whole."""


def functions(rule: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for row in operations.OPERATIONS:
        if row.rule == rule:
            for owner, names in operations._named(row):
                yield from ((f"{owner.__name__}.{one}", getattr(owner, one)) for one in names.split() if hasattr(owner, one))
            yield from ((f"Tensor.{one}", method(one)) for one in row.methods.split() if hasattr(Tensor, one))


def method(name: str) -> Callable[..., Any]:
    """Called on a copy, because some change what they are called on."""
    return lambda x, *rest, **named: getattr(x.clone(), name)(*rest, **named)


FUNCTIONS = {f"{rule} {name}": (rule, f) for rule in WAYS for name, f in functions(rule)}


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - PAIRS))
@pytest.mark.filterwarnings("ignore")
def test_an_operation_with_a_rule_loses_channels_and_is_saved(name: str):
    rule, f = FUNCTIONS[name]
    axes = int(digit[0]) if (digit := re.findall(r"(\d)d$", name)) else 2
    example = torch.rand(2, CHANNELS, *[8] * axes)
    ways = (BY_NAME[name],) if name in BY_NAME else WAYS[rule]
    call = next((way for way in ways if works(lambda x, way=way: way(f, x), example)), None)
    assert call is not None, f"a way to call it in WAYS of {Path(__file__).name}"
    holds(Between(lambda x: call(f, x), axes))


def works(call: Callable[[Tensor], Any], x: Tensor) -> bool:
    try:
        made = call(x)
    except (TypeError, RuntimeError, AttributeError, ValueError, IndexError):
        return False
    return isinstance(made, Tensor) and made.ndim > 1 and made.shape[1] == CHANNELS


def test_every_rule_is_met_by_a_model():
    """A new rule comes with a model in tests/models.py, so that the oracles of test_surgery.py see it."""
    met: set[str] = set()
    for name in MODELS:
        model, inputs = random_model(name)
        traced = trace(model, inputs)
        kinds = {type(part) for part in traced.modules()}
        called = {node.target for node in traced.graph.nodes}
        met |= {row.rule for row in operations.LAYERS if kinds & set(operations.classes(row).values())}
        for row in operations.OPERATIONS:
            if called & {*operations.functions(row.rule), *operations.methods(row.rule)}:
                met.add(row.rule)
    rules = {row.rule for row in chain(operations.LAYERS, operations.OPERATIONS)}
    assert rules - met == set(), "a model in tests/models.py"
