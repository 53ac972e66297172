"""Shards of WebDataset: the samples of a folder, in tar files; what is cut off, mixed up or not there is refused."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded import picture
from PIL import Image
from runs import invoke, stopped_after

from compress.data.open_data import open_data
from compress.data.settings import from_toml, make
from compress.data.shards import Members
from compress.data.stores import Pictures
from compress.errors import BadInput, EmptyData
from compress.user import cache_folder
from compress.user.shard_paths import shards


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache_folder.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x-{0..999999999}{5..1}.tar", "counts from 5 to 1"),
        ("x-{0..99999}{0..99999}.tar", "more than 100,000 files"),
        ("{a}" * 1500 + ".tar", "more than 20 braces"),
        ("{a,b}" * 18 + ".tar", "more than 100,000 files"),
        ("gd" + "/*/.." * 12 + "/*.tar", "too many folders"),
        ("/*/*/*/*/*/*/*.tar", "too many folders"),
        ("~nobodyx/{0..3}.tar", "home folder that is not there"),
        ("/usr/share/*/{0..99999}*.tar", r"more than 100 patterns with a \*"),
    ],
)
def test_patterns_without_end_are_refused_before_they_are_gone_through(text: str, said: str):
    with stopped_after(20), pytest.raises(BadInput, match=said):
        shards(text)


def test_patterns_inside_of_another_add_up(tmp_path: Path):
    for name in ("a1", "a2", "b1", "b2"):
        (tmp_path / f"{name}.tar").touch()
    assert sorted(one.stem for one in shards(str(tmp_path / "{a{1..2},b{1..2}}.tar"))) == ["a1", "a2", "b1", "b2"]


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as written:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
    return path


def samples(numbers: range, label: bool = True) -> list[tuple[str, bytes]]:
    return [
        one for i in numbers for one in ((f"{i:04}.png", picture(i)), *(((f"{i:04}.cls", str(i % 3).encode()),) if label else ()))
    ]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number in range(3):
        shard(tmp_path / "shards" / f"train-{number:03}.tar", samples(range(20 * number, 20 * number + 20)))
    return tmp_path / "shards"


def folder(root: Path, numbers: range) -> Path:
    for i in numbers:
        (root / str(i % 3)).mkdir(parents=True, exist_ok=True)
        (root / str(i % 3) / f"{i:04}.png").write_bytes(picture(i))
    return root


@pytest.mark.parametrize("memory_gb", [1.0, 1e-9])
def test_shards_hold_what_a_folder_holds(three: Path, tmp_path: Path, memory_gb: float):
    settings = make(memory_gb=memory_gb, normalize="none", split={"test": 0.1, "held_out": 0.1}, workers=2)

    def found(source: str) -> dict[bytes, int]:
        data = open_data(source, settings=settings)
        parts = (data.train, data.held_out, data.test)
        rows = [(b.inputs[0], b.target) for part in parts for b in part.batches(16)]
        return {x.numpy().tobytes(): int(y) for inputs, target in rows for x, y in zip(inputs, target, strict=True)}

    in_shards = found(str(three / "train-{000..002}.tar"))
    assert len(in_shards) == 60
    assert in_shards == found(str(folder(tmp_path / "images", range(60))))


@pytest.mark.parametrize("how", ["train-{000..002}.tar", "train-*.tar", "train-00{0,1,2}.tar", "train-0{00..02}.tar", ""])
def test_ways_to_name_three_shards(three: Path, how: str):
    assert [path.name for path in shards(str(three / how))] == ["train-000.tar", "train-001.tar", "train-002.tar"]


def test_parts_are_told_by_their_names(three: Path):
    shard(three / "val-000.tar", samples(range(100, 107)))
    shard(three / "my-test-000.tar", samples(range(200, 209)))
    data = open_data(three, settings=make(normalize="none"))
    assert (len(data.train), len(data.held_out), len(data.test)) == (60, 7, 9)
    assert data.spec.classes == ("0", "1", "2")


def test_a_recipe_of_data_names_shards_beside_it(three: Path):
    (three.parent / "data.toml").write_text('source = "shards/train-{000..002}.tar"\nclasses = ["a", "b", "c"]\n')
    assert from_toml(three.parent / "data.toml").source == str(three / "train-{000..002}.tar")
    assert open_data(three.parent / "data.toml").spec.classes == ("a", "b", "c")


def test_pictures_without_a_class_are_images_without_labels(tmp_path: Path):
    one = shard(tmp_path / "x.tar", samples(range(12), label=False))
    assert not open_data(one, settings=make(normalize="none")).spec.labeled


def test_a_shard_is_gone_through_once_until_it_changes(three: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = open_data(three)
    opened = list[str]()
    real = tarfile.open

    def noted(path: Path, mode: str, **how: Any) -> tarfile.TarFile:
        opened.append(path.name)
        return real(path, mode, **how)

    monkeypatch.setattr("compress.data.shards.tarfile.open", noted)
    assert open_data(three).notes == first.notes
    assert not opened
    shard(three / "train-001.tar", samples(range(300, 303)))
    opened.clear()
    data = open_data(three)
    assert len(data.train) + len(data.held_out) + len(data.test) == 43
    assert opened == ["train-001.tar"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"size": 1}', b"[1, 2, [[3]], 4]"])
def test_a_damaged_memory_of_shards_is_done_without(three: Path, cache: Path, content: bytes):
    notes = open_data(three).notes
    for kept in (cache / "shards").iterdir():
        kept.write_bytes(content)
    assert open_data(three).notes == notes


@pytest.mark.parametrize("wrong", [{"begin": -5}, {"size": -1}, {"size": 2**40}, {"begin": 2**62}])
def test_a_memory_of_places_outside_of_a_shard_is_done_without(three: Path, cache: Path, wrong: dict[str, int]):
    notes, first = open_data(three).notes, first_pixels(three)
    for kept in (cache / "shards").iterdir():
        size, changed, places, others = json.loads(kept.read_bytes())
        places = [[name, wrong.get("begin", at), wrong.get("size", long), label] for name, at, long, label in places]
        kept.write_text(json.dumps([size, changed, places, others]))
    assert open_data(three).notes == notes and torch.equal(first_pixels(three), first)


def first_pixels(place: Path) -> torch.Tensor:
    return next(iter(open_data(place).train.batches(4))).inputs[0]


def test_a_cache_that_cannot_be_written_is_done_without(three: Path, cache: Path):
    cache.write_text("a file in the way")
    assert len(open_data(three).train) > 0


def test_what_is_neither_picture_nor_class_is_counted(tmp_path: Path):
    one = shard(tmp_path / "x.tar", [*samples(range(12)), ("0011.json", b"{}"), ("._0001.png", b"of a Mac"), ("0011.txt", b"a")])
    assert any(note.startswith("3 members of ") for note in open_data(one, settings=make(normalize="none")).notes)


def test_a_broken_picture_is_named_by_shard_and_member(tmp_path: Path):
    one = shard(tmp_path / "x.tar", [*samples(range(40)), ("0040.png", b"broken"), ("0040.cls", b"1")])
    notes = open_data(one, settings=make(normalize="none")).notes
    assert any(f"{one}:0040.png (UnidentifiedImageError" in note for note in notes)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([*samples(range(3)), ("0003.png", b"x")], "1 of 4 pictures of .* have no .cls: .*0003.png"),
        ([*samples(range(3)), ("0003.png", b"x"), ("0003.jpg", b"x")], "has 2 pictures .0003.png and 0003.jpg."),
        ([*samples(range(3)), ("0003.png", b"x"), ("0003.cls", b"cat")], "is 'cat'; needed is the number of a class"),
        ([*samples(range(3)), ("0003.png", picture(3)), ("0003.cls", b"-1")], "go down to -1"),
        ([*samples(range(3)), ("0003.png", b"x"), ("0003.cls", b"9" * 400)], "needed is the number of a class"),
    ],
)
def test_samples_that_are_not_whole_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], said: str):
    with pytest.raises(BadInput, match=said):
        open_data(shard(tmp_path / "x.tar", members))


def test_no_picture_at_all(tmp_path: Path):
    with pytest.raises(EmptyData, match="has no picture to train on"):
        open_data(shard(tmp_path / "x.tar", [("a.txt", b"x")]))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.77, 0.9])
def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path, share: float):
    one = shard(tmp_path / "x.tar", samples(range(40)))
    whole = one.read_bytes()
    end = 512 * (len(whole.rstrip(b"\0")) // 512 + 1)
    one.write_bytes(whole[: int(end * share)])
    with pytest.raises(BadInput, match=r"x\.tar (is cut off|cannot be read)"):
        open_data(one)


def test_a_shard_cut_off_between_two_members_is_refused(tmp_path: Path):
    one = shard(tmp_path / "x.tar", samples(range(40)))
    with tarfile.open(one) as opened:
        last = opened.getmembers()[-1].offset
    one.write_bytes(one.read_bytes()[:last])
    with pytest.raises(BadInput, match="is cut off"):
        open_data(one)


@pytest.mark.parametrize("content", [b"no tar at all", bytes(512) + b"x" * 600, os.urandom(4096)])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises((BadInput, EmptyData)):
        open_data(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train-{000..004}.tar", "2 files of .* cannot be found: .*train-003.tar"),
        ("none-*.tar", "cannot be found"),
        ("{1..999999999}.tar", "more than 100,000 files"),
    ],
)
def test_shards_that_are_not_there(three: Path, name: str, said: str):
    with pytest.raises(BadInput, match=said):
        open_data(str(three / name))


def test_compressed_shards_are_refused(three: Path):
    (three / "train-000.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(BadInput, match=r"is compressed; needed are plain .tar files"):
        open_data(str(three / "train-000.tar.gz"))


def test_links_and_folders_in_a_shard_are_no_samples(tmp_path: Path):
    one = tmp_path / "x.tar"
    with tarfile.open(one, "w") as written:
        for name, content in samples(range(12)):
            member = tarfile.TarInfo("a/" + name)
            member.size = len(content)
            written.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("b/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        written.addfile(link)
    data = open_data(one, settings=make(memory_gb=1e-9, normalize="none"))
    store = data.train.inputs[0]
    assert isinstance(store, Pictures)
    assert isinstance(store.encoded, Members)
    assert len(store) == 12
    wanted = np.array(Image.open(io.BytesIO(picture(3))))
    assert torch.equal(store.read(torch.tensor([3]))[0], torch.from_numpy(wanted).permute(2, 0, 1))


def test_the_command_line_knows_shards_before_torch(three: Path):
    found = invoke("run", three / "train-000.tar", "--data", three / "train-{000..009}.tar")
    assert "7 files of" in found.output + str(found.exception)


@pytest.mark.parametrize("source", ["a" * 5000, "a" * 5000 + ":f", "x/" * 3000, "a" * 300 + ".tar"])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, source: str):
    (tmp_path / "data.toml").write_text(f'source = "{source}"')
    for given in (source, tmp_path / "data.toml"):
        with pytest.raises(BadInput):
            open_data(given)
