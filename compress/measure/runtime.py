"""A model and a batch turned into a call that can be timed, in the runtime that will serve it.

    ort             ONNX Runtime on the CPU; the default where no GPU is
    ort-cuda        ONNX Runtime on CUDA; inputs and outputs stay on the device
    torch           torch eager on the module's own device
    openvino        OpenVINO on the CPU, in fp32
    openvino-int8   the same in 8 bits: the ONNX file is quantized on the inputs that are timed; time does not depend on values

ONNX Runtime's threads do not spin between calls here: with several sessions alive on one machine, the spinning threads of the
last one take the cores from the next (measured: 16.6 ms instead of 4.5 ms a call, and medians of equal models 20 % apart).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exporters
from compress.errors import BadInput
from compress.user.wording import many
from exporters.errors import ExportError, MissingBackend
from exporters.standalone.machine import MOST_OF_A_CORE
from exporters.standalone.machine import cores as usable_cores

RUNTIMES = ("ort", "ort-cuda", "torch", "openvino", "openvino-int8")
_CUDA = "CUDAExecutionProvider"


def choose(runtime: str = "auto") -> str:
    """The runtime that a name stands for: `auto` is `ort-cuda` where ONNX Runtime and torch both see a GPU, else `ort`.

    Raises:
        BadInput: unknown name, or CUDA asked for and absent.
    """
    if runtime == "auto":
        return "ort-cuda" if _cuda_missing() is None else "ort"
    if runtime not in RUNTIMES:
        raise BadInput(f"The runtime is '{runtime}'; known are auto, {', '.join(RUNTIMES)}.")
    if runtime.startswith("openvino"):
        try:
            exporters.require(runtime)
        except MissingBackend as error:
            raise BadInput(f"The runtime {runtime} was asked for, but {str(error)[0].lower()}{str(error)[1:]}") from error
    if runtime == "ort-cuda" and (missing := _cuda_missing()):
        raise BadInput(f"The runtime ort-cuda was asked for, but {missing}. Or take --runtime ort.")
    return runtime


def threads_of(asked: int) -> int:
    """Threads inside an operator here: those that were asked for, or one for every usable core where that is 0.

    Raises:
        BadInput: many times more than there are cores.
    """
    cores = usable_cores()
    if asked > MOST_OF_A_CORE * cores:
        raise BadInput(
            f"--threads is {asked}, and here {many(cores, 'core is', 'cores are')} usable. Give {cores}, or none for that."
        )
    return asked or cores


def runner(runtime: str, target: str | Path | nn.Module, inputs: Sequence[Tensor], threads: int = 0) -> Callable[[], object]:
    """A call that runs the model once on `inputs` and returns when the work is done.

    Args:
        runtime: a name that `choose` knows.
        target: path of an ONNX file, for torch a module in eval mode.
        inputs: one tensor per model input, with the batch size to be timed.
        threads: threads inside an operator; 0 takes every usable core.

    Returns:
        The call; its value is the outputs as the runtime gives them (a list of arrays, OrtValues or tensors).

    Raises:
        BadInput: unknown runtime, CUDA absent, a file that is missing or that ONNX Runtime does not open.
        TypeError: a path where a module is needed, or the other way round.
    """
    runtime, threads = choose(runtime), threads_of(threads)
    if isinstance(target, nn.Module) != (runtime == "torch"):
        raise TypeError(f"runner({runtime!r}, {type(target).__name__}): torch takes a module, all others the path of a file")
    if isinstance(target, nn.Module):
        return _torch(target, inputs, threads)
    if runtime.startswith("openvino"):
        return _openvino(Path(target), inputs, threads, runtime == "openvino-int8")
    session = _session(Path(target), runtime, threads, batch=len(inputs[0]))
    feeds = {i.name: x.detach().cpu().contiguous().numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return (lambda: session.run(None, feeds)) if runtime == "ort" else _bound(session, feeds)


def _session(path: Path, runtime: str, threads: int, batch: int) -> Any:
    # Imported here: torch's runtime works without the package.
    import onnxruntime

    if not path.is_file():
        raise BadInput(f"There is no ONNX file at {path}. Export it first with 'compress export'.")
    options = onnxruntime.SessionOptions()
    # one operator at a time: parallel branches would share the threads
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what fails is told by an exception
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_free_dimension_override_by_name("batch", batch)  # shapes are known: memory is planned once
    providers = [_CUDA] if runtime == "ort-cuda" else ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        raise BadInput(f"ONNX Runtime {onnxruntime.__version__} does not open {path}: {error}") from error
    if providers[0] not in session.get_providers():  # the provider's libraries did not load: ONNX Runtime falls back in silence
        raise BadInput(
            f"ONNX Runtime did not start {_CUDA}: its CUDA or cuDNN libraries do not load. Install them, or take --runtime ort."
        )
    return session


def _openvino(path: Path, inputs: Sequence[Tensor], threads: int, eight_bits: bool) -> Callable[[], object]:
    from exporters.runtimes import openvino  # an extra

    arrays = [x.detach().cpu().contiguous().numpy() for x in inputs]
    try:
        loaded = openvino.load(path, threads=threads, batch=len(inputs[0]), ranges=arrays if eight_bits else None)
    except ExportError as error:
        raise BadInput(f"{error} Take --runtime ort.") from error
    return lambda: loaded.run(arrays)


def _bound(session: Any, feeds: dict[str, Any]) -> Callable[[], object]:
    """Run with inputs and outputs on the device: what is timed is the model, not the bus."""
    import onnxruntime

    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", 0)
    binding.synchronize_inputs()

    def run() -> object:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()

    return run


def _torch(module: nn.Module, inputs: Sequence[Tensor], threads: int) -> Callable[[], object]:
    device = next((p.device for p in module.parameters()), inputs[0].device)
    placed = tuple(x.to(device) for x in inputs)

    def run() -> object:
        before = torch.get_num_threads()
        if before != threads:
            torch.set_num_threads(threads)
        try:
            # inference_mode, as a serving process would call it.
            with torch.inference_mode():
                outputs = module(*placed)
            # Kernels run asynchronously; without waiting only their launch would be timed.
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elif device.type == "mps":
                torch.mps.synchronize()
            return outputs
        # Global in torch: other code of this process must not notice.
        finally:
            if before != threads:
                torch.set_num_threads(before)

    return run


def _cuda_missing() -> str | None:
    """Why CUDA cannot be used through ONNX Runtime here, with what to do; None where it can."""
    import onnxruntime

    if not torch.cuda.is_available():
        return "this machine shows no CUDA device: run it where 'nvidia-smi' lists one"
    if _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime is built without CUDA: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
    return None
