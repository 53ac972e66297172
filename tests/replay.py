"""Does a change of the code change what users get? Four runs by two commits, the same seed, compared byte by byte.

    python tests/replay.py OLD [NEW]

OLD and NEW are commits (NEW: the working tree where it is left out). Each run is made by a checkout of its own and they share one
cache of races, so that a decision by milliseconds is the same decision. Compared are the bytes of `plan.json` and the outputs of
the exported ONNX file on the same inputs, bit by bit; the exit code is 1 where any of them differs.

Not collected by pytest: it takes minutes. Run it before and after a change that is meant to change nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ("--arch", "compress.commands.demo:digits_net", "--data", "digits", "--rounds", "10")
RUNS: dict[str, tuple[str, ...]] = {
    "demo": ("demo",),
    "width": ("run", "{model}", *DIGITS, "--target", "params=0.25", "--align", "1", "--reconstruct", "20", "--epochs", "1"),
    "depth": ("run", "{model}", *DIGITS, "--method", "easier", "--max-drop", "5", "--epochs", "1"),
    "turns": (
        *("run", "{model}", *DIGITS, "--method", "magnitude", "--target", "macs=0.4", "--turns", "2"),
        *("--align", "4", "--epochs", "1"),
    ),
}
"""By name: the words behind `compress`; {model} is the dense model of the demo, trained by the older commit."""


def main() -> None:
    """Both commits carry out the runs, and every difference is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new", nargs="?")
    parser.add_argument("--only", choices=RUNS, nargs="*", default=list(RUNS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        trees = {"old": checkout(given.old, place), "new": checkout(given.new, place) if given.new else ROOT}
        model = place / "demo-old" / "model.pt"
        carry_out(trees["old"], RUNS["demo"], model.parent, place / "cache")
        differing = 0
        for name in given.only:
            outs = {}
            for side, tree in trees.items():
                outs[side] = place / f"{name}-{side}"
                words = [word.replace("{model}", str(model)) for word in RUNS[name]]
                if not outs[side].exists():
                    carry_out(tree, words, outs[side], place / "cache")
            found = differences(*(out / "run" if name == "demo" else out for out in outs.values()))
            differing += bool(found)
            print(f"{name}: {'; '.join(found) or 'the same'}", flush=True)
    sys.exit(1 if differing else 0)


def checkout(commit: str, place: Path) -> Path:
    """The files of a commit in a folder of their own."""
    tree = place / f"tree-{commit.replace('/', '-')}"
    tree.mkdir()
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed, check=True)
    return tree


def carry_out(tree: Path, words: tuple[str, ...] | list[str], out: Path, cache: Path) -> None:
    """One command by the code of one tree; its output is shown where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "COMPRESS_CACHE": str(cache)}
    command = [sys.executable, "-m", "compress", *words, "--out", str(out), "--seed", "0"]
    ended = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{tree.name}: compress {' '.join(words)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")


def differences(old: Path, new: Path) -> list[str]:
    """What the folders of two runs disagree in."""
    found = []
    if (old / "plan.json").read_bytes() != (new / "plan.json").read_bytes():
        found.append("plan.json differs")
    answers = [outputs(folder / "model.onnx") for folder in (old, new)]
    if answers[0] != answers[1]:
        found.append("the outputs of model.onnx differ")
    return found


def outputs(path: Path) -> str:
    """A digest of what the file computes on inputs that are drawn with a fixed seed."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    feeds = {
        x.name: draw.standard_normal([n if isinstance(n, int) else 8 for n in x.shape], np.float32) for x in session.get_inputs()
    }
    return hashlib.sha256(b"".join(np.ascontiguousarray(y).tobytes() for y in session.run(None, feeds))).hexdigest()


if __name__ == "__main__":
    main()
