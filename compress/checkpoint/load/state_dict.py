"""A state_dict into the module it belongs to. What was inferred on the way comes back as notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from compress.checkpoint.load import architectures, hugging_face, lazy_layers
from compress.checkpoint.load.entries import SHOWN, Weights, inner
from compress.errors import BadInput
from compress.graph.trace.plain_weights import make_plain
from compress.user.wording import many

_COUNTERS = ("total_ops", "total_params")  # buffers that a popular FLOP counter leaves behind
LARGEST = 1e15  # squares of activations are summed in float32, which ends at 3e38


def fill(
    weights: Weights, arch: str, arguments: Mapping[str, Any], where: str, entry: str | None = None
) -> tuple[nn.Module, list[str]]:
    """The architecture with these weights in it; `entry`: only those whose names begin so.

    Raises:
        BadInput: they do not belong together; names at most five of the differences.
    """
    values = sum(tensor.numel() for tensor in weights.values())
    module = architectures.build(arch, arguments, values)
    weights, notes = _matched(weights, module, entry, where)
    lazy_layers.materialize(module, weights)
    differences = _differences(weights, module)
    classes = _classes(weights, module) if "num_classes" not in arguments else None
    if differences and classes is not None and architectures.accepts(arch, "num_classes"):
        count, layer = classes
        other = architectures.build(arch, {**arguments, "num_classes": count}, values)
        lazy_layers.materialize(other, weights)
        if not _differences(weights, other):
            module, differences = other, []
            notes.append(f"num_classes={count} was read from the shape of {layer}.")
    if differences and arch.startswith("hf:"):
        _refuse_odd(weights.items(), where)
        if (filled := hugging_face.filled(module, weights)) is not None:
            return filled, [*notes, *other_types(weights.values())]
    if differences:
        _refuse_rounded(weights, where)
        more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise BadInput(
            f"{where} does not fit --arch {arch}: {'; '.join(differences[:SHOWN])}{more}. "
            "Give the --arch, and with --arch-kwargs the sizes, that the weights were trained with."
        )
    _refuse_odd(weights.items(), where)
    _refuse_whole(weights, module, where)
    try:
        module.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise BadInput(f"{where} does not fit --arch {arch} ({str(error).splitlines()[0]}).") from error
    return module, notes + other_types(weights.values())


def _refuse_rounded(weights: Weights, where: str) -> None:
    """Refuse weights of a quantized model: a scale and a zero point in the place of a layer's weight."""
    for name in weights:
        layer, _, last = name.rpartition(".")
        if last == "zero_point" and f"{layer}.scale" in weights and f"{layer}.weight" not in weights:
            raise BadInput(f"{where} is quantized ('{layer}'). Compress the model before it is quantized.")


def _matched(weights: Weights, module: nn.Module, entry: str | None, where: str) -> tuple[Weights, list[str]]:
    """Without counters of other tools, and without a first name part that the architecture does not have."""
    notes: list[str] = []
    wanted = module.state_dict()
    counters = [name for name in weights if name not in wanted and name.rpartition(".")[2] in _COUNTERS]
    if counters:
        weights = {name: tensor for name, tensor in weights.items() if name not in counters}
        notes.append(f"{many(len(counters), 'entry', 'entries')} without weights left out ({counters[0]}, ...).")
    weights, said = inner(weights, wanted, entry, where)
    notes += said
    outer = {name.partition(".")[0] for name in weights}
    if len(outer) == 1 and not any(name in wanted for name in weights):
        prefix = f"{outer.pop()}."
        bare = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        if any(name in wanted for name in bare):
            return bare, [*notes, f"The prefix '{prefix}' was taken off the names of the weights."]
    return weights, notes


def _differences(weights: Weights, module: nn.Module) -> list[str]:
    """One clause each, shapes first: they tell most about what is wrong."""
    wanted = cast(dict[str, Tensor], {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)})
    shapes = [
        f"{name} is {list(weights[name].shape)}, the architecture has {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    # Files older than torch 0.4.1 have no num_batches_tracked; torch sets it.
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in wanted]
    pairs = _alternate([f"{name} is missing" for name in missing], [f"{name} is unexpected" for name in unexpected])
    return [*shapes[:3], *pairs, *shapes[3:]]


