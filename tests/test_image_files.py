"""Image files as they lie about: what is opened, what is followed, what is turned, and what is refused."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress.data import open_data
from compress.data.images import header, pixels
from compress.data.settings import make
from compress.errors import BadInput, EmptyData

RANDOM = np.random.default_rng(0)


def gray(size=(6, 8)) -> np.ndarray:
    return RANDOM.integers(0, 256, size).astype(np.uint8)


def folder(root: Path, made=gray, suffix="png", count=8) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = made()
            picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            picture.save(root / name / f"{i}.{suffix}")
    return root


def says(data, *words: str) -> bool:
    return any(all(word in note for word in words) for note in data.notes)


# --- what a decoder would make one constant of ----------------------------------------------------------------------------


def in_alpha(mode: str) -> Image.Image:
    picture = Image.new(mode, (8, 6), "white")
    picture.putalpha(Image.fromarray(gray()))
    return picture


@pytest.mark.parametrize(
    ("made", "suffix", "mode"),
    [
        (lambda: (gray() / 255).astype(np.float32), "tif", "mode F"),
        (lambda: gray().astype(np.int32), "tif", "mode I"),
        (lambda: in_alpha("RGBA"), "png", "mode RGBA"),
        (lambda: in_alpha("LA"), "png", "mode LA"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory", [1.0, 1e-9])
def test_pixels_that_a_conversion_would_flatten_are_refused_with_their_mode(tmp_path, made, suffix, mode, channels, memory):
    folder(tmp_path, made, suffix)
    with pytest.raises(BadInput, match=mode) as refusal:
        data = open_data(tmp_path, settings=make(channels=channels, memory_gb=memory))
        list(data.train.batches(4))
    assert f".{suffix} (" in str(refusal.value)


def test_a_data_sets_pictures_of_an_unknown_scale_are_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\nfrom PIL import Image\n"
        "def floats(): return [(Image.fromarray(np.random.rand(8, 8).astype(np.float32)), i % 2) for i in range(20)]\n"
        "def deep(): return [(Image.fromarray(np.full((8, 8), 2560 * i, np.uint16)), i % 2) for i in range(20)]\n"
    )
    with pytest.raises(BadInput, match=r"cannot be used: .*mode F"):
        open_data(f"{tmp_path}/mine.py:floats")
    x = open_data(f"{tmp_path}/mine.py:deep", settings=make(normalize="none")).train.inputs[0].read(torch.arange(20))
    assert x[:, 0, 0, 0].tolist() == [10 * i for i in range(20)]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_of_12_bits_in_16_are_refused(tmp_path, suffix):
    folder(tmp_path, lambda: RANDOM.integers(0, 4096, (8, 8)).astype(np.uint16), suffix)
    with pytest.raises(BadInput, match=r"end at 40\d\d of 65535: .* 16 levels"):
        open_data(str(tmp_path))


def test_pictures_of_16_bits_keep_their_upper_eight_and_say_so(tmp_path):
    deep = gray()
    folder(tmp_path, lambda: (deep.astype(np.uint16) << 8) + 7)
    data = open_data(tmp_path, settings=make(normalize="none"))
    assert says(data, "16 bits", "upper eight")
    assert torch.equal(next(data.train.batches(1)).inputs[0][0, 0], torch.from_numpy(deep).float() / 255)


def test_transparency_is_said_to_be_left_out(tmp_path):
    folder(tmp_path, lambda: RANDOM.integers(0, 256, (6, 8, 4)).astype(np.uint8))
    assert says(open_data(tmp_path), "transparency", "left out")


@pytest.mark.parametrize("memory", [1.0, 1e-9])
@pytest.mark.parametrize("normalize", [None, "imagenet"])
def test_images_without_any_variation_are_refused_and_one_is_named(tmp_path, memory, normalize):
    folder(tmp_path, lambda: np.full((6, 8, 3), (9, 7, 5), np.uint8))
    with pytest.raises(BadInput, match=r"cat/0\.png\) have no variation"):
        open_data(tmp_path, settings=make(memory_gb=memory, normalize=normalize))


def test_arrays_without_any_variation_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.full((20, 3, 8, 8), 5, np.uint8), y=np.arange(20) % 2)
    with pytest.raises(BadInput, match=r"a\.npz that were looked at have no variation"):
        open_data(tmp_path / "a.npz")


# --- what is opened at all ------------------------------------------------------------------------------------------------


def test_a_file_of_another_format_is_not_opened_whatever_it_is_called(tmp_path):
    path = tmp_path / "script.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as opened:
        assert opened.format == "EPS"  # Pillow itself would hand it to a program
    assert header(path) is None
    with pytest.raises(OSError, match="cannot identify"):
        pixels(path, (6, 8), 3, None)


def test_a_file_of_far_too_many_pixels_is_refused_in_a_sentence(tmp_path):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    shape = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    flood = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", shape) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    for path in folder(tmp_path).glob("cat/*"):
        path.write_bytes(flood)
    with pytest.raises(BadInput, match="DecompressionBombError") as refusal:
        open_data(tmp_path)
    assert "\n" not in str(refusal.value)
    for path in tmp_path.glob("dog/*"):
        path.write_bytes(flood)
    with pytest.raises(EmptyData, match="can be read"):
        open_data(tmp_path)


def test_a_file_of_far_too_many_rows_is_refused_in_a_sentence(tmp_path):
    path = folder(tmp_path) / "cat" / "rows.png"
    Image.new("L", (1, 100_001)).save(path)
    with pytest.raises(ValueError, match="it is 100001x1; needed are at most 100000 pixels along an edge"):
        pixels(path, (6, 8), 3, "stretch")
    assert header(path) is None
    Image.new("L", (1, 100_000)).save(path)
    assert pixels(path, (6, 8), 3, "stretch").shape == (6, 8, 3)


def test_pixels_of_16_bits_become_8_some_rows_at_a_time(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 65_536, (37, 29), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    monkeypatch.setattr("compress.data.images._AT_ONCE", 100)
    assert np.array_equal(pixels(tmp_path / "deep.png", (37, 29), 1, None)[..., 0], (values >> 8).astype(np.uint8))
    assert (found := header(tmp_path / "deep.png")) is not None and found.most == values.max()


def test_pipes_sockets_and_broken_links_are_left_out_and_named(tmp_path, monkeypatch):
    folder(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "dog" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    monkeypatch.chdir(tmp_path / "dog")  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.png")
        data = open_data(tmp_path)
    assert len(data.train) + len(data.held_out) + len(data.test) == 16
    assert says(data, "3 entries", "pipe.png (no regular file)", "socket.png", "broken.png")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    folder(tmp_path)
    listed = os.scandir

    def refusing(place):
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return listed(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(BadInput, match=r"dog cannot be listed \(Permission denied\)"):
        open_data(tmp_path)


# --- linked folders -------------------------------------------------------------------------------------------------------


def test_folders_are_followed_through_links(tmp_path):
    store = folder(tmp_path / "store")
    root = folder(tmp_path / "root", count=2)
    (root / "cat" / "more").symlink_to(store / "cat")
    (root / "eel").symlink_to(store / "dog")
    data = open_data(root)
    assert data.spec.classes == ("cat", "dog", "eel")
    assert len(data.train) + len(data.held_out) + len(data.test) == 2 + 8 + 2 + 8


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_that_lead_in_a_circle_are_left_out_and_named(tmp_path, target):
    root = folder(tmp_path / "root")
    (root / "cat" / "deep").mkdir()
    (root / "cat" / "deep" / "round").symlink_to(target)
    data = open_data(root)
    assert len(data.train) + len(data.held_out) + len(data.test) == 16
    assert says(data, "1 entry", "deep/round (a link to a folder that is read already)")


def test_hidden_folders_are_left_out_and_named(tmp_path):
    root = folder(tmp_path / "root")
    shutil.copytree(root / "cat", root / "..cat")
    data = open_data(root)
    assert data.spec.classes == ("cat", "dog") and says(data, "1 entry", "..cat (its name begins with a dot)")


# --- EXIF orientation -----------------------------------------------------------------------------------------------------


def lying(path: Path, picture: np.ndarray, orientation: int = 6) -> None:
    """A picture stored a quarter turn against how it is meant."""
    image = Image.fromarray(np.rot90(picture).copy())
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_pictures_that_lie_on_their_side_are_said_and_turned_on_request(tmp_path, suffix):
    picture = np.zeros((6, 8, 3), np.uint8)
    picture[:3] = 200
    folder(tmp_path, lambda: picture, suffix)
    for path in tmp_path.glob(f"*/[0-5].{suffix}"):
        lying(path, picture)
    stored = open_data(tmp_path, settings=make(size=(6, 8)))
    assert says(stored, "12 of 16 images", "EXIF orientation", "used as stored", "upright = true")
    turned = open_data(tmp_path, settings=make(upright=True, normalize="none"))  # of one size again
    assert says(turned, "12 of 16 images", "turned upright") and turned.spec.shape == (3, 6, 8)
    for batch in turned.train.batches(1):
        assert float(batch.inputs[0][..., :2, :].min()) > 0.7 and float(batch.inputs[0][..., 4:, :].max()) < 0.1


def test_pictures_without_an_orientation_are_no_note(tmp_path):
    assert not says(open_data(folder(tmp_path, suffix="jpg")), "EXIF")
