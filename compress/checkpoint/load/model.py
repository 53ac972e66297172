"""Model files become modules, and modules artifacts. Everything that was inferred on the way comes back as a note."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim.swa_utils import AveragedModel

from compress.artifact import Artifact
from compress.checkpoint.deserialize import MAX_BYTES, expected_tensors, from_json
from compress.checkpoint.load import entries, pickled_layers, state_dict
from compress.checkpoint.load.behavior import refuse_unsteady
from compress.checkpoint.load.input_errors import by, channels_wanted, misfit
from compress.checkpoint.load.one_output import keep_one
from compress.checkpoint.load.pickled_layers import Record
from compress.checkpoint.load.pickles import unpickle
from compress.checkpoint.load.sniff import Kind, identify
from compress.checkpoint.load.whole_numbers import as_integers, begin_with_integers, whole_inputs
from compress.checkpoint.sums import GRAPH, NO_SUMS, WEIGHTS, compare
from compress.errors import BadInput
from compress.graph.trace.shapes import MAX_VALUES, note_shapes
from compress.graph.trace.trace import trace
from compress.user import files
from compress.user.wording import many

Shape = tuple[int, ...]
OfData = Literal["no", "values", "pictures"]
"""Whether inputs are the user's data: values as they come, or pictures that a data.toml may convert."""


@dataclass(frozen=True)
class Loaded:
    """A module, fp32, in eval mode, on the CPU, and what a person should know about how it came to be."""

    module: nn.Module
    notes: tuple[str, ...] = ()


def load_model(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    weights_entry: str | None = None,
) -> Loaded:
    """Open a model file of any kind that can be opened.

    Args:
        path: a file of torch.save (module or state_dict), a .safetensors file, or a model.compressed folder.
        arch: for a state_dict: torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory or path/to/file.py:factory.
        arch_kwargs: keyword arguments of the factory.
        trust_pickle: run the code inside the file, where it needs any.
        weights_entry: entry of a checkpoint, or first part of the names in it, that the weights are read from.

    Raises:
        BadInput: the file cannot be used; says what was found, what is needed, what to do.
    """
    path = Path(path)
    kind, where = identify(path), f"The model file {path}"
    if kind is Kind.COMPRESSED:
        module, whole = _load(path)
        return Loaded(module, (*whole, *_unused(arch, where), *state_dict.settle(module, where)))
    saved = _read_safetensors(path) if kind is Kind.SAFETENSORS else unpickle(path, kind, trust_pickle)
    found, notes, entry = entries.find(saved, where, weights_entry)
    if isinstance(found, nn.Module | Record):
        if entry is not None:
            raise BadInput(f"{where} has no entry '{entry}' with weights. Leave --weights-entry out, or give one that it has.")
        module, more = pickled_layers.module(found, where) if isinstance(found, Record) else _whole(found)
        notes += [*more, *_unused(arch, where)]
    elif arch is None:
        raise BadInput(_needs_arch(where, found))
    else:
        module, more = state_dict.fill(found, arch, arch_kwargs or {}, where, entry)
        notes += more
    notes += state_dict.settle(module, where)
    if kind is not Kind.ZIP:
        notes.append(f"{where} is {kind.value}, a format without checksums: damage to its numbers could not be looked for.")
    return Loaded(module, tuple(notes))


def _unused(arch: str | None, where: str) -> tuple[str, ...]:
    return (f"{where} holds the whole model: --arch {arch} was not needed for it.",) if arch else ()


def _whole(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """A module that was unpickled with its code."""
    # Its replicas are of no use here, and names would begin with "module.".
    notes: list[str] = []
    if isinstance(module, nn.DataParallel | AveragedModel):
        notes.append(f"The module was taken out of its {type(module).__name__} wrapper.")
        module = module.module
    if module.training:
        notes.append("The module was saved in training mode; it is used in eval mode.")
    return module, notes


def _needs_arch(where: str, found: Mapping[str, Tensor]) -> str:
    return (
        f"{where} holds weights only ({many(len(found), 'tensor')}, the first is {next(iter(found))}); needed is the "
        "architecture too. Add --arch torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory or path/to/file.py:factory."
    )


def load(path: str | Path) -> GraphModule:
    """Open a model.compressed folder: the model in eval mode, trainable, without the class that it came from.

    Raises:
        BadInput: no such folder, files that do not match their checksums, a graph that oversteps, or weights that do not fit it.
    """
    path = Path(path)
    kind = identify(path)
    if kind is not Kind.COMPRESSED:
        raise BadInput(f"{path} is {kind.value}; needed is a model.compressed folder, which 'compress run' and save() write.")
    return _load(path)[0]


def _load(path: Path) -> tuple[GraphModule, tuple[str, ...]]:
    """The model, and a note where nothing vouches for its bytes."""
    _refuse_large(path / GRAPH)  # before it is read: a stranger's file must not fill the memory
    whole = compare(path)  # before anything is parsed
    text = _read_graph(path / GRAPH)
    return from_json(text, _read_safetensors(path / WEIGHTS, expected_tensors(text))), () if whole else (NO_SUMS,)


def _refuse_large(path: Path) -> None:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise BadInput(f"{path} has {size} bytes, at most {MAX_BYTES} are read; this program did not write it.")


def _read_graph(path: Path) -> str:
    try:
        return files.text(path, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}). Save the model again.") from error


