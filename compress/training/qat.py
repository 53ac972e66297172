"""Fine-tuning with the rounding of 8 bits in place, so that the weights learn to live with it.

    forward     s (clip(round(x / s) + z, low, high) - z)
    backward    1 where x lies inside the range, 0 outside: as if nothing had been rounded (straight through)

s and z are those of the file that will be written (exporters/qdq.py): weights have one s per output channel, from their largest
value at every step, and z = 0; activations one s and z each, from the range that the calibrator takes on the calibration images.
Rounded is what the file rounds: inputs, layers, sums and concatenations (behind their ReLU, where that alone reads them), and
means. Batch norms are folded first, as in the file.

Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, CVPR 2018,
arXiv:1712.05877, section 3. Departs from it: norms are folded for good before training, because it starts from a trained model,
and ranges stay as calibrated. The straight-through estimator is that of Bengio, Léonard, Courville, 2013, arXiv:1308.3432.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.utils import parametrize

from compress.graph.merge.batch_norm import fold
from compress.graph.operations import CONVOLUTIONS, TRANSPOSED
from compress.stage import Context
from compress.training.loop import train
from compress.training.setup import FLAT

LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
CUTS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
"""What the file computes together with the layer before it."""
NOTHING = (nn.Identity, nn.Dropout)
"""What the file does not have: a norm that was folded is one of them."""
MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
JOINS = frozenset({torch.add, torch.cat, torch.concat, operator.add, operator.iadd})
LESS = 0.1
"""Of the learning rate: what is trained is trained already, and the rounding moves it little."""

Range = tuple[float, float]
Batches = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class Grid:
    """The integers that activations are rounded to: 0 to 255, or -127 to 127 without a zero point."""

    symmetric: bool

    def scale_zero(self, of: Range) -> tuple[float, int]:
        """S and z of a range, which is widened to hold 0."""
        # 0 must be a level: padding and ReLU give exact zeros.
        low, high = min(of[0], 0.0), max(of[1], 0.0)
        if self.symmetric:
            return max(-low, high) / 127 or 1.0, 0  # a range of nothing has no scale
        scale = (high - low) / 255 or 1.0
        return scale, round(-low / scale)

    @property
    def ends(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return (-127, 127) if self.symmetric else (0, 255)


class Rounded(nn.Module):
    """An activation as 8 bits hold it."""

    def __init__(self, of: Range, grid: Grid):
        super().__init__()
        (self.scale, self.zero), self.ends = grid.scale_zero(of), grid.ends

    def forward(self, x: Tensor) -> Tensor:
        # Fake quantization works on float32 only, also under autocast.
        return torch.fake_quantize_per_tensor_affine(x.float(), self.scale, self.zero, *self.ends).to(x.dtype)


class RoundedWeight(nn.Module):
    """A weight as 8 bits hold it, one scale per output channel, which stands on `axis`."""

    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        others = [i for i in range(weight.ndim) if i != self.axis]
        # from the present weights, without a gradient through the scale
        scale = weight.detach().abs().amax(others).clamp_min(1e-30) / 127
        return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale).int(), self.axis, -127, 127)


def train_rounded(
    module: GraphModule, ranges: Mapping[str, Range], symmetric: bool, kept_float: Sequence[str], context: Context
) -> GraphModule:
    """Train a copy of a model as its 8-bit file computes, with the model itself as the teacher.

    Args:
        module: the float model.
        ranges: of the activations that `places` names.
        symmetric: the file has no zero points.
        kept_float: layers that the file computes in float.
        context: of its recipe, `qat` are the epochs, and `lr` is taken times 0.1; the rest is as for `train`.

    Returns:
        The model with the weights of the best epoch, batch norms folded into them, nothing rounded.
    """
    recipe = context.recipe
    # As in the file, where norms are folded before anything is rounded.
    plain = fold(module)
    # Each of these would mix unrounded weights into the average, steer towards something else, or take weights apart.
    shorter = {
        "epochs": recipe.qat,
        "lr": LESS * (recipe.lr or FLAT),
        "ema": 0.0,
        "entropy_guidance": 0.0,
        "patience": 0,
        "fsdp": False,
    }
    student = rounded(plain, ranges, Grid(symmetric), kept_float)
    how = recipe.model_copy(update=shorter)
    found = train(student, context.data, how, context.device, teacher=module, progress=context.progress, ranks=context.ranks)
    weights = found.module.state_dict()
    result = copy.deepcopy(plain).cpu()
    for name, value in result.state_dict().items():
        path, _, last = name.rpartition(".")
        own = f"{path}.parametrizations.{last}.original"  # where torch keeps what is rounded on its way
        value.copy_(weights[own] if own in weights else weights[name])
    return result.eval()


def places(module: GraphModule, kept_float: Iterable[str] = ()) -> tuple[str, ...]:
    """Nodes whose values the file rounds."""
    kept, named = set(kept_float), dict(module.named_modules())

    def part(node: Node) -> nn.Module | None:
        return named[str(node.target)] if node.op == "call_module" else None

    def consumers(node: Node) -> Iterator[Node]:
        for user in node.users:
            yield from consumers(user) if isinstance(part(user), NOTHING) else (user,)

    def joined(node: Node) -> bool:
        by_name = node.op == "call_method" and node.target in ("add", "add_", "mean")
        return by_name or (node.op == "call_function" and node.target in JOINS)

    found: list[str] = []
    for node in module.graph.nodes:
        layer = isinstance(part(node), LAYERS)
        # A ReLU right behind is computed with the layer in the file: only what leaves it is rounded.
        cut_later = bool(node.users) and all(isinstance(part(user), CUTS) for user in consumers(node))
        sums = (layer and str(node.target) not in kept) or joined(node)
        if (sums and not cut_later) or node.op == "placeholder" or isinstance(part(node), CUTS + MEANS):
            found.append(node.name)
    return tuple(found)


def values(module: GraphModule, batches: Batches) -> Iterator[dict[str, np.ndarray]]:
    """What stands at `places` of the folded model, batch by batch; whole numbers and sizes are left out."""
    plain = fold(module).eval()
    watch = _Watch(plain, places(plain))
    for batch in batches:
        watch.seen = {}
        with torch.no_grad():
            watch.run(*(x.to(next((p.device for p in plain.parameters()), x.device)) for x in batch))
        yield watch.seen


class _Watch(Interpreter):
    """Runs a model and keeps the values of some nodes."""

    def __init__(self, module: GraphModule, names: Iterable[str]):
        super().__init__(module)
        self.names, self.seen = frozenset(names), dict[str, np.ndarray]()

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor) and value.is_floating_point():
            self.seen[n.name] = value.float().cpu().numpy()
        return value


def rounded(plain: GraphModule, ranges: Mapping[str, Range], grid: Grid, kept_float: Iterable[str] = ()) -> GraphModule:
    """A copy that computes with rounded weights and activations.

    Args:
        plain: a model without norms that could be folded.
        ranges: place -> smallest and largest value; a place without one is left alone.
        grid: of the activations.
        kept_float: paths of layers whose weights stay as they are.
    """
    result, kept = copy.deepcopy(plain), set(kept_float)
    for path, layer in list(result.named_modules()):
        if type(layer) in LAYERS and path not in kept:
            weight = RoundedWeight(1 if type(layer) in TRANSPOSED else 0)
            parametrize.register_parametrization(layer, "weight", weight, unsafe=True)  # it keeps shape and type
    wanted = [name for name in places(plain, kept) if name in ranges]
    by_name = {node.name: node for node in result.graph.nodes}
    for name in wanted:
        node = by_name[name]
        result.add_submodule(f"rounded_{name}", Rounded(ranges[name], grid))
        with result.graph.inserting_after(node):
            new = result.graph.call_module(f"rounded_{name}", (node,))
        new.meta = dict(node.meta)
        # The new node itself reads the old one.
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
    result.recompile()
    return cast(GraphModule, result)
