"""One small model per structure that the channel solver knows, and per structure that it must leave alone.

`MODELS[name]` is a `Case`: adding a layer kind to the solver means one rule and one model here; the oracles of test_surgery.py
then cover it. Every model takes a batch, returns a tensor (or several) and has nothing in it that is random in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import Permute, StochasticDepth

from compress.graph.channel_affine import channel_affine
from compress.graph.partial_norm import PartialNorm

IMAGE, TOKENS, VECTOR = (3, 8, 8), (6, 8), (8,)


@dataclass(frozen=True)
class Case:
    """A model and what the solver must find in it.

    Attributes:
        make: builds it; the caller sets the seed.
        shapes: of its inputs, without the batch.
        removable: groups that must be removable, by name.
        frozen: group -> part of the reason why it must be frozen.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    removable: tuple[str, ...]
    frozen: dict[str, str]


MODELS: dict[str, Case] = {}


def case(*shapes, removable="", frozen=None):
    def add(make):
        MODELS[make.__name__] = Case(make, shapes or (IMAGE,), tuple(removable.split()), frozen or {})
        return make

    return add


class Net(nn.Module):
    """Named layers and a function of them and one input."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.call(self, x)


class Two(Net):
    def forward(self, x, y):
        return self.call(self, x, y)


def conv(i, o, k=3, **settings):
    return nn.Conv2d(i, o, k, padding=k // 2, **settings)


def block(i, o, k=3, act=nn.ReLU, **settings):
    return nn.Sequential(conv(i, o, k, bias=False, **settings), nn.BatchNorm2d(o), act())


def head(channels, classes=5):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))


# ---- plain, residual, grouped ----------------------------------------------------------------------------------------------


@case(removable="0.0 1.0")
def plain():
    return nn.Sequential(block(3, 8), block(8, 12), nn.MaxPool2d(2), head(12))


@case(removable="stem.0 a.0")
def residual():
    return Net(
        lambda s, x: (lambda y: s.head(F.relu(s.b(s.a(y)) + y)))(s.stem(x)),
        stem=block(3, 8),
        a=block(8, 6),
        b=nn.Sequential(conv(6, 8), nn.BatchNorm2d(8)),
        head=head(8),
    )


@case(removable="stem.0 first")
def residual_in_place():
    def call(s, x):
        x = s.stem(x)
        y = s.second(F.relu_(s.first(x)))
        y += x
        return s.head(y.relu_().add_(1.0).mul_(0.5))

    return Net(call, stem=block(3, 8), first=conv(8, 6), second=conv(6, 8), head=head(8))


@case(removable="stem.0", frozen={"input of stem.0": "model input", "body.0": "pads with constant channels"})
def padded_shortcut():
    def call(s, x):
        x = s.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return s.head(F.relu(s.body(x) + short))

    return Net(call, stem=block(3, 8), body=nn.Sequential(conv(8, 12, stride=2), nn.BatchNorm2d(12)), head=head(12))


@case(removable="0.0")
def grouped():
    return nn.Sequential(block(3, 8), conv(8, 12, groups=4), nn.BatchNorm2d(12), nn.ReLU(), head(12))


@case(removable="stem.0 odd.0 last.0")
def few_wide_groups():
    """Two groups of many channels lose the same positions, through a residual sum and from one such layer to the next."""

    def call(s, x):
        x = s.stem(x)
        x = x + s.two(x)
        return s.head(s.last(s.odd(x) * s.odd(x).mean((2, 3), keepdim=True)))

    last = nn.Sequential(conv(24, 10, groups=2), nn.ReLU())
    return Net(call, stem=block(3, 12), two=block(12, 12, groups=2), odd=block(12, 24, groups=2), last=last, head=head(10))


@case(removable="0.0 1.0")
def few_wide_groups_that_a_norm_ties():
    """The groups of the norm are those of the layer: positions are tied, and whole groups go."""
    layers = (conv(12, 24, groups=3), nn.GroupNorm(3, 24), nn.ReLU())
    return nn.Sequential(block(3, 8), block(8, 12), *layers, nn.Conv2d(24, 6, 1), nn.ReLU(), head(6))


@case(removable="a.0 b.0")
def grouped_with_shuffle():
    def shuffle(x, groups):
        b, c, h, w = x.shape
        return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)

    return Net(
        lambda s, x: s.head(s.c(s.depth(shuffle(s.b(s.a(x)), 3)))),
        a=block(3, 18, 1),
        b=block(18, 18, 1, groups=3),
        depth=nn.Sequential(conv(18, 18, groups=18), nn.BatchNorm2d(18)),
        c=block(18, 12, 1, groups=3),
        head=head(12),
    )


@case(removable="0.0 2.0")
def depthwise():
    return nn.Sequential(block(3, 8), block(8, 8, groups=8), block(8, 10, 1), head(10))


@case(removable="0.0")
def depthwise_multiplier_2():
    return nn.Sequential(block(3, 8), block(8, 16, groups=8), head(16))


@case(removable="0.0 1")
def transposed():
    return nn.Sequential(block(3, 8), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(), conv(6, 2))


@case(removable="0.0")
def transposed_depthwise():
    return nn.Sequential(block(3, 8), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8), nn.ReLU(), conv(8, 2))


@case(removable="0.0")
def transposed_grouped():
    return nn.Sequential(block(3, 8), nn.ConvTranspose2d(8, 12, 3, groups=4), nn.ReLU(), conv(12, 2))


@case((3, 16), removable="0 2")
def one_dimensional():
    return nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))


@case((2, 4, 6, 6), removable="0 3")
def volumes():
    layers = (nn.Conv3d(2, 6, 3), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 4, 1), nn.MaxPool3d((2, 4, 4)), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(4, 3))


# ---- concatenation, cutting, shuffling -------------------------------------------------------------------------------------


@case(removable="stem.0 a.0 b.0")
def dense_block():
    def call(s, x):
        x = s.stem(x)
        x = torch.cat([x, s.a(x)], 1)
        x = torch.cat([x, s.b(x)], dim=1)
        return s.head(s.norm(x))

    return Net(call, stem=block(3, 6), a=block(6, 4), b=block(10, 4), norm=nn.BatchNorm2d(14), head=head(14))


@case(removable="a.0")
def concatenation_with_the_input():
    return Net(lambda s, x: s.head(s.b(torch.cat([x, s.a(x)], 1))), a=block(3, 6), b=block(9, 6), head=head(6))


@case(removable="stem.0 reduce.0 tail.0")
def squeeze_excite():
    def call(s, x):
        x = s.stem(x)
        return s.head(s.tail(x * torch.sigmoid(s.expand(s.reduce(x.mean((2, 3), keepdim=True))))))

    return Net(
        call,
        stem=block(3, 8),
        reduce=nn.Sequential(conv(8, 4, 1), nn.ReLU()),
        expand=conv(4, 8, 1),
        tail=block(8, 6),
        head=head(6),
    )


@case(removable="stem.0 reduce")
def squeeze_excite_linear():
    def call(s, x):
        x = s.stem(x)
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = s.expand(F.relu(s.reduce(y))).sigmoid().view(b, c, 1, 1)
        return s.head(x * y.expand_as(x))

    return Net(call, stem=block(3, 8), reduce=nn.Linear(8, 4), expand=nn.Linear(4, 8), head=head(8))


@case(removable="0.0 2.0")
def shuffle_layer():
    return nn.Sequential(block(3, 8), nn.ChannelShuffle(2), block(8, 6), head(6))


@case(removable="a.0 b.0")
def shuffle_by_view():
    def call(s, x):
        x = s.a(x)
        x = x.view(x.size(0), 4, 2, 8, 8).transpose(1, 2).contiguous().view(-1, 8, 8, 8)
        return s.head(s.b(x))

    return Net(call, a=block(3, 8), b=block(8, 6), head=head(6))


@case(removable="stem.0 stem.0#2")
def shuffle_by_chunk():
    def call(s, x):
        left, right = s.stem(x).chunk(2, dim=1)
        y = torch.cat((left, s.branch(right)), 1)
        b, c, h, w = y.shape
        return s.head(torch.flatten(y.view(b, 2, c // 2, h, w).transpose(1, 2), 1, 2))

    return Net(call, stem=block(3, 8), branch=block(4, 4), head=head(8))


@case(removable="a.0 b.0 c.0")
def cut_and_joined():
    def call(s, x):
        x = s.a(x)
        first, second = torch.split(x, [3, 5], 1)
        third = x[:, 2:6]
        return s.head(torch.cat([s.b(first), F.max_pool2d(second, 3, 1, 1), s.c(third)], 1))

    return Net(call, a=block(3, 8), b=block(3, 4), c=block(4, 4), head=head(13))


@case(removable="a.0 b.0")
def half_of_the_channels():
    def call(s, x):
        x = s.a(x)
        n = x.shape[1] // 2
        return s.head(torch.cat([s.b(x[:, :n]), x[:, n:]], 1))

    return Net(call, a=block(3, 8), b=block(4, 4), head=head(8))


@case(TOKENS, removable="first second")
def norm_over_flattened_tokens():
    def call(s, x):
        y = s.first(x)
        y = F.relu(s.norm(y.flatten(0, 1)).reshape_as(y))
        return s.last(torch.addcmul(s.second(y), s.second(y), s.second(y)))

    return Net(call, first=nn.Linear(8, 6), norm=nn.BatchNorm1d(6), second=nn.Linear(6, 5), last=nn.Linear(5, 3))


@case(removable="0.0")
def flatten_into_linear():
    return nn.Sequential(block(3, 4), nn.Flatten(), nn.Linear(256, 5))


@case(removable="a.0 hidden")
def view_with_literal_sizes():
    return Net(
        lambda s, x: s.last(F.relu(s.hidden(s.a(x).view(-1, 4 * 8 * 8)))),
        a=block(3, 4),
        hidden=nn.Linear(256, 8),
        last=nn.Linear(8, 5),
    )


@case(VECTOR, removable="first up")
def decoder_by_view():
    return Net(
        lambda s, x: s.last(F.relu(s.up(F.relu(s.first(x)).view(-1, 6, 4, 4)))),
        first=nn.Linear(8, 96),
        up=nn.ConvTranspose2d(6, 5, 2, stride=2),
        last=conv(5, 3),
    )


@case(VECTOR, removable="0 2")
def decoder_by_unflatten():
    return nn.Sequential(nn.Linear(8, 96), nn.Unflatten(1, (6, 4, 4)), nn.ConvTranspose2d(6, 5, 2), nn.ReLU(), conv(5, 3))


@case(removable="0.0 2.0")
def pixel_shuffle():
    return nn.Sequential(block(3, 16), nn.PixelShuffle(2), block(4, 6), conv(6, 3))


@case(removable="0.0 2.0")
def pixel_unshuffle():
    return nn.Sequential(block(3, 4), nn.PixelUnshuffle(2), block(16, 6), conv(6, 3))


@case(removable="stem.0 tail.0")
def squeezed_to_a_vector():
    return Net(
        lambda s, x: s.last(s.tail(s.stem(x)).amax((-2, -1), keepdim=True).squeeze()),
        stem=block(3, 6),
        tail=block(6, 4),
        last=nn.Linear(4, 5),
    )


@case(removable="stem.0 tail.0")
def repeated_channels():
    return Net(lambda s, x: s.head(s.tail(s.stem(x).repeat(1, 2, 1, 1))), stem=block(3, 6), tail=block(12, 4), head=head(4))


@case(removable="stem.0 tail.0")
def glu():
    return Net(lambda s, x: s.head(s.tail(F.glu(s.stem(x), 1))), stem=block(3, 12), tail=block(6, 4), head=head(4))


@case(TOKENS, removable="gate")
def swiglu():
    def call(s, x):
        a, b = s.gate(s.norm(x)).chunk(2, -1)
        return x + s.out(F.silu(a) * b)

    return Net(call, norm=nn.RMSNorm(8), gate=nn.Linear(8, 12), out=nn.Linear(6, 8))


# ---- norms -----------------------------------------------------------------------------------------------------------------


@case(removable="stem hidden")
def layer_norm_channels_last():
    def call(s, x):
        x = s.stem(x)
        y = s.norm(x.permute(0, 2, 3, 1))
        y = s.out(s.act(s.hidden(y))).permute(0, 3, 1, 2)
        return s.head(x + s.scale * y)

    return Net(
        call,
        stem=conv(3, 8),
        norm=nn.LayerNorm(8),
        hidden=nn.Linear(8, 12),
        act=nn.GELU(),
        out=nn.Linear(12, 8),
        scale=nn.Parameter(torch.rand(8, 1, 1) + 0.5),
        head=head(8),
    )


@case(removable="0.0 2")
def permute_layers():
    return nn.Sequential(block(3, 8), Permute([0, 2, 3, 1]), nn.Linear(8, 6), nn.ReLU(), Permute([0, 3, 1, 2]), head(6))


@case(removable="0 3")
def group_norm():
    return nn.Sequential(conv(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 6), nn.GroupNorm(3, 6, affine=False), head(6))


@case(removable="3", frozen={"0": "statistics over all channels"})
def group_norm_behind_a_sigmoid():
    return nn.Sequential(conv(3, 8), nn.Sigmoid(), nn.GroupNorm(1, 8), conv(8, 6), nn.ReLU(), head(6))


@case(removable="tail.0", frozen={"stem.0": "norm (models.py:"})
def a_norm_in_which_one_zero_decides():
    def call(s, x):
        x = s.stem(x)
        return s.head(s.tail(x * x.norm(p=-float("inf"), dim=1, keepdim=True)))

    return Net(call, stem=block(3, 8), tail=block(8, 6), head=head(6))


@case(removable="stem out")
def norms_of_many_kinds():
    """Behind sums, gates, products with one factor of zeros, and within each other; without weight; written by hand."""

    def call(s, x):
        x = s.stem(x).flatten(2).transpose(1, 2)
        x = s.post(x + s.scale * s.wide(F.silu(s.inner(s.bare(x)))))
        x = x + s.mean_square(x) * s.narrow(x).sigmoid() - x.roll(1, 1)
        square = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(square + 1e-6) / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-6)
        return s.head(s.out(s.joined(torch.cat([x[:, 0::2], x[:, 0::2] * 2], -1))).mean(1))

    return Net(
        call,
        stem=conv(3, 8),
        bare=PartialNorm(8, 12, bias=False),
        inner=nn.Linear(8, 12),
        wide=nn.Linear(12, 8),
        scale=nn.Parameter(torch.rand(8) + 0.5),
        post=nn.LayerNorm(8, bias=False),
        mean_square=nn.RMSNorm(8),
        narrow=nn.Linear(8, 8),
        joined=nn.LayerNorm(16),
        out=nn.Linear(16, 6),
        head=nn.Linear(6, 3),
    )


@case(removable="0 3")
def group_norm_of_one_group():
    return nn.Sequential(conv(3, 8), nn.GroupNorm(1, 8), nn.ReLU(), conv(8, 6), nn.ReLU(), head(6))


@case(removable="0 3")
def instance_norm():
    norms = nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.InstanceNorm2d(6)
    return nn.Sequential(conv(3, 8), norms[0], nn.ReLU(), conv(8, 6), norms[1], nn.ReLU(), conv(6, 2))


@case(removable="stem.0 body.0.0")
def layer_scale():
    return Net(
        lambda s, x: (lambda y: s.head(y + s.body(y) * s.gamma))(s.stem(x)),
        stem=block(3, 8),
        body=nn.Sequential(block(8, 6), conv(6, 8)),
        gamma=nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5),
        head=head(8),
    )


@case(removable="a b")
def frozen_batch_norm():
    def call(s, x):
        scale = s.weight.reshape(1, -1, 1, 1) * (s.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return s.head(s.b(F.relu(s.a(x) * scale + s.shift.reshape(1, -1, 1, 1))))

    net = Net(call, a=conv(3, 8), b=conv(8, 6), head=head(6))
    net.register_buffer("weight", torch.rand(8) + 0.5)
    net.register_buffer("running_var", torch.rand(8) + 0.5)
    net.register_buffer("shift", torch.randn(8))
    return net


@case(removable="1 3", frozen={"input of 1": "model input", "input of 4": "4 has one slope"})
def normalizes_its_input():
    class Normalize(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.rand(1, 3, 1, 1))
            self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5, persistent=False)

        def forward(self, x):
            return (x - self.mean) / self.std

    return nn.Sequential(Normalize(), conv(3, 8), nn.PReLU(8), conv(8, 6), nn.PReLU(), head(6))


# ---- attention -------------------------------------------------------------------------------------------------------------


def transformer(attend, **layers):
    def call(s, x):
        x = x + s.proj(attend(s, s.norm1(x)))
        return s.head((x + s.fc2(s.act(s.fc1(s.norm2(x))))).mean(1))

    parts = dict(norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8), fc1=nn.Linear(8, 16), act=nn.GELU(), fc2=nn.Linear(16, 8))
    return Net(call, **parts, proj=nn.Linear(8, 8), head=nn.Linear(8, 3), **layers)


@case(TOKENS, removable="fc1 q")
def attention_of_separate_linears():
    def attend(s, x):
        b, n, c = x.shape
        q = s.q(x).view(b, n, 4, c // 4).transpose(1, 2)
        k = s.k(x).view(b, n, 4, c // 4).transpose(1, 2)
        v = s.v(x).view(b, n, 4, c // 4).transpose(1, 2)
        weights = F.softmax(q @ k.transpose(-2, -1) * (c // 4) ** -0.5, dim=-1)
        return (weights @ v).transpose(1, 2).reshape(b, n, c)

    return transformer(attend, q=nn.Linear(8, 8), k=nn.Linear(8, 8, bias=False), v=nn.Linear(8, 8))


@case(TOKENS, removable="fc1 qkv")
def attention_fused():
    def attend(s, x):
        B, N, C = x.shape
        q, k, v = s.qkv(x).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.0).transpose(1, 2).reshape(B, N, C)

    return transformer(attend, qkv=nn.Linear(8, 24))


@case(TOKENS, removable="fc1 qkv")
def attention_fused_and_indexed():
    def attend(s, x):
        B, N, C = x.shape
        qkv = s.qkv(x).reshape(B, N, 3, 4, C // 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = s.drop((q * 0.5 @ k.transpose(-2, -1)).softmax(dim=-1))
        return (weights @ v).transpose(1, 2).reshape(B, N, C)

    return transformer(attend, qkv=nn.Linear(8, 24, bias=False), drop=nn.Dropout(0.1))


@case(TOKENS, removable="fc1 qkv")
def attention_with_normed_queries():
    def attend(s, x):
        B, N, _ = x.shape
        q, k, v = s.qkv(x).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(s.q_norm(q), s.k_norm(k), v).transpose(1, 2).reshape(B, N, -1)

    return transformer(attend, qkv=nn.Linear(8, 24), q_norm=nn.LayerNorm(2), k_norm=nn.LayerNorm(2))


@case(TOKENS, removable="fc1 q")
def attention_with_heads_in_the_batch():
    def attend(s, x):
        b, n, c = x.shape

        def split(t):
            return t.view(b, n, 4, 2).transpose(1, 2).reshape(b * 4, n, 2)

        q, k, v = split(s.q(x)), split(s.k(x)), split(s.v(x))
        y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        return y.view(b, 4, n, 2).transpose(1, 2).reshape(b, n, c)

    return transformer(attend, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))


@case(TOKENS, removable="fc1 attn.in_proj")
def attention_layer():
    return transformer(lambda s, x: s.attn(x, x, x, need_weights=False)[0], attn=nn.MultiheadAttention(8, 2, batch_first=True))


@case(removable="patch fc1")
def class_token_and_position():
    def call(s, x):
        x = s.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([s.token.expand(x.shape[0], -1, -1), x], dim=1) + s.position
        return s.head((x + s.fc2(F.gelu(s.fc1(s.norm(x)))))[:, 0])

    return Net(
        call,
        patch=nn.Conv2d(3, 8, 4, 4),
        token=nn.Parameter(torch.randn(1, 1, 8)),
        position=nn.Parameter(torch.randn(1, 5, 8)),
        norm=nn.LayerNorm(8),
        fc1=nn.Linear(8, 12),
        fc2=nn.Linear(12, 8),
        head=nn.Linear(8, 3),
    )


@case(removable="patch fc1")
def token_mixer():
    def call(s, x):
        x = s.patch(x).flatten(2)
        x = x + s.mix2(F.gelu(s.mix1(x)))
        x = x.transpose(1, 2)
        return s.head((x + s.fc2(F.relu(s.fc1(x)))).mean(dim=1))

    return Net(
        call,
        patch=nn.Conv2d(3, 8, 4, 4),
        mix1=nn.Linear(4, 6),
        mix2=nn.Linear(6, 4),
        fc1=nn.Linear(8, 12),
        fc2=nn.Linear(12, 8),
        head=nn.Linear(8, 3),
    )


@case(removable="patch fc1")
def einsum():
    def call(s, x):
        x = s.patch(x).flatten(2)
        x = torch.einsum("bcn,nm->bcm", x, s.table).mean(2)
        return s.head(F.relu(s.fc1(x)))

    return Net(
        call, patch=nn.Conv2d(3, 8, 4, 4), table=nn.Parameter(torch.randn(4, 4)), fc1=nn.Linear(8, 6), head=nn.Linear(6, 3)
    )


# ---- sharing, several outputs, parameters ----------------------------------------------------------------------------------


@case(removable="stem.0 tail.0")
def called_twice():
    return Net(
        lambda s, x: s.head(s.tail(s.shared(s.shared(s.stem(x))))),
        stem=block(3, 8),
        shared=block(8, 8),
        tail=block(8, 6),
        head=head(6),
    )


@case(removable="encode last")
def tied_layers():
    net = Net(
        lambda s, x: s.head(F.relu(s.last(F.relu(s.second(F.relu(s.first(F.relu(s.encode(x.mean((2, 3))))))))))),
        encode=nn.Linear(3, 8),
        first=nn.Linear(8, 8, bias=False),
        second=nn.Linear(8, 8, bias=False),
        last=nn.Linear(8, 6),
        head=nn.Linear(6, 3),
    )
    net.second.weight = net.first.weight
    return net


@case(VECTOR, removable="encode middle")
def tied_autoencoder():
    def call(s, x):
        x = F.relu(s.middle2(F.relu(s.middle(F.relu(s.encode(x))))))
        return F.linear(x, s.encode.weight.t())

    return Net(call, encode=nn.Linear(8, 6), middle=nn.Linear(6, 5), middle2=nn.Linear(5, 6))


@case(removable="trunk.0 box")
def several_outputs():
    def call(s, x):
        x = s.trunk(x)
        return {"class": s.head(x), "boxes": [s.out(F.relu(s.box(x))), x.mean()]}

    return Net(call, trunk=nn.Sequential(*block(3, 8), conv(8, 6)), box=conv(6, 7), out=conv(7, 4), head=head(6))


@case(
    IMAGE,
    (2, 8, 8),
    removable="left.0",
    frozen={"input of left.0": "x is a model input", "input of right.0": "y is a model input"},
)
def two_inputs():
    return Two(lambda s, x, y: s.head(s.left(x) + s.right(y)), left=block(3, 8), right=block(2, 8), head=head(8))


@case(removable="stem.0 tail.0")
def spatial_attention():
    return Net(
        lambda s, x: (lambda y: s.head(s.tail(y * s.gate(y).sigmoid())))(s.stem(x)),
        stem=block(3, 8),
        gate=conv(8, 1),
        tail=block(8, 6),
        head=head(6),
    )


@case(removable="stem.0 tail.0")
def attention_over_mean_channel():
    def call(s, x):
        x = s.stem(x)
        return s.head(s.tail(x * s.gate(x.mean(1, keepdim=True)).sigmoid()))

    return Net(call, stem=block(3, 8), gate=conv(1, 1), tail=block(8, 6), head=head(6))


@case(removable="a.0 b.0.0")
def stochastic_depth():
    return Net(
        lambda s, x: (lambda y: s.head(y + s.drop(s.b(y))))(s.a(x)),
        a=block(3, 8),
        b=nn.Sequential(block(8, 6), conv(6, 8)),
        drop=StochasticDepth(0.3, "row"),
        head=head(8),
    )


@case(removable="0.0 2.0")
def dropouts():
    def call(s, x):
        x = F.dropout2d(s.stem(x), 0.2, s.training)
        return s.head(F.dropout(s.drop(s.tail(x)), p=0.1, training=s.training))

    net = Net(call, stem=block(3, 8), tail=block(8, 6), drop=nn.Dropout2d(0.3), head=head(6))
    return nn.Sequential(block(3, 8), nn.AlphaDropout(0.1), block(8, 3), net)


@case(removable="stem a")
def functional_activations():
    def call(s, x):
        x = F.hardswish(F.relu6(torch.relu(s.stem(x))))
        x = F.leaky_relu(F.elu(F.selu(x)), 0.2) + F.celu(x, alpha=0.7) + F.mish(x) + F.silu(x) + F.gelu(x, approximate="tanh")
        x = s.a(F.softplus(x) * F.hardsigmoid(x) + F.hardtanh(x, -2.0, 2.0).tanh() + torch.tanh(x).sigmoid().relu())
        x = (
            F.logsigmoid(x)
            + F.softsign(x)
            + F.tanhshrink(x)
            + F.hardshrink(x, 0.1)
            + F.softshrink(x, 0.1)
            + F.threshold(x, 0.1, 3)
        )
        return s.head(F.prelu(x, s.slope).clamp(-3, 3).exp().log1p() * torch.where(x > 0, x, 0.1 * x).square().sqrt())

    return Net(call, stem=conv(3, 8), a=conv(8, 6), slope=nn.Parameter(torch.rand(6)), head=head(6))


@case(removable="stem a")
def resized():
    def call(s, x):
        y = F.interpolate(F.max_pool2d(s.stem(x), 2), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return s.out(s.a(F.pad(s.up(F.avg_pool2d(y, 2)), (1, 0, 1, 0), mode="reflect")))

    return Net(call, stem=conv(3, 8), a=conv(8, 6), up=nn.Upsample(scale_factor=2), out=conv(6, 2))


@case(removable="stem body")
def layers_as_functions():
    def call(s, x):
        x = F.relu(F.batch_norm(F.conv2d(x, s.stem.weight, s.stem.bias, padding=1), s.mean, s.running_var, s.weight, s.bias))
        x = F.relu(F.conv2d(F.relu(s.body(x)), s.depth.weight, None, 1, 1, 1, 6))
        return F.linear(x.mean((2, 3)), s.last.weight, s.last.bias)

    net = Net(call, stem=conv(3, 8), body=conv(8, 6), depth=conv(6, 6, groups=6), last=nn.Linear(6, 3))
    net.weight, net.bias = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.rand(8))
    net.register_buffer("mean", torch.rand(8))
    net.register_buffer("running_var", torch.rand(8) + 0.5)
    return net


class OwnConv(nn.Conv2d):
    """Changes nothing."""


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PaddedConv(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


@case(removable="0 2 4")
def subclassed_layers():
    return nn.Sequential(OwnConv(3, 8, 3), nn.ReLU(), PaddedConv(8, 6, 2), nn.ReLU(), PaddedConv(6, 5, 2), nn.ReLU(), head(5))


@case(removable="0 1.0")
def computed_weights():
    return nn.Sequential(StandardisedConv(3, 8, 3), block(8, 6), head(6))


@case(removable="0.0 1 2.0")
def standardised_over_its_inputs():
    """Each filter loses its mean, of which a plain weight is made before an input could change it."""
    return nn.Sequential(block(3, 8), StandardisedConv(8, 7, 3), block(7, 6), head(6))


class FromParts(nn.Module):
    """A layer of parameters that are moved, joined and scaled on their way to it."""

    def __init__(self, call, **shapes):
        super().__init__()
        self.call = call
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.5))

    def forward(self, x):
        return self.call(self, x)


@case(TOKENS, removable="fc1 qkv")
def attention_with_a_bias_of_parts():
    def attend(s, x):
        B, N, C = x.shape
        bias = torch.cat((s.q_bias, torch.zeros_like(s.v_bias), s.v_bias))
        q, k, v = F.linear(x, s.qkv.weight, bias).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C)

    biases = dict(q_bias=nn.Parameter(torch.randn(8)), v_bias=nn.Parameter(torch.randn(8)))
    return transformer(attend, qkv=nn.Linear(8, 24, bias=False), **biases)


@case(TOKENS, removable="fc1 q")
def attention_with_weights_of_parts():
    def attend(s, x):
        B, N, C = x.shape
        weight = torch.cat([s.q.weight, s.k.weight, s.v.weight])
        bias = torch.stack([s.q.bias, s.k.bias, s.v.bias]).view(-1)
        q, k, v = F.linear(x, weight, bias).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C)

    return transformer(attend, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8))


@case(TOKENS, removable="0 2.a 4.a 6.a 8")
def weights_and_biases_of_parts():
    """Stacked, transposed, cut, scaled along both axes; biases that are permuted, expanded, indexed."""
    parts = (
        FromParts(
            lambda s, x: F.linear(x, torch.stack([s.a, s.b], 1).view(12, -1), s.c.t().reshape(-1)), a=(6, 8), b=(6, 8), c=(2, 6)
        ),
        FromParts(
            lambda s, x: F.linear(x, s.a * s.up * s.down, s.c.expand(2, -1).permute(1, 0)[:, 1]),
            a=(9, 12),
            up=(9, 1),
            down=(1, 12),
            c=(9,),
        ),
        FromParts(
            lambda s, x: F.linear(x, torch.chunk(s.a, 2)[0] / 3, s.c[2:9]) + F.linear(x, s.b.t(), -s.d[:7]),
            a=(14, 9),
            b=(9, 7),
            c=(9,),
            d=(8,),
        ),
    )
    layers = [m for part in parts for m in (part, nn.GELU())]
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), *layers, nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4))


@case(removable="stem.0 joined.a last.0")
def convolutions_of_parts():
    def call(s, x):
        x = s.joined(s.stem(x))
        return s.head(s.last(F.prelu(s.depth(x), s.slope * 0.5)))

    joined = FromParts(
        lambda s, x: F.conv2d(x, torch.cat([s.a, s.b.view(4, 8, 3, 3)]) * s.gain, s.c.flatten(), padding=1),
        a=(6, 8, 3, 3),
        b=(4, 8, 3, 3),
        gain=(10, 1, 1, 1),
        c=(2, 5),
    )
    depth = FromParts(lambda s, x: F.conv2d(x, s.a.permute(1, 0, 2, 3), None, 1, 1, 1, 10), a=(1, 10, 3, 3))
    return Net(
        call, stem=block(3, 8), joined=joined, depth=depth, slope=nn.Parameter(torch.rand(10)), last=block(10, 6), head=head(6)
    )


@case(removable="stem.0 a b")
def norms_of_computed_parameters():
    def call(s, x):
        x = F.batch_norm(s.a(s.stem(x)), s.mean, s.var.exp(), 1 + s.gamma, s.beta[0])
        return s.head(s.b(x).transpose(1, 3))

    net = Net(call, stem=block(3, 8), a=conv(8, 7), b=conv(7, 6), head=nn.Sequential(nn.Linear(6, 4)))
    net.gamma, net.beta = nn.Parameter(torch.rand(7)), nn.Parameter(torch.rand(1, 7))
    net.register_buffer("mean", torch.rand(7))
    net.register_buffer("var", torch.rand(7))
    return net


class Branching(nn.Module):
    """Pads odd sizes, loops as often as the size says, asks its own constant, and takes a shortcut where the channels agree."""

    def __init__(self, i, o):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(i, o, 3, stride=2), nn.BatchNorm2d(o)
        self.register_buffer("flag", torch.tensor(1))

    def forward(self, x):
        y = F.pad(x, (0, 1, 0, 1)) if x.shape[-1] % 2 == 0 else x
        y = self.norm(self.conv(y))
        for _ in range(int(x.shape[-1] ** 0.5) - 1):
            y = y * 1.25
        if x.ndim == 4 and y.shape[1] == x.shape[1]:
            y = y + F.avg_pool2d(x, 2)
        return F.relu(y) if self.flag else y


@case(removable="0.conv 2.0")
def branches_by_size():
    return nn.Sequential(Branching(3, 8), Branching(8, 8), block(8, 6), head(6))


class Defaults(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = block(3, 8), block(8, 6), head(6)

    def forward(self, x, scale=2.0, mask=None, *, deep=True):
        assert x.shape[1] == 3
        x = self.a(x) * scale
        if mask is not None:
            x = x * mask
        return self.head(self.b(x) if deep else x)


@case(removable="a.0 b.0")
def default_arguments():
    return Defaults()


@case(TOKENS, VECTOR, removable="values.0 values.2", frozen={"weigh": "sums its channels over positions"})
def tokens_weighed_by_a_vector():
    """The channels of `weigh` are contracted with the tokens: each belongs to one token, and stays."""

    def call(s, x, y):
        weights = s.weigh(y).sigmoid().unsqueeze(1)  # (n, 1, tokens)
        return s.head((weights @ s.values(x)).squeeze(1))

    return Two(
        call, weigh=nn.Linear(8, 6), values=nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10)), head=nn.Linear(10, 5)
    )


@case(TOKENS, removable="first last")
def normalized_over_tokens():
    """The axis of `normalize` is 1 where none is named, which is that of tokens here."""
    return Net(
        lambda s, x: s.head(F.normalize(s.last(F.relu(s.first(x))))),
        first=nn.Linear(8, 12),
        last=nn.Linear(12, 6),
        head=nn.Linear(6, 4),
    )


@case(TOKENS, removable="q")
def attention_of_separate_layers():
    """Queries and keys of two layers: a head of one is a head of the other."""

    def call(s, x):
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (s.q, s.k, s.v))
        return s.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    return Net(call, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), out=nn.Linear(8, 5))


@case(removable="stem.0.0 stem.1.0")
def pooled_by_a_map():
    """Channels in the rows of a product, which all have the one channel that weighs the positions in common."""

    def call(s, x):
        x = s.stem(x)
        weights = s.map(x).flatten(2).softmax(-1).transpose(1, 2)  # (n, positions, 1)
        return s.head((x.flatten(2) @ weights).squeeze(-1))

    return Net(call, stem=nn.Sequential(block(3, 8), block(8, 6)), map=conv(6, 1), head=nn.Linear(6, 5))


@case(removable="stem.0 a b")
def joined_by_name():
    return Net(
        lambda s, x: (lambda y: s.head(F.relu(torch.cat(tensors=[s.a(y), s.b(y)], dim=1))))(s.stem(x)),
        stem=block(3, 8),
        a=conv(8, 5),
        b=conv(8, 3),
        head=head(8),
    )


@case(removable="stem.0 last")
def pixel_shuffle_as_a_function():
    return Net(lambda s, x: s.head(F.pixel_shuffle(s.last(s.stem(x)), 2)), stem=block(3, 8), last=conv(8, 16), head=head(4))


@case(VECTOR, removable="first")
def unflattened_by_what_is_left():
    def call(s, x):
        return s.head(F.relu(s.first(x)).unflatten(1, (-1, 2, 2)))

    return Net(call, first=nn.Linear(8, 24), head=head(6))


# ---- sizes -----------------------------------------------------------------------------------------------------------------


@case(removable="stem tail")
def divides_by_the_channel_count():
    return Net(
        lambda s, x: (lambda y: s.head(F.relu(s.tail(y / y.shape[1]))))(F.relu(s.stem(x))),
        stem=conv(3, 8),
        tail=conv(8, 6),
        head=head(6),
    )


class OwnPadding(nn.Conv2d):
    """Pads by its own kernel size, which is no count of channels."""

    def forward(self, x):
        h, w = self.weight.shape[-2:]
        k = self.weight.size(2) - 1 + h - w
        return F.conv2d(F.pad(x, (k // 2, k - k // 2, k // 2, k - k // 2)), self.weight, self.bias, self.stride)


@case(removable="0 2 4")
def reads_its_kernel_size():
    layers = (OwnPadding(3, 8, 3), nn.ReLU(), OwnPadding(8, 12, 3, stride=2), nn.ReLU(), OwnPadding(12, 6, 2), nn.ReLU())
    return nn.Sequential(*layers, head(6))


@case(removable="a b c")
def arithmetic_on_parts_of_shapes():
    def call(s, x):
        x = s.b(F.relu(s.a(x)))
        rest = x.shape[1:][1:]
        x = x * (rest[0] / rest[1]) + x.shape[1] / 8 + x.dim() * s.a.weight.shape[0] ** -0.5
        y = s.c(x.reshape(x.shape[0], x.size(1), -1).reshape(x.shape))
        return s.head(y.view(y.shape[0], s.c.weight.shape[0], -1).mean(2).view(-1, s.c.bias.shape[0]))

    return Net(call, a=conv(3, 8), b=conv(8, 7), c=conv(7, 6), head=nn.Linear(6, 4))


@case(removable="tail", frozen={"stem": "computes with the number of channels"})
def as_many_positions_as_channels():
    return Net(
        lambda s, x: (lambda y: s.head(F.relu(s.tail(F.adaptive_avg_pool2d(y, y.shape[1] // 2)))))(F.relu(s.stem(x))),
        stem=conv(3, 8),
        tail=conv(8, 6),
        head=head(6),
    )


# ---- recurrent layers ------------------------------------------------------------------------------------------------------


@case(TOKENS, removable="before tall deep.0 last")
def recurrent_layers():
    """Several layers, both directions, the batch first or second, the last step, all steps, the state at the end."""

    def call(s, x):
        x, (h, c) = s.tall(F.relu(s.before(x)))
        y, last = s.deep[0](s.between(x[:, 1:]).transpose(0, 1))
        z = s.last(torch.relu(y))[0][-1]
        return s.head(torch.cat([z, last[-1], h[1] * c[0]], 1))

    return Net(
        call,
        before=nn.Linear(8, 12),
        tall=nn.LSTM(12, 6, num_layers=2, batch_first=True),
        between=nn.Linear(6, 7),
        deep=nn.Sequential(nn.GRU(7, 5, num_layers=2, bidirectional=True)),
        last=nn.RNN(10, 8, nonlinearity="relu", bias=False),
        head=nn.Linear(19, 4),
    )


@case(removable="0.0 2")
def columns_of_an_image_in_order():
    """A recurrent layer reads the columns of what convolutions give: channels and rows are one axis of it."""
    columns = Net(lambda s, x: x.permute(0, 3, 1, 2).flatten(2))
    return nn.Sequential(
        block(3, 6),
        columns,
        nn.LSTM(48, 4, batch_first=True, bidirectional=True),
        Net(lambda s, x: x[0]),
        nn.Linear(8, 4),
    )


@case(TOKENS, removable="before long short plain")
def recurrent_cells():
    def call(s, x):
        x = F.relu(s.before(x))
        h, c = s.long(x[:, 0])
        y = s.short(h * c)
        for step in range(1, 3):
            h, c = s.long(x[:, step], (h, c))
            y = s.short(h, y)
        return s.head(s.plain(y))

    return Net(
        call,
        before=nn.Linear(8, 7),
        long=nn.LSTMCell(7, 6),
        short=nn.GRUCell(6, 5, bias=False),
        plain=nn.RNNCell(5, 6),
        head=nn.Linear(6, 4),
    )


@case(TOKENS, VECTOR, removable="start last")
def recurrent_state_from_a_vector():
    """The first state is computed, from channels that go with the units."""

    def call(s, x, y):
        h = s.start(y).unsqueeze(0)
        x, h = s.units(x.transpose(0, 1), h)
        return s.head(F.relu(s.last(h[0] + x[-1])))

    return Two(call, start=nn.Linear(8, 6), units=nn.GRU(8, 6), last=nn.Linear(6, 5), head=nn.Linear(5, 4))


# ---- branches --------------------------------------------------------------------------------------------------------------


@case(removable="stem.0 a.0 last.0")
def branches_stacked_and_added():
    def call(s, x):
        x = s.stem(x)
        y = torch.stack([s.a(x), s.b(x), s.c(x)], dim=1)
        return s.head(s.last(y.sum(1) + y.amax(dim=1) * torch.stack([s.b(x), s.c(x)], -1).mean(-1)))

    return Net(call, stem=block(3, 8), a=block(8, 6), b=block(8, 6, 1), c=block(8, 6), last=block(6, 5), head=head(5))


@case(TOKENS, removable="q p r")
def reduced_over_heads():
    """The axis that is reduced has more channels than the one that stays: the latter is the one to choose from."""

    def call(s, x):
        mean, most, one = (part(x).unflatten(-1, (4, 3)) for part in (s.q, s.p, s.r))
        return s.head(torch.cat([mean.mean(2), most.max(2)[0], one.softmax(2)[:, :, 0]], -1))

    return Net(call, q=nn.Linear(8, 12), p=nn.Linear(8, 12), r=nn.Linear(8, 12), head=nn.Linear(9, 4))


@case(removable="stem.0 a.0 squeeze.0 last.0")
def selective_kernels():
    """Branches are weighed by a softmax over them, channel by channel."""

    def call(s, x):
        x = s.stem(x)
        y = torch.stack([s.a(x), s.b(x)], dim=1)
        z = s.squeeze(y.sum(dim=1).mean((2, 3)))
        weights = torch.stack([s.left(z), s.right(z)], dim=1).softmax(dim=1)
        return s.head(s.last((y * weights[..., None, None]).sum(dim=1)))

    squeeze = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    parts = dict(squeeze=squeeze, left=nn.Linear(4, 6), right=nn.Linear(4, 6))
    return Net(call, stem=block(3, 8), a=block(8, 6), b=block(8, 6, 5), **parts, last=block(6, 5), head=head(5))


@case(removable="stem.0 wide.0 squeeze.0 last.0")
def selective_kernels_of_one_layer():
    """Branches are cut out of one layer by a view, and so are their weights."""

    def call(s, x):
        x = s.stem(x)
        y = s.wide(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w)
        z = s.squeeze(y.sum(1).mean((2, 3), keepdim=True))
        weights = s.expand(z).view(b, 2, c // 2, 1, 1).softmax(1)
        return s.head(s.last((y * weights).sum(1)))

    parts = dict(squeeze=block(6, 4, 1), expand=conv(4, 12, 1))
    return Net(call, stem=block(3, 8), wide=block(8, 12), **parts, last=block(6, 5), head=head(5))


@case(removable="stem.0 last.0")
def split_attention():
    """Groups of radix 2 in 4 cardinal groups, weighed by a softmax over the radix."""

    def call(s, x):
        y = s.wide(s.stem(x))
        a, b = torch.split(y, 8, dim=1)
        z = s.squeeze((a + b).mean((2, 3), keepdim=True))
        weights = s.expand(z).view(x.shape[0], 4, 2, -1).transpose(1, 2).softmax(dim=1).reshape(x.shape[0], -1, 1, 1)
        first, second = torch.split(weights, 8, dim=1)
        return s.head(s.last(first * a + second * b))

    wide = nn.Sequential(conv(16, 16, groups=8, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    parts = dict(squeeze=nn.Sequential(conv(8, 4, 1, groups=4), nn.ReLU()), expand=conv(4, 16, 1, groups=4))
    return Net(call, stem=block(3, 16), wide=wide, **parts, last=block(8, 5), head=head(5))


@case(TOKENS, removable="first q fc1")
def einsum_with_channels_that_pass():
    def call(s, x):
        x = torch.einsum("bnc,c,nm->bmc", F.relu(s.first(x)), s.gamma, s.mix) + torch.einsum(
            "...nc,nc->...nc", s.first(x), s.position
        )
        q, k, v = (layer(x).unflatten(-1, (4, 2)) for layer in (s.q, s.k, s.v))
        weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
        x = torch.einsum("b h i j, b j h d -> b i h d", weights, v).flatten(2)
        return s.head(torch.einsum("bnc,bnd->bcd", F.gelu(s.fc1(x)), s.fc2(x)[..., :1]).squeeze(-1))

    tables = dict(
        gamma=nn.Parameter(torch.rand(10)), mix=nn.Parameter(torch.randn(6, 6)), position=nn.Parameter(torch.randn(6, 10))
    )
    qkv = {name: nn.Linear(10, 8) for name in "qkv"}
    return Net(call, first=nn.Linear(8, 10), **tables, **qkv, fc1=nn.Linear(8, 9), fc2=nn.Linear(8, 2), head=nn.Linear(9, 4))


@case(TOKENS, removable="a b fc1", frozen={"c": "channels by channels"})
def einsum_over_channels():
    def call(s, x):
        scores = (lambda y: torch.einsum("bnc,bmc->bnm", y, y))(s.a(x))
        outer = torch.einsum("bnc,bnd->bcd", s.b(x), s.c(x)).flatten(1)
        return s.head(F.relu(s.fc1(torch.cat([scores.flatten(1), outer], 1))))

    return Net(call, a=nn.Linear(8, 4), b=nn.Linear(8, 3), c=nn.Linear(8, 2), fc1=nn.Linear(42, 6), head=nn.Linear(6, 4))


@case(TOKENS, removable="embed up")
def tokens_times_tables():
    """Positions, a class token by expand and cat, a scale per channel, a scale per token."""

    def call(s, x):
        x = s.embed(x)
        x = torch.cat((s.token.expand(x.shape[0], -1, -1), x), dim=1) * s.per_token + s.position
        x = x + s.gamma * s.down(F.gelu(s.up(x)))
        return s.head(torch.cat([x[:, 0], x[:, 1:].mean(1)], -1))

    tables = dict(token=(1, 1, 10), position=(1, 7, 10), gamma=(10,), per_token=(7, 1))
    parameters = {name: nn.Parameter(torch.randn(shape)) for name, shape in tables.items()}
    return Net(call, embed=nn.Linear(8, 10), up=nn.Linear(10, 12), down=nn.Linear(12, 10), head=nn.Linear(20, 4), **parameters)


# ---- entries chosen, and numbers for many entries --------------------------------------------------------------------------


@case((3, 10), removable="a b")
def largest_over_points():
    return Net(
        lambda s, x: s.head(torch.max(s.b(F.relu(s.a(x))), 2)[0]),
        a=nn.Conv1d(3, 8, 1),
        b=nn.Conv1d(8, 6, 1),
        head=nn.Linear(6, 4),
    )


@case((3, 10), removable="a.0 b.0 c.0 d.0")
def chosen_over_points():
    """Values by name, by number and unpacked; the axis is any but that of the channels."""

    def call(s, x):
        x = s.b(s.a(x).sort(dim=-1).values)
        values, places = x.topk(4, dim=2)
        x = s.c(torch.cummax(values, 2).values + torch.cummin(places * 0.1, dim=-1)[0])
        low, high = torch.aminmax(x, dim=2)
        x = s.d((torch.kthvalue(x, 2, keepdim=True)[0] + x.median(-1, keepdim=True)[0] + torch.max(x, x * 0.5)).argsort(2) * 0.3)
        return s.head(torch.cat([low, high, x.mode().values, x.argmax(2), x.max(dim=2).values - x.min(2)[0]], 1))

    layers = {n: nn.Sequential(nn.Conv1d(i, o, 1), nn.ReLU()) for n, i, o in (("a", 3, 8), ("b", 8, 7), ("c", 7, 6), ("d", 6, 5))}
    return Net(call, **layers, head=nn.Linear(27, 4))


@case((3, 10), removable="a.0", frozen={"b": "argmax (models.py:", "c": "compares channels", "d": "max (models.py:"})
def chosen_among_channels():
    def call(s, x):
        x = s.a(x)
        return torch.cat(
            [s.b(x).argmax(1) * 0.1, s.c(x).sort(1)[0].mean(1), s.d(x).mean(2).max()[None, None].expand(x.shape[0], 1)], 1
        )

    return Net(
        call, a=nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU()), b=nn.Conv1d(8, 4, 1), c=nn.Conv1d(8, 4, 1), d=nn.Conv1d(8, 4, 1)
    )


@case(removable="a.0 b.0 c.0 d.0")
def norms_and_spreads_over_space():
    def call(s, x):
        x = s.a(x)
        x = s.b(x * x.norm(p=2, dim=(2, 3), keepdim=True) + torch.norm(x, dim=2, keepdim=True))
        spread, mean = torch.std_mean(x, (2, 3), keepdim=True)
        x = s.c(F.normalize((x - mean) / (spread + 1), dim=2) + torch.linalg.vector_norm(x, 3, dim=(2, 3), keepdim=True))
        x = s.d(torch.logsumexp(x, (2, 3), keepdim=True) + x * 0.1 + torch.prod(x + 0.5, 2, keepdim=True).tanh())
        return s.head(torch.var_mean(x, dim=(2, 3))[1] + x.flatten(2).quantile(0.3, -1) + torch.linalg.norm(x, dim=(2, 3)))

    return Net(call, a=block(3, 8), b=block(8, 7), c=block(7, 6), d=block(6, 5), head=nn.Linear(5, 4))


@case(removable="stem.0 wide")
def responses_by_their_mean_over_channels():
    """Global response normalization: the norm is that of each channel, its mean is that of all of them."""

    def call(s, x):
        y = F.relu(s.wide(s.stem(x)))
        n = y.norm(p=2, dim=(2, 3), keepdim=True)
        return s.head(s.narrow(y + y * (n / (n.mean(dim=1, keepdim=True) + 1e-6)) * s.gamma))

    return Net(
        call, stem=block(3, 8), wide=conv(8, 12, 1), narrow=conv(12, 6, 1), gamma=nn.Parameter(torch.rand(12, 1, 1)), head=head(6)
    )


@case((3, 10), removable="a.0 b.0 c.0")
def looked_up_along_points():
    """Places that a channel has found for itself, and places that are the same for all channels."""

    def call(s, x):
        x = s.a(x)
        x = s.b(torch.gather(x, 2, x.topk(5, 2).indices) + x.take_along_dim(x.argsort(2), 2)[..., :5])
        x = s.c(x[:, :, s.order] + x[..., s.order] + torch.index_select(x, 2, s.order))
        return s.head(x.amax(2))

    net = Net(call, **{n: nn.Sequential(nn.Conv1d(i, o, 1), nn.ReLU()) for n, i, o in (("a", 3, 8), ("b", 8, 7), ("c", 7, 6))})
    net.head = nn.Linear(6, 4)
    net.register_buffer("order", torch.tensor([3, 1, 1, 4, 0, 2]))
    return net


@case(TOKENS, removable="fc1 qkv")
def attention_with_a_table_of_relative_positions():
    def attend(s, x):
        B, N, _ = x.shape
        q, k, v = s.qkv(x).reshape(B, N, 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        bias = s.table[s.places.view(-1)].view(6, 6, -1).permute(2, 0, 1).contiguous()
        weights = (q @ k.transpose(-2, -1) + bias.unsqueeze(0)).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(B, N, -1)

    net = transformer(attend, qkv=nn.Linear(8, 24), table=nn.Parameter(torch.randn(11, 4)))
    net.register_buffer("places", torch.arange(6)[:, None] - torch.arange(6)[None] + 5)
    return net


@case(removable="stem.0 tail.0")
def fourier():
    return Net(
        lambda s, x: s.head(s.tail(torch.fft.ifft2(torch.fft.fft2(s.stem(x))).real)),
        stem=block(3, 8),
        tail=block(8, 6),
        head=head(6),
    )


# ---- what must stay --------------------------------------------------------------------------------------------------------


@case(removable="1.0", frozen={"0.0": "triu"})
def unknown_operation():
    class Upper(nn.Module):
        def forward(self, x):
            return torch.triu(x)

    return nn.Sequential(nn.Sequential(*block(3, 8), Upper()), block(8, 6), head(6))


def some_line(channels, axis=1):
    return channel_affine(torch.rand(channels) + 0.5, torch.randn(channels), axis)


@case(removable="stem.0 first")
def lines_of_images():
    return Net(
        lambda s, x: (lambda y: s.head(s.both(y + s.second(s.inner(s.first(y))))))(s.stem(x)),
        stem=block(3, 8),
        first=conv(8, 6),
        inner=some_line(6),
        second=conv(6, 8),
        both=some_line(8),
        head=head(8),
    )


@case(TOKENS, removable="0")
def lines_of_tokens():
    return nn.Sequential(nn.Linear(8, 12), some_line(12, -1), nn.Linear(12, 8))


class Branches(nn.Module):
    """Depends on data."""

    def __init__(self):
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x):
        if x.sum() > 0:
            return self.conv(x)
        return x


@case(removable="2.0", frozen={"0.0": "cannot be traced (models.py:"})
def opaque_part():
    return nn.Sequential(block(3, 8), Branches(), block(8, 6), head(6))


@case(removable="1", frozen={"input of 1": "0 has hooks"})
def hooked_layer():
    first = nn.Conv2d(3, 8, 3)
    first.register_forward_hook(_doubles)
    return nn.Sequential(first, conv(8, 6), nn.ReLU(), head(6))


def _doubles(_layer, _inputs, output):
    return 2 * output


@case(removable="stem.0 last")
def parameters_of_two_uses():
    """No layer can have a parameter that another one has, too: these stay functions."""

    def call(s, x):
        x = F.prelu(F.batch_norm(s.stem(x), s.running_mean, s.running_var, s.gamma, s.beta), s.gamma)
        return s.head(s.last(x))

    net = Net(call, stem=block(3, 8), last=conv(8, 6), head=head(6))
    net.gamma, net.beta = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
    net.register_buffer("running_mean", torch.rand(8))
    net.register_buffer("running_var", torch.rand(8) + 0.5)
    return net


@case(VECTOR, removable="words hidden")
def words_and_places():
    """A table looked up by the input, and one looked up at places known beforehand."""

    def call(s, x):
        x = s.words(x.long().clamp(-5, 5) + 5) + s.places(torch.arange(x.shape[1], device=x.device))
        return s.last(F.relu(s.hidden(x)).mean(1))

    layers = dict(hidden=nn.Linear(6, 10), last=nn.Linear(10, 4))
    return Net(call, words=nn.Embedding(11, 6), places=nn.Embedding(8, 6), **layers)


@case(TOKENS, removable="hidden", frozen={"first": "takes single entries"})
def every_second_channel_of_tokens():
    return Net(
        lambda s, x: s.last(F.relu(s.hidden(s.first(x)[..., ::2]))),
        first=nn.Linear(8, 12),
        hidden=nn.Linear(6, 10),
        last=nn.Linear(10, 4),
    )


@case(VECTOR, VECTOR, removable="a hidden", frozen={"b": "broadcasts it over channels"})
def outer_sum():
    return Two(
        lambda s, x, y: s.last(F.relu(s.hidden((s.a(x).unsqueeze(2) + s.b(y).unsqueeze(1)).mean(2)))),
        a=nn.Linear(8, 6),
        b=nn.Linear(8, 4),
        hidden=nn.Linear(6, 10),
        last=nn.Linear(10, 4),
    )


@case(removable="1.layer 2", frozen={"0": "takes single entries"})
def every_second_channel():
    return nn.Sequential(conv(3, 8), Net(lambda s, x: s.layer(x[:, ::2]), layer=conv(4, 8)), conv(8, 6), nn.ReLU(), head(6))


@case(removable="2.0", frozen={"0.0": "LocalResponseNorm"})
def local_response_norm():
    return nn.Sequential(block(3, 8), nn.LocalResponseNorm(2), block(8, 6), head(6))


@case(removable="tail.0", frozen={"stem.0": "indexed by a tensor"})
def fixed_permutation():
    net = Net(lambda s, x: s.head(s.tail(s.stem(x)[:, s.order])), stem=block(3, 8), tail=block(8, 6), head=head(6))
    net.register_buffer("order", torch.randperm(8))
    return net


@case(removable="0.0")
def softmax_over_positions():
    return nn.Sequential(block(3, 8), nn.Softmax(-1), conv(8, 6), head(6))


@case(removable="trunk.0", frozen={"last": "softmax (models.py:"})
def softmax_over_channels():
    return Net(lambda s, x: torch.softmax(s.last(s.trunk(x)), 1), trunk=block(3, 8), last=conv(8, 4))


@case(removable="first last")
def normalized_over_channels():
    return Net(lambda s, x: s.head(F.normalize(s.last(F.relu(s.first(x))))), first=conv(3, 8), last=conv(8, 6), head=head(6))


@case(removable="first", frozen={"last": "reduces over channels"})
def normalized_over_channels_of_which_none_is_zero():
    def call(s, x):
        return s.head(F.normalize(s.last(F.relu(s.first(x))).sigmoid() + 1))

    return Net(call, first=conv(3, 8), last=conv(8, 6), head=head(6))


@case(removable="stem b")
def windows_and_places():
    """Windows are cut and added up again, pictures are read at other places, and every other row is another one."""

    def call(s, x):
        y = F.relu(s.stem(x))
        cut = F.unfold(y, 3, padding=1).view(len(y), 8, 9, -1) * s.a(y).flatten(2).unsqueeze(2)
        added = F.fold(cut.flatten(1, 2), y.shape[2:], 3, padding=1)
        turned = F.grid_sample(s.b(added), s.places.expand(len(y), -1, -1, -1), align_corners=False)
        return s.head(torch.slice_scatter(turned, s.mixed(added)[:, :, ::2], 2, step=2))

    parts = dict(stem=conv(3, 8), a=conv(8, 8), b=conv(8, 6), mixed=conv(8, 6), head=head(6))
    return Net(call, **parts, places=nn.Parameter(torch.rand(1, 8, 8, 2) * 2 - 1))


@case(removable="stem a", frozen={"far": "compares channels in a way that is not followed"})
def cosines_of_two_maps():
    def call(s, x):
        y = F.relu(s.stem(x))
        near = F.cosine_similarity(s.a(y), s.b(y), dim=1).unsqueeze(1)
        far = F.cosine_similarity(s.far(y), x[:, :1])
        return s.head(torch.cat([near, far.unsqueeze(1)], 1))

    return Net(call, stem=conv(3, 8), a=conv(8, 6), b=conv(8, 6), far=conv(8, 4), head=head(2))


@case(TOKENS, removable="q out fc1")
def queries_that_are_learned_and_normed_before_they_read():
    def call(s, x):
        latent = s.latent.unsqueeze(0).repeat(x.shape[0], 1, 1)
        q, (k, v) = s.q(s.norm(latent)), s.kv(x).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in (q, k, v))
        latent = latent + s.out(((q @ k.transpose(-2, -1) / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return s.head((latent + s.fc2(F.gelu(s.fc1(s.norm2(latent))))).mean(1))

    layers = dict(q=nn.Linear(8, 12), kv=nn.Linear(8, 24), out=nn.Linear(12, 8), fc1=nn.Linear(8, 10), fc2=nn.Linear(10, 8))
    return Net(
        call, latent=nn.Parameter(torch.randn(5, 8)), norm=nn.LayerNorm(8), norm2=nn.LayerNorm(8), **layers, head=nn.Linear(8, 3)
    )


@case((4, 3, 8, 8), removable="look gates last")
def a_recurrence_that_begins_with_zeros():
    def call(s, x):
        batch, steps = x.shape[:2]
        h, c = x.new_zeros(batch, 8, 8, 8), x.new_full((batch, 8, 8, 8), 0.5)
        for t in range(steps):
            i, f, o, g = torch.split(s.gates(torch.cat([F.relu(s.look(x[:, t])), h], 1)), 8, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return s.head(F.relu(s.last(h)))

    return Net(call, look=conv(3, 6), gates=conv(14, 32), last=conv(8, 7), head=head(7))


@case(TOKENS, removable="first")
def a_recurrent_layer_that_is_given_its_first_state():
    def call(s, x):
        state = torch.zeros(1, x.size(0), 9), torch.full((1, x.size(0), 9), 0.5)
        return s.head(s.cells(F.relu(s.first(x)), state)[0][:, -1])

    return Net(call, first=nn.Linear(8, 7), cells=nn.LSTM(7, 9, batch_first=True), head=nn.Linear(9, 4))


@case((3, 6, 4), removable="first second last")
def a_learned_graph_between_positions_that_are_fixed():
    def call(s, x):
        graph = s.neighbors * s.importance
        y = torch.einsum("nkctv,kvw->nctw", s.first(x).unflatten(1, (3, -1)), graph)
        y = torch.einsum("nkctv,kvw->nctw", (s.second(F.relu(y)).unflatten(1, (3, -1)), s.neighbors))
        return s.head(F.relu(s.last(y)))

    net = Net(call, first=conv(3, 24, 1), second=conv(8, 30, 1), last=conv(10, 6, 1), head=head(6))
    net.register_buffer("neighbors", torch.rand(3, 4, 4).round())
    net.importance = nn.Parameter(torch.rand(3, 4, 4))
    return net


# ---- what is asserted of a value, and what only looks like it (here because pytest rewrites the assertions of tests) ---------


def asserts_a_value(x):
    assert x.abs().max() < 100
    return x


def asserts_with_a_message(x):
    assert (x == x).all(), f"found {x.shape}"
    return x * 2


def asserts_in_a_function_of_its_own(x):
    def checked(y):
        assert y.sum() < 1e9
        return y

    return checked(x + 1)


def asserts_the_contrary(x):
    assert not x.max() > 100
    return x


def asserts_two_values(x):
    assert x.min() > -100 and x.max() < 100, "out of range"
    return x


def asserts_one_of_two(x):
    assert x.max() < 100 or x.min() > 100
    return x


def goes_on_unless(x):
    if not torch.isfinite(x).all():
        print("not finite")
        raise ValueError(f"found {x.shape}")
    return x


def raises_where_one_of_two_holds(x):
    if torch.isnan(x).any() or x.abs().max().item() > 1e4:
        raise AssertionError("out of range")
    return x


def raises_where_two_hold(x):
    for bound in (100, 1000):
        if bool(x.max() > bound) and float(x.min()) > bound:
            raise ValueError
    return x


def raises_at_the_end(x):
    if (x == x).all():
        return x
    raise ValueError("not a number")


def chooses(x):
    return x if x.max() < 100 else -x


def chooses_and_then_raises(x):
    if x.max() > 0:
        x = -x
    elif x.min() > 100:
        raise ValueError
    return x


def remembers(x):
    largest = x.max().item()
    if largest > 100:
        raise ValueError
    return x / largest


def catches_what_it_raises(x):
    try:
        if x.max() > 0:
            raise ValueError
    except ValueError:
        return -x
    return x


def catches_what_a_function_asserts(x):
    try:
        return asserts_the_contrary(x * 1e4)
    except AssertionError:
        return x


def rotated(x, angles):
    """Rotary embedding: the halves of the last axis are pairs."""
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


def by_halves(s, positions):
    return (torch.arange(positions).float()[:, None] * s.frequencies).repeat(1, 2)


def rotary(attend, queries, keys, width=4, **more):
    """A layer with rotary embeddings, of so many heads of queries and of keys."""

    def call(s, x):
        n = x.shape[1]
        q, k, v = (layer(x).view(x.shape[0], n, -1, width).transpose(1, 2) for layer in (s.q, s.k, s.v))
        y = attend(s, q, k, v, by_halves(s, n))
        return s.head(s.out(y.transpose(1, 2).reshape(x.shape[0], n, -1)).mean(1))

    sizes = {"q": queries * width, "k": keys * width, "v": keys * width}
    net = Net(call, **{name: nn.Linear(8, size) for name, size in sizes.items()}, **more)
    net.out, net.head = nn.Linear(queries * width, 6), nn.Linear(6, 3)
    net.register_buffer("frequencies", 0.7 ** torch.arange(width // 2))
    return net


@case(TOKENS, removable="q out")
def rotary_attention_of_grouped_queries():
    def attend(s, q, k, v, angles):
        k, v = (torch.cat((torch.tensor([]), t), dim=-2) for t in (rotated(k, angles), v))  # a cache that is empty
        return F.scaled_dot_product_attention(rotated(q, angles), k, v, is_causal=True, enable_gqa=True)

    return rotary(attend, 6, 3)


def served(x, queries):
    """Each head of keys for several heads of queries, as transformers writes it."""
    b, heads, n, width = x.shape
    return x[:, :, None].expand(b, heads, queries // heads, n, width).reshape(b, queries, n, width)


@case(TOKENS, removable="q out")
def rotary_attention_step_by_step():
    def attend(s, q, k, v, angles):
        k, v = (served(t, 6) for t in (rotated(k, angles), v))
        return ((rotated(q, angles) @ k.transpose(-2, -1)) / 2 + s.bias).softmax(-1) @ v

    net = rotary(attend, 6, 3)
    net.register_buffer("bias", torch.randn(6, 6))
    return net


@case(TOKENS, removable="q out", frozen={"input of norm": "broadcasts it over channels"})
def every_second_channel_turns_and_heads_are_normed():
    """The other way to pair channels, keys that are repeated, and one weight for the norms of all heads."""

    def turned(x, angles):
        return x * angles.cos() + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * angles.sin()

    def attend(s, q, k, v, angles):
        angles = angles[:, :2].repeat_interleave(2, dim=-1)
        q, k = (turned(t * (t.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * s.norm.weight, angles) for t in (q, k))
        k, v = k.repeat_interleave(2, dim=1), torch.repeat_interleave(v, 2, 1)
        return F.scaled_dot_product_attention(q, k, v)

    net = rotary(attend, 6, 3)
    net.norm = nn.Module()
    net.norm.weight = nn.Parameter(torch.rand(4) + 0.5)
    return net


@case(TOKENS, removable="q v out")
def pairs_of_channels_where_one_key_serves_all_queries():
    def attend(s, q, k, v, angles):
        return F.scaled_dot_product_attention(rotated(q, angles), rotated(k, angles), v, enable_gqa=True)

    return rotary(attend, 4, 1, width=6)


@case(TOKENS, removable="q v out")
def heads_are_normed_where_one_key_serves_all_queries():
    """As in Gemma 3: each head of queries has a statistic of its own, in which channels that go count as zeros."""

    def attend(s, q, k, v, angles):
        q, k = (
            rotated(t * (t.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + norm.weight), angles)
            for t, norm in ((q, s.norm_q), (k, s.norm_k))
        )
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    net = rotary(attend, 4, 1, width=6)
    net.norm_q, net.norm_k = nn.Module(), nn.Module()
    net.norm_q.weight, net.norm_k.weight = (nn.Parameter(torch.rand(6) - 0.5) for _ in range(2))
    return net


@case(TOKENS, removable="q v out")
def a_single_head_written_as_einsum():
    def attend(s, q, k, v, angles):
        q, k, v = (t[:, 0] for t in (rotated(q, angles), rotated(k, angles), v))
        weights = (torch.einsum("bid,bjd->bij", q, k) / 2).softmax(-1)
        return torch.einsum("bij,bjd->bid", weights, v)[:, None]

    return rotary(attend, 1, 1, width=6)


@case(TOKENS, removable="q v out")
def one_key_for_all_queries_written_as_einsum():
    def attend(s, q, k, v, angles):
        weights = (torch.einsum("bhid,bjd->bhij", rotated(q, angles), rotated(k, angles)[:, 0]) / 2).softmax(-1)
        return torch.einsum("bhij,bjd->bhid", weights, v[:, 0])

    return rotary(attend, 4, 1, width=6)


@case(TOKENS, removable="q out")
def heads_written_as_einsum():
    def attend(s, q, k, v, angles):
        weights = (torch.einsum("bhid,bhjd->bhij", rotated(q, angles), rotated(k, angles)) / 2).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", weights, v)

    return rotary(attend, 4, 4)


@case((5,), removable="back hidden", frozen={"table": "output"})
def a_table_that_scores_what_it_gave_to_a_normed_stream():
    """Tied weights, as in many language models: masking what reads the stream masks what made it, too."""

    def call(s, x):
        x = s.table((x.abs() * 3).long().clamp(max=9))
        x = x + s.back(F.relu(s.hidden(s.norm(x))))
        return F.linear(s.norm(x), s.table.weight)

    layers = {"hidden": nn.Linear(8, 6), "back": nn.Linear(6, 8, bias=False)}
    return Net(call, table=nn.Embedding(10, 8), norm=nn.RMSNorm(8), **layers)


@case(removable="stem.0 theta value")
def attention_of_a_single_head_over_positions():
    """A non-local block: what queries and keys have in common is summed, and the values pass."""

    def call(s, x):
        x = s.stem(x)
        q, k, v = (layer(x).flatten(2) for layer in (s.theta, s.phi, s.value))
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(-1)
        return s.head(x + s.back((v @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])))

    layers = {name: nn.Conv2d(8, 5, 1) for name in ("theta", "phi", "value")}
    return Net(call, stem=block(3, 8), **layers, back=nn.Conv2d(5, 8, 1), head=head(8))


@case(TOKENS, frozen={"q": "do not vanish"}, removable="v out")
def a_sum_over_channels_that_do_not_vanish():
    """A channel without its makers is no zero behind the sigmoid: of queries and keys none can go where there is one head."""

    def attend(s, q, k, v, angles):
        return F.scaled_dot_product_attention(q.sigmoid(), k.sigmoid(), v)

    return rotary(attend, 1, 1, width=6)


@case(removable="stem.0 hidden")
def filtered_by_frequency():
    """A global filter: each channel for itself, by complex weights in the shape of its spectrum."""

    def call(s, x):
        x = s.stem(x)
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(s.filters.weight)
        x = x + torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho") + torch.fft.fft(x, dim=2).real
        return s.head(x + s.back(F.relu(s.hidden(x))))

    net = Net(call, stem=block(3, 8), filters=nn.Module(), hidden=conv(8, 6), back=conv(6, 8), head=head(8))
    net.filters.weight = nn.Parameter(torch.randn(8, 8, 5, 2) / 4)
    return net


@case(TOKENS, removable="hidden", frozen={"first": "mixes channels"})
def mixed_by_a_transform():
    """FNet: the transform runs over channels, too."""

    def call(s, x):
        x = s.first(x)
        x = x + torch.fft.fftn(x, dim=(1, 2)).real
        return s.last(F.relu(s.hidden(x)))

    return Net(call, first=nn.Linear(8, 12), hidden=nn.Linear(12, 10), last=nn.Linear(10, 4))


CHECKS = (
    *(asserts_a_value, asserts_with_a_message, asserts_in_a_function_of_its_own, asserts_the_contrary, asserts_two_values),
    *(asserts_one_of_two, goes_on_unless, raises_where_one_of_two_holds, raises_where_two_hold, raises_at_the_end),
)
CHOICES = (chooses, chooses_and_then_raises, catches_what_it_raises, catches_what_a_function_asserts)


def random_model(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A model of the table with random weights and statistics, and a batch of 1."""
    torch.manual_seed(seed)
    found = MODELS[name]
    model = found.make().eval()
    randomise(model)
    return model, tuple(torch.randn(1, *shape) for shape in found.shapes)


def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters of norms away from 0 and 1, where every mistake would be invisible."""
    for m in model.modules():
        for name, t in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)):
            if isinstance(m, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) and t.ndim == 1:
                spread = (0.5, 1.5) if name in ("weight", "running_var") else (-0.3, 0.3)
                t.data.uniform_(*spread)
