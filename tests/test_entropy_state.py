"""State entropy: counted, never averaged over batches."""

from __future__ import annotations

import torch
from torch import nn

from compress.entropy.state import count
from compress.graph.trace.trace import trace
from compress.statistics.activation_states import watch


def test_a_channel_that_never_switches_has_no_entropy():
    z = torch.ones(4, 3, 5, 5)
    z[:, 1] = -1
    z[:, 2, :, :] = 0  # exactly zero is off
    states = count(z)
    assert states.entropy.tolist() == [0, 0, 0]
    assert states.share_on.tolist() == [1, 0, 0]
    assert (states.always_on, states.always_off) == (1 / 3, 2 / 3)


def test_a_symmetric_input_has_one_bit():
    z = torch.cat([torch.ones(8, 2, 3, 3), -torch.ones(8, 2, 3, 3)])
    assert count(z).entropy.tolist() == [1, 1]


def test_a_vector_of_channels_is_one_sample():
    states = count(torch.tensor([1.0, -1.0, 0.5]), channel_dim=0)
    assert states.on.tolist() == [1, 0, 1] and states.seen == 1


def test_counts_do_not_depend_on_the_batches():
    z = torch.randn(30, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    whole = count(z)
    parts = count(z[:7]) + count(z[7:8]) + count(z[8:])
    assert torch.equal(whole.on, parts.on) and whole.seen == parts.seen


def test_channels_may_be_the_last_axis():
    z = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(count(z, -1).on, count(z.transpose(1, 2), 1).on)


def test_an_activation_of_one_number_a_sample_has_no_channels():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.gate = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(self.conv(x)).mean((2, 3)) * self.gate(x.mean((1, 2, 3))).unsqueeze(1)

    x = torch.randn(2, 3, 4, 4)
    module, states = trace(Gated().eval(), (x,)), {}
    watch(module, states, {}, "easier")
    module(x)
    assert list(states) == ["act"]
