"""The figures of the papers beside what was measured here: one row for each, with the script that ran and its verdict.

    python benchmarks/papers.py

Nothing is measured here. The figures come from the results of other scripts, and so do the verdicts: a row whose result changes
is judged anew. What was not run says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from results_io import known, write

REACHED, MISSED = "reached", "missed"
REGRESSION, EASIER, SENSITIVITY = (
    "entropic regression (arXiv 2404.04734)",
    "EASIER (ECML PKDD 2024)",
    "weight sensitivity (ICLR 2023)",
)
LOTTERY, REWARD = "initial weights after pruning", "spatial entropy as a reward (arXiv 2312.04918)"


@dataclass(frozen=True)
class Claim:
    """A figure of a paper.

    Attributes:
        paper: whose.
        claim: the figure.
        script: that measures it here; empty where it was not run.
        judged: what was measured, whether that reaches the claim, and seconds where the script tells them; without a script why
            it was not run.
    """

    paper: str
    claim: str
    script: str
    judged: Callable[[], tuple[str, bool, float | None]] | str


def lenet() -> tuple[str, bool, float | None]:
    found = known("mnist")
    lost, removed = found["drop_points"]["entropic"]["mean"], found["removed_share"]["entropic"]["mean"]
    return f"{removed:.0%} at {lost:.2f} points (mean of 3 seeds)", removed >= 0.84 and lost <= 0.5, None


def from_scratch() -> tuple[str, bool, float | None]:
    lost = known("mnist")["drop_points"]
    drawn, kept = lost["entropic's architecture from scratch"]["mean"], lost["entropic"]["mean"]
    return f"LeNet-5: {drawn:.2f} points lost from scratch, {kept:.2f} fine-tuned (mean of 3 seeds)", drawn <= kept, None


def vgg16() -> tuple[str, bool, float | None]:
    found = known("vgg16")["compressed"]
    lost = 100 * (found["stages"][0]["quality"]["value"] - found["top1"])
    smaller, fewer, faster = (found[key] for key in ("smaller", "fewer_macs", "faster"))
    said = f"{smaller:.2f}x, {fewer:.2f}x and {faster:.2f}x at {lost:.2f} points, without any training"
    return said, smaller >= 8.85 and fewer >= 2 and faster >= 1.67 and lost <= 0.5, None


def activations(net: str, wanted: int) -> Callable[[], tuple[str, bool, float | None]]:
    def judged() -> tuple[str, bool, float | None]:
        found = known("rectifiers")
        gone, there = found["within"][net]["cheapest first"], found["within"][net]["rectifiers"]
        seconds = sum(row["seconds"] for row in found["rows"] if row["net"] == net)
        return f"{gone} of {there} within 0.4 points, without any training", gone >= wanted, seconds

    return judged


def originals(net: str) -> Callable[[], tuple[str, bool, float | None]]:
    def judged() -> tuple[str, bool, float | None]:
        found = known("lottery")
        rows = [row for row in found["summary"] if row["net"] == net and row["kind"] == "weights" and row["level"]]
        leads = [row["original"]["mean"] - row["random"]["mean"] for row in rows]
        seconds = sum(row["seconds"] for row in found["rows"] if row["net"] == net and row["kind"] == "weights")
        said = (
            f"ahead at {sum(lead > 0 for lead in leads)} of {len(leads)} levels, by {min(leads):.1f} to {max(leads):.1f} points"
        )
        return f"{said} (3 seeds)", all(lead > 0 for lead in leads), seconds

    return judged


def no_worse() -> tuple[str, bool, float | None]:
    rows = [row for row in known("lottery")["summary"] if row["kind"] == "weights" and row["level"]]
    best = {net: max(r["original"]["mean"] - r["dense"] for r in rows if r["net"] == net) for net in ("LeNet-300-100", "LeNet-5")}
    said = ", ".join(f"{net} {points:+.2f} points" for net, points in best.items())
    return f"best pruned net beside dense: {said} (mean of 3 seeds)", all(points > 0 for points in best.values()), None


def before_training() -> tuple[str, bool, float | None]:
    found = known("sensitivity")
    rows = [row for row in found["rows"] if row["criterion"] in ("learned", "random")]
    top1 = {(r["net"], r["left"], r["criterion"]): [] for r in rows}
    for row in rows:
        top1[row["net"], row["left"], row["criterion"]].append(row["top1"])
    pairs = {(net, left) for net, left, _ in top1}
    ahead = sum(sum(top1[*pair, "learned"]) > sum(top1[*pair, "random"]) for pair in pairs)
    return (
        f"better than chance at {ahead} of {len(pairs)} sizes",
        ahead == len(pairs),
        sum(row["seconds"] for row in found["rows"]),
    )


def reward(results: str, rivals: bool) -> Callable[[], tuple[str, bool, float | None]]:
    def judged() -> tuple[str, bool, float | None]:
        found = known(results)
        by_entropy = found["summary"]["entropy reward, macs=0.2"]["drop"]["mean"]
        other = found["summary"]["accuracy reward, macs=0.2" if rivals else "one-shot allocation, macs=0.2"]["drop"]["mean"]
        seconds = sum(row["seconds"] + (row["training_seconds"] or 0) for row in found["rows"])
        against = "with accuracy as the reward" if rivals else "by one allocation, without a search"
        return f"5x at {by_entropy:.2f} points lost, {other:.2f} {against} (one seed)", by_entropy <= max(other, 0.5), seconds

    return judged


HOURS = "not run: the dense net and its training take hours here"
CLAIMS = (
    Claim(REGRESSION, "LeNet, MNIST: 55 to 84 % removed at 0.1 to 0.5 points", "mnist.py", lenet),
    Claim(REGRESSION, "VGG-16, CIFAR-10: 8.85x smaller, 2x fewer FLOPs, 1.67x faster at 0.1 to 0.5 points", "vgg16.py", vgg16),
    Claim(REGRESSION, "ResNet-18, CIFAR-10: 73 to 89 % removed at 0.1 to 0.5 points", "", HOURS),
    Claim(REGRESSION, "the architecture trained from scratch is no worse", "mnist.py", from_scratch),
    Claim(EASIER, "ResNet-18, CIFAR-10: 8 of 17 activations, with training", "rectifiers.py", activations("resnet18", 8)),
    Claim(EASIER, "VGG-16, CIFAR-10: 8 of 15", "rectifiers.py", activations("vgg16_bn", 8)),
    Claim(EASIER, "MobileNetV2, CIFAR-10: 12 of 35", "rectifiers.py", activations("mobilenet", 12)),
    Claim(EASIER, "Swin-T, CIFAR-10: 7 of 12 (here a Swin of 10)", "rectifiers.py", activations("swin", 6)),
    Claim(EASIER, "the same with its own recipe: hundreds of epochs for every activation", "", "not run: needs a GPU"),
    Claim("NEPENTHE (arXiv 2404.16890)", "layers that unstructured pruning brings to entropy 0", "", "not run: needs a GPU"),
    Claim(LOTTERY, "LeNet-300-100, MNIST: original weights way better than new ones", "lottery.py", originals("LeNet-300-100")),
    Claim(LOTTERY, "LeNet-5, MNIST: original weights better, almost the same", "lottery.py", originals("LeNet-5")),
    Claim(LOTTERY, "some pruned net is better than dense, in both nets", "lottery.py", no_worse),
    Claim(SENSITIVITY, "weights can be pruned before training (no figure)", "sensitivity.py", before_training),
    Claim(REWARD, "ResNet-20: 5 to 10x fewer FLOPs, little lost, on par with accuracy", "search.py", reward("search", True)),
    Claim(REWARD, "VGG-16: 5 to 10x fewer FLOPs, little lost", "search.py", reward("search_vgg16", False)),
)


def main() -> None:
    write("papers", {"rows": [told(claim) for claim in CLAIMS]})


def told(claim: Claim) -> dict[str, Any]:
    """A row of the table."""
    if isinstance(claim.judged, str):
        verdict, _, why = claim.judged.partition(": ")
        row = {"here": why, "verdict": verdict, "seconds": None}
    else:
        here, reached, seconds = claim.judged()
        row = {"here": here, "verdict": REACHED if reached else MISSED, "seconds": seconds}
    return {"paper": claim.paper, "claim": claim.claim, "script": claim.script, **row}


if __name__ == "__main__":
    main()
