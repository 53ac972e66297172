"""A package as it lies on a device: opened without trusting it, and compared with its own list of hashes.

    SHA256SUMS         a line per file, as `sha256sum -c SHA256SUMS` reads it
    SHA256SUMS.sig     a signature of that list, where the sender signed: `ssh-keygen -Y verify`

Runs anywhere: Python 3.8 or newer, the standard library, no other file of this project.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

SUMS, SIGNATURE, MANIFEST = "SHA256SUMS", "SHA256SUMS.sig", "manifest.json"
NAMESPACE = "compress-package"
MOST_FILES, MOST_BYTES, MOST_INFLATION = 1000, 8 << 30, 20
"""Weights hardly shrink, so an archive that grows twentyfold is a bomb and no package."""
SPARE = 16 << 20  # bytes that even a small archive may unpack to
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}){0,3}")
"""Relative, four levels deep at most, nothing hidden: what a package's own names look like."""
CHUNK = 1 << 20
MOST_HEADER, MOST_FOR_ALL, MOST_RECORDS = 1 << 20, 1 << 12, 100
_ODD_HEADER = re.compile(rb"[0-9]{100}|GNU\.sparse")


class Refused(Exception):
    """What was given is no package, or opening it would not be safe."""

    kind, exit_code = "BadInput", 2


class Damaged(Refused):
    """A package that is not whole: the answer to the question, and not a wrong question."""

    kind, exit_code = "GateFailed", 5


class Member(tarfile.TarInfo):
    """A member of a tar file of a stranger, whose extended header is looked at before Python reads it.

    Some versions of Python look for the end of a number of n digits n times over (CVE-2024-6232), go through maps of sparse files
    that never end, into one header behind another as deep as they stand, and back where a size is negative (CVE-2025-8194).
    """

    def _proc_pax(self, archive):  # type: ignore[no-untyped-def] # tarfile's own name, which calls it
        file = archive.fileobj
        # Records for all members that follow are copied for each of them.
        if self.size > (MOST_FOR_ALL if self.type == tarfile.XGLTYPE else MOST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        header = file.read(self._block(self.size))  # type: ignore[attr-defined]
        if _ODD_HEADER.search(header):
            raise tarfile.ReadError("a header that no archive needs")
        archive.fileobj = _Again(header, file)
        try:
            found = super()._proc_pax(archive)  # type: ignore[misc]
        finally:
            archive.fileobj = file
        if found.size < 0 or len(archive.pax_headers) > MOST_RECORDS:
            raise tarfile.ReadError(f"a size of {found.size}, or {len(archive.pax_headers)} records for all members")
        return found

    def _proc_gnulong(self, archive):  # type: ignore[no-untyped-def]
        if self.size > MOST_HEADER:
            raise tarfile.ReadError(f"a name of {self.size} bytes")
        return super()._proc_gnulong(archive)  # type: ignore[misc]

    def _proc_member(self, archive):  # type: ignore[no-untyped-def]
        if self.size < 0:  # the next member would be this one again
            raise tarfile.ReadError(f"a size of {self.size}")
        try:
            return super()._proc_member(archive)  # type: ignore[misc]
        except RecursionError as error:
            raise tarfile.ReadError("headers behind headers") from error


class _Again:
    """A file of which something was read already, and is given once more."""

    def __init__(self, read: bytes, file: Any):
        self._read, self._file = read, file

    def read(self, size: int) -> bytes:
        read, self._read = self._read, b""
        return read or self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Capped(io.RawIOBase):
    """A stream that ends with a refusal once it has given more bytes than it may."""

    def __init__(self, stream: BinaryIO, most: int):
        self.stream, self.left = stream, most

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        # One byte more than allowed is read, to tell an end from a cut.
        found = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(found)
        if self.left < 0:
            raise Refused("The archive unpacks to more than a package can hold. Do not open it; ask for it again.")
        return found


def plain(line: str) -> str:
    """A line as a terminal may see it: what a name of a stranger's file could do there is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into an empty folder.

    Raises:
        Refused: not an archive, or one with links, devices, folders, names that leave the folder, duplicates, or too much of it.
    """
    seen, packed = set(), False  # type: ignore[var-annotated]
    try:
        size = archive.stat().st_size
        # By ratio and in all: neither a small bomb nor a huge archive fills the disk.
        most = min(MOST_BYTES, max(SPARE, MOST_INFLATION * size))
        with archive.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"  # by its first bytes, since a name proves nothing
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if packed else file
            capped = _Capped(stream, most)  # type: ignore[arg-type]
            # r|: as a stream, since a seek would go around the cap.
            with tarfile.open(fileobj=capped, mode="r|", tarinfo=Member) as tar:  # type: ignore[call-overload]
                for member in tar:
                    _write(tar, member, folder, seen)
            while capped.read(CHUNK):  # to the checksum: a cut behind the last file is a cut, too
                pass
    except Refused:
        raise
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        if isinstance(error, tarfile.ReadError) and not seen and not packed:
            raise Refused(
                f"{archive} is no package, or the beginning of one was damaged. Needed is an archive as 'compress package' "
                "writes it (package.tar.gz), or the folder that it was unpacked into."
            ) from error
        if isinstance(error, OSError) and error.errno is not None:  # of the system's; damage has no number
            raise Refused(f"{archive} cannot be opened ({error}). Needed is a package.tar.gz of 'compress package'.") from error
        raise Damaged(f"{archive} is damaged ({error}). Needed is the whole archive, as it was made; fetch it again.") from error
    if not seen:
        raise Refused(f"{archive} is empty. Needed is a package.tar.gz of 'compress package'.")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, seen: set[str]) -> None:
    name = member.name
    # Links and devices could lead out of the folder when written.
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise Refused(f"The archive holds {name!r}, which is no plain file. Do not open it; ask for it again.")
    if not NAME.fullmatch(name):
        raise Refused(f"The archive holds a file named {name!r}, which may not stand in a package. Do not open it.")
    if name in seen or len(seen) >= MOST_FILES:
        raise Refused(f"The archive holds {name!r} twice, or more than {MOST_FILES} files. Do not open it.")
    seen.add(name)
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, "a plain file has content"
    # x: an existing file, or a link put there meanwhile, is never overwritten.
    with place.open("xb") as target:
        for chunk in iter(lambda: source.read(CHUNK), b""):
            target.write(chunk)
        if target.tell() != member.size:
            raise Refused(f"The archive ends inside {name!r}. Fetch it again.")


