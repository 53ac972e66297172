"""Arrow files of a stranger, of either form, mapped into memory and looked at before anything in them is unpacked.

A record batch may be compressed, and is unpacked whole: a few kilobytes can say that they are gigabytes. What each of its buffers
will take stands before it, so that it is added up first (Arrow columnar format, "Compression"). A file is read as the stream that
it holds behind its first eight bytes; its footer, a second table of the same batches, is not asked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from compress.data.npz import INFLATION, LARGE
from compress.errors import MissingPackage, extra

_MAGIC = b"ARROW1"
_STREAM_AT = 8
_OF_A_ROW = 64
"""Bytes that a row takes by being one, however little is in it."""
# Numbers of fields in the format's flatbuffers (Message.fbs).
_HEADER, _BUFFERS, _COMPRESSION, _DATA = 2, 2, 3, 1


def pyarrow() -> Any:
    """The package.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        import pyarrow as pa  # pyright: ignore[reportMissingImports]
        import pyarrow.parquet  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise MissingPackage(f"Data in parquet or Arrow files needs pyarrow: {extra('parquet')}.") from error
    return pa


def mapped(path: Path) -> Any:
    """A table of the whole file, of which only what is asked for is read.

    Raises:
        ArrowInvalid: it is none, lengths in it lead out of it, or it unpacks to far more than a file of its size can mean.
    """
    pa = pyarrow()
    with pa.memory_map(str(path)) as source:
        start = _STREAM_AT if source.read(len(_MAGIC)) == _MAGIC else 0
        _few_bytes(path, _messages(source, start))
        source.seek(start)
        reader = pa.ipc.open_stream(source)
        table = pa.Table.from_batches(bounded(path, reader), reader.schema)
    table.validate(full=True)
    return table


def schema(path: Path) -> Any:
    """Columns of the file, of which no more than its head is read.

    Raises:
        ArrowInvalid: it is none.
    """
    pa = pyarrow()
    with pa.memory_map(str(path)) as source:
        source.seek(_STREAM_AT if source.read(len(_MAGIC)) == _MAGIC else 0)
        return pa.ipc.open_stream(source).schema


def bounded(path: Path, batches: Iterable[Any]) -> Iterator[Any]:
    """Rows as they are unpacked, until they are far more than a file of this size can mean.

    Raises:
        ArrowInvalid: they are.
    """
    seen = 0
    for batch in batches:
        seen += batch.nbytes + _OF_A_ROW * batch.num_rows
        _meant(path, seen)
        yield batch


def _meant(path: Path, bytes: int) -> None:
    size = path.stat().st_size
    if bytes > max(LARGE, INFLATION * size):
        raise pyarrow().ArrowInvalid(f"{size / 1e6:.1f} MB hold more than {bytes / 1e9:.1f} GB")


def _messages(source: Any, start: int) -> Iterator[Any]:
    source.seek(start)
    reader = pyarrow().ipc.MessageReader.open_stream(source)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _few_bytes(path: Path, messages: Iterable[Any]) -> None:
    seen = 0
    for message in messages:
        if message.type in ("record batch", "dictionary"):
            try:
                seen += _unpacked(memoryview(message.metadata), message.body, message.type == "dictionary")
            except (struct.error, TypeError) as error:
                raise pyarrow().ArrowInvalid("a length in it leads out of it") from error
            _meant(path, seen)


def _unpacked(told: memoryview, body: Any, dictionary: bool) -> int:
    """Bytes that the compressed buffers of a message take then; 0 for one that is not compressed."""
    batch = _followed(told, _field(told, _followed(told, 0), _HEADER))
    if dictionary:
        batch = _followed(told, _field(told, batch, _DATA))
    buffers = _field(told, batch, _BUFFERS)
    if not buffers or not _field(told, batch, _COMPRESSION):
        return 0
    first, total = _followed(told, buffers), 0
    (count,) = struct.unpack_from("<I", told, first)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", told, first + 4 + 16 * number)
        if length:
            (bytes,) = struct.unpack_from("<q", memoryview(body), offset)
            total += bytes if bytes >= 0 else length
    return total


def _followed(told: memoryview, at: int) -> int:
    return at + struct.unpack_from("<I", told, at)[0]


def _field(told: memoryview, table: int, number: int) -> int:
    """Where a table of a flatbuffer has one of its fields; 0 where it lacks it."""
    names = table - struct.unpack_from("<i", told, table)[0]
    (size,) = struct.unpack_from("<H", told, names)
    (offset,) = struct.unpack_from("<H", told, names + 4 + 2 * number) if 4 + 2 * number < size else (0,)
    return table + offset if offset else 0
