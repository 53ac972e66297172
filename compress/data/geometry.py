"""The one size and number of channels that pictures get, by what some of them say of themselves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from compress.data.images import Header, header
from compress.data.settings import Settings
from compress.data.stores import Encoded
from compress.errors import BadInput, CompressWarning, EmptyData
from compress.user.wording import many

PROBES = 256  # pictures looked at
DARK = 2**12
"""Below that all values of 16 bits are 12 bits or fewer, in the place of 16."""


def by(shape: Sequence[int]) -> str:
    """3x28x28."""
    return "x".join(map(str, shape))


def geometry(
    found: Sequence[Encoded], settings: Settings, shape: tuple[int, ...] | None, where: str, draws: torch.Generator
) -> tuple[int, tuple[int, int], str | None, list[str]]:
    """(channels, (height, width), how to resize, notes), from the settings, the model's input, or the images.

    Raises:
        BadInput: the images have other channels than the model, or several sizes and none is stated.
        EmptyData: none can be read.
    """
    some = torch.randperm(sum(map(len, found)), generator=draws)[:PROBES].sort().values.tolist()
    # Around all threads: filters of warnings belong to the whole process, and threads would put back each other's.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")
        headers = [one for one in pool.map(lambda number: _looked_at(found, number), some) if one is not None]
    if not headers:
        raise EmptyData(f"None of {len(some)} images looked at in {where} can be read, such as {_name(found, some[0])}.")
    sizes = sorted({one.upright if settings.upright else one.size for one in headers})
    gray = all(one.mode in ("1", "L", "LA", "F") or one.mode.startswith("I") for one in headers)
    _refuse_dark(headers, where)
    notes = _said_of(headers, settings)
    channels = settings.channels or (1 if gray else 3)
    if settings.channels is None:
        notes.append(f"The images are {'gray: 1 channel' if gray else 'colored: 3 channels'}.")
    if shape is not None and len(shape) != 3:
        raise BadInput(
            f"The input shape is {by(shape) or 'scalar'}, and the images of {where} have channels, height and width. Give "
            "--input-shape 3x32x32 or the like, or leave it out."
        )
    if shape is not None and shape[0] != channels:
        raise BadInput(
            f"The input shape is {by(shape)}, and the images of {where} have {many(channels, 'channel')}. Give --input-shape "
            f"{by((channels, *shape[1:]))}, or leave it out; where the model takes {many(shape[0], 'channel')}, write channels = "
            f"{shape[0]} into a data.toml."
        )
    wanted = settings.size or (None if shape is None else (shape[1], shape[2]))
    if wanted is not None:
        if shape is not None and wanted != tuple(shape[1:]):
            raise BadInput(f"The input shape is {by(shape)}, the data settings say size = {list(wanted)}. Make them agree.")
        if len(sizes) == 1 and shape is not None and sizes[0][0] * wanted[1] != sizes[0][1] * wanted[0]:
            odd = (
                f"All images of {where} that were looked at are {by(sizes[0])}, and the input shape is {by(shape)}, of other "
                "proportions. If that is not what the model was trained on, correct --input-shape, or leave it out."
            )
            warnings.warn(odd, CompressWarning, stacklevel=2)
            notes.append(odd)
        if sizes != [wanted]:
            how = "scaled and cut to the center" if settings.resize == "crop" else "stretched"
            notes.append(f"Images of other sizes (such as {sizes[0][0]}x{sizes[0][1]}) are {how}: {wanted[0]}x{wanted[1]}.")
        return channels, wanted, settings.resize, notes
    if len(sizes) > 1:
        raise BadInput(
            f"The images of {where} have several sizes ({sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}). "
            f"Give the model's with --input-shape CxHxW, or size = [H, W] in a data.toml."
        )
    notes.append(f"The input size {sizes[0][0]}x{sizes[0][1]} is that of the images.")
    return channels, sizes[0], None, notes


def _refuse_dark(headers: Sequence[Header], where: str) -> None:
    """Refuse pictures of 16 bits that use the lower twelve alone, as cameras and scanners write them.

    Raises:
        BadInput: all of them do, so that the upper eight bits would be next to nothing.
    """
    deep = [one.most for one in headers if one.most is not None]
    if deep and max(deep) < DARK:
        raise BadInput(
            f"The images of {where} have 16 bits, and their values end at {max(deep)} of 65535: the upper eight bits, which are "
            f"used, have {(max(deep) >> 8) + 1} levels. Scale them to the whole range, as in training, or save them in 8 bits."
        )


def _said_of(headers: Sequence[Header], settings: Settings) -> list[str]:
    """What some of the images are, and what is done with it."""
    turned, how = sum(one.turned for one in headers), "turned upright" if settings.upright else "used as stored"
    otherwise = "" if settings.upright else "; upright = true in a data.toml turns them"
    kinds = {
        f"have an EXIF orientation and are {how}{otherwise}": turned,
        "have 16 bits, of which the upper eight are used": sum(one.mode.startswith("I") for one in headers),
        "have transparency, which is left out": sum("A" in one.mode and one.mode != "LAB" for one in headers),
    }
    return [f"{count} of {len(headers)} images looked at {what}." for what, count in kinds.items() if count]


def _looked_at(found: Sequence[Encoded], number: int) -> Header | None:
    part, at = _placed(found, number)
    try:
        return header(part.file(at))
    except ValueError:  # a row of a table without a picture
        return None


def _name(found: Sequence[Encoded], number: int) -> str:
    part, at = _placed(found, number)
    return part.name(at)


def _placed(found: Sequence[Encoded], number: int) -> tuple[Encoded, int]:
    """The part of a picture, and its number there, by its number in all parts, one behind the other."""
    for one in found:
        if number < len(one):
            return one, number
        number -= len(one)
    raise IndexError(number)
