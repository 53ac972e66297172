"""Packages checked and models timed on another machine over ssh: copied there, run by the device's own Python, removed again.

    ssh://user@host:port      keys and host keys as ssh knows them

Never asks for anything (`BatchMode`), never trusts an unknown host key, and gives up after a while. What runs there
are scripts of this installation, not those in the package, so that a package cannot vouch for itself. The device needs a POSIX
shell and Python 3.8 or newer, and onnxruntime for more than hashes.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from compress.errors import BadInput
from compress.user import files
from exporters.standalone import verify as script
from exporters.standalone.tied import tied
from exporters.standalone.verify import Ran, Verified

Kind = TypeVar("Kind")
OLDEST = (3, 8)
NUMBERS = frozenset(
    {"exit_code", "passed", "worst_abs", "tolerance", "batch", "p50_ms", "p90_ms"}
    | {"calm", "processor_s", "wall_s", "calls", "peak_bytes", "mhz", "celsius"}
)
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
        # `--` ends the options, whatever the host is called.
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
    # What urlsplit drops in silence is no address that somebody meant.
    if port == 0 or any(sign.isspace() or not sign.isprintable() for sign in target):
        raise wrong
    if parts.scheme != "ssh" or parts.password is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise wrong
    plain = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*")  # never begins with a dash, which ssh would read as an option
    if not host or not plain.fullmatch(host) or (user is not None and not plain.fullmatch(user)):
        raise wrong
    if config is not None and not config.is_file():
        raise BadInput(f"There is no ssh configuration {config}. Give a file such as ~/.ssh/config.")
    return Device(host, user, port, config, timeout)


@dataclass
class Workshop:
    """A folder of ours on a device, while it lasts."""

    there: Device
    folder: str
    python: str
    free_kib: int | None
    limit: float
    brought: dict[Path, str] = field(default_factory=dict[Path, str])

    def bring(self, files: Mapping[str, Path]) -> None:
        """Copy files there, under these names, but none twice.

        Raises:
            BadInput: there is no room for them, or they cannot be copied.
        """
        new = {name: path for name, path in files.items() if path not in self.brought}
        needed = SPACE * sum(path.stat().st_size for path in new.values()) // 1024 + 1024
        if self.free_kib is not None and self.free_kib < needed:
            room = f"{self.free_kib:,} KiB free in {self.folder}"
            raise BadInput(f"{self.there.name} has {room}, needed are {needed:,}. Make room, or set TMPDIR there.")
        for name, path in new.items():
            copy(self.there, path, f"{self.folder}/{name}", self.limit)
            self.brought[path] = name
            self.free_kib = None if self.free_kib is None else self.free_kib - path.stat().st_size // 1024

    def run(self, *words: str) -> Done:
        """Run a script there; what it prints as JSON comes behind a mark."""
        stop = f"$(command -v timeout > /dev/null && echo timeout {self.limit:.0f})"  # a script that hangs does not stay behind
        script = shlex.join([*_words(self.python), *words])
        # Its number stands in a file while it runs, for the guard.
        waiting = "echo $! > pid; wait $!; code=$?; rm -f pid; exit $code"
        run = f"cd {self.folder} && export TMPDIR={self.folder} && echo {MARK}answer && {{ {stop} {script} & {waiting}; }}"
        return call(self.there, f"exec sh -c {shlex.quote(run)}", limit=self.limit)


@contextmanager
def workshop(there: Device, python: str = "python3", *, limit: float = 600.0) -> Iterator[Workshop]:
    """A fresh folder on a device, removed behind us.

    Args:
        there: the device.
        python: the device's Python.
        limit: seconds that copying a file and running a script may take each.

    Raises:
        BadInput: the device cannot be reached, its host key is unknown or another, or it has no room or no Python of today.
    """
    facts = prepare(there, python)
    with guard(there, facts["folder"]):
        young_enough(there, facts.get("python", ""))
        free = facts.get("free", "")
        yield Workshop(there, facts["folder"], python, int(free) if free.isdigit() else None, limit)


@contextmanager
def guard(there: Device, folder: str) -> Iterator[None]:
    """Leave the device as it was, also where this process is killed: a connection that is open as long as we are, and at whose
    end the device stops what runs there and removes the folder. That it went away meanwhile is no reason to lose the answer.
    """
    assert FOLDER.fullmatch(folder), "only what mktemp made is ever removed"
    end = f"cat > /dev/null; test -f {folder}/pid && kill $(cat {folder}/pid); rm -rf {folder}"
    command = tied(there.command(f"exec sh -c {shlex.quote(end)}"))
    silent = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=silent, stderr=silent) as connection:
        try:
            yield
        finally:
            assert connection.stdin is not None
            connection.stdin.close()
            try:
                connection.wait(there.timeout)
            except subprocess.TimeoutExpired:
                connection.kill()


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
        BadInput: as for `workshop`, an answer that cannot be read; and where the package is no archive.
    """
    if not package.is_file():
        raise BadInput(f"{package} is no file; needed is a package.tar.gz, which can be copied to {there.name}.")
    with workshop(there, python, limit=limit) as shop:
        shop.bring({"package.tar.gz": package, **scripts()})
        return verified(there, package, shop.run("verify.py", "package.tar.gz", "--json", *options))


