"""Data are known again by what they are: on other machines, and in other processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from compress.data import digest, from_arrays
from compress.data.splits import Data
from compress.data.stores import Stored

DRAWN = np.random.default_rng(0)
X, Y = DRAWN.integers(0, 256, (400, 8, 8), dtype=np.uint8), DRAWN.integers(0, 4, 400)


def data(x: Any = X, y: Any = Y, **settings: Any) -> Data:
    return from_arrays({"x_train": x, "y_train": y, "x_test": x[:50], "y_test": y[:50]}, normalize="none", **settings)


def other_seed() -> Data:
    found = data()
    return replace(found, train=replace(found.train, index=found.train.index.flip(0)))


OTHERS = {
    "shuffled answers": lambda: data(y=np.concatenate([Y[:300], np.roll(Y[300:], 1)])),
    "inverted pictures": lambda: data(x=255 - X),
    "other pictures in the second half": lambda: data(x=np.concatenate([X[:200], X[200:] // 2])),
    "another order": other_seed,
    "fewer": lambda: data(x=X[:-1], y=Y[:-1]),
}


@pytest.mark.parametrize("what", OTHERS)
def test_other_data_is_known(what: str):
    one, other = data(), OTHERS[what]()
    assert digest.exact(one) == digest.exact(data()) and digest.same(digest.told(one), digest.told(data()))
    assert digest.exact(one) != digest.exact(other)
    assert not digest.same(digest.told(one), digest.told(other))


def test_what_another_decoder_rounds_otherwise_is_the_same_data_on_another_machine():
    near = np.clip(X.astype(int) + DRAWN.integers(-1, 2, X.shape), 0, 255).astype(np.uint8)
    assert digest.same(digest.told(data()), digest.told(data(x=near)))
    assert digest.exact(data()) != digest.exact(data(x=near))


def test_real_numbers_are_compared_as_they_are_and_what_is_drawn_anew_is_not():
    one = data()
    (store,) = one.train.inputs
    values = store.read(torch.arange(len(store))).float()

    def with_inputs(values: torch.Tensor) -> Data:
        return replace(one, train=replace(one.train, inputs=(Stored(values),)), held_out=one.held_out, test=one.test)

    assert digest.same(digest.told(with_inputs(values)), digest.told(with_inputs(values.clone())))
    assert not digest.same(digest.told(with_inputs(values)), digest.told(with_inputs(values + 0.5)))
