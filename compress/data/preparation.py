"""How a picture becomes an input, in words and for a program: without it nobody else gets the quality that a run states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

COVERED = (
    "Scale it until it covers {size} (height x width), keeping its proportions, bilinear as Pillow does, and cut out the center"
)
STRETCHED = "Resize it to {size} (height x width) without keeping its proportions, bilinear as {who} does"


@dataclass(frozen=True)
class Preparation:
    """What happens before the normalization.

    Attributes:
        origin: image files, arrays, or items that a data set made.
        color: order of the channels; None where nothing says so.
        resize: how another size becomes that of the input: "crop" (cover, then cut the center), "stretch", or None where all had
            it.
        upright: pictures are turned as their EXIF orientation says.
    """

    origin: Literal["files", "arrays", "items"]
    color: Literal["RGB", "gray"] | None = None
    resize: Literal["crop", "stretch"] | None = None
    upright: bool = False

    @property
    def filter(self) -> str | None:
        """Of the resizing."""
        return None if self.resize is None else "bilinear"

    def steps(self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> tuple[str, ...]:
        """One sentence each, in order.

        Args:
            shape: of an input, (channels, height, width) for pictures.
            mean: per channel.
            std: per channel.
        """
        normal = f"Subtract mean ({_listed(mean)}) and divide by std ({_listed(std)}), channel by channel."
        if self.origin == "items" or len(shape) != 3:
            return (f"Take the values as the {'data set gives' if self.origin == 'items' else 'arrays hold'} them.", normal)
        size = f"{shape[1]}x{shape[2]}"
        resized = (COVERED if self.resize == "crop" else STRETCHED).format(size=size, who=self._resizer)
        kept = f"Its size is {size} (height x width)" + ("; no other was measured" if self.resize is None else "")
        color = {"RGB": "in the order RGB", "gray": "gray, the luma of ITU-R BT.601 where it was colored"}
        ordered = color.get(self.color or "", "in the order of the arrays")
        return (
            self._decoded,
            f"Its {shape[0]} channel{'s are' if shape[0] > 1 else ' is'} {ordered}.",
            f"{kept if self.resize is None else resized}.",
            "Divide values of 8 bits by 255; others stay.",
            normal,
            "Lay it out channels first, as float32: (batch, channels, height, width).",
        )

    @property
    def _resizer(self) -> str:
        return "Pillow" if self.origin == "files" else "torch.nn.functional.interpolate with antialias"

    @property
    def _decoded(self) -> str:
        if self.origin == "arrays":
            return "Take the picture as the arrays hold it."
        turned = "turn it as its EXIF orientation says" if self.upright else "leave its pixels as stored, whatever EXIF says"
        return f"Decode the picture and {turned}; 16 bits keep their upper eight, transparency is left out."


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
