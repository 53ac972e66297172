"""Planted faults are small, compile, and leave alone what no test ought to pin; a draw is stable."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "mutations", raising=False)
    import mutations

    return mutations


@pytest.mark.parametrize(
    ("line", "faults"),
    [
        ("return a < 2", {"return None", "return a <= 2", "return a < 3", "return a < 1"}),
        ("return not a", {"return None", "return (a)"}),
        ("return a and b", {"return None", "return a or b"}),
        ("return (a) * (b + a)", {"return None", "return (a) / (b + a)", "return (a) * (b - a)"}),
        ("return a[1:]", {"return None", "return a[:]", "return a[2:]", "return a[0:]"}),
        ("return a.sum(-1)", {"return None", "return a.sum(1)", "return a.sum(-2)", "return a.sum(-0)"}),
        ("b.append(a)", {"pass"}),
        ("raise ValueError(f'{a} + 1')", {"pass"}),
        ("assert a < 1", set()),
        ("'a text of 1 < 2'", set()),
        ("return f(a, strict=True)", {"return None"}),
        ("return b if a else a", {"return None", "return b if True else a", "return b if False else a"}),
    ],
)
def test_the_faults_of_a_line_are_these(mutations: ModuleType, line: str, faults: set[str]):
    source = f"def f(a: int = 0, b: 'x < 1' = None):\n    {line}\n".encode()
    found = [one for one in mutations.mutants("x.py", source) if one.line == 2]
    assert {one.after for one in found} == faults
    for one in found:
        assert one.before == line and one.after in one.planted(source).decode()
        ast.parse(one.planted(source))


def test_a_branch_is_forced_and_an_early_return_left_out(mutations: ModuleType):
    source = b"def f(a):\n    if a > 1:\n        return 0\n    return a\n"
    found = {(one.operator, one.line, one.after) for one in mutations.mutants("x.py", source)}
    assert {("condition", 2, "if True:"), ("condition", 2, "if False:"), ("return", 3, "pass")} <= found


def test_a_draw_has_one_fault_a_line_and_stays_where_other_lines_change(mutations: ModuleType):
    source = b"def f(a):\n    b = a + 1\n    c = b * 2\n    return c - 3\n"
    drawn = mutations.draw({"x.py": source}, 10, 0)
    assert sorted(one.line for one in drawn) == [2, 3, 4] and mutations.draw({"x.py": source}, 10, 0) == drawn
    moved = mutations.draw({"x.py": b"import os\n\n" + source.replace(b"b * 2", b"b * 7")}, 10, 0)
    same = {one.id for one in drawn if one.line != 3}
    assert same <= {one.id for one in moved}
    assert [one.id for one in mutations.draw({"x.py": source}, 10, 1)] != [one.id for one in drawn]
