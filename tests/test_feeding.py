"""Samples of slow stores: read by processes, the same ones in the same order, and nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from compress.data import feeding, stores
from compress.data.listing import image_files
from compress.data.open_data import open_data
from compress.data.settings import make
from compress.data.splits import Data
from compress.errors import BadInput

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems read by threads")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    drawn = np.random.default_rng(0)
    for number in range(90):
        folder = tmp_path / "images" / str(number % 3)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def opened(images: Path, workers: int, **settings: object) -> Data:
    return open_data(images, settings=make(workers=workers, memory_gb=1e-9, normalize="none", **settings))


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (100, feeding.MOST_WORKERS)])
def test_a_process_of_its_own_reads_where_there_is_a_core_for_it(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feeding, "cores", lambda: cores)
    assert feeding.default_workers() == workers


def test_items_are_read_into_their_places_whatever_their_type(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "_AT_ONCE", 2)
    items = [torch.tensor([n, 7]) for n in range(4)] + [torch.tensor([0.5, 0.25])]
    (found,) = stores.in_memory([stores.Items(items, lambda item: item)], 5, 0)
    assert torch.equal(found, torch.tensor([[0, 7], [1, 7], [2, 7], [3, 7], [0.5, 0.25]]))
    assert stores.in_memory([stores.Stored(torch.empty(0, 3))], 0, 0)[0].shape == (0, 3)


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(1), torch.zeros(2, 2)])
def test_items_of_another_shape_are_refused_wherever_they_lie(other: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stores, "_AT_ONCE", 2)
    items = [torch.zeros(2)] * 4 + [other]
    with pytest.raises(BadInput, match="cannot be stacked"):
        stores.in_memory([stores.Items(items, lambda item: item)], 5, 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_processes_give_what_one_thread_gives(images: Path, workers: int):
    one, several = ([*opened(images, n).train.batches(20, shuffle=True, seed=3, augment=True)] for n in (0, workers))
    assert len(one) == len(several) > 2
    for left, right in zip(one, several, strict=True):
        assert torch.equal(left.inputs[0], right.inputs[0])
        assert torch.equal(left.target, right.target)


def test_what_is_in_memory_is_the_same_too(images: Path):
    lazy, kept = opened(images, 2), open_data(images, settings=make(workers=2, normalize="none"))
    for left, right in zip(lazy.test.batches(7), kept.test.batches(7), strict=True):
        assert torch.equal(left.inputs[0], right.inputs[0])


def test_an_image_that_a_process_cannot_read_is_left_out_and_named(images: Path):
    (images / "0" / "0.png").write_bytes(b"no picture")
    data = opened(images, 2, split={"test": 0.02, "held_out": 0.02})
    samples = [n for part in (data.train, data.held_out, data.test) for b in part.batches(40) for n in b.target.tolist()]
    assert len(samples) == 89
    assert any("0.png (UnidentifiedImageError" in text for text in data.train.unreadable)


def test_two_passes_at_once_do_not_mix(images: Path):
    train = opened(images, 2).train
    pairs = zip(train.batches(16), train.batches(16), strict=True)
    assert all(torch.equal(one.inputs[0], other.inputs[0]) for one, other in pairs)


class Drawn(Dataset[Tensor]):
    """Items with something random in them."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, number: int) -> Tensor:
        return torch.full((3, 4, 4), float(number)) + torch.rand(1)


def seen(seed: int) -> Tensor:
    torch.manual_seed(seed)
    numbers = torch.arange(200).split(32)
    items = Drawn()
    return torch.cat([*feeding.pieces(lambda index: torch.stack([items[i] for i in index.tolist()]), numbers, 2, seed=5)])


@LINUX
def test_what_a_data_set_draws_depends_on_the_seed_alone():
    one, other = seen(0), seen(1)
    assert torch.equal(one, other)
    assert (one[:, 0, 0, 0].floor() == torch.arange(200)).all()
    assert len((one - one.floor())[:, 0, 0, 0].unique()) > 100, "random numbers differ from item to item"


@LINUX
def test_reading_draws_nothing_from_the_generator_of_others(images: Path):
    data = opened(images, 2)
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    assert len([*data.train.batches(8)]) > 1
    assert torch.equal(torch.rand(1), wanted)


def failing(how: Callable[[], object]) -> Callable[[Tensor], Tensor]:
    def read(index: Tensor) -> Tensor:
        if 100 in index.tolist():
            how()
        return index

    return read


def refused() -> None:
    raise BadInput("Item 100 is odd. Correct it.")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refusal_in_a_process_arrives_as_it_was_said(workers: int):
    with pytest.raises(BadInput, match=r"^Item 100 is odd\. Correct it\.$"):
        list(feeding.pieces(failing(refused), torch.arange(200).split(32), workers))


@LINUX
def test_a_process_that_is_killed_is_told_in_a_sentence():
    killed = failing(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(BadInput, match=r"A process that reads the data ended by itself .*workers = 0"):
        list(feeding.pieces(killed, torch.arange(200).split(32), 2))


def children() -> set[int]:
    me = str(os.getpid())
    found = set[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == me and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@LINUX
def test_a_pass_that_is_broken_off_leaves_no_process(images: Path):
    before = children()
    batches = opened(images, 2).train.batches(8)
    next(batches)
    assert children() - before
    batches.close()
    assert not children() - before


FOREVER = """
import os, time, torch
from compress.data import feeding

def read(index):
    time.sleep(60)
    return index

print(os.getpid(), flush=True)
feeding.AHEAD = 1
list(feeding.pieces(read, torch.arange(200).split(32), 2))
"""


@LINUX
def test_processes_end_with_the_one_that_is_killed():
    one = subprocess.Popen([sys.executable, "-c", FOREVER], stdout=subprocess.PIPE, text=True)
    assert one.stdout is not None
    assert int(one.stdout.readline()) == one.pid
    group: set[int] = set()
    ends = time.monotonic() + 60
    while len(group) < 2 and time.monotonic() < ends:
        group = {int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _parent(p) == one.pid}
    assert len(group) == 2
    one.kill()
    one.communicate()
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in group) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not [number for number in group if Path(f"/proc/{number}").exists()]


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_paths_come_in_the_order_of_their_parts(tmp_path: Path):
    names = ["a/0/z.png", "a/0.png", "a/1.png", "a-b/1.png", "a.x/1.png", "B/2.png", "a/0/a/y.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [Path(path) for path in image_files(tmp_path, deep=True).images] == sorted(tmp_path / name for name in names)


def test_folders_in_folders_may_be_deeper_than_python_calls(tmp_path: Path):
    made, folder = tmp_path / "deep", tmp_path / "deep"
    for _ in range(1100):
        folder.mkdir()
        folder = folder / "d"
    folder.with_name("x.png").write_bytes(b"")
    assert len(image_files(made, deep=True).images) == 1
    # shutil calls itself once for each of them.
    subprocess.run(["rm", "-r", str(made)], check=True)


def test_opening_a_folder_leaves_the_filters_of_warnings_as_they_were(images: Path):
    before = list(warnings.filters)
    for _ in range(20):
        open_data(images, settings=make(normalize="none"))
        assert list(warnings.filters) == before