def _alternate(one: list[str], other: list[str]) -> list[str]:
    shorter = min(len(one), len(other))
    return [clause for pair in zip(one, other, strict=False) for clause in pair] + one[shorter:] + other[shorter:]


def _classes(weights: Weights, module: nn.Module) -> tuple[int, str] | None:
    """(number of classes, name of the tensor that tells it) where only the first axis of the classifiers differs."""
    wanted = module.state_dict()
    odd = [name for name in weights if name in wanted and weights[name].shape != wanted[name].shape]
    if not odd or any(weights[name].shape[1:] != wanted[name].shape[1:] or weights[name].ndim == 0 for name in odd):
        return None
    sizes = {(weights[name].shape[0], wanted[name].shape[0]) for name in odd}
    tensor = next((name for name in reversed(odd) if weights[name].ndim > 1), None)
    return (sizes.pop()[0], tensor) if len(sizes) == 1 and tensor is not None else None


def settle(module: nn.Module, where: str) -> list[str]:
    """Make a module ready for use: checked, fp32, eval mode. Returns what was changed, one sentence each.

    Raises:
        BadInput: complex, quantized or sparse weights, or values that are no numbers; names the tensor.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    quantized = [name for name, part in module.named_modules() if ".quantized" in type(part).__module__]
    if quantized:
        raise BadInput(f"{where} is quantized ('{quantized[0]}'). Compress the model before it is quantized.")
    lazy_layers.refuse_lazy(module, where)
    _refuse_odd(tensors, where)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    _refuse_no_numbers(parameters, buffers, where)
    _refuse_impossible(parameters, buffers, where)
    # In eval mode: the vectors of a spectral norm move in training.
    notes = [*make_plain(module.eval()), *other_types(tensor for _, tensor in tensors)]
    module.float()
    return notes


def other_types(tensors: Iterable[Tensor]) -> list[str]:
    """A note on floating-point types other than float32, where there are any."""
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point() and t.dtype != torch.float32})
    return [f"The weights are {' and '.join(kinds)}; they are used as float32."] if kinds else []


def _refuse_odd(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    for name, tensor in tensors:
        odd = {
            "complex": tensor.is_complex(),
            "quantized": tensor.is_quantized,
            "sparse": tensor.layout != torch.strided,
            "without data": tensor.is_meta,
        }
        if what := next((word for word, is_so in odd.items() if is_so), None):
            raise BadInput(f"{where} has weights that are {what} ({name}); needed are plain real tensors. Convert them first.")


def _refuse_whole(weights: Weights, module: nn.Module, where: str) -> None:
    """Refuse whole numbers where the module has others: torch would take the codes of a quantized model for its weights."""
    for name, tensor in module.state_dict().items():
        given = weights.get(name)
        if given is not None and tensor.is_floating_point() and not given.is_floating_point():
            kind = str(given.dtype).removeprefix("torch.")
            raise BadInput(
                f"{where} has whole numbers ({kind}) in {name}; needed are weights as they were trained, such as float32. If "
                "they are the codes of a quantized model, give the model before it was quantized."
            )


def _refuse_impossible(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], where: str) -> None:
    """Values with which a float32 network computes infinities: squares of them, or roots of negative numbers."""
    for name, tensor in parameters.items():
        largest = tensor.detach().abs().max().item() if tensor.is_floating_point() and tensor.numel() else 0.0
        if largest > LARGEST:
            raise BadInput(
                f"{where} has weights up to {largest:.1g} in {name}: its training diverged, or the file is "
                "damaged. Give an earlier checkpoint."
            )
    for name, tensor in buffers.items():
        if name.endswith("running_var") and tensor.numel() and (tensor < 0).any():
            raise BadInput(f"{where} has negative variances in {name}: the file is damaged. Give another copy of it.")


def _refuse_no_numbers(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in (*parameters.items(), *buffers.items()):
        # A buffer may hold -inf on purpose, as attention masks do; running statistics may not.
        finite = name in parameters or "running_" in name
        bad = tensor.isnan() if not finite else ~tensor.isfinite()
        if tensor.is_floating_point() and bad.any():
            what = "NaN" if tensor.isnan().any() else "infinite"
            raise BadInput(
                f"{where} has {int(bad.sum())} values of {tensor.numel()} in {name} that are no numbers ({what}): its training "
                "diverged, or the file is damaged. Give an earlier checkpoint."
            )
