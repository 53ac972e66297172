"""Images per second of folders and shards that do not fit into memory, beside a plain DataLoader loop; opening a large folder.

    python benchmarks/feeding.py [--images 10000] [--files 1000000] [--workers N] [--rounds 5]

Both loops decode the same JPEGs with as many workers into normalized batches, in turns; one thread computes.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from results_io import write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.data import feeding
from compress.data.folder import _list
from compress.data.open_data import open_data
from compress.data.settings import make
from compress.user import cache_folder

SIDE, BATCH, CLASSES = 224, 64, 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Plain(Dataset[tuple[Tensor, int]]):
    """As a training script has it."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path = self.paths[number]
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1), int(Path(path).parent.name)


def make_images(folder: Path, count: int) -> None:
    """JPEGs of about 20 kB: smooth noise, which compresses as photographs do."""
    drawn = np.random.default_rng(0)
    for number in range(count):
        place = folder / str(number % CLASSES)
        place.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(drawn.integers(0, 256, (28, 28, 3), np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{number:06}.jpg", quality=92)


def make_shards(folder: Path, images: Path, each: int = 1000) -> None:
    """The same, in tar files."""
    paths = sorted(images.rglob("*.jpg"), key=lambda path: path.name)
    folder.mkdir()
    for number in range(0, len(paths), each):
        with tarfile.open(folder / f"train-{number // each:04}.tar", "w") as shard:
            for path in paths[number : number + each]:
                for name, content in ((path.name, path.read_bytes()), (f"{path.stem}.cls", path.parent.name.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))


def ours(source: Path, workers: int) -> Callable[[], int]:
    """A pass over what `--data` opens."""
    share = 1e-9  # one image each is set aside: the loops see the same ones but for two
    settings = make(workers=workers, memory_gb=1e-3, normalize="imagenet", split={"test": share, "held_out": share})
    train = open_data(source, shape=(3, SIDE, SIDE), settings=settings).train
    return lambda: sum(len(batch.inputs[0]) for batch in train.batches(BATCH, shuffle=True))


def plain(folder: Path, workers: int) -> Callable[[], int]:
    """The same by torch alone."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))

    def loop() -> int:
        seen = 0
        for images, _ in DataLoader(Plain(folder), BATCH, shuffle=True, num_workers=workers):
            seen += len((images.float() / 255 - mean) / std)
        return seen

    return loop


def make_many(folder: Path, files: int) -> None:
    """Tiny files in a thousand folders."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    for number in range(files):
        place = folder / f"{number % 1000:04}"
        if number < 1000:
            place.mkdir(parents=True)
        (place / f"{number:07}.png").write_bytes(content.getvalue())


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure and write benchmarks/results/feeding.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=feeding.default_workers())
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = Path(tempfile.mkdtemp(prefix="feeding-"))
    os.environ[cache_folder.CACHE] = str(work / "cache")
    try:
        make_images(work / "images", given.images)
        make_shards(work / "shards", work / "images")
        loops = {
            "folder": ours(work / "images", given.workers),
            "shards": ours(work / "shards", given.workers),
            "plain DataLoader": plain(work / "images", given.workers),
        }
        speeds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(given.rounds):
            for name, loop in loops.items():
                start = time.perf_counter()
                speeds[name].append(loop() / (time.perf_counter() - start))
                print(name, round(speeds[name][-1]), "images/s", flush=True)
        shutil.rmtree(work / "images")
        make_many(work / "many", given.files)
        opening = [timed(lambda: _list(work / "many")) for _ in range(2)]
    finally:
        shutil.rmtree(work)
    ratios = {
        name: [a / b for a, b in zip(of_one, speeds["plain DataLoader"], strict=True)]
        for name, of_one in speeds.items()
        if name != "plain DataLoader"
    }
    write(
        "feeding",
        {
            "images": given.images,
            "workers": given.workers,
            "images_per_s": {name: [round(v, 1) for v in values] for name, values in speeds.items()},
            "ratio_to_plain": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
            "ratios": {name: [round(v, 3) for v in values] for name, values in ratios.items()},
            "files": given.files,
            "list_s": [round(v, 2) for v in opening],
        },
    )


if __name__ == "__main__":
    main()