def listed(folder: Path) -> dict[str, Path]:
    """Every file of an unpacked package; links and other kinds of entries are refused."""
    found: dict[str, Path] = {}
    for base, folders, files in os.walk(str(folder)):
        for name in sorted(folders) + files:
            path = Path(base) / name
            # lstat: the link itself and not what it points at.
            mode = path.lstat().st_mode
            inside = path.relative_to(folder).as_posix()
            if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and name in folders)):
                raise Refused(f"{inside} is no plain file. A package holds no links; unpack it again.")
            if stat.S_ISREG(mode):
                found[inside] = path
    return found


def sums(folder: Path) -> dict[str, str]:
    """The package's own list: name -> sha256."""
    try:
        if not stat.S_ISREG((folder / SUMS).lstat().st_mode):  # a pipe would be waited for, a device has no end
            raise Refused(f"{SUMS} is no plain file. A package holds no links; unpack it again.")
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise Refused(
            f"{folder} is no unpacked package: it has no {SUMS}. Needed is the folder that a package.tar.gz was unpacked into; "
            "'compress package' makes one of a run."
        ) from error
    except (OSError, ValueError) as error:
        raise Refused(f"{folder} has no readable {SUMS} ({error}). Needed is a package of 'compress package'.") from error
    found = {line[66:]: line[:64] for line in lines if re.fullmatch(r"[0-9a-f]{64}  \S+", line)}
    if not lines or len(found) != len(lines):
        raise Refused(f"{SUMS} cannot be read: needed is a line 'sha256  name' for each file, once. Fetch the package again.")
    return found


def problems(folder: Path) -> list[str]:
    """What does not match the checksums: files that changed, that are missing, or that nobody listed."""
    expected, found = sums(folder), listed(folder)
    told: list[str] = []
    for name in sorted(set(expected) | set(found)):
        # The list cannot hold its own hash, nor the signature of it.
        if name in (SUMS, SIGNATURE) and name not in expected:
            continue
        if name not in found:
            told.append(f"{name} is missing")
        elif name not in expected:
            told.append(f"{name} is not in {SUMS}")
        elif sha256(found[name]) != expected[name]:
            told.append(f"{name} was changed")
    if MANIFEST not in expected:
        told.append(f"{MANIFEST} is not in {SUMS}")
    return told


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def signature(folder: Path, signers: Path, identity: str | None) -> str:
    """Who signed the list of hashes, of those that a file of allowed signers names (see ALLOWED SIGNERS in `man ssh-keygen`).

    Returns:
        The signer; empty where the signature is missing or not theirs.
    """
    signed = folder / SIGNATURE
    if not signers.is_file():
        raise Refused(f"There is no file {signers}. Needed are allowed signers, a line 'NAME ssh-ed25519 AAAA...' for each.")
    if not signed.is_file():
        return ""
    try:
        where = ["-f", str(signers), "-s", str(signed)]
        names = [identity] if identity else _keygen(["find-principals", *where], b"").decode(errors="replace").split()
        for name in names:
            # -n: a signature for another purpose (git, mail) by the same key does not count.
            if _keygen(["verify", *where, "-n", NAMESPACE, "-I", name], (folder / SUMS).read_bytes()):
                return name
    except OSError as error:
        raise Refused(f"The signature cannot be checked ({error}). Install ssh-keygen of OpenSSH 8.2 or newer.") from error
    return ""


def _keygen(arguments: list[str], given: bytes) -> bytes:
    """Standard output of `ssh-keygen -Y`; empty where it refuses."""
    command = ["ssh-keygen", "-Y", *arguments]
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    return (done.stdout or b"ok") if done.returncode == 0 else b""
