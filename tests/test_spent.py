"""Where the time of a run went."""

from __future__ import annotations

import pytest

from compress.pipeline.spent import REST, Purse


def test_all_of_the_time_is_told_and_what_nobody_claimed_is_the_rest():
    now = [0.0]
    purse = Purse(lambda: now[0])
    for what, seconds in (("timing", 3.0), ("exporting", 2.0), ("timing", 1.0)):
        with purse.on(what):
            now[0] += seconds
    now[0] += 4.0
    assert [(one.what, one.seconds) for one in purse.told()] == [("timing", 4.0), ("exporting", 2.0), (REST, 4.0)]


def test_a_block_that_raises_has_taken_its_time_too():
    now = [0.0]
    purse = Purse(lambda: now[0])
    with pytest.raises(RuntimeError), purse.on("refit"):
        now[0] += 5.0
        raise RuntimeError
    assert purse.told()[0].seconds == 5.0
