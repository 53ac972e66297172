"""An archive whose bytes depend on its content alone.

    names sorted | no times, owners or modes of the machine | tar as in POSIX 1988 | gzip of stored blocks

Both formats are written here, byte by byte. The gzip holds its content uncompressed: compressors differ (zlib, zlib-ng and their
versions pack the same bytes differently, and Python brings whichever its builder chose), while stored blocks can be written in
one way only. Weights hardly shrink anyway. `tar xzf` opens it like any other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

from compress.errors import BadInput

HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # deflate, no name, no time, unknown system
RECORD = 512
BLOCK = 65535  # the longest that a stored block of deflate can be (RFC 1951, 3.2.4)


def packed(files: Mapping[str, bytes]) -> bytes:
    """The archive of some files: name -> content."""
    return b"".join(gzipped(tarred(files)))


def tarred(files: Mapping[str, bytes]) -> bytes:
    """A tar file, every entry readable by all and owned by nobody."""
    made: list[bytes] = []
    for name in sorted(files):
        content = files[name]
        made += [_header(name, len(content)), content, bytes(-len(content) % RECORD)]
    return b"".join((*made, bytes(2 * RECORD)))


def _header(name: str, size: int) -> bytes:
    """One entry of the POSIX 1988 format, "ustar". Python's tarfile fills unused fields differently from version to version."""
    if len(name.encode()) > 100 or size >= 8**11:
        raise BadInput(f"{name} does not fit into an archive: needed are a name of at most 100 bytes and less than 8 GiB.")
    owner = b"0000000\0" * 2
    before = name.encode().ljust(100, b"\0") + b"0000644\0" + owner + b"%011o\0" % size + b"00000000000\0"
    behind = (b"0" + bytes(100) + b"ustar\x0000" + bytes(64) + owner).ljust(RECORD - 156, b"\0")
    checksum = sum(before) + 8 * ord(" ") + sum(behind)  # its own field counts as blanks
    return before + b"%06o\0 " % checksum + behind


def gzipped(content: bytes) -> Iterator[bytes]:
    """A gzip file in stored blocks (RFC 1952)."""
    yield HEADER
    starts = range(0, max(len(content), 1), BLOCK)
    for start in starts:
        block = content[start : start + BLOCK]
        yield struct.pack("<BHH", start == starts[-1], len(block), len(block) ^ 0xFFFF)
        yield block
    yield struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)
