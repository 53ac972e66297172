"""The picture of the README: python benchmarks/front_picture.py writes docs/images/quality.svg

    left    VGG-16-BN: top-1 against measured speed-up, dense and smaller, in float and in 8 bits   vgg16_deployed.json
    right   ResNet-20: top-1 against the MACs that are left, by who chose the channels               resnet20.json

Plain SVG, written by hand: the same results give the same bytes on any machine. A test checks that the committed file is current.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "quality.svg"

OURS, OTHERS, INK = "#1f6feb", "#8a5a00", "#24292f"
FILES = {  # of vgg16_deployed.json: its top-1, name, color, where the label goes
    "dense.onnx": ("dense", "dense, float", OTHERS, "start", -9),
    "dense.int8.onnx": ("dense_int8", "dense, 8 bits", OTHERS, "start", 18),
    "vgg_compressed.onnx": ("smaller", "compressed, float", OURS, "start", -9),
    "vgg_compressed.int8.onnx": ("smaller_int8", "compressed, 8 bits", OURS, "end", 18),
}
RECIPES = {  # of resnet20.json: name, color, dashes
    "budget by loss, then block reconstruction": ("entropic, then block reconstruction", OURS, ""),
    "L1 without refit, then one epoch of distillation": ("L1 alone, then one epoch with labels", OTHERS, "5 3"),
    "entropic, budget by loss, 4,000 images": ("entropic, 4,000 images", OURS, ""),
    "block-OBS": ("block-OBS", OTHERS, ""),
    "L1": ("L1", OTHERS, ""),
    "Taylor": ("Taylor", OTHERS, ""),
    "random": ("random", "#6e7781", ""),
}
LEFT_OUT = "L1 without refit"


@dataclass(frozen=True)
class Axes:
    """A panel: its place in the picture, and what its edges mean."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        share_x = (x - self.x[0]) / (self.x[1] - self.x[0])
        share_y = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + share_x * self.width, self.top + (1 - share_y) * self.height


def drawn(results: Path = RESULTS) -> str:
    """The whole file."""
    parts = [*speed(load(results / "vgg16_deployed.json")), *work(load(results / "resnet20.json"))]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 980 400" font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="980" height="400" fill="white"/>', *parts, "</svg>"]) + "\n"


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def speed(found: dict[str, Any]) -> list[str]:
    axes = Axes(60, 60, 380, 270, (0, 15), (87, 88.5))
    dense = 100 * found["top1"]["dense"]
    parts = frame(
        axes, range(0, 16, 3), (87, 87.5, 88, 88.5), lambda v: f"{v:g}x", "VGG-16-BN, no training: top-1 and measured speed"
    )
    parts += [
        caption(axes, f"speed-up over the dense float file, ONNX Runtime, batch {found['batch']}, {found['threads']} thread")
    ]
    parts += [level(axes, dense)]
    for file, (key, name, color, anchor, below) in FILES.items():
        row, top1 = found["files"][file], 100 * found["top1"][key]
        low, high = (axes.at(edge, top1) for edge in row["ci95"])
        x, y = axes.at(row["ratio"], top1)
        shown = f"{name}: {row['ratio']:.1f}x, {top1:.2f} %"
        parts += [line([low, high], color, width=2), dot(x, y, color, shown)]
        parts += [text(x, y + below, shown, color, anchor)]
    return [*parts, text(24, 388, "Blue: compressed by this program. Bars: 95 % interval.", INK)]


def work(found: dict[str, Any]) -> list[str]:
    axes = Axes(520, 60, 200, 270, (32, 55), (68, 88))
    dense = 100 * found["dense_top1"]
    parts = frame(axes, range(35, 56, 5), range(68, 89, 4), lambda v: f"{v:g} %", "ResNet-20: top-1 at the same MACs, by method")
    parts += [caption(axes, "MACs left"), level(axes, dense)]
    names: list[tuple[float, str, str]] = []
    for recipe, (name, color, dashes) in RECIPES.items():
        points = []
        for kept in ("35 % kept", "half kept"):
            row = found["summary"][kept][recipe]
            mean, low, high = (dense - row["drop_points"][key] for key in ("mean", "min", "max"))
            macs = 100 * share(row["macs_share"])
            points.append(axes.at(macs, mean))
            parts += [line([axes.at(macs, low), axes.at(macs, high)], color, width=1)]
            parts += [dot(*points[-1], color, f"{name}: {macs:.0f} % of the MACs, {mean:.2f} %")]
        parts += [line(points, color, width=1.5, dashes=dashes)]
        names.append((points[-1][1], name, color))
    parts += labels(axes.left + axes.width + 8, names)
    gone = ", ".join(
        f"{dense - found['summary'][kept][LEFT_OUT]['drop_points']['mean']:.0f} %" for kept in ("35 % kept", "half kept")
    )
    parts += [text(484, 388, f"Bars: worst and best seed. Further down: L1 without reconstruction, {gone}.", INK)]
    return parts


def share(value: Any) -> float:
    return value["mean"] if isinstance(value, dict) else value


def labels(x: float, names: Sequence[tuple[float, str, str]]) -> list[str]:
    """Names beside the ends of their lines, moved apart where they would cover each other."""
    parts, below = [], 0.0
    for y, name, color in sorted(names):
        below = max(y + 4, below + 14)
        parts.append(text(x, below, name, color))
    return parts


def frame(axes: Axes, xs: Sequence[float], ys: Sequence[float], spell: Callable[[float], str], title: str) -> list[str]:
    parts = [text(axes.left - 36, axes.top - 30, title, INK, weight="bold", size=13)]
    for value in xs:
        x, y = axes.at(value, axes.y[0])
        parts += [line([(x, y), (x, axes.top)], "#eaeef2"), text(x, y + 17, spell(value), INK, "middle")]
    for value in ys:
        x, y = axes.at(axes.x[0], value)
        parts += [line([(x, y), (x + axes.width, y)], "#eaeef2"), text(x - 6, y + 4, f"{value:g} %", INK, "end")]
    return parts


def caption(axes: Axes, words: str) -> str:
    return text(axes.left + axes.width / 2, axes.top + axes.height + 35, words, INK, "middle")


def level(axes: Axes, value: float) -> str:
    """The dense model's quality as a line across."""
    left, right = axes.at(axes.x[0], value), axes.at(axes.x[1], value)
    return line([left, right], INK, dashes="2 3") + text(right[0] - 2, right[1] - 5, "dense", INK, "end")


def line(points: Sequence[tuple[float, float]], color: str, width: float = 1, dashes: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"{dashed}/>'


def dot(x: float, y: float, color: str, told: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"><title>{told}</title></circle>'


def text(x: float, y: float, words: str, color: str, anchor: str = "start", weight: str = "normal", size: int = 12) -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" {style}>{words}</text>'


def main() -> None:
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(drawn())
    print(f"wrote {PICTURE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
