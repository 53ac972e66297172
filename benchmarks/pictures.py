"""Pictures of results: python benchmarks/pictures.py (needs matplotlib, in the extra `dev`)

mobilenet.svg     accuracy against speed-up: width, depth, both; a dot per seed; lines join the means of width alone, and of depth
rectifiers.svg    accuracy against the number of rectifiers that are gone, network by network
lottery.svg       accuracy against the weights that are left, both arms; a band from the worst seed to the best
"""

from __future__ import annotations

import json
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from results_io import RESULTS

KINDS = {"width and depth": "tab:green", "width": "tab:blue", "depth": "tab:orange", "control": "black"}


def main() -> None:
    mpl.rcParams["svg.hashsalt"] = "compress"  # the same results give the same file
    for name, draw in (("mobilenet", mobilenet), ("rectifiers", rectifiers), ("lottery", lottery)):
        path = RESULTS / f"{name}.json"
        if path.exists():
            figure = draw(json.loads(path.read_text()))
            figure.savefig(RESULTS / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            pyplot.close(figure)
            print(f"wrote {name}.svg")


def mobilenet(found: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(figsize=(9, 6))
    axes.axhline(100 * found["rows"][0]["dense"], color="grey", linestyle=":", label="dense")
    for kind, colour in KINDS.items():
        rows = [row for row in found["rows"] if kind_of(row["row"]) == kind]
        axes.scatter([r["faster"] for r in rows], [100 * r["top1"] for r in rows], color=colour, s=18, label=kind, zorder=3)
        for row in rows:
            row["called"] = f"{row['row']}, {row['epochs']:g} epochs"
        names = sorted({r["called"] for r in rows}, key=lambda name: mean(rows, name, "faster"))
        points = {name: (mean(rows, name, "faster"), 100 * mean(rows, name, "top1")) for name in names}
        for name, point in points.items():
            axes.annotate(name, point, xytext=(5, 5), textcoords="offset points", fontsize=7)
        for epochs in {r["epochs"] for r in rows} if kind in ("width", "depth") else ():
            same = [points[name] for name in names if name.endswith(f", {epochs:g} epochs")]
            axes.plot(*zip(*same, strict=True), color=colour, linewidth=0.8)
    axes.set(xlabel="speed-up over the dense net (ONNX Runtime, batch 1, one thread)", ylabel="top-1, %")
    axes.set_title(f"{found['network']}: {found['data'].split(',')[0]}")
    axes.legend()
    return figure


def kind_of(row: str) -> str:
    both = "width" in row and "depth" in row
    return "width and depth" if both else row.split()[0]


def mean(rows: list[dict[str, Any]], name: str, key: str) -> float:
    chosen = [row[key] for row in rows if row["called"] == name]
    return sum(chosen) / len(chosen)


def rectifiers(found: dict[str, Any]) -> Any:
    nets = list(found["nets"])
    columns = min(3, len(nets))
    lines = -(-len(nets) // columns)
    figure, every = pyplot.subplots(lines, columns, figsize=(5 * columns, 4 * lines), squeeze=False, layout="constrained")
    colours = {kind: f"C{i}" for i, kind in enumerate(dict.fromkeys(row["kind"] for row in found["rows"]))}
    for axes in every.flat[len(nets) :]:
        axes.remove()
    for axes, net in zip(every.flat, nets, strict=False):
        rows = [row for row in found["rows"] if row["net"] == net]
        axes.axhline(100 * found["nets"][net]["dense_top1"], color="grey", linestyle=":", label="dense")
        for kind in dict.fromkeys(row["kind"] for row in rows):
            line = sorted((r["rectifiers"], 100 * r["top1"], r["epochs"]) for r in rows if r["kind"] == kind)
            axes.plot(
                *zip(*[point[:2] for point in line], strict=True),
                marker="o",
                color=colours[kind],
                label=f"{kind}, {line[0][2]:g} epochs",
            )
        axes.set(xlabel=f"rectifiers gone, of {found['nets'][net]['rectifiers']}", ylabel="top-1, %", title=net)
        axes.legend()
    return figure


def lottery(found: dict[str, Any]) -> Any:
    rows = [row for row in found["summary"] if row["kind"] == "weights"]
    nets = list(dict.fromkeys(row["net"] for row in rows))
    figure, every = pyplot.subplots(1, len(nets), figsize=(6 * len(nets), 4), squeeze=False)
    for axes, net in zip(every[0], nets, strict=True):
        here = [row for row in rows if row["net"] == net]
        left = [100 * row["left"] for row in here]
        axes.axhline(here[0]["dense"], color="grey", linestyle=":", label="dense")
        for arm in ("original", "random"):
            axes.plot(left, [row[arm]["mean"] for row in here], marker="o", markersize=3, label=f"{arm} weights")
            axes.fill_between(left, [row[arm]["min"] for row in here], [row[arm]["max"] for row in here], alpha=0.2)
        if winners := [row["left"] for row in here[1:] if row["original"]["mean"] >= row["dense"]]:
            axes.axvline(100 * min(winners), color="black", linewidth=0.8, linestyle="--", label="sparsest winning ticket")
        axes.set(xscale="log", xlabel="weights left, %", ylabel="top-1 on test images, %", title=net)
        axes.legend()
    return figure


if __name__ == "__main__":
    main()
