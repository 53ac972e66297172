"""Data sets of Hugging Face as they lie on disk: parquet files, or the Arrow files of `save_to_disk`.

A column of pictures ({bytes, path}, or bytes), a column of class numbers. Arrow files are mapped into memory as they are; parquet
is decoded once, into memory where it fits, otherwise into an Arrow file in the cache folder, since a row of parquet costs its
whole group of rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from compress.data import arrow
from compress.data.image_source import Pictured, alike, open_pictures
from compress.data.part_names import by_part
from compress.data.settings import Settings
from compress.data.sources import Source
from compress.errors import BadInput, EmptyData
from compress.user.cache_folder import cache_folder
from compress.user.wording import many
from exporters import atomic

FEW = 64  # rows of parquet that are decoded at once, or fewer
_DECODED = 2**28  # bytes


@dataclass(frozen=True)
class Column:
    """Pictures of a column, by number; mapped from disk, so that processes share it."""

    values: Any
    where: str

    def __len__(self) -> int:
        return len(self.values)

    def name(self, number: int) -> str:
        """The path that the row gives, or its number."""
        told = self.values[number].as_py()
        path = cast("dict[str, Any]", told).get("path") if isinstance(told, dict) else None
        return f"{self.where}: {path or f'row {number}'}"

    def file(self, number: int) -> io.BytesIO:
        """Its bytes."""
        told = self.values[number].as_py()
        content = cast("dict[str, Any]", told).get("bytes") if isinstance(told, dict) else told
        if not isinstance(content, bytes):
            raise ValueError("the row holds no bytes")
        return io.BytesIO(content)


def open_parquet(
    paths: Sequence[Path], settings: Settings, shape: tuple[int, ...] | None, draws: torch.Generator, where: str
) -> Source:
    """Tables on disk as a source.

    Args:
        paths: .parquet or .arrow files; parts are told by words of their names, as for shards.
        settings: what a data.toml says; `columns` chooses among several.
        shape: (channels, height, width) that the model takes, where it is known.
        draws: which headers are looked at.
        where: what messages call them.

    Raises:
        BadInput: a file is none of those, columns that nobody can choose among, or labels that are no numbers.
        EmptyData: no row.
        MissingPackage: pyarrow is not installed.
    """
    parts = by_part(paths)
    schema = _schema(parts["train"][0])
    image, label, names = _columns(schema, settings, where)
    tables = {part: _table(some, [image, *([label] if label else [])], settings) for part, some in parts.items()}
    if not tables["train"].num_rows:
        raise EmptyData(f"{where} has no row to train on. Give files with rows.")
    found = {part: _pictured(table, image, label, where) for part, table in tables.items() if table.num_rows}
    kept, left_out = alike(found, where)
    notes = [f"Pictures are those of the column '{image}'" + (f", classes those of '{label}'." if label else "; no classes.")]
    return open_pictures(kept, settings.classes or names, settings, shape, draws, where, [*notes, *left_out])


def _schema(path: Path) -> Any:
    pa = arrow.pyarrow()
    try:
        return pa.parquet.read_schema(path) if path.suffix == ".parquet" else arrow.schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> BadInput:
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
    return BadInput(f"{path} cannot be read ({said}). Needed is a {path.suffix} file of a data set; download it again.")


def _columns(schema: Any, settings: Settings, where: str) -> tuple[str, str | None, tuple[str, ...] | None]:
    """Names of the column of pictures and of the one of classes, and of the classes, where they are told."""
    features = _features(schema)
    if twice := [name for name, times in Counter(schema.names).items() if times > 1]:
        raise BadInput(f"{where} has the column '{twice[0]}' twice; needed are columns of different names. Write the file anew.")
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    pictures = [name for name, kind in kinds.items() if features.get(name, {}).get("_type") == "Image" or _of_bytes(kind)]
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    classes = classes or [name for name, kind in kinds.items() if kind.startswith(("int", "uint"))]
    image = _chosen(settings.columns.image, pictures, kinds, "pictures", "image", where)
    if image is None:
        raise BadInput(f"{where} has no column of pictures among {_told(kinds)}. Needed is one of bytes, or of an Image.")
    if not _of_bytes(kinds[image]):
        raise BadInput(
            f"The column '{image}' of {where} is of type {kinds[image][:60]}; needed is one of bytes, or of an Image. Correct "
            "[columns] image."
        )
    label = _chosen(settings.columns.label, classes, kinds, "classes", "label", where)
    meant = settings.columns.label is not None or features.get(label or "", {}).get("_type") == "ClassLabel"
    others = [name for name in kinds if name != image and name.lower() in _LABELS]
    if not meant and others and label not in others:
        raise BadInput(
            f"The column '{others[0]}' of {where} is of type {kinds[others[0]][:60]}; needed are numbers of classes. Number "
            "them, say under [columns] in a data.toml which column has them, or take this one away."
        )
    names = features.get(label or "", {}).get("names")
    return image, label, tuple(map(str, names)) if isinstance(names, list) and names else None


_LABELS = frozenset({"label", "labels", "class", "classes", "target", "targets", "category", "y"})
"""Names of columns that nobody means to be passed over."""


def _of_bytes(kind: str) -> bool:
    return kind in ("binary", "large_binary") or (kind.startswith("struct<") and "bytes: binary" in kind)


def _chosen(said: str | None, found: list[str], kinds: dict[str, str], what: str, key: str, where: str) -> str | None:
    if said is not None:
        if said not in kinds:
            raise BadInput(f"{where} has no column '{said}'; there are {_told(kinds)}. Correct [columns] {key}.")
        return said
    if len(found) > 1:
        raise BadInput(
            f"{where} has {len(found)} columns of {what} ({', '.join(found)}). Say which under [columns] in a data.toml, "
            f'such as {key} = "{found[0]}".'
        )
    return found[0] if found else None


def _told(kinds: dict[str, str]) -> str:
    return ", ".join(f"{name} ({kind[:40]})" for name, kind in list(kinds.items())[:8]) or "no columns"


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What the library `datasets` wrote about the columns; {} where somebody else wrote the file."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: one for name, one in found.items() if isinstance(one, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _pictured(table: Any, image: str, label: str | None, where: str) -> Pictured:
    pictures = Column(table.column(image), where)
    if label is None:
        return Pictured(pictures)
    column = table.column(label)
    if column.null_count or not str(column.type).startswith(("int", "uint")):
        what = f"{many(column.null_count, 'empty row')}" if column.null_count else f"values of type {column.type}"
        raise BadInput(f"The column '{label}' of {where} has {what}; needed are numbers of classes. Correct [columns] label.")
    try:
        numbers = torch.tensor(column.to_pylist(), dtype=torch.int64)
    except (OverflowError, RuntimeError, ValueError) as error:
        raise BadInput(f"The column '{label}' of {where} has numbers beyond 64 bits. Correct [columns] label.") from error
    # -1 throughout is how test parts without answers are published.
    return Pictured(pictures, None if bool((numbers == -1).all()) else numbers)


def _table(paths: Sequence[Path], columns: list[str], settings: Settings) -> Any:
    """Rows of several files, one behind the other."""
    pa = arrow.pyarrow()
    tables = list[Any]()
    for path in paths:
        try:
            tables.append(
                (_of_parquet(path, columns, settings) if path.suffix == ".parquet" else arrow.mapped(path)).select(columns)
            )
        except (pa.ArrowException, OSError, KeyError) as error:
            raise _unreadable(path, error) from error
    if odd := [path for path, table in zip(paths, tables, strict=True) if table.schema.types != tables[0].schema.types]:
        raise BadInput(f"{odd[0]} has columns of other types than {paths[0]}. Give files of one data set.")
    return pa.concat_tables([table.replace_schema_metadata(None) for table in tables])


def _of_parquet(path: Path, columns: list[str], settings: Settings) -> Any:
    pa = arrow.pyarrow()
    with pa.parquet.ParquetFile(path) as opened:
        rows = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        if sum(group.total_byte_size for group in rows) <= settings.memory_gb * 1e9:
            return pa.Table.from_batches(_batches(path, opened, columns), _wanted(opened, columns))
        stat = path.stat()
        told = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\0{columns}"
        kept = cache_folder() / "parquet" / f"{hashlib.sha256(os.fsencode(told)).hexdigest()[:32]}.arrow"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic.staged(kept) as place:
                wanted = _wanted(opened, columns)
                with pa.OSFile(str(place), "wb") as out, pa.ipc.new_stream(out, wanted) as written:
                    for batch in _batches(path, opened, columns):
                        written.write_batch(pa.record_batch([batch.column(name) for name in columns], schema=wanted))
    return arrow.mapped(kept)


def _batches(path: Path, opened: Any, columns: list[str]) -> Iterator[Any]:
    """Some rows at a time. Where one entry of a dictionary may be most of its column, and each row that entry, they are decoded
    by so few that they cannot be gigabytes before they are counted.
    """
    pa, waiting = arrow.pyarrow(), list[Any]()
    step = min(FEW, max(1, _DECODED // max(1, _largest(opened, columns))))
    for batch in arrow.bounded(path, opened.iter_batches(step, columns=columns)):
        waiting.append(batch)
        if sum(map(len, waiting)) >= FEW:
            yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
            waiting.clear()
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()


def _largest(opened: Any, columns: list[str]) -> int:
    """Bytes of the columns in the row group that has most of them, as the file says."""
    groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
    parts = ([group.column(i) for i in range(group.num_columns)] for group in groups)
    sizes = [sum(one.total_uncompressed_size for one in part if one.path_in_schema.split(".")[0] in columns) for part in parts]
    return max(sizes, default=0)


def _wanted(opened: Any, columns: list[str]) -> Any:
    return arrow.pyarrow().schema([opened.schema_arrow.field(name) for name in columns])
