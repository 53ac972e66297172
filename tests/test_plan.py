"""Plans as data: every kind of edit survives JSON, and one that cannot be is refused with the reason."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.edits import KINDS, Edit, Factor, Keep, Linearize, Merge, Plan, Pointwise, Relocate, from_json
from compress.errors import BadInput

NAMES = st.text(min_size=1)
CHAINS = st.lists(NAMES, min_size=2, max_size=4, unique=True).map(tuple)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def lines(draw: st.DrawFn) -> Linearize:
    channels = draw(st.integers(1, 4))
    numbers = st.lists(NUMBERS, min_size=channels, max_size=channels).map(tuple)
    slope, offset = draw(st.one_of(st.just(((), ())), st.tuples(numbers, numbers)))
    return Linearize(draw(NAMES), channels, slope, offset)


EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(lambda layer, kept: Keep(layer, 100, tuple(sorted(kept))), NAMES, st.sets(st.integers(0, 99), min_size=1)),
    lines(),
    st.builds(Relocate, CHAINS),
    st.builds(Merge, CHAINS),
    st.builds(Pointwise, NAMES),
    st.builds(Factor, NAMES, st.integers(1, 64)),
)
ONE_OF_EACH = (Keep("a", 2, (0,)), Linearize("b", 2), Pointwise("g"), Relocate(("c", "d")), Merge(("e", "f")), Factor("h", 2))


@given(st.lists(EDITS, max_size=5), st.text(), st.integers(1, 64))
def test_every_kind_of_edit_survives_json_in_its_order(edits, method, align):
    plan = Plan(tuple(edits), method, align)
    assert from_json(plan.to_json()) == plan
    assert from_json(plan.to_json()).digest == plan.digest


def test_no_kind_of_edit_is_forgotten_in_json():
    assert {type(edit) for edit in ONE_OF_EACH} == set(KINDS), "a new kind belongs into this table, and into EDITS"
    assert from_json(Plan(ONE_OF_EACH).to_json()).edits == ONE_OF_EACH


def test_a_plan_of_kept_channels_is_written_as_it_always_was():
    text = Plan((Keep("conv", 3, (0, 2)),), "entropic", 8).to_json()
    edit = {"edit": "keep", "layer": "conv", "channels": 3, "keep": [0, 2]}
    assert json.loads(text) == {"schema": 1, "method": "entropic", "align": 8, "edits": [edit]}


def test_every_edit_says_its_layer_and_a_chain_its_first():
    assert [edit.layer for edit in ONE_OF_EACH] == ["a", "b", "g", "c", "e", "h"]


@pytest.mark.parametrize("kind", [Merge, Relocate])
@pytest.mark.parametrize("layers", [(), ("a",), ("a", "b", "a")])
def test_a_chain_needs_two_layers_each_once(kind, layers):
    with pytest.raises(BadInput, match="two or more layers, each once"):
        kind(layers)


@pytest.mark.parametrize(
    ("slope", "offset"), [((1.0,), (0.0, 0.0)), ((1.0, 1.0), ()), ((1.0, float("nan")), (0.0, 0.0)), ((1.0,), (0.0,))]
)
def test_a_line_needs_both_numbers_for_every_channel_or_none(slope, offset):
    with pytest.raises(BadInput, match="a finite number of each per channel, or none"):
        Linearize("relu", 2, slope, offset)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            {"edit": "rotate", "layer": "a"},
            "kind 'rotate', known are 'keep', 'linearize', 'pointwise', 'relocate', 'merge', 'factor'.*upgrade",
        ),
        ({"edit": "merge", "layers": "conv1"}, "Edit 1 of the plan cannot be read \\(layers: needed is a list"),
        ({"edit": "merge"}, "Edit 1 of the plan cannot be read \\(layers: "),
        ({"edit": "merge", "layers": ["a", "b"], "later": 1}, "has 'later', nothing that a 'merge' has"),
        ({"edit": "keep", "layer": "a", "channels": True, "keep": [0]}, "\\(channels: "),
        ({"edit": "keep", "layer": "a", "channels": "4", "keep": [0]}, "\\(channels: "),
        ({"edit": "keep", "layer": "a", "channels": 4, "keep": [0.5]}, "\\(keep.0: "),
        ({"edit": ["keep"]}, "kind .*keep.*known are"),
        (
            {"edit": "linearize", "layer": "a", "channels": 2, "slope": [1], "offset": [0]},
            "1 slopes and 1 offsets for 2 channels",
        ),
    ],
)
def test_an_edit_that_cannot_be_read_is_refused(edit, says):
    with pytest.raises(BadInput, match=says):
        from_json(json.dumps({"schema": 1, "method": "", "align": 1, "edits": [edit]}))
