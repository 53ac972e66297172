"""A package checked and timed on another machine over ssh: copied there, run by the device's own Python, removed again.

    ssh://user@host:port      keys and host keys as ssh knows them

Never asks for anything (`BatchMode`), never trusts an unknown host key, and gives up after a while. What runs there is the script
of this installation, not the one in the package, so that a package cannot vouch for itself. The device needs a POSIX shell and
Python 3.8 or newer, and onnxruntime for more than hashes.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from compress.errors import BadInput
from exporters.standalone import sealed
from exporters.standalone import verify as script
from exporters.standalone.verify import Ran, Verified

Kind = TypeVar("Kind")
OLDEST = (3, 8)
NUMBERS = frozenset({"exit_code", "passed", "worst_abs", "tolerance", "batch", "rounds", "p50_ms", "p90_ms"})
MARK = "compress-device:"
"""Begins every line that is ours: a login shell may print whatever it likes."""
FOLDER = re.compile(r"/[\w./-]*/compress-\w{8}")
SPACE = 3  # the archive, what it unpacks to, and as much again for the runtime

PREPARE = """
folder=$(mktemp -d "${TMPDIR:-/tmp}/compress-XXXXXXXX") || { echo MARKfolder=; exit 0; }
echo "MARKfolder=$folder"
echo "MARKfree=$(df -Pk "$folder" | awk 'NR == 2 {print $4}')"
echo "MARKpython=$(PYTHON -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
""".replace("MARK", MARK)


@dataclass(frozen=True)
class Device:
    """Where ssh goes."""

    host: str
    user: str | None = None
    port: int | None = None
    config: Path | None = None
    timeout: float = 20.0

    @property
    def name(self) -> str:
        """As a message calls it."""
        return f"{self.user + '@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"

    def command(self, remote: str) -> list[str]:
        """The call of ssh that runs `remote` there."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": f"{max(1, round(self.timeout))}",
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "ForwardAgent": "no",
            "ClearAllForwardings": "yes",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        flags += ["-F", str(self.config)] if self.config else []
        flags += ["-l", self.user] if self.user else []
        return ["ssh", "-T", *flags, *(["-p", str(self.port)] if self.port else []), "--", self.host, remote]


def device(target: str, *, config: Path | None = None, timeout: float = 20.0) -> Device:
    """The device of a target.

    Raises:
        BadInput: not `ssh://[user@]host[:port]`, with a password or a path in it, or a configuration that is not there.
    """
    wrong = BadInput(f"The target is '{target}'; needed is local or ssh://user@host:port, without a password or a path.")
    try:
        parts = urlsplit(target)
        host, user, port = parts.hostname, parts.username, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme != "ssh" or parts.password is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise wrong
    plain = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*")  # never begins with a dash, which ssh would read as an option
    if not host or not plain.fullmatch(host) or (user is not None and not plain.fullmatch(user)):
        raise wrong
    if config is not None and not config.is_file():
        raise BadInput(f"There is no ssh configuration {config}. Give a file such as ~/.ssh/config.")
    return Device(host, user, port, config, timeout)


def on_device(
    there: Device, package: Path, options: Sequence[str] = (), *, python: str = "python3", limit: float = 600.0
) -> Verified:
    """Check a package on a device.

    Args:
        there: the device.
        package: package.tar.gz.
        options: flags of the script, such as ("--rounds", "20").
        python: the device's Python.
        limit: seconds that copying and running may take each.

    Raises:
        BadInput: the device cannot be reached, its host key is unknown or another, it has no room or no Python of today,
            or its answer cannot be read; and where the package is no archive.
    """
    if not package.is_file():
        raise BadInput(f"{package} is no file; needed is a package.tar.gz, which can be copied to {there.name}.")
    facts = prepare(there, python)
    folder = facts["folder"]
    try:
        enough(there, facts, package.stat().st_size)
        for name, source in (("package.tar.gz", package), ("verify.py", script.__file__), ("sealed.py", sealed.__file__)):
            copy(there, Path(source), f"{folder}/{name}", limit)
        words = [*shlex.split(python), "verify.py", "package.tar.gz", "--json", *options]
        stop = f"$(command -v timeout > /dev/null && echo timeout {limit:.0f})"  # a script that hangs does not stay behind
        run = f"cd {folder} && export TMPDIR={folder} && echo {MARK}answer && exec {stop} {shlex.join(words)}"
        done = call(there, f"exec sh -c {shlex.quote(run)}", limit=limit)
        return answer(there, package, done.stdout, done.stderr)
    finally:
        remove(there, folder)


