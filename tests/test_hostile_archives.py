"""Tar files whose headers make Python look for minutes: refused at every place where one is opened, before Python reads them."""

from __future__ import annotations

import gzip
import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from encoded import picture

from compress.checkpoint.load.model import load_model
from compress.data import open_data
from compress.errors import BadInput
from exporters.standalone import checksums
from tests.runs import stopped_after


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    """As it stands in a tar file."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def pax(record: bytes) -> bytes:
    return member("header", record, tarfile.XHDTYPE)


def pax_for_all(record: bytes) -> bytes:
    return member("header", record, tarfile.XGLTYPE)


def negative(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A member whose header says a size that it has not."""
    info = tarfile.TarInfo(name)
    info.size, info.type = 0, kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


HEADERS = {
    "a number of two million digits": pax(b"1" * 2_000_000),
    "a number of half a million digits": pax(b"1" * 500_000),
    "a map of a sparse file": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
    "a header behind a header": pax(b"9 a=bcde\n") * 3000,
    "records for all members": pax_for_all(b"".join(b"14 k%05d=abcd\n" % n for n in range(5000))),
    "more and more records for all members": b"".join(pax_for_all(b"14 k%05d=abcd\n" % n) for n in range(200)),
    "a negative size in a header": pax(b"14 size=-1536\n"),
    "a negative size": member("z.png", b"") + negative("a.png", -512),
    "a name of a terabyte": negative("././@LongLink", 2**40, tarfile.GNUTYPE_LONGNAME),
    "a long name behind a long name": member("././@LongLink", b"a" * 200, tarfile.GNUTYPE_LONGNAME) * 3000,
}


def shard(path: Path) -> None:
    open_data(str(path))


def package(path: Path) -> None:
    path.with_name("unpacked").mkdir()
    checksums.unpack(path, path.with_name("unpacked"))


def model(path: Path) -> None:
    load_model(path)


@pytest.mark.parametrize("opened", [shard, package, model])
@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_headers_that_python_would_look_at_for_minutes(tmp_path: Path, header: str, opened: Callable[[Path], None], packed: bool):
    content = HEADERS[header] + member("0001.png", picture(0)) + bytes(1024)
    path = tmp_path / ("train-000.tar" + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    with stopped_after(20), pytest.raises((BadInput, checksums.Refused)):
        opened(path)


def test_an_ordinary_extended_header_is_read(tmp_path: Path):
    path, long = tmp_path / "package.tar", "/".join(["a" * 90] * 3)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(long)
        info.size, info.pax_headers = 3, {"comment": "1234567890" * 9, "mtime": "1700000000.5"}
        tar.addfile(info, io.BytesIO(b"abc"))
    package(path)
    assert (tmp_path / "unpacked" / long).read_bytes() == b"abc"


def doubled(name: str) -> bytes:
    """A file of torch.save with another pickle in front, under a name that means the same to somebody."""
    plain, made = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.ones(3)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(made, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the name that is there twice
        new.writestr(name, b"\x80\x02}.")
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return made.getvalue().replace(b"data.pkl~", b"data.pkl\0")


def listed_twice(where: int) -> bytes:
    """A list of entries in front of the one at the end, where the end says that the list begins."""
    plain = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, plain)
    one = plain.getvalue()[:-98]  # without the records of the end
    start = int.from_bytes(plain.getvalue()[-6:-2], "little")
    size = len(one) - start
    end = b"PK\5\6" + bytes(4) + plain.getvalue()[-14:-10] + size.to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    return one + one[start:] * where + end


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/DATA.PKL", "archive/data.pkl~"])
def test_an_archive_that_torch_reads_otherwise_than_python_is_refused(name: str, tmp_path: Path):
    (path := tmp_path / "model.pt").write_bytes(doubled(name))
    with pytest.raises(BadInput, match=r"read in two ways|not in a subdirectory"):
        load_model(path)
    path.write_bytes(listed_twice(0))
    with pytest.raises(BadInput, match=r"--arch"):  # as it should be: weights alone
        load_model(path)
    path.write_bytes(listed_twice(1))
    with pytest.raises(BadInput, match=r"read in two ways|damaged"):
        load_model(path)