def _read_safetensors(path: Path, expected: Mapping[str, tuple[str, Shape]] | None = None) -> dict[str, Tensor]:
    """All tensors; names and shapes are compared with what is expected before any of them is read."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            if expected is not None:
                # Shapes are read from the header, so a wrong file is refused before its data is.
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                _compare(path, shapes, {name: shape for name, (_, shape) in expected.items()})
            # clone: in the file they begin at any byte, where libraries compute more slowly, and differ in the last bit.
            return {name: file.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{path} is truncated, damaged or no .safetensors file ({first}). Copy or download it again.") from error


def _compare(path: Path, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    if found == expected:
        return
    odd = sorted(found.keys() ^ expected.keys()) or sorted(name for name in found if found[name] != expected[name])
    name = odd[0]
    raise BadInput(
        f"{path} does not belong to the {GRAPH} beside it: {name} is {found.get(name, 'absent')}, "
        f"the graph needs {expected.get(name, 'no such tensor')}. Save the model again."
    )


def open_artifact(
    path: str | Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    weights_entry: str | None = None,
    output: str | None = None,
    input_shapes: Sequence[Shape] = (),
    of_data: OfData = "no",
) -> Artifact:
    """Load and trace a model.

    Args:
        path: as for load_model.
        arch: as for load_model.
        arch_kwargs: as for load_model.
        trust_pickle: as for load_model.
        weights_entry: as for load_model.
        output: which of several outputs is kept, such as logits or 0; all are if it is left out.
        input_shapes: one shape per model input, without the batch, such as (3, 32, 32); a model.compressed folder knows its own.
        of_data: whether the shapes are those of the user's data, of which the refusal of a model that does not fit then speaks.

    Raises:
        BadInput: the file cannot be used, or the model does not run on inputs of these shapes.
        UnsupportedModel: the model cannot be traced, its output is random, or depends on the rest of the batch.
    """
    loaded = load_model(path, arch=arch, arch_kwargs=arch_kwargs, trust_pickle=trust_pickle, weights_entry=weights_entry)
    return traced(loaded, path, input_shapes, output, of_data)


def traced(loaded: Loaded, path: str | Path, shapes: Sequence[Shape], output: str | None, of_data: OfData) -> Artifact:
    """What was loaded from a file, traced; see `open_artifact`."""
    found = artifact_of(loaded, shapes, output=output, of_data=of_data)
    if found is None:
        raise BadInput(f"The input size of {path} is not known. Give it with --input-shape CxHxW, once per model input.")
    return found


def artifact_of(
    loaded: Loaded, shapes: Sequence[Shape], *, inputs: Sequence[Tensor] = (), output: str | None = None, of_data: OfData = "no"
) -> Artifact | None:
    """A loaded module traced, or None where the shapes of its inputs are not known.

    Args:
        loaded: the module.
        shapes: as `input_shapes` of `open_artifact`.
        inputs: examples, batch first, instead; whole numbers stay such.
        output: as for `open_artifact`.
        of_data: as for `open_artifact`.
    """
    shapes = tuple(shapes) or _known_shapes(loaded.module)
    if not shapes and not inputs:
        return None
    if inputs:
        integers = tuple(not x.is_floating_point() for x in inputs)
        inputs = tuple(x[:1].float() for x in inputs)
    else:
        inputs, integers = example_inputs(shapes), (False,) * len(shapes)
        if (found := whole_inputs(loaded.module, inputs)) is not None:
            inputs, integers = found
    given = as_integers(inputs, integers)
    if isinstance(loaded.module, GraphModule):
        _require_ends(loaded.module, given)
    refuse_unsteady(loaded.module, given)
    try:
        module = begin_with_integers(trace(loaded.module, given), integers)
        if output is not None:
            module = keep_one(module, output)
        return Artifact(module, inputs, notes=(*loaded.notes, *_made_plain(module)))
    except BadInput as error:
        if (told := refusal(loaded.module, inputs, of_data)) is not None:
            raise told from error
        raise


def _require_ends(module: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a graph whose numbers have no end before it runs as a whole; what else is wrong is told when it is traced."""
    try:
        note_shapes(module, module.graph, inputs)
    except BadInput:
        raise
    except Exception:  # whatever a graph does not do with these inputs
        return


