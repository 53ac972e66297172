"""Pickles: what they call, what they claim to be, and what they set on the layers that they hold."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tests.attacks import CANARY, model, models
from tests.attacks.names import small


class Call:
    """A pickle of this calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def with_pickle(path: Path, data: bytes) -> None:
    """An archive of torch.save whose pickle is this; the checksums are right."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, data if name.endswith("data.pkl") else old.read(name))


def called(path: Path, what: str) -> None:
    """A global that is called, as GLOBAL and REDUCE, with one text argument."""
    module, _, name = what.rpartition(".")
    argument = pickle.dumps(CANARY, 2)[2:-1]
    with_pickle(path, b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R.")


CALLS = """
    os.mkdir os.system posix.mkdir builtins.eval builtins.exec builtins.open builtins.__import__ subprocess.call
    importlib.import_module pathlib.Path.mkdir torch.load torch.hub.load torch.utils.cpp_extension.load torch.jit.load
    torch._dynamo.optimize shutil.rmtree builtins.getattr operator.attrgetter functools.partial types.FunctionType code.interact
    pdb.run webbrowser.open torch.nn.Module torch.nn.modules.module.Module torch.fx.graph_module.reduce_graph_module
    torch.utils.data.DataLoader torch.storage._load_from_bytes torch.package.PackageImporter numpy.load
    numpy.testing._private.utils.runstring torch.serialization.load builtins.bytearray torch.FloatTensor torch.FloatStorage
"""
models(CALLS.split(), called)


@model
def call_in_a_new_file(path: Path) -> None:
    """Code beside the weights."""
    torch.save({"state_dict": small().state_dict(), "other": Call(os.mkdir, CANARY)}, path)


@model
def call_in_an_old_file(path: Path) -> None:
    """The format before torch 1.6."""
    torch.save(Call(os.mkdir, CANARY), path, _use_new_zipfile_serialization=False)


@model
def call_by_protocol_4(path: Path) -> None:
    """STACK_GLOBAL instead of GLOBAL."""
    torch.save(Call(os.mkdir, CANARY), path, pickle_protocol=4)


@model
def call_as_an_attribute(path: Path) -> None:
    """An attribute of a layer."""
    net = small()
    vars(net[2])["extra"] = Call(os.mkdir, CANARY)
    torch.save(net, path)


@model
def call_as_a_hook(path: Path) -> None:
    """A hook of an allowed class: the layer's own apply, with itself."""
    net = small()
    net[2]._forward_hooks[0] = F.gelu
    torch.save(net, path)


@model
def tar_with_a_call(path: Path) -> None:
    """The format before torch 0.2."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Call(os.mkdir, CANARY), 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


@model
def two_pickles(path: Path) -> None:
    """A harmless one first."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("other/data.pkl", pickle.dumps(Call(os.mkdir, CANARY), 2))


def method_replaced(path: Path, name: str) -> None:
    """A layer whose method is a function that is allowed elsewhere."""
    net = small()
    vars(net[2])[name] = F.gelu
    torch.save(net, path)


def root_method_replaced(path: Path, name: str) -> None:
    """The same on the root."""
    net = small()
    vars(net)[name] = F.relu
    torch.save(net, path)


METHODS = ("forward", "_call_impl", "__call__", "_wrapped_call_impl", "__getattr__", "train", "state_dict", "named_modules", "to")
models(METHODS, method_replaced)
models(METHODS, root_method_replaced)

WRONG: dict[str, Any] = {
    # attribute -> something else than what belongs there
    "_modules": "text",
    "_parameters": None,
    "_buffers": 3,
    "in_channels": "3",
    "kernel_size": (3, "3"),
    "stride": [[1]],
    "padding": 10**30,
    "groups": 0,
    "out_channels": -4,
    "padding_mode": "elsewhere",
    "dilation": 10**18,
    "transposed": True,
    "output_padding": (5, 5),
}


def attribute_wrong(path: Path, name: str) -> None:
    """An attribute of a convolution is of another type or size than its constructor makes."""
    net = small()
    vars(net[0])[name] = WRONG[name]
    torch.save(net, path)


models(WRONG, attribute_wrong)


@model
def layer_inside_itself(path: Path) -> None:
    """Whoever walks through its layers never ends."""
    net = small()
    net._modules["2"] = net
    torch.save(net, path)


@model
def layers_inside_each_other(path: Path) -> None:
    """Twice in each of many: 2 to the 40th walks."""
    net: nn.Module = nn.ReLU()
    for _ in range(40):
        net = nn.Sequential(net, net)
    torch.save(net, path)


@model
def deep_layers(path: Path) -> None:
    """Deeper than Python's recursion goes."""
    net: nn.Module = nn.ReLU()
    for _ in range(80):
        net = nn.Sequential(net)
    torch.save(net, path)


