"""A TensorRT engine from an ONNX file, on the device that will run it: built, compared, timed, described.

    python engine.py model.onnx                                              fp32
    python engine.py model.onnx --precision fp16 --max-batch 32
    python engine.py model.symmetric.int8.onnx --precision int8 --input x.npy --expected y.npy
    python engine.py model.onnx --shape input=3x32x32 --trtexec              the equivalent trtexec line, and nothing else

An engine is valid only where it was built: for this GPU, driver and TensorRT. Needs Python 3.8 or newer, `tensorrt` 8.5 or newer
and the driver's own libcuda; nothing else. What a release can do is asked of it, not concluded from its number: where builder
flags for precision are gone the precision has to stand in the file (cast, or QuantizeLinear), and networks are strongly typed.

8 bits come from QuantizeLinear in the file, without zero points; there is no calibration here. Exit codes: 0 done, 2 bad input,
4 not built, 5 built, but the outputs are not the expected ones.
"""

from __future__ import annotations

import argparse
import array
import ast
import ctypes
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ALLOWED = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-1}
"""Precision -> relative error (root mean square) against the expected outputs. TF32 is switched off for fp32."""


class Refused(Exception):
    """One sentence and an exit code."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


class Cuda:
    """The few calls of CUDA's driver that are needed, on the first device."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        except OSError:
            raise Refused(4, "not built: no CUDA device (the driver's libcuda is not here)") from None
        count = ctypes.c_int(0)
        if self.library.cuInit(0) or self.library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise Refused(4, "not built: no CUDA device")
        self.device = ctypes.c_int(0)
        self("cuDeviceGet", ctypes.byref(self.device), 0)
        context = ctypes.c_void_p()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)  # the one that TensorRT uses
        self("cuCtxSetCurrent", context)

    def __call__(self, name: str, *values: Any) -> None:
        code = getattr(self.library, name)(*values)
        if code:
            raise Refused(4, f"CUDA's {name} fails with error {code}; see 'nvidia-smi' for the state of the device")

    def facts(self) -> dict[str, Any]:
        """Name, compute capability and driver."""
        name, driver, capability = ctypes.create_string_buffer(128), ctypes.c_int(), []
        self("cuDeviceGetName", name, 128, self.device)
        self("cuDriverGetVersion", ctypes.byref(driver))
        for attribute in (75, 76):  # major, minor
            value = ctypes.c_int()
            self("cuDeviceGetAttribute", ctypes.byref(value), attribute, self.device)
            capability.append(value.value)
        supported = f"{driver.value // 1000}.{driver.value % 1000 // 10}"  # 12040 is 12.4
        return {"gpu": name.value.decode(), "compute_capability": ".".join(map(str, capability)), "driver_cuda": supported}

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device."""
        address = ctypes.c_uint64()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def put(self, address: int, values: array.array[float]) -> None:
        """Host to device."""
        start, count = values.buffer_info()
        self("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(start), ctypes.c_size_t(count * values.itemsize))

    def get(self, address: int, count: int) -> array.array[float]:
        """Device to host, as floats."""
        values = array.array("f", bytes(4 * count))
        start, _ = values.buffer_info()
        self("cuMemcpyDtoH_v2", ctypes.c_void_p(start), ctypes.c_uint64(address), ctypes.c_size_t(4 * count))
        return values

    def stream(self) -> int:
        """A new stream."""
        made = ctypes.c_void_p()
        self("cuStreamCreate", ctypes.byref(made), 1)  # 1: it does not wait for the default stream
        return made.value or 0

    def wait(self, stream: int) -> None:
        """Until all work of a stream is done."""
        self("cuStreamSynchronize", ctypes.c_void_p(stream))


def build(trt: Any, options: argparse.Namespace) -> tuple[bytes, dict[str, Any]]:
    """The serialized engine, and what it was built for."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder, weak = trt.Builder(logger), hasattr(trt.BuilderFlag, "FP16")
    network = builder.create_network(network_flags(trt, weak))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(options.model)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise Refused(4, f"not built: TensorRT {trt.__version__} does not take {options.model}: {errors}")
    check_precision(trt, network, options.precision, weak)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    for flag in flags(trt, options.precision, weak):
        config.set_flag(flag)
    if options.precision == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it rounds inputs to 10 bits
    profile, shapes = builder.create_optimization_profile(), {}
    for i in range(network.num_inputs):
        one = network.get_input(i)
        shapes[one.name] = ranges(tuple(one.shape), options.batch, options.max_batch)
        profile.set_shape(one.name, *shapes[one.name])
    config.add_optimization_profile(profile)
    if options.cache and hasattr(config, "create_timing_cache"):
        known = options.cache.read_bytes() if options.cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    started = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise Refused(4, f"not built: TensorRT {trt.__version__} finds no implementation; what it said stands above")
    seconds = time.perf_counter() - started
    if options.cache and hasattr(config, "get_timing_cache"):
        write(options.cache, bytes(config.get_timing_cache().serialize()))
    return bytes(serialized), {"profile": shapes, "build_seconds": round(seconds, 1), "strongly_typed": not weak}