def _made_plain(module: GraphModule) -> list[str]:
    """A note on the layers whose weights the forward computes."""
    paths = list(cast(Mapping[str, str], module.meta["plain"]))
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    computed = "Weights that are computed in forward became plain ones of the same values"
    return [f"{computed}: {', '.join(paths[:3])}{more}."] if paths else []


def refusal(module: nn.Module, inputs: Sequence[Tensor], of_data: OfData) -> BadInput | None:
    """The error for inputs that a model does not take, told by the layer that fails; None where no layer says why."""
    if (expected := misfit(module, inputs)) is None:
        return None
    shapes, channels = by([x.shape[1:] for x in inputs]), channels_wanted(module)
    if of_data == "no":
        last = inputs[0].shape[1:]
        if len(last) == 3 and last[-1] == channels != last[0]:
            turned = by([(last[-1], *last[:-1])])
            return BadInput(f"The input shape is {shapes}, {expected}. Channels come first: --input-shape {turned}.")
        return BadInput(f"The input shape is {shapes}, {expected}. Give what it needs with --input-shape CxHxW, once per input.")
    if inputs[0].ndim == 4 and inputs[0].shape[-1] == channels != inputs[0].shape[1]:
        return BadInput(
            f"The data gives inputs of {shapes}, {expected}. Channels come first: x.permute(0, 3, 1, 2) in torch, "
            "x.transpose(0, 3, 1, 2) in numpy."
        )
    found = inputs[0].shape[1] if inputs[0].ndim == 4 else None
    settings = f"channels = {channels}" if channels != found else "size = [HEIGHT, WIDTH]"
    remedy = f"Set {settings} in a data.toml, or give" if channels in (1, 3) and of_data == "pictures" else "Give"
    return BadInput(f"The data gives inputs of {shapes}, {expected}. {remedy} the data it was trained on.")


_SAID = 2**23
"""Values of an input whose shape only the file tells: a picture of 1,600 pixels a side."""


def _known_shapes(module: nn.Module) -> tuple[Shape, ...]:
    """Input shapes without the batch that a stored graph remembers."""
    nodes = list(module.graph.nodes) if isinstance(module, GraphModule) else []
    noted = [cast(Shape | None, node.meta.get("shape")) for node in nodes if node.op == "placeholder"]
    shapes = tuple(shape[1:] for shape in noted if shape)
    # Said by a file, of a few kilobytes perhaps; who types a shape means it.
    if any(min(shape, default=1) < 1 or math.prod(shape) > _SAID for shape in shapes):
        raise BadInput(
            f"The file says that the model's inputs are {by(shapes)}; taken from a file are sizes of up to {_SAID} values. Say "
            "the shape with --input-shape CxHxW."
        )
    return shapes


def example_inputs(shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """One normally distributed input of batch 1 per shape; always the same ones."""
    # A generator of its own: the caller's random state stays as it was.
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, *shape, generator=generator) for shape in shapes)


def parse_shape(text: str) -> Shape:
    """`3x32x32` -> (3, 32, 32); `scalar` -> (), one number per sample.

    Raises:
        BadInput: not numbers above 0 with an x between them.
    """
    if text.strip().lower() == "scalar":
        return ()
    parts = text.lower().replace(",", "x").split("x")
    # Eight digits: more are no size, and thousands of them no number for Python.
    sized = all(re.fullmatch(r"\s*0*[1-9][0-9]{0,7}\s*", part, re.ASCII) for part in parts)
    if not sized or math.prod(int(part) for part in parts) > MAX_VALUES:
        raise BadInput(f"--input-shape is '{text[:40]}'; needed is CxHxW, such as 3x224x224, or scalar, once per input.")
    return tuple(int(part) for part in parts)
