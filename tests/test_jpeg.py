"""Plain JPEGs are decoded by torchvision where it gives what Pillow gives; everything else stays Pillow's."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compress.data import jpeg
from compress.data.images import pixels


@pytest.fixture(autouse=True)
def tried_anew():
    jpeg._agreeing.cache_clear()
    yield
    jpeg._agreeing.cache_clear()


def picture(mode: str = "RGB", size: tuple[int, int] = (37, 50)) -> Image.Image:
    coarse = np.random.default_rng(1).integers(0, 256, (10, 13, 3), np.uint8)
    return Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]).convert(mode)


def saved(made: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    made.save(file, "JPEG", **how)
    return file.getvalue()


@pytest.mark.parametrize("how", [{}, {"quality": 30, "subsampling": 2}, {"progressive": True}, {"comment": b"\xff\xc0 made"}])
def test_a_plain_jpeg_has_the_pixels_that_pillow_finds(how: dict[str, Any], tmp_path: Path):
    data = saved(picture(), **how)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    for source in (str(tmp_path / "a.jpg"), io.BytesIO(data)):
        found = jpeg.plain(source, (37, 50))
        assert found is not None and np.array_equal(found, expected)


def test_what_is_no_plain_jpeg_of_the_size_is_left_to_pillow():
    plain, png = saved(picture()), io.BytesIO()
    picture().save(png, "PNG")
    others = {
        "gray": saved(picture("L")),
        "four colors": saved(picture("CMYK")),
        "another format": png.getvalue(),
        "cut off": plain[: len(plain) // 2],
        "cut off in its head": plain[:30],
        "nothing": b"",
        "an unusual segment": plain[:2] + b"\xff\x01" + plain[2:],
    }
    for what, data in others.items():
        file = io.BytesIO(data)
        assert jpeg.plain(file, (37, 50)) is None, what
        assert file.tell() == 0, what
    assert jpeg.plain(io.BytesIO(plain), (50, 37)) is None


def test_a_file_that_asks_for_another_size_is_not_decoded(monkeypatch: pytest.MonkeyPatch):
    assert jpeg.plain(io.BytesIO(saved(picture())), (37, 50)) is not None
    monkeypatch.setattr(jpeg, "_decode", lambda data: pytest.fail("it was decoded"))
    huge = bytearray(saved(picture()))
    at = huge.index(b"\xff\xc0")
    huge[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    assert jpeg.frame(bytes(huge)) == (8, 65535, 65535, 3)
    assert jpeg.plain(io.BytesIO(bytes(huge)), (37, 50)) is None


@pytest.mark.parametrize("decoded", ["otherwise", "not at all"])
def test_where_the_two_do_not_agree_pillow_decodes(decoded: str, monkeypatch: pytest.MonkeyPatch):
    def decode(data: bytes) -> np.ndarray:
        if decoded == "not at all":
            raise RuntimeError("made without JPEG")
        return np.asarray(Image.open(io.BytesIO(data))) ^ 1

    monkeypatch.setattr(jpeg, "_decode", decode)
    data = saved(picture())
    assert np.array_equal(pixels(io.BytesIO(data), (37, 50), 3, None), np.asarray(Image.open(io.BytesIO(data))))


def test_a_damaged_jpeg_is_refused_in_pillows_words():
    data = saved(picture())
    with pytest.raises(OSError, match="truncated"):
        pixels(io.BytesIO(data[: len(data) // 2]), (37, 50), 3, None)