def network_flags(trt: Any, weak: bool) -> int:
    """Explicit batches where that is still a choice; strong types where precision can no longer be asked for."""
    known, wanted = trt.NetworkDefinitionCreationFlag, ["EXPLICIT_BATCH"] if weak else ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
    return sum(1 << int(getattr(known, name)) for name in wanted if hasattr(known, name))


def flags(trt: Any, precision: str, weak: bool) -> list[Any]:
    """Builder flags of a precision; int8 may fall back to fp16."""
    names = {"fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"]}[precision] if weak else []
    return [getattr(trt.BuilderFlag, name) for name in names]


def check_precision(trt: Any, network: Any, precision: str, weak: bool) -> None:
    """Refuse a precision that the file does not hold, and a file that was misread."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    for layer in (layer for layer in layers if layer.type == trt.LayerType.REDUCE):
        layer.__class__ = trt.IReduceLayer  # how TensorRT's bindings cast
        if layer.axes & 1:  # releases before 10 leave the axes of opset 18 out
            raise Refused(2, f"{layer.name} would average over the batch: TensorRT misreads the file. Export with --opset 17.")
    if precision == "int8" and not any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        raise Refused(2, "The file has no QuantizeLinear; int8 needs that of the export format onnx-int8-symmetric.")
    outputs = (layer.get_output(i) for layer in layers for i in range(layer.num_outputs))
    if precision == "fp16" and not weak and not any(tensor.dtype == trt.DataType.HALF for tensor in outputs):
        raise Refused(2, "This TensorRT takes precision from the file, which is fp32 throughout; give that of onnx-fp16.")


def ranges(shape: Sequence[int], batch: int, most: int) -> list[tuple[int, ...]]:
    """Least, best and largest shape of an input; only the batch may be free."""
    if any(size < 1 for size in shape[1:]):
        raise Refused(2, f"An input has the shape {tuple(shape)}; only the batch may be free. Export with fixed sizes.")
    if shape[0] > 0:
        return [tuple(shape)] * 3
    return [(size, *shape[1:]) for size in (1, batch, max(batch, most))]


class Session:
    """An engine with its inputs and outputs on the device, for one batch size."""

    def __init__(self, trt: Any, cuda: Cuda, serialized: bytes, batch: int) -> None:
        self.cuda, self.trt = cuda, trt
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self.engine = self.runtime.deserialize_cuda_engine(serialized)
        if self.engine is None:
            raise Refused(
                4, f"TensorRT {trt.__version__} does not open the engine: it is of another GPU or release. Build it here."
            )
        self.context = self.engine.create_execution_context()
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = [n for n in names if n not in self.inputs]
        for name in self.inputs:
            shape = tuple(self.engine.get_tensor_shape(name))
            self.context.set_input_shape(name, (batch, *shape[1:]) if shape[0] < 0 else shape)
        for name in names:
            if self.engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise Refused(2, f"{name} is no fp32 tensor; this script feeds fp32 only. Export with fp32 inputs and outputs.")
        self.counts = {name: math.prod(self.context.get_tensor_shape(name)) for name in names}
        self.places = {name: cuda.allocate(4 * self.counts[name]) for name in names}
        for name, place in self.places.items():
            self.context.set_tensor_address(name, place)
        self.stream = cuda.stream()

    def run(self) -> None:
        """One call, until its work is done."""
        if not self.context.execute_async_v3(self.stream):
            raise Refused(4, "TensorRT does not run the engine; what it said stands above.")
        self.cuda.wait(self.stream)

    def answers(self, inputs: Sequence[array.array[float]]) -> list[array.array[float]]:
        """Outputs for inputs, in the engine's order."""
        for name, values in zip(self.inputs, inputs):
            if len(values) != self.counts[name]:
                raise Refused(2, f"{name} has {self.counts[name]} values, the file given for it {len(values)}.")
            self.cuda.put(self.places[name], values)
        self.run()
        return [self.cuda.get(self.places[name], self.counts[name]) for name in self.outputs]

    def timed(self, rounds: int) -> dict[str, float]:
        """Milliseconds of a call, inputs and outputs on the device, after ten calls to warm up."""
        for _ in range(10):
            self.run()
        spent = []
        for _ in range(rounds):
            started = time.perf_counter()
            self.run()
            spent.append(1e3 * (time.perf_counter() - started))
        spent.sort()
        return {f"p{share}_ms": spent[min(rounds * share // 100, rounds - 1)] for share in (50, 90, 99)}


def load_npy(path: Path) -> tuple[tuple[int, ...], array.array[float]]:
    """Shape and values of a .npy file of little-endian fp32."""
    content = path.read_bytes()
    if content[:6] != b"\x93NUMPY":
        raise Refused(2, f"{path} is no .npy file; give arrays as numpy.save writes them.")
    width = 2 if content[6] == 1 else 4  # of the header's length; later versions have 4 bytes
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    header = ast.literal_eval(content[8 + width : start].decode("latin1"))  # a literal, never eval: the file may be anybody's
    if header["descr"] != "<f4" or header["fortran_order"]:
        raise Refused(2, f"{path} holds {header['descr']}; needed is fp32 in C order.")
    values = array.array("f")
    values.frombytes(content[start:])
    if sys.byteorder == "big":
        values.byteswap()
    if len(values) != math.prod(header["shape"]):
        raise Refused(2, f"{path} is cut off: {len(values)} values instead of {math.prod(header['shape'])}.")
    return tuple(header["shape"]), values


def relative_error(expected: Sequence[array.array[float]], found: Sequence[array.array[float]]) -> float:
    """sqrt(sum (found - expected)^2 / sum expected^2); infinite where something is not finite or of another length."""
    if [len(y) for y in expected] != [len(z) for z in found]:
        return math.inf
    pairs = [(y, z) for one, other in zip(expected, found) for y, z in zip(one, other)]
    wrong, whole = sum((z - y) ** 2 for y, z in pairs), sum(y * y for y, _ in pairs)
    return math.sqrt(wrong / max(whole, 1e-30)) if math.isfinite(wrong) else math.inf


def trtexec(options: argparse.Namespace, shapes: dict[str, list[tuple[int, ...]]], weak: bool = True) -> str:
    """The same build by NVIDIA's own tool."""
    words = ["trtexec", f"--onnx={options.model}", f"--saveEngine={options.engine}"]
    words.append(f"--memPoolSize=workspace:{options.workspace}")
    typed = {"fp32": ["--noTF32"], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[options.precision]
    words += typed if weak else ["--stronglyTyped"]
    for position, kind in enumerate(("min", "opt", "max")):
        told = ",".join(f"{name}:{'x'.join(map(str, three[position]))}" for name, three in shapes.items())
        words += [f"--{kind}Shapes={told}"] if told else []
    return " ".join(words + ([f"--timingCacheFile={options.cache}"] if options.cache else []))


def write(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def carry_out(options: argparse.Namespace) -> dict[str, Any]:
    """Build, compare, time; what is written beside the engine."""
    cuda = Cuda()
    try:
        import tensorrt as trt  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise Refused(4, f"not built: the Python package tensorrt is not here ({error}); install your device's") from error
    samples, expected = [load_npy(path) for path in options.input], [load_npy(path)[1] for path in options.expected]
    batch = samples[0][0][0] if samples else options.batch
    serialized, facts = build(trt, options)
    facts.update(cuda.facts(), tensorrt=trt.__version__, precision=options.precision, bytes=len(serialized))
    facts["onnx_sha256"], facts["sha256"] = (hashlib.sha256(x).hexdigest() for x in (options.model.read_bytes(), serialized))
    facts["trtexec"] = trtexec(options, facts["profile"], not facts["strongly_typed"])
    session = Session(trt, cuda, serialized, batch)
    facts["verified"] = None
    if expected:
        error, allowed = relative_error(expected, session.answers([values for _, values in samples])), ALLOWED[options.precision]
        facts["verified"] = {"relative_error": error, "allowed": allowed, "batch": batch}
        if not error <= allowed:  # NaN fails, too
            raise Refused(5, f"The engine is not the model and not kept: its relative error is {error:.3g}, allowed {allowed:g}.")
    facts["latency"] = {"batch": batch, "rounds": options.rounds, **session.timed(options.rounds)}
    write(options.engine, serialized)
    write(options.engine.with_name(options.engine.name + ".json"), (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", type=Path, help="file to write; by default the model's name with .engine")
    parser.add_argument("--precision", choices=sorted(ALLOWED), default="fp32")
    parser.add_argument("--batch", type=int, default=1, help="the batch size that is best served")
    parser.add_argument("--max-batch", type=int, default=1, help="the largest one")
    parser.add_argument("--input", type=Path, action="append", default=[], help=".npy of one model input, in order")
    parser.add_argument("--expected", type=Path, action="append", default=[], help=".npy of one model output, in order")
    parser.add_argument("--cache", type=Path, help="timing cache, read and written: makes the next build on this device quick")
    parser.add_argument("--workspace", type=int, default=1024, help="MiB for temporary results")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--shape", action="append", default=[], help="NAME=CxHxW of an input, for --trtexec")
    parser.add_argument("--trtexec", action="store_true", help="print the equivalent trtexec line and stop")
    options = parser.parse_args(words)
    options.engine = options.engine or options.model.with_suffix(".engine")
    if min(options.batch, options.max_batch, options.rounds, options.workspace) < 1:
        raise Refused(2, "--batch, --max-batch, --rounds and --workspace are numbers from 1 upwards.")
    if bool(options.input) != bool(options.expected):
        raise Refused(2, "--input and --expected belong together: give both, or neither.")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Everything; what happened, as an exit code."""
    try:
        options = parsed(words)
        if not options.model.is_file():
            raise Refused(2, f"There is no file {options.model}. Give the path of an ONNX file.")
        if options.trtexec:
            free = {name: (0, *map(int, shape.split("x"))) for name, _, shape in (text.partition("=") for text in options.shape)}
            print(trtexec(options, {name: ranges(shape, options.batch, options.max_batch) for name, shape in free.items()}))
        else:
            print(json.dumps(carry_out(options), indent=1))
    except Refused as error:
        print(error, file=sys.stderr)
        return error.code
    except (OSError, ValueError, SyntaxError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
