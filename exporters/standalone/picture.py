"""What does a model of this package make of a picture?

    python picture.py photo.jpg other.png               what the model decides, with its outputs
    python picture.py photo.jpg --model models/model.fp16.onnx
    python picture.py photo.jpg --json                  for a program

A picture becomes an input as manifest.json says, step by step, in the same way as where the quality of the model was measured.
Needs Python 3.8 or newer, numpy, Pillow and onnxruntime. Exit codes: 0 done, 2 a picture or package that cannot be used.
"""

from __future__ import annotations

import sys

sys.dont_write_bytecode = True  # a package holds what it lists, and nothing else

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__:
    from exporters.standalone import checksums, contents, inference
else:
    import checksums  # type: ignore[no-redef,import-not-found]
    import contents  # type: ignore[no-redef,import-not-found]
    import inference  # type: ignore[no-redef,import-not-found]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
"""Other decoders of Pillow start programs, or are hardly ever used."""


def prepared(path: Path, taken: dict[str, Any]) -> Any:
    """A picture as the input of a model: (1, channels, height, width), float32.

    Args:
        path: of the picture.
        taken: the entry of the input in the manifest.

    Raises:
        checksums.Refused: the manifest does not say how, or the file is no picture that can be used.
    """
    import numpy
    from PIL import Image, ImageOps

    how, normal = taken.get("preparation") or {}, taken["normalization"]
    if how.get("origin") != "files":
        raise checksums.Refused("The model was not measured on image files; manifest.json says what its input is.")
    try:
        with Image.open(path, formats=FORMATS) as opened:
            opened.load()
            image = (ImageOps.exif_transpose(opened) or opened) if how["upright"] else opened
            image = resized(colored(image, how["color"], opened.format), how)
    except checksums.Refused as error:
        raise checksums.Refused(f"{path}: {error}") from None
    except Exception as error:  # Pillow raises a dozen kinds over damaged bytes
        raise checksums.Refused(f"{path} is no picture that can be read ({error}). Give an image file.") from None
    values = numpy.asarray(image, dtype="float32") / numpy.float32(255)
    values = values[..., None] if values.ndim == 2 else values
    mean, std = (numpy.asarray(normal[name], dtype="float32") for name in ("mean", "std"))
    return numpy.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)[None])


def colored(image: Any, color: str, kind: str | None) -> Any:
    """Gray or RGB, from the upper eight bits."""
    import numpy
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        image = Image.fromarray((numpy.asarray(image).astype("uint32") >> 8).clip(0, 255).astype("uint8"))
    if image.mode[:1] in ("I", "F"):
        raise checksums.Refused(f"its pixels are numbers of 32 bits (mode {image.mode}); needed are 8 or 16 bits.")
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency has no direct way to RGB
    return image.convert("L" if color == "gray" else "RGB")


def resized(image: Any, how: dict[str, Any]) -> Any:
    """The size of the input, in the way of the manifest."""
    from PIL import Image

    height, width = how["size"]
    if image.size == (width, height):
        return image
    if how["resize"] is None:
        raise checksums.Refused(f"its size is {image.height}x{image.width}, needed is {height}x{width}.")
    if how["resize"] == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    scale = max(height / image.height, width / image.width)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (across - width) // 2, (down - height) // 2
    return image.resize((across, down), Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def decided(output: Any, manifest: dict[str, Any]) -> list[str]:
    """What the outputs of one picture say, as names; empty where they are no classes."""
    values, rule = output.reshape(-1), (manifest.get("decision") or {}).get("rule")
    names = list(manifest.get("classes") or [])
    names += [str(i) for i in range(len(names), max(len(values), 2))]  # a model may have outputs that its data has no class for
    if rule == "largest":
        return [names[int(values.argmax())]]
    if rule == "one above 0":
        return [names[int(values[0] > 0)]]
    return [name for name, value in zip(names, values) if value > 0] if rule == "all above 0" else []


def answers(package: Path, pictures: list[Path], model: str | None) -> Iterator[dict[str, Any]]:
    """What the model makes of each picture, one after the other."""
    manifest = contents.read(package)
    paths = [entry["path"] for entry in manifest["models"] if entry["runtime"] == "onnxruntime"]
    if not paths or model not in (None, *paths):
        raise checksums.Refused(f"There is no model {model or 'for onnxruntime'} in this package; it has {paths or 'none'}.")
    call = inference.function(inference.session(package / (model or paths[0]), 0))
    for path in pictures:
        output = call([prepared(path, manifest["inputs"][0])])[0]
        yield {"picture": str(path), "decided": decided(output, manifest), "output": output.reshape(-1).tolist()}


def main(arguments: list[str] | None = None) -> int:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", help="its path in the package; the first one that onnxruntime runs")
    parser.add_argument("--package", type=Path, default=Path(__file__).resolve().parent, help="an unpacked package; this folder")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each picture")
    given = parser.parse_args(arguments)
    try:
        for found in answers(given.package, given.pictures, given.model):
            shown = " ".join(f"{value:.4g}" for value in found["output"][:10])
            print(json.dumps(found) if given.json else f"{found['picture']}: {', '.join(found['decided']) or 'none'} ({shown})")
    except checksums.Refused as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"Error: {error}: pip install numpy pillow onnxruntime", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
