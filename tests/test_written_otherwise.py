"""Layers as people write them by other means: norms by hand, fixed kernels, masks of attention, compiled functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_between_channels import Net, checked, images
from torch import Tensor, nn

import compress
from compress.errors import UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace

WIDER = ((torch.randn(2, 3, 10, 12),),)


def same(model: nn.Module, x: tuple[Tensor, ...]) -> None:
    """The graph computes what the model does, for other samples than those of the example."""
    module = trace(model.eval(), x)
    for samples in (1, 3):
        given = tuple(torch.cat([t * (1 + i) for i in range(samples)]) for t in x)
        with torch.no_grad():
            assert torch.allclose(module(*given), model(*given), rtol=1e-4, atol=1e-5)


def as_convnext_does(s, x):
    u = x.mean(1, keepdim=True)
    v = (x - u).pow(2).mean(1, keepdim=True)
    return s.g[:, None, None] * ((x - u) / torch.sqrt(v + 1e-6)) + s.b[:, None, None]


def by_the_variance(s, x):
    v, u = torch.var(x, dim=1, unbiased=False, keepdim=True), torch.mean(x, dim=1, keepdim=True)
    return (x - u) * (v + 1e-5).rsqrt() * s.g[None, :, None, None] + s.b.view(1, -1, 1, 1)


def of_tokens(s, x):
    d = x.permute(0, 2, 3, 1)
    d = d - d.mean(-1, keepdim=True)
    return (s.g * (d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5)) + s.b).permute(0, 3, 1, 2)


@pytest.mark.parametrize("norm", [as_convnext_does, by_the_variance, of_tokens])
def test_a_layer_norm_by_hand_is_one_and_its_stream_loses_channels(norm: Callable[[Any, Tensor], Tensor], tmp_path: Path):
    def call(s, x):
        x = s.i(x)
        return s.o(x + s.q(F.gelu(s.p(norm(s, x)))))

    parts = dict(i=nn.Conv2d(3, 16, 1), p=nn.Conv2d(16, 24, 1), q=nn.Conv2d(24, 16, 1), o=nn.Conv2d(16, 3, 1))
    model = Net(call, **parts, g=nn.Parameter(torch.rand(16) + 0.5), b=nn.Parameter(torch.randn(16)))
    same(model, images())
    assert any(isinstance(m, nn.LayerNorm) for m in trace(model, images()).modules())
    assert {"i", "p"} <= {g.name for g in checked(model, images(), tmp_path, WIDER).removable}


def test_a_norm_over_time_by_hand_goes_on_for_other_lengths(tmp_path: Path):
    def call(s, x):
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5)
        return s.o(F.relu(s.i(x)))

    parts = dict(i=nn.Conv1d(3, 16, 3), o=nn.Conv1d(16, 3, 1))
    checked(Net(call, **parts), (torch.randn(1, 3, 20),), tmp_path, ((torch.randn(2, 3, 31),),))


class Blur(nn.Module):
    """A fixed kernel for each channel, as many as there are."""

    def __init__(self, channels: int, expands: bool):
        super().__init__()
        kernel = torch.tensor([1.0, 2.0, 1.0])
        kernel = (kernel[:, None] * kernel / 16)[None, None]
        self.register_buffer("kernel", kernel if expands else kernel.repeat(channels, 1, 1, 1))
        self.expands = expands

    def forward(self, x):
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1) if self.expands else self.kernel
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, stride=2, groups=x.shape[1])


@pytest.mark.parametrize("expands", [False, True])
def test_a_fixed_kernel_for_as_many_channels_as_there_are_leaves_them_free(expands: bool, tmp_path: Path):
    model = Net(lambda s, x: s.o(s.m(F.relu(s.i(x)))), i=nn.Conv2d(3, 16, 1), m=Blur(16, expands), o=nn.Conv2d(16, 3, 1))
    assert checked(model, images(), tmp_path, WIDER).group("i").frozen is None
    learned = [p for p in trace(model, images()).parameters() if p.requires_grad]
    assert len(learned) == 4  # the kernel stays as it is


def padded(s, x):
    return {"key_padding_mask": x[..., 0] > 0.3}


def padded_and_causal(s, x):
    return padded(s, x) | {"attn_mask": torch.triu(torch.ones(x.size(1), x.size(1)), 1).bool()}


def padded_by_numbers(s, x):
    return {"key_padding_mask": torch.zeros(x.size(0), x.size(1)).masked_fill(x[..., 0] > 0.3, -1e4)}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", [padded, padded_and_causal, padded_by_numbers])
def test_attention_under_a_mask_of_padding_is_written_out(masks: Callable[[Any, Tensor], Any], batch_first: bool, tmp_path: Path):
    def call(s, x):
        y = s.i(x) if batch_first else s.i(x).transpose(0, 1)
        y = s.a(y, y, y, need_weights=False, **masks(s, x))[0]
        return s.o(y if batch_first else y.transpose(0, 1))

    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
    model, x = Net(call, i=nn.Linear(6, 16), a=attention, o=nn.Linear(16, 3)), (torch.randn(1, 5, 6),)
    x[0][0, :, 0] = torch.tensor([-1.0, 1.0, -0.5, 0.4, 0.2])  # somebody is left to look at, first of all
    same(model, x)
    module = trace(model, x)
    assert not any(isinstance(m, nn.MultiheadAttention) for m in module.modules())
    assert solve(module, x).group("a.in_proj").channels == 4 and solve(module, x).group("i").frozen is None
    checked(model, x, tmp_path)


@pytest.mark.parametrize("mask", [None, "boolean", "added"])
@pytest.mark.parametrize("how", ["joined", "apart", "itself"])
def test_attention_as_a_function_on_parameters_is_attention(how: str, mask: str | None, tmp_path: Path):
    def call(s, x):
        y = s.i(x).transpose(0, 1)
        query = y if how == "itself" else y[:3]
        masks = {"boolean": torch.ones(len(query), 5, dtype=torch.bool).triu(1), "added": torch.ones(len(query), 5).triu(1) * -9}
        if how != "apart":
            weights = {"in_proj_weight": s.w, "in_proj_bias": s.b}
        else:  # as the pooling of CLIP does
            one = {f"{k}_proj_weight": getattr(s, k).weight for k in "qkv"}
            bias = torch.cat([s.q.bias, s.k.bias, s.v.bias])
            weights = one | {"use_separate_proj_weight": True, "in_proj_weight": None, "in_proj_bias": bias}
        z, _ = F.multi_head_attention_forward(
            query, y, y, y.shape[-1], 4, bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.1, training=s.training,
            out_proj_weight=s.o.weight, out_proj_bias=s.o.bias, attn_mask=masks.get(mask), need_weights=False, **weights,
        )  # fmt: skip
        return z.mean(0)

    torch.manual_seed(0)
    parts = {k: nn.Linear(16, 16) for k in ("qkv" if how == "apart" else "")}
    model = Net(call, i=nn.Linear(6, 16), o=nn.Linear(16, 3), **parts)
    if not parts:
        model.w, model.b = nn.Parameter(torch.randn(48, 16)), nn.Parameter(torch.randn(48))
    channels = checked(model, (torch.randn(1, 5, 6),), tmp_path)
    assert channels.group("i").channels == 16 and channels.group("i").frozen is None
    assert sum(g.channels == 4 for g in channels.removable) == (2 if how == "itself" else 3), "heads, and what is within"


def test_torch_s_encoder_under_a_mask_of_padding_loses_heads(tmp_path: Path):
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = Net(
        lambda s, x: s.o(s.e(s.i(x), src_key_padding_mask=x[..., 0] > 1)), i=nn.Linear(6, 16), e=encoder, o=nn.Linear(16, 3)
    )
    assert {"i", "e.layers.0.linear1", "e.layers.1.self_attn.in_proj"} <= {
        g.name for g in checked(model, (torch.randn(1, 5, 6),), tmp_path).removable
    }


def test_what_is_read_at_places_that_are_computed_goes_channel_by_channel(tmp_path: Path):
    def call(s, x):
        y = s.i(x)
        turned = F.affine_grid(s.t(x.mean((2, 3))).view(-1, 2, 3), y.size(), align_corners=False)
        return s.o(F.grid_sample(y, turned, align_corners=False))

    model = Net(call, i=nn.Conv2d(3, 16, 1), t=nn.Linear(3, 6), o=nn.Conv2d(16, 3, 1))
    assert checked(model, images(), tmp_path, WIDER).group("i").frozen is None


@pytest.mark.parametrize("added", [False, True])
def test_a_scaled_product_and_a_sum_at_once_are_attention(added: bool, tmp_path: Path):
    def call(s, x, y):
        q, (k, v) = s.q(y), s.kv(x).chunk(2, -1)
        bias = s.b.expand(len(x), -1, -1) if added else torch.empty(q.shape[0], q.shape[1], k.shape[1])
        weights = torch.baddbmm(bias, q, k.transpose(1, 2), beta=float(added), alpha=0.25).softmax(-1)
        return s.o(torch.bmm(weights, v))

    parts = dict(q=nn.Linear(5, 16), kv=nn.Linear(5, 32), o=nn.Linear(16, 3), b=nn.Parameter(torch.randn(1, 4, 6)))
    x = (torch.randn(1, 6, 5), torch.randn(1, 4, 5))
    same(Net(call, **parts), x)
    channels = checked(Net(call, **parts), x, tmp_path)
    assert {g.channels for g in channels.removable} == {16} and len(channels.removable) == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_compiled_function_is_gone_through(tmp_path: Path):
    @torch.jit.script
    def halved(x: Tensor) -> Tensor:
        return x * 0.5 * (1.0 + torch.erf(x / 1.41421))

    call = torch.jit.ScriptFunction.__call__
    model = Net(lambda s, x: s.o(halved(s.i(x))), i=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 3, 1))
    same(model, images())
    assert checked(model, images(), tmp_path, WIDER).group("i").frozen is None
    assert torch.jit.ScriptFunction.__call__ is call


@pytest.mark.parametrize("scaled", [True, False])
def test_an_instance_norm_as_a_function_is_a_layer(scaled: bool, tmp_path: Path):
    weights = dict(w=nn.Parameter(torch.rand(16) + 0.5), b=nn.Parameter(torch.randn(16))) if scaled else {}
    model = Net(
        lambda s, x: s.o(F.instance_norm(s.i(x), **(dict(weight=s.w, bias=s.b) if scaled else {}))),
        **weights,
        i=nn.Conv2d(3, 16, 1),
        o=nn.Conv2d(16, 3, 1),
    )
    same(model, images())
    assert checked(model, images(), tmp_path, WIDER).group("i").frozen is None
    assert any(isinstance(m, nn.InstanceNorm2d) for m in trace(model, images()).modules())


def test_a_short_time_fourier_transform_is_stored(tmp_path: Path):
    def call(s, x):
        spectrum = torch.stft(x, 16, 4, window=s.w, return_complex=True).abs().log1p()
        return s.o(F.relu(s.i(spectrum.unsqueeze(1))).mean((2, 3)))

    model = Net(call, i=nn.Conv2d(1, 12, 3), o=nn.Linear(12, 3))
    model.register_buffer("w", torch.hann_window(16))
    checked(model, (torch.randn(1, 64),), tmp_path)


def shifted(x: Tensor, count: int) -> Tensor:
    return torch.roll(x, 1, 2) if x.shape[2] > count else x


def squashed(x: Tensor) -> Tensor:
    return x / x.norm() if bool(x.sum() > 1e9) else x * 2


for wrapped in ("shifted", "squashed"):  # as torchvision wraps the attention of its Swin
    torch.fx.wrap(wrapped)


@pytest.mark.parametrize("seen", [True, False])
def test_a_function_that_a_library_wraps_is_looked_into_unless_it_asks_for_values(seen: bool, tmp_path: Path):
    def call(s, x):
        x = s.i(x)
        return s.o(shifted(x, 3) if seen else squashed(x))

    model = Net(call, i=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 3, 1))
    same(model, images())
    called = {node.target for node in trace(model, images()).graph.nodes}
    assert (squashed in called) != seen and shifted not in called
    if seen:
        assert checked(model, images(), tmp_path).group("i").frozen is None


def test_ones_for_each_further_axis_are_sizes_like_any_others(tmp_path: Path):
    def call(s, x):
        x = s.i(x)
        scale = x.new_ones((x.shape[0],) + (1,) * (x.ndim - 1)) * x.mean((1, 2, 3)).view([-1] + [1] * (x.dim() - 1))
        return s.o(F.pad(x * scale, [1] * (2 * (x.dim() - 2))))

    checked(Net(call, i=nn.Conv2d(3, 16, 1), o=nn.Conv2d(16, 3, 1)), images(), tmp_path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_part_that_is_compiled_is_refused_by_its_name():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), torch.jit.script(nn.Sequential(nn.GELU())))
    with pytest.raises(UnsupportedModel, match=r"The submodule '1' is TorchScript: compiled"):
        trace(model, images())


@pytest.mark.parametrize("method", [True, False])
def test_places_at_which_a_tensor_is_split_leave_its_channels_free(method: bool, tmp_path: Path):
    def call(s, x):
        x = s.i(x)
        a, b, c = x.tensor_split((1, 3), -2) if method else torch.tensor_split(x, [1, 3], dim=1)
        return s.o(torch.cat([c, s.q(a), b], 1))

    model = Net(call, i=nn.Linear(6, 16), q=nn.Linear(16, 16), o=nn.Linear(16, 3))
    assert checked(model, (torch.randn(1, 5, 6),), tmp_path).group("i").frozen is None


@pytest.mark.parametrize("ran", [False, True])
def test_functions_that_reach_the_model_reach_its_copy(ran: bool, tmp_path: Path):
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
            self.second, self.last, self.kept = nn.Conv2d(16, 8, 3), nn.Linear(24, 4), {}
            self.first.register_forward_hook(lambda m, x, y: self.kept.update(first=y))
            self.pooled = lambda x: self.second(x).mean((2, 3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.pooled(self.first(x))
            return self.last(torch.cat([self.kept["first"].mean((2, 3)), y], 1))

    torch.manual_seed(0)
    model = Hooked().eval()
    if ran:  # the model keeps what it has seen, which is nothing of the copy's
        with torch.no_grad():
            model(torch.randn(13, 3, 8, 8))
    x = (torch.randn(2, 3, 8, 8),)
    same(model, x)
    compress.save(model, tmp_path / "model.compressed", inputs=x)
    with torch.no_grad():
        assert torch.allclose(compress.load(tmp_path / "model.compressed")(*x), model(*x), atol=1e-6)