def scripts() -> dict[str, Path]:
    """The scripts of this installation that run on devices, by name."""
    return {path.name: path for path in sorted(Path(str(script.__file__)).parent.glob("[!_]*.py"))}


def _words(python: str) -> list[str]:
    """What starts Python on a device."""
    try:
        return shlex.split(python)
    except ValueError as error:  # a quotation without an end
        raise BadInput(
            f"Python is to be started by {python!r} ({error}); needed is a command such as venv/bin/python."
        ) from error


def prepare(there: Device, python: str) -> dict[str, str]:
    """A fresh folder on the device, and what it has: free kilobytes, version of Python."""
    text = PREPARE.replace("PYTHON", shlex.join(_words(python)))
    # The login shell may be any; the script is for a POSIX one.
    done = call(there, "exec sh -s", given=text.encode(), limit=there.timeout)
    lines = [line[len(MARK) :] for line in done.stdout.splitlines() if line.startswith(MARK)]
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    if not FOLDER.fullmatch(facts.get("folder", "")):
        told = last_line(done.stderr) or "it names none"
        raise BadInput(f"{there.name} gives no temporary folder ({told}). Make room in its /tmp, or set TMPDIR there.")
    return facts


def young_enough(there: Device, found: str) -> None:
    """A Python for the scripts."""
    if not found:
        raise BadInput(f"{there.name} has no Python that starts by that name. Install 3.8 or newer there, or give --python.")
    if tuple(int(part) for part in found.split(".")) < OLDEST:
        raise BadInput(f"{there.name} has Python {found}, needed is 3.8 or newer. Name another one with --python.")


def copy(there: Device, source: Path, place: str, limit: float) -> None:
    """One file; plain ssh, because small devices have no sftp."""
    folder, name = shlex.quote(os.path.dirname(place)), shlex.quote(place)
    done = call(there, f"mkdir -p {folder} && cat > {name}", given=source.read_bytes(), limit=limit)
    if done.returncode:
        told = last_line(done.stderr) or f"exit code {done.returncode}"
        raise BadInput(f"{source.name} cannot be copied to {there.name} ({told}). Make room there, or set TMPDIR there.")


@dataclass(frozen=True)
class Done:
    """What a call left."""

    returncode: int
    stdout: str
    stderr: str


def call(there: Device, remote: str, *, given: bytes = b"", limit: float) -> Done:
    """Run a command on the device; where ssh itself fails, say why and what to do."""
    if shutil.which("ssh") is None:
        raise BadInput("There is no ssh here. Install an OpenSSH client.")
    try:
        done = subprocess.run(
            tied(there.command(remote)), input=given, capture_output=True, timeout=limit + there.timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BadInput(
            f"{there.name} did not answer within {limit + there.timeout:.0f} s. Look after it, then repeat."
        ) from error
    stderr = done.stderr.decode(errors="replace")
    # ssh's own exit code; that of a command there is another.
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


def spoken(done: Done) -> str:
    """What a script printed, without what a login shell prints before it."""
    return done.stdout.partition(f"{MARK}answer\n")[2]


@contextmanager
def readable(there: Device, done: Done, name: str) -> Iterator[None]:
    """A device may send anything, so what is not exactly an answer is refused."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        reason = last_line(done.stderr) or "no JSON came back"
        raise BadInput(f"{there.name} gave no answer that can be read ({reason}). Run {name} there by hand.") from error


def verified(there: Device, package: Path, done: Done) -> Verified:
    """The answer of verify.py."""
    with readable(there, done, "verify.py"):
        told = files.parsed_json(spoken(done))
        if isinstance(told, dict) and "error" in told:
            raise BadInput(str(told["error"]["message"]))
        models = tuple(record(Ran, model) for model in told["models"])
        ours = {"package": str(package), "problems": tuple(map(str, told["problems"])), "models": models}
        return record(Verified, {**told, **ours})


def record(kind: type[Kind], found: dict[str, Any]) -> Kind:
    """A data class from exactly its fields, numbers where numbers belong."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if set(found) != names:
        raise ValueError(f"fields {sorted(set(found) ^ names)}")
    if odd := [n for n in names & NUMBERS if not isinstance(found[n], int | float | None)]:
        raise ValueError(f"{odd[0]} is no number")
    return kind(**found)
