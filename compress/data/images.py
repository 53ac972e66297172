"""One image file as 8-bit numbers.

Only the formats of `SUFFIXES` are opened, whatever a file is called: other decoders of Pillow start programs (PostScript), or
are hardly ever used. A picture whose brightness nobody can tell (32-bit numbers), or whose content is in its transparency, is
refused: a plain conversion makes one constant of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageOps

from compress.data import jpeg

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
ORIENTATION = 0x112  # number of the tag in EXIF
_THIN = 16
"""How much more than what is cut out of it an image may be scaled to."""
_LONGEST = 100_000
"""Pixels along an edge: Pillow keeps two dozen bytes for every row, and looks at their number only times that of the columns."""
_AT_ONCE = 1 << 22
"""Pixels of 16 bits that become 8 at a time."""
LYING = range(5, 9)  # orientations that exchange height and width


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        mode: Pillow's name of the kind of pixels.
        size: (height, width) as stored.
        orientation: by EXIF; 1 is upright.
        most: the largest value of pixels of 16 bits.
    """

    mode: str
    size: tuple[int, int]
    orientation: int = 1
    most: int | None = None

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the picture when it is turned as EXIF says."""
        return (self.size[1], self.size[0]) if self.orientation in LYING else self.size

    @property
    def turned(self) -> bool:
        """The pixels do not lie as the picture is meant."""
        return self.orientation in range(2, 9)


def header(path: str | BinaryIO) -> Header | None:
    """The header of a file, without decoding pixels of 8 bits, or None where it is no image. Pillow may warn."""
    try:
        with undecoded(path) as image:
            # Pillow turns pictures of TIFF itself, and would decode those of PNG to look for EXIF behind the pixels.
            passed = image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)
            turned = 1 if passed else image.getexif().get(ORIENTATION, 1)
            most = cast(Any, image.getextrema())[1] if _of_16_bits(image, image.format) else None
            return Header(image.mode, (image.height, image.width), turned if isinstance(turned, int) else 1, most)
    except Exception:  # Pillow raises a dozen kinds over damaged bytes
        return None


def pixels(path: str | BinaryIO, size: tuple[int, int], channels: int, resize: str | None, upright: bool = False) -> np.ndarray:
    """One image file as uint8, (height, width, channels), or (height, width) for a mask.

    Args:
        path: of the file, or its bytes.
        size: (height, width) that comes out.
        channels: 1 or 3; 0 for a mask of class numbers.
        resize: None (another size is an error), "crop" (cover, then cut the center) or "stretch".
        upright: turn the picture as its EXIF orientation says.

    Raises:
        ValueError: the size is another and `resize` is None, or the kind of pixels is none that can be used.
        Exception: the file is damaged, or no image; Pillow raises a dozen kinds.
    """
    if channels == 3 and not upright and (found := jpeg.plain(path, size)) is not None:
        return found
    with undecoded(path) as opened:
        _refuse_scans(opened)
        opened.load()
        image = (ImageOps.exif_transpose(opened) or opened) if upright else opened
        if channels == 0:
            if image.mode not in ("1", "L", "P"):
                raise ValueError(f"a mask needs one channel of class numbers, this is {image.mode}")
            image = image if image.mode != "1" else Image.fromarray(np.asarray(image).astype(np.uint8))
        else:
            image = with_channels(image, channels, opened.format)
        if image.size != size[::-1]:
            if resize is None:
                raise ValueError(f"its size is {image.height}x{image.width}, needed is {size[0]}x{size[1]}")
            image = _resized(image, size, resize, Image.Resampling.NEAREST if channels == 0 else Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array if channels != 1 else array[..., None]


def colored(path: str | Path) -> Image.Image:
    """One image file as it is stored, in RGB of 8 bits.

    Raises:
        ValueError: more bits, of which nobody says which count, or a content that is in the transparency alone.
        Exception: as for `pixels`.
    """
    with undecoded(path) as opened:
        _refuse_scans(opened)
        if _of_16_bits(opened, opened.format):
            raise ValueError("its pixels have 16 bits; needed are 8")
        opened.load()
        return with_channels(opened, 3, opened.format)


def undecoded(path: str | Path | BinaryIO) -> Image.Image:
    """A file of one of the formats, not decoded yet.

    Raises:
        ValueError: an edge is longer than that of any picture.
        Exception: as for `pixels`.
    """
    image = Image.open(path, formats=FORMATS)
    if max(image.size) > _LONGEST:
        image.close()
        raise ValueError(f"it is {image.height}x{image.width}; needed are at most {_LONGEST} pixels along an edge")
    return image


def _refuse_scans(opened: Image.Image) -> None:
    """Refuse a JPEG that goes through its pixels thousands of times: a small file would take minutes.

    Raises:
        ValueError: it does.
    """
    file: Any = getattr(opened, "fp", None)
    if opened.format not in ("JPEG", "MPO") or file is None:
        return
    at = file.tell()
    file.seek(0)
    count = jpeg.scans(file.read())
    file.seek(at)
    if count > jpeg.MOST_SCANS:
        raise ValueError(f"it has {count} scans; needed are at most {jpeg.MOST_SCANS}")


def with_channels(image: Image.Image, channels: int, kind: str | None = None) -> Image.Image:
    """Gray or RGB.

    Args:
        image: any.
        channels: 1 or 3.
        kind: format of the file.

    Raises:
        ValueError: pixels of 32 bits, or a content that is in the transparency alone.
    """
    if _of_16_bits(image, kind):
        # 16 bits: keep the upper eight, where a plain conversion would clip.
        image = Image.fromarray(_upper_eight(image))
    if image.mode[:1] in ("I", "F"):
        raise ValueError(f"its pixels are numbers of 32 bits (mode {image.mode}) of an unknown scale; needed are 8 or 16 bits")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency has no direct way to RGB
    if image.mode in ("LA", "RGBA", "PA") and _only_transparency(image):
        raise ValueError(f"its content is in the transparency alone (mode {image.mode}); needed is a picture on a background")
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _of_16_bits(image: Image.Image, kind: str | None) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM"))


def _upper_eight(image: Image.Image) -> np.ndarray:
    """Pixels of 16 bits in 8, some rows at a time: a whole copy in 32 bits would be gigabytes."""
    found = np.empty((image.height, image.width), np.uint8)
    step = max(1, _AT_ONCE // image.width)
    for top in range(0, image.height, step):
        rows = np.asarray(image.crop((0, top, image.width, min(top + step, image.height))))
        found[top : top + step] = (rows.astype(np.uint32) >> 8).clip(0, 255)
    return found


def _only_transparency(image: Image.Image) -> bool:
    *colors, alpha = (band.getextrema() for band in image.split())
    return alpha[0] != alpha[1] and all(low == high for low, high in colors)


def _resized(image: Image.Image, size: tuple[int, int], how: str, resample: Image.Resampling) -> Image.Image:
    height, width = size
    if how == "stretch":
        return image.resize((width, height), resample)
    scale = max(height / image.height, width / image.width)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (across - width) // 2, (down - height) // 2
    if across * down > _THIN * height * width:
        # A strip of pixels would be scaled to gigabytes before it is cut; within rounding this is the same.
        x, y = left / scale, top / scale
        box = (x, y, min(x + width / scale, image.width), min(y + height / scale, image.height))
        return image.resize((width, height), resample, box)
    return image.resize((across, down), resample).crop((left, top, left + width, top + height))