def prepare(there: Device, python: str) -> dict[str, str]:
    """A fresh folder on the device, and what it has: free kilobytes, version of Python."""
    text = PREPARE.replace("PYTHON", shlex.join(shlex.split(python)))
    done = call(there, "exec sh -s", given=text.encode(), limit=there.timeout)
    lines = [line[len(MARK) :] for line in done.stdout.splitlines() if line.startswith(MARK)]
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    if not FOLDER.fullmatch(facts.get("folder", "")):
        told = last_line(done.stderr) or "it names none"
        raise BadInput(f"{there.name} gives no temporary folder ({told}). Make room in its /tmp, or set TMPDIR there.")
    return facts


def enough(there: Device, facts: dict[str, str], size: int) -> None:
    """Room for the package, and a Python for the script."""
    needed = SPACE * size // 1024 + 1024
    if facts.get("free", "").isdigit() and int(facts["free"]) < needed:
        room = f"{int(facts['free']):,} KiB free in {facts['folder']}"
        raise BadInput(f"{there.name} has {room}, needed are {needed:,}. Make room, or set TMPDIR there.")
    found = facts.get("python", "")
    if not found:
        raise BadInput(f"{there.name} has no Python that starts by that name. Install 3.8 or newer there, or give --python.")
    if tuple(int(part) for part in found.split(".")) < OLDEST:
        raise BadInput(f"{there.name} has Python {found}, needed is 3.8 or newer. Name another one with --python.")


def copy(there: Device, source: Path, place: str, limit: float) -> None:
    """One file; plain ssh, because small devices have no sftp."""
    done = call(there, f"cat > {place}", given=source.read_bytes(), limit=limit)
    if done.returncode:
        told = last_line(done.stderr) or f"exit code {done.returncode}"
        raise BadInput(f"{source.name} cannot be copied to {there.name} ({told}). Make room there, or set TMPDIR there.")


def remove(there: Device, folder: str) -> None:
    """Leave the device as it was; that it went away meanwhile is no reason to lose the answer."""
    assert FOLDER.fullmatch(folder), "only what mktemp made is ever removed"
    try:
        call(there, f"rm -rf {folder}", limit=there.timeout)
    except BadInput:
        return


@dataclass(frozen=True)
class Done:
    """What a call left."""

    returncode: int
    stdout: str
    stderr: str


def call(there: Device, remote: str, *, given: bytes = b"", limit: float) -> Done:
    """Run a command on the device; where ssh itself fails, say why and what to do."""
    try:
        done = subprocess.run(there.command(remote), input=given, capture_output=True, timeout=limit + there.timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"{there.name} did not answer within {limit + there.timeout:.0f} s. Look after it, then repeat."
        ) from error
    except OSError as error:
        raise BadInput(f"ssh cannot be started ({error.strerror}). Install an OpenSSH client.") from error
    stderr = done.stderr.decode(errors="replace")
    if done.returncode == 255:
        raise BadInput(refusal(there, stderr))
    return Done(done.returncode, done.stdout.decode(errors="replace"), stderr)


def refusal(there: Device, stderr: str) -> str:
    """Why ssh gave up, and what to do about it."""
    if "host key" in stderr.lower() or "HOST IDENTIFICATION" in stderr:
        return (
            f"The host key of {there.name} is unknown or not the one that is known. Compare its fingerprint on the device, "
            "then put the right key into known_hosts."
        )
    if "Permission denied" in stderr:
        return f"{there.name} accepts no key of yours. Load one into ssh-agent, or name it in your ssh configuration."
    return f"{there.name} cannot be reached ({last_line(stderr) or 'ssh gives no reason'}). Try 'ssh' by hand, then repeat."


def last_line(text: str) -> str:
    """Of what a program complained, the end."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def answer(there: Device, package: Path, stdout: str, stderr: str) -> Verified:
    """The script's JSON as a record; a device may send anything, so nothing else is believed."""
    try:
        told: Any = json.loads(stdout.partition(f"{MARK}answer\n")[2])
        if isinstance(told, dict) and "error" in told:
            raise BadInput(str(told["error"]["message"]))
        models = tuple(record(Ran, model) for model in told["models"])
        ours = {"package": str(package), "problems": tuple(map(str, told["problems"])), "models": models}
        return record(Verified, {**told, **ours})
    except (ValueError, TypeError, KeyError) as error:
        reason = last_line(stderr) or "no JSON came back"
        raise BadInput(f"{there.name} gave no answer that can be read ({reason}). Run verify.py there by hand.") from error


def record(kind: type[Kind], found: dict[str, Any]) -> Kind:
    """A data class from exactly its fields, numbers where numbers belong."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(found) != names:
        raise ValueError(f"fields {sorted(set(found) ^ names)}")
    if odd := [n for n in names & NUMBERS if not isinstance(found[n], int | float | None)]:
        raise ValueError(f"{odd[0]} is no number")
    return kind(**found)
