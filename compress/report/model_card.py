"""The model card of a run: README.md of a repository of Hugging Face, as its hub reads it.

---            what a program reads: license, tags, and the measured quality (model-index)
# Name         what a person reads: the verdict, how to use it, every stage, what is not known
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from compress.report import sentences
from compress.report.escape import markdown as text
from compress.report.escape import printable
from compress.report.markdown import bullets, grid, settings
from compress.report.records import Outcome, Report
from compress.report.table import columns, rows

TASKS = {"top1": "image-classification", "top5": "image-classification", "miou": "image-segmentation"}
"""Metric -> task, where it has but one."""
METRICS = {"top1": "accuracy", "f1": "f1", "miou": "mean_iou", "perplexity": "perplexity", "mae": "mae"}
"""Names that the hub knows."""
NOT_KNOWN = (
    "What the original model was trained on, and what it must not be used for, is not part of this report: see its own card.",
    "The quality is that on the test data of the run, and holds for data like it. Compression can cost single classes more than "
    "the mean shows.",
    "The speed-up is that on the processor above, in that runtime and at that batch size.",
)


MADE = "A smaller model, made by compress."
"""What stands in every card, and tells the folder of one from somebody's own."""


def model_card(report: Report, name: str, license: str, models: Sequence[str], checkpoint: bool) -> str:
    """The text.

    Args:
        report: of the run.
        name: of the model.
        license: of the model, an identifier of the hub, such as mit; empty where nobody said.
        models: exported files, as paths in the repository.
        checkpoint: whether the folder model.compressed is in it.
    """
    warned = [f"**Warning:** {warning}" for warning in report.warnings]
    if report.outcome is not Outcome.KEPT:
        warned = [f"**Warning:** this model broke the contract of its run ({report.outcome.value}).", *warned]
    parts = [
        f"---\n{_facts(report, name, license)}---",
        f"# {text(name)}",
        f"{MADE} {text(report.verdict)}",
        "\n".join(f"- {text(one)}" for one in warned),
        "## How to use it",
        *_use(models, checkpoint),
        "## What it came to",
        bullets(sentences.sentences(report)),
        grid(columns(report), rows(report)),
        "## What is not known",
        bullets(NOT_KNOWN),
        "## How it was made",
        grid(("what", "value"), settings(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(report: Report, name: str, license: str) -> str:
    """YAML, whose values are written as JSON: that is YAML, and cannot be left by any name."""
    quality = report.result.quality
    facts: dict[str, Any] = {"tags": ["compress", "pruning", "model-compression", report.method]}
    if any(export.format.startswith("onnx") for export in report.exports):
        facts["library_name"] = "onnx"
    if license:
        facts["license"] = license
    if quality is not None and quality.metric in TASKS:
        task = TASKS[quality.metric]
        facts["pipeline_tag"] = task
        if quality.metric in METRICS:
            found = {"type": METRICS[quality.metric], "name": quality.metric, "value": quality.value}
            data = {"name": "test data of the run", "type": "custom"}
            facts["model-index"] = [
                {"name": printable(name), "results": [{"task": {"type": task}, "dataset": data, "metrics": [found]}]}
            ]
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in facts.items())


def _use(models: Sequence[str], checkpoint: bool) -> list[str]:
    said: list[str] = []
    onnx = next((path for path in models if path.endswith(".onnx")), None)
    if onnx is not None:
        said.append(
            f"```python\nimport onnxruntime\n\nsession = onnxruntime.InferenceSession({json.dumps(onnx)})\n"
            "print([(one.name, one.shape, one.type) for one in session.get_inputs()])\n```"
        )
    if checkpoint:
        said.append(
            "To train on, without the class it came from and without pickle:\n\n"
            '```python\nimport compress\n\nmodel = compress.load("model.compressed").train()\n```'
        )
    return said
