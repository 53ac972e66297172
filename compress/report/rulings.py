"""Verdicts as lines for a terminal, as JUnit for a CI server, and as Markdown for a job's summary."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from compress.report.escape import markdown as text
from compress.report.rules import Ruling


def lines(rulings: Sequence[Ruling]) -> list[str]:
    """One line per rule: verdict, rule, what was found, what was allowed."""
    columns = list(zip(*((r.verdict, r.rule, r.found) for r in rulings), strict=True))
    wide = [max(map(len, column)) for column in columns]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip((r.verdict, r.rule, r.found), wide, strict=True))
        + f"  {r.limit}{_because(r)}"
        for r in rulings
    ]


def blocks(rulings: Sequence[Ruling]) -> list[str]:
    """The same for a terminal in which the lines have no room: a line for the verdict, and one each for what belongs to it."""
    said: list[str] = []
    for r in rulings:
        said += [f"{r.verdict}  {r.rule}", f"  found {r.found}", f"  allowed {r.limit}", *([f"  {r.reason}"] if r.reason else [])]
    return said


def sentence(rulings: Sequence[Ruling], passed: bool) -> str:
    """The whole verdict."""
    counts = [(sum(r.verdict == verdict for r in rulings), words) for verdict, words in COUNTED.items()]
    told = ", ".join(f"{number} {words}" for number, words in counts if number)
    more = ", which --on-noise fail refuses" if passed and any(r.verdict == "cannot tell" for r in rulings) else ""
    return f"{word(rulings, passed).capitalize()}: {told}{more}."


def word(rulings: Sequence[Ruling], passed: bool) -> str:
    """`passed`, `failed`, or `undecided` where nothing failed because nothing could be told."""
    undecided = rulings and all(r.verdict == "cannot tell" for r in rulings)
    return "failed" if not passed else "undecided" if undecided else "passed"


COUNTED = {"pass": "passed", "fail": "failed", "cannot tell": "inconclusive"}


def junit(rulings: Sequence[Ruling], name: str, fails: Callable[[Ruling], bool]) -> str:
    """A JUnit file: a test case per rule; one that cannot be told is a failure where `fails` says so, else a skipped case."""
    red = [r for r in rulings if fails(r)]
    skipped = [r for r in rulings if r.verdict == "cannot tell" and r not in red]
    counts = {"tests": str(len(rulings)), "failures": str(len(red)), "errors": "0", "skipped": str(len(skipped))}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": _printable(name), **counts})
    for r in rulings:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "compress.gate", "name": r.rule})
        told = _printable(f"{r.verdict}: found {r.found}, allowed {r.limit}{_because(r)}")
        if r in red:
            ElementTree.SubElement(case, "failure", {"message": told, "type": r.verdict.replace(" ", "-")})
        elif r in skipped:
            ElementTree.SubElement(case, "skipped", {"message": told})
        else:
            ElementTree.SubElement(case, "system-out").text = told
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def markdown(rulings: Sequence[Ruling], passed: bool, notes: Sequence[str] = (), picture: str = "") -> str:
    """For a job's summary; `picture` is Markdown that stands below the verdicts."""
    rows = [("rule", "found", "allowed", "verdict"), ("---", "---:", "---:", "---")]
    rows += [(r.rule, r.found, r.limit, f"**{r.verdict}**" if r.verdict != "pass" else "pass") for r in rulings]
    table = "\n".join("| " + " | ".join(map(text, row)) + " |" for row in rows)
    because = "".join(f"\n- {text(f'{r.rule}: {r.reason}.')}" for r in rulings if r.reason)
    because += "".join(f"\n- {text(note)}" for note in notes)
    return f"### Compression gate: {word(rulings, passed)}\n\n{sentence(rulings, passed)}\n\n{table}\n{because}\n" + (
        f"\n{picture}" if picture else ""
    )


def _because(ruling: Ruling) -> str:
    return f" ({ruling.reason})" if ruling.reason else ""


def _printable(text: str) -> str:
    """Without the control characters that XML does not have."""
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in text)