@model
def tensor_for_a_layer(path: Path) -> None:
    """No module in the place of one."""
    net = small()
    net._modules["2"] = torch.zeros(3)  # type: ignore[assignment]
    torch.save(net, path)


@model
def weight_of_another_size(path: Path) -> None:
    """Sizes that disagree."""
    net = small()
    net[0]._parameters["weight"] = nn.Parameter(torch.zeros(4, 3, 1, 1))
    torch.save(net, path)


@model
def negative_variance(path: Path) -> None:
    """The square root of it is no number."""
    net = small()
    net[1].running_var.fill_(-1)
    torch.save(net, path)


# ---- claims ------------------------------------------------------------------------------------------------------------------


def built(path: Path, what: str) -> None:
    """A constructor that is called with sizes: `torch.nn.modules.linear.Linear(60000, 30000)` takes 7 GB."""
    name, _, sizes = what.partition(" ")
    module, _, kind = name.rpartition(".")
    arguments = pickle.dumps(tuple(int(n) for n in sizes.split()), 2)[2:-1]
    with_pickle(path, b"\x80\x02c" + f"{module}\n{kind}\n".encode() + arguments + b"R.")


models(
    (
        "torch.nn.modules.linear.Linear 60000 30000",
        "torch.nn.modules.rnn.LSTM 1 1 100000000",
        "torch.nn.modules.conv.Conv2d 60000 60000 9",
        "torch.nn.modules.transformer.Transformer 512 8 100000 100000",
        "torch.nn.modules.sparse.Embedding 10000000000 100",
        "torch.FloatTensor 100000000000",
        "torch.FloatStorage 100000000000",
        "builtins.bytearray 100000000000",
        "torch.DoubleTensor 100000 1000000",
        "torch.storage.UntypedStorage 100000000000",
    ),
    built,
)


@model
def storage_larger_than_its_data(path: Path) -> None:
    """A tensor that says it has 10^9 values of 4."""
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    with_pickle(path, data.replace(b"K\x04", b"J" + struct.pack("<i", 10**9)))


@model
def strides_of_zero(path: Path) -> None:
    """One value in memory, 10^12 when it is looked at."""
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, path)


@model
def strides_of_zero_in_a_layer(path: Path) -> None:
    """The same as a weight of the right size."""
    net = nn.Sequential(nn.Linear(1, 1))
    net[0].in_features = net[0].out_features = 10**6
    net[0]._parameters["weight"] = nn.Parameter(torch.zeros(1).expand(10**6, 10**6))
    net[0]._parameters["bias"] = nn.Parameter(torch.zeros(1).expand(10**6))
    torch.save(net, path)


@model
def colliding_keys(path: Path) -> None:
    """A dictionary of numbers that all have one hash: quadratic time."""
    numbers = (i * (2**61 - 1) for i in range(1, 60_000))
    items = b"".join(pickle.dumps(n, 2)[2:-1] + b"K\x01" for n in numbers)
    with_pickle(path, b"\x80\x02}(" + items + b"u.")


@model
def doubling_tuples(path: Path) -> None:
    """A tuple of two equal tuples, 60 deep, as a key: its hash takes 2 to the 60th steps."""
    with_pickle(path, b"\x80\x02}K\x01q\x00" + _doubled() + b"K\x01s.")


def _doubled() -> bytes:
    steps = b""
    for i in range(60):
        steps += bytes([0x68, i, 0x86, 0x71, i + 1])  # BINGET i, TUPLE2 with what is on the stack, BINPUT i + 1
    return steps


@model
def many_marks(path: Path) -> None:
    """Lists in lists, deeper than the stack of C goes."""
    with_pickle(path, b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b".")


@model
def pickle_that_ends_early(path: Path) -> None:
    """An opcode without what it needs."""
    with_pickle(path, b"\x80\x02R.")


@model
def memo_that_is_not_there(path: Path) -> None:
    """A reference to nothing."""
    with_pickle(path, b"\x80\x02h\x07.")


@model
def zip_bomb(path: Path) -> None:
    """A gigabyte of zeros in a megabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"w": 1}, 2))
        archive.writestr("m/version", "3")
        with archive.open("m/data/0", "w") as part:
            for _ in range(256):
                part.write(bytes(2**20))


@model
def tar_bomb(path: Path) -> None:
    """A bz2 tar: 256 MB in a few hundred bytes."""
    with tarfile.open(path, "w:bz2") as archive:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = 2**26
            archive.addfile(entry, io.BytesIO(bytes(2**26)))


@model
def many_empty_files(path: Path) -> None:
    """An archive of ten thousand empty files."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({"w": 1}, 2))
        for number in range(10_000):
            archive.writestr(f"m/data/{number}", b"")


@model
def fifo(path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


@model
def device(path: Path) -> None:
    """A file without an end."""
    path.symlink_to("/dev/zero")


@model
def link_to_itself(path: Path) -> None:
    """A link that leads nowhere."""
    path.symlink_to(path)
