"""The report as Markdown: for a pull request, a wiki, or a reader without the program."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compress.progress import duration
from compress.report import sentences
from compress.report.escape import markdown as text
from compress.report.pictures import file_name
from compress.report.records import Closeness, Report
from compress.report.table import columns, rows
from compress.user.wording import many

PARITY = (
    "The worst difference and the relative error (root mean square) are between the file in its runtime and the model in torch, "
    "on real inputs. The quality is that of the file itself on the test data; without one it is the model's."
)


def markdown(report: Report) -> str:
    """The text of `report.md`."""
    parts = [
        f"# Compression report: {text(report.method)}",
        f"**{text(report.verdict)}**",
        *([bullets(f"**Warning:** {warning}" for warning in report.warnings)] if report.warnings else []),
        bullets(sentences.sentences(report)),
        "## Stages",
        grid(columns(report), rows(report)),
        _reading(report),
        *_exports(report),
        *_pictures(report),
        *(["## Notes", bullets(report.notes)] if report.notes else []),
        "## How it was made",
        grid(("what", "value"), settings(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _reading(report: Report) -> str:
    """How to read the table; says the unclear out loud."""
    lines = ["Peak memory is weights + activations alive at once (batch of the latency), without the runtime's own workspace."]
    latency = report.result.latency
    if latency is not None:
        lines.append(
            "Speed-up is against the dense model, timed in turns with it; the interval is a bootstrap over rounds, "
            "and '?' marks one that holds 1, or rounds too noisy for a claim. "
            "The p50 of two rows were taken minutes apart: compare the speed-ups."
        )
    if report.result.quality is not None:
        lines.append("Quality is measured on the test data; the change is in points unless a unit stands behind it.")
    return " ".join(lines)


def _exports(report: Report) -> list[str]:
    if not report.exports:
        return []
    cells = [
        (
            export.format,
            f"`{export.path}`",
            sentences.size(export.bytes) if export.bytes is not None else "-",
            str(export.opset or "-"),
            f"{export.parity.worst_abs:.2g}" if export.parity else "-" if export.closeness else "not checked",
            f"{export.parity.tolerance:.2g}" if export.parity else "-",
            *_closeness(export.closeness),
            sentences.quality(export.quality) if export.quality else "-",
            f"`{export.sha256[:16]}...`",
        )
        for export in report.exports
    ]
    heading = (
        "format",
        "file",
        "size",
        "opset",
        "worst difference",
        "allowed",
        "relative error",
        "allowed",
        "same class",
        "quality",
        "sha256",
    )
    return [
        "## Exports",
        grid(heading, cells),
        PARITY,
    ]


def _pictures(report: Report) -> list[str]:
    drawn = [c for c in report.curves if file_name(c) in report.pictures]
    return [f"## {text(c.title)}\n\n![{text(c.title)}](pictures/{file_name(c)})\n\n{text(c.note)}".strip() for c in drawn]


def _closeness(found: Closeness | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return (
        f"{found.relative:.2g}",
        "-" if found.allowed is None else f"{found.allowed:.2g}",
        "-" if found.agreement is None else f"{found.agreement:.2%}",
    )


def settings(report: Report) -> list[tuple[str, str]]:
    """What it was made with and where, by name."""
    env = report.environment
    packages = {
        "compress": env.compress,
        "Python": env.python,
        "torch": env.torch,
        "onnx": env.onnx,
        "onnxruntime": env.onnxruntime,
    }
    facts = [
        ("method", report.method),
        ("target", report.target),
        ("allowed drop", None if report.max_drop is None else f"{report.max_drop:g} points"),
        ("seed", str(report.seed)),
        ("plan sha256", report.plan_sha256),
        ("data.toml sha256", report.data_sha256),
        ("recipe sha256", report.recipe_sha256),
        ("CPU", f"{env.cpu}, {many(env.cores, 'core')}"),
        ("GPU", env.gpu or "none"),
        ("OS", env.os),
        (
            "versions",
            ", ".join(f"{name} {version}" for name, version in packages.items() if version),
        ),
        ("date", env.date),
        ("time", _time(report) or None),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _time(report: Report) -> str:
    """The whole, and what it went to, the most first; parts that are shorter than a hundredth of it are in report.json."""
    whole = sum(one.seconds for one in report.spent)
    parts = sorted((one for one in report.spent if one.seconds >= 0.01 * whole), key=lambda one: -one.seconds)
    told = ", ".join(f"{one.what} {duration(one.seconds)}" for one in parts)
    return f"{duration(whole)}: {told}" if whole else ""


def grid(heading: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heading, ["---"] + ["---:" if len(heading) > 2 else "---"] * (len(heading) - 1), *body]
    return "\n".join("| " + " | ".join(map(text, line)) + " |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {text(line)}" for line in lines)
