"""Multiply-accumulates that torch's own counter passes over: fused recurrent layers, bilinear layers, deformable convolution.

    bilinear      in_1 * in_2 * out                     for each row
    deformable    taps * (C_in / groups) * C_out        for each position, as for a convolution of that size
    vectors       rows * columns                        of a matrix by a vector

LSTM, GRU and RNN have fused kernels that hide their products; with those off torch writes them as linear layers, which it counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]  it registers the operation that is named below
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Shape = Any


def counter() -> FlopCounterMode:
    """Torch's counter, which counts a multiplication and an addition as two operations, with what it does not know."""
    known: dict[Any, Any] = {
        torch.ops.aten._trilinear: _trilinear,
        torch.ops.torchvision.deform_conv2d: _deformed,
        torch.ops.aten.mv: lambda a, b, *_, **__: 2 * prod(a),
        torch.ops.aten.addmv: lambda _c, a, b, *_, **__: 2 * prod(a),
        torch.ops.aten.dot: lambda a, b, *_, **__: 2 * prod(a),
        torch.ops.aten.addbmm: lambda _c, a, b, *_, **__: 2 * prod(a) * b[-1],
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def _trilinear(one: Shape, weight: Shape, other: Shape, *axes: Any, out_shape: Any = None, **_: Any) -> int:
    # axes[:3]: where each of the three gets an axis of size 1 before they are multiplied entry by entry.
    sizes = [list(s) for s in (one, weight, other)]
    for size, expanded in zip(sizes, axes, strict=False):
        for axis in expanded:
            size.insert(axis, 1)
    return 2 * prod(max(s) for s in zip(*sizes, strict=True))


def _deformed(x: Shape, weight: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * prod(weight) * out_shape[0] * prod(out_shape[2:])


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Attention and recurrent layers as matrix products: their fused kernels are opaque to the counter."""
    fast, onednn, cudnn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled(), torch.backends.cudnn.enabled
    # The fast path of nn.MultiheadAttention runs past every counted operation.
    torch.backends.mha.set_fastpath_enabled(False)
    # By its own switch: the context manager of torch.backends.mkldnn sets TF32, too, and warns where there is none.
    torch._C._set_mkldnn_enabled(False)
    torch._C._set_cudnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)
        torch._C._set_cudnn_enabled(cudnn)


_FREE = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.PReLU)
"""Layers that multiply nothing by a matrix, though their parameters may have several axes."""


def passed_over(layer: nn.Module) -> bool:
    """Whether a layer for which nothing was counted looks as if it multiplied: it holds a matrix that no free layer holds."""
    free = {id(p) for part in layer.modules() if isinstance(part, _FREE) for p in part.parameters()}
    return any(id(p) not in free and _matrix(p) for p in layer.parameters())


def _matrix(p: Tensor) -> bool:
    # Scales and shifts per channel are written (C, 1, 1), and positions (1, n, C); neither says a product. A matrix has two axes.
    return sum(n > 1 for n in p.shape) > 1 and p.shape[0] > 1
