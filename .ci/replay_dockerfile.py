"""Carries out the steps of the Dockerfile without a daemon: each stage in a copy of a root folder, its commands by chroot.

    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm base
    python .ci/replay_dockerfile.py base --target cpu --bind /etc/ssl/certs --arg TORCH_INDEX=

Needs root. The root folder stands for every base image, so this shows that the steps work on a Debian with Python, not that
the named images can be fetched. At the end the health check and the entry point run as the image's own user.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


@dataclass
class Stage:
    """A stage while it is carried out."""

    name: str
    root: Path
    arguments: dict[str, str]
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    )
    workdir: str = "/"
    user: str = "0"
    final: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(word, rest) of every instruction; comments are gone, continued lines joined."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    for line in filter(str.strip, joined.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word not in KNOWN:
            raise SystemExit(f"The Dockerfile has {word}, which this script does not know. Add it.")
        yield word, " ".join(rest.split()) if word != "RUN" else rest


def needed(steps: Sequence[tuple[str, str]], target: str) -> set[str]:
    """The stages that a target is made from."""
    after: dict[str, set[str]] = {}
    name = ""
    for word, rest in steps:
        if word == "FROM":
            name = rest.split()[-1]
            after[name] = set()
        elif word == "COPY" and rest.startswith("--from="):
            after[name].add(rest.split()[0].removeprefix("--from="))
    if target not in after:
        raise SystemExit(f"There is no stage {target}; there are {', '.join(after)}.")
    found, todo = set[str](), [target]
    while todo:
        found.add(todo[-1])
        todo.extend(after[todo.pop()] - found)
    return found


def replay(base: Path, target: str, given: dict[str, str], binds: Sequence[str], passed: Sequence[str], work: Path) -> Stage:
    """Every step of the stages that a target needs, in order."""
    steps = list(instructions((HERE / "Dockerfile").read_text()))
    wanted, stages, stage = needed(steps, target), dict[str, Stage](), None
    ambient = {name: os.environ[name] for name in passed if name in os.environ}
    for word, rest in steps:
        if word == "FROM":
            name = rest.split()[-1]
            stage = Stage(name, work / name, {}) if name in wanted else None
            if stage is not None:
                print(f"== {rest}", flush=True)
                subprocess.run(["cp", "-a", f"{base}/.", str(stage.root)], check=True)
                stages[name] = stage
        elif stage is not None:
            print(f"-- {word} {rest}", flush=True)
            carry_out(stage, word, rest, stages, given, binds, ambient)
    return stages[target]


def carry_out(
    stage: Stage,
    word: str,
    rest: str,
    stages: dict[str, Stage],
    given: dict[str, str],
    binds: Sequence[str],
    ambient: dict[str, str],
) -> None:
    """One instruction."""
    match word:
        case "ARG":
            name, _, default = rest.partition("=")
            stage.arguments[name] = given.get(name, default)
        case "ENV":
            pairs = (pair.split("=", 1) for pair in shlex.split(rest))
            stage.environment |= {k: re.sub(r"\$\{(\w+)\}", lambda m: stage.environment.get(m[1], ""), v) for k, v in pairs}
        case "WORKDIR":
            stage.workdir = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            stage.user = rest
        case "COPY":
            copy(stage, rest, stages)
        case "RUN":
            run(stage, ["/bin/sh", "-c", rest], binds, {**ambient, **stage.arguments})
        case _:
            stage.final[word] = json.loads(rest[rest.index("[") :])


def copy(stage: Stage, rest: str, stages: dict[str, Stage]) -> None:
    """Files of the context, or of an earlier stage."""
    words = rest.split()
    context = stages[words.pop(0).removeprefix("--from=")].root if words[0].startswith("--from=") else HERE
    *sources, place = words
    target = stage.root / (place if place.startswith("/") else f"{stage.workdir}/{place}").lstrip("/")
    for source in sources:
        path = context / source.lstrip("/")
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into = target / path.name if place.endswith("/") else target
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, into)


def run(stage: Stage, command: Sequence[str], binds: Sequence[str], more: dict[str, str]) -> None:
    """A command in the stage's root, as its user, with /proc, /dev and what was asked for mounted for as long as it runs."""
    with ExitStack() as mounted:
        for place in ("/proc", "/dev", "/etc/resolv.conf", "/etc/hosts", *binds):
            inside = stage.root / place.lstrip("/")
            if Path(place).is_dir():
                inside.mkdir(parents=True, exist_ok=True)
            else:
                inside.parent.mkdir(parents=True, exist_ok=True)
                inside.touch()
            subprocess.run(["mount", "--bind", place, str(inside)], check=True)
            mounted.callback(subprocess.run, ["umount", "--lazy", str(inside)], check=True)
            if place in binds:  # a step may look at this machine, never change it
                subprocess.run(["mount", "-o", "remount,bind,ro", str(inside)], check=True)
        inner = f"cd {shlex.quote(stage.workdir)} && exec {shlex.join(command)}"
        environment = {**stage.environment, **more}
        if stage.user != "0":
            environment["HOME"] = "/tmp"
        userspec = f"--userspec={stage.user}:{stage.user}"
        subprocess.run(["chroot", userspec, str(stage.root), "/bin/sh", "-c", inner], env=environment, check=True)


@contextmanager
def scratch(parent: Path) -> Generator[Path]:
    """A folder that goes away again, unless something of this machine is still mounted in it."""
    work = Path(tempfile.mkdtemp(dir=parent, prefix="replay-"))
    try:
        yield work
    finally:
        if str(work) in Path("/proc/self/mounts").read_text():
            print(f"{work} is left as it is: something is still mounted there.", file=sys.stderr)
        else:
            shutil.rmtree(work)


def main() -> None:
    """The script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base", type=Path, help="a root folder with Python 3.11 or newer, which stands for the base images")
    parser.add_argument("--target", default="cpu", help="the stage to build")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a build argument")
    parser.add_argument("--bind", action="append", default=[], metavar="PATH", help="a place of this machine that steps may see")
    parser.add_argument("--pass-env", action="append", default=[], metavar="NAME", help="a variable that RUN steps inherit")
    given = parser.parse_args()
    with scratch(given.base.resolve().parent) as work:
        arguments = dict(pair.split("=", 1) for pair in given.arg)
        stage = replay(given.base, given.target, arguments, given.bind, given.pass_env, work)
        for word in ("HEALTHCHECK", "ENTRYPOINT"):
            command = stage.final[word] + (stage.final["CMD"] if word == "ENTRYPOINT" else [])
            print(f"== {word} as user {stage.user}: {shlex.join(command)}", flush=True)
            run(stage, command, (), {})
    print("Every step was carried out.")


if __name__ == "__main__":
    sys.exit(main())
