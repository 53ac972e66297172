"""A run under limits of the system: does it end in a sentence, is what was finished kept, does it go on once there is room?

    python benchmarks/limits.py

The run is that of `kills.py`. Limits: a full disk, a full temporary folder, a read-only folder, no shared memory, few file
descriptors, little address space. The full disk is one run on a file system (tmpfs) that begins with 48 kB: whenever it is full,
it gets 48 kB more and the run is resumed, until it ends. Every other run that a limit stopped after a stage had finished is
resumed without the limit. Both have to end where an unlimited run ends, but for formats that the report says have failed. Rows
are written as they come; those that are there already are not run again. Mounts need root; without it such a row says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager as Context
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kills import FORMATS, SETTINGS, Place, result
from results_io import known, write

from compress.commands.demo import ARCH

STEP_KB, MOST_KB = 48, 2000
"""By how much the file system grows, and a size that is more than enough: the folder of this run has 904 kB."""
DESCRIPTORS = (32, 64, 128)
ADDRESS_GB = (1, 2, 3, 4, 4.25, 4.5, 5, 6)
DOCUMENTED = (0, 2, 3, 4, 5)
"""Exit codes of docs/reference/errors.md, without 1: a limit is no internal failure."""
FULL = "full disk"
MOUNT = ("unshare", "--mount")
NO_SHARED_MEMORY = 'mount -t tmpfs -o {} none /dev/shm && exec "$@"'


@dataclass(frozen=True)
class Limit:
    """One limit: what is put before the command, what the process sets for itself, the file system that lasts while it runs."""

    kind: str
    value: str
    before: tuple[str, ...] = ()
    sets: Callable[[], None] | None = None
    around: Callable[[Path], Context[None]] = field(default=lambda out: nullcontext())
    tmp: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="", help="only these, with commas")
    given = parser.parse_args()
    rows = {(row["kind"], row["value"]): row for row in known("limits").get("limits", ())}
    chosen = [limit for limit in limits() if not given.kinds or limit.kind in given.kinds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        seconds, code = place.carried_out("whole")
        assert code == 0, "the run without a limit has to end well"
        expected = result(place.folder / "whole")
        for number, limit in enumerate(chosen):
            if (limit.kind, limit.value) not in rows:
                kept(limited(place, f"limited-{number}", limit, expected), rows, seconds)
        if (not given.kinds or FULL in given.kinds.split(",")) and not any(kind == FULL for kind, _ in rows):
            for row in grown(place, expected):
                kept(row, rows, seconds)


def kept(row: dict[str, Any], rows: dict[tuple[str, str], Any], seconds: float) -> None:
    """Write the result with one more row."""
    rows[row["kind"], row["value"]] = row
    print(json.dumps(row), flush=True)
    settings = {"formats": FORMATS, "run": " ".join(SETTINGS)}
    write(
        "limits",
        {"settings": settings, "unlimited_s": round(seconds, 1), **summary([*rows.values()]), "limits": [*rows.values()]},
    )


def limits() -> list[Limit]:
    """Every limit but the full disk."""
    found = [Limit("full temporary folder", f"{kb} kB", around=sized(kb), tmp=True) for kb in (64, 256)]
    found.append(Limit("read-only folder", "before the run", around=read_only))
    found += [
        Limit("no shared memory", said, (*MOUNT, "sh", "-c", NO_SHARED_MEMORY.format(options), "sh"))
        for said, options in (("/dev/shm is read-only", "ro"), ("/dev/shm has 4 kB", "size=4k"))
    ]
    found += [Limit("file descriptors", str(count), sets=setter(resource.RLIMIT_NOFILE, count)) for count in DESCRIPTORS]
    return found + [Limit("address space", f"{gb} GB", sets=setter(resource.RLIMIT_AS, int(gb * 1e9))) for gb in ADDRESS_GB]


def setter(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def sized(kb: int) -> Callable[[Path], Context[None]]:
    """A file system of that size at a folder, which gets room when the block ends: what is on it stays."""

    @contextmanager
    def mounted(out: Path) -> Generator[None]:
        out.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kb}k", "none", str(out)], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)

    return mounted


@contextmanager
def read_only(out: Path) -> Generator[None]:
    """As `sized`, read-only until the block ends."""
    out.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g,ro", "none", str(out)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(out)], check=True)


def limited(place: Place, name: str, limit: Limit, expected: dict[str, Any]) -> dict[str, Any]:
    """One run under a limit, and the same without it: a row of the result."""
    out = place.folder / name
    at = place.tmp if limit.tmp else out
    again, resumed = 0, ""
    try:
        try:
            with limit.around(at):
                code, said = carried_out(place, out, limit)
        except subprocess.CalledProcessError:
            return {"kind": limit.kind, "value": limit.value, "tried": 0, "said": "not possible here: a mount needs root"}
        before = stages(out)
        if code != 0 and before:
            again, resumed = carried_out(place, out, Limit("", ""), "--resume")
        found = result(out) if again == 0 and (code == 0 or before) else None
        failed = failed_exports(out)
        differs = [key for key, value in (found or {}).items() if value != kept_apart(expected, failed)[key]]
        same = found is not None and not differs if code == 0 or before else None
        return {
            **ended(place, limit, code, said, before), "kept": int(unchanged(before, out)), "same": same, "resumed": again,
            **({"resume_said": resumed[-600:]} if again else {}), **({"differs": differs} if differs else {}),
            **({"failed_exports": failed} if failed else {}),
        }  # fmt: skip
    finally:
        subprocess.run(["umount", str(at)], check=False, capture_output=True)
        shutil.rmtree(out, ignore_errors=True)


def grown(place: Place, expected: dict[str, Any]) -> Generator[dict[str, Any]]:
    """The run on a file system that is full again and again: a row for each size."""
    out = place.folder / "grown"
    out.mkdir()
    code, sizes, before = 1, iter(range(STEP_KB, MOST_KB, STEP_KB)), stages(out)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={STEP_KB}k", "none", str(out)]
    if subprocess.run(mount, check=False).returncode:
        yield {"kind": FULL, "value": "any", "tried": 0, "said": "not possible here: a mount needs root"}
        return
    try:
        while code != 0 and (kb := next(sizes, None)) is not None:
            subprocess.run(["mount", "-o", f"remount,size={kb}k", str(out)], check=True)
            code, said = carried_out(place, out, Limit("", ""), "--resume")
            limit, kept = Limit(FULL, f"{kb} kB"), unchanged(before, out)
            before = stages(out)
            same = result(out) == expected if code == 0 else None
            yield {**ended(place, limit, code, said, before), "kept": int(kept), "same": same}
    finally:
        subprocess.run(["umount", str(out)], check=False, capture_output=True)


def ended(place: Place, limit: Limit, code: int, said: str, finished: dict[str, Any]) -> dict[str, Any]:
    """How a run ended: with which code, and whether in a sentence that tells what is kept."""
    told = [line for line in said.splitlines() if not line.endswith("...")] or [""]
    sentence = told[-1].startswith("Error: ") and "Internal failure" not in told[-1]
    sentence = sentence and (not finished or "--resume" in told[-1])
    return {
        "kind": limit.kind, "value": limit.value, "tried": 1, "exit_code": code, "ended_well": int(code == 0),
        "sentence": int((code == 0 or sentence) and "Traceback" not in said and code in DOCUMENTED),
        "said": "" if code == 0 else " | ".join(told[-3:])[:600].replace(str(place.folder), "FOLDER"),
        "finished_stages": sorted(finished),
    }  # fmt: skip


def unchanged(before: dict[str, tuple[int, int]], out: Path) -> bool:
    """Whether every stage that was finished is the one on disk still."""
    after = stages(out)
    return all(after.get(stage) == seen for stage, seen in before.items())


def carried_out(place: Place, out: Path, limit: Limit, *more: str) -> tuple[int, str]:
    """(exit code, standard error) of the run in a folder."""
    words = ["run", place.model, "--arch", ARCH, "--data", "digits", *SETTINGS, "--export", ",".join(FORMATS), *more]
    command = [*limit.before, sys.executable, "-m", "compress", *map(str, words), "--out", str(out)]
    ran = subprocess.run(
        command, env=place.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=limit.sets, text=True
    )
    return ran.returncode, ran.stderr


def failed_exports(out: Path) -> list[str]:
    """What the report of a run says of formats that could not be written."""
    path = out / "report.json"
    failed = json.loads(path.read_text())["failed_exports"] if path.exists() else []
    return [f"{export['format']}: {export['reason']}"[:300] for export in failed]


def kept_apart(expected: dict[str, Any], failed: list[str]) -> dict[str, Any]:
    """What is expected where the report says of some formats that they failed."""
    told = [one.partition(":")[0] for one in failed]
    return {**expected, "exports": [export for export in expected["exports"] if export["format"] not in told]}


def stages(out: Path) -> dict[str, tuple[int, int]]:
    """Finished stages, with what changes when one is written again."""
    found = {p.name: (p / "stage.json").stat() for p in (out / "stages").glob("[0-9]*")}
    return {name: (one.st_ino, one.st_mtime_ns) for name, one in found.items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind, and in all; `same` counts of those that came to an end, with the limit or without."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    by_kind = [{"kind": kind, **counted([row for row in rows if row["kind"] == kind])} for kind in kinds]
    return {"summary": counted(rows), "kinds": by_kind}


def counted(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many rows keep each promise."""
    found = {name: sum(row.get(name, 0) for row in rows) for name in ("tried", "ended_well", "sentence", "kept")}
    compared = [row["same"] for row in rows if row.get("same") is not None]
    return {**found, "went_to_the_end": len(compared), "same": sum(compared)}


if __name__ == "__main__":
    main()
