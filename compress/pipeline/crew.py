"""The processes of one run: those that torchrun has started, or as many of this machine as `--nproc` says.

The first one carries the run out; the others open the same model and data, and then do what it calls (`ranks.team`). All of them
say what they opened before anything else: a run of processes that see different data would end with a plan of nobody's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] (a public class that no __all__ names)
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from compress import __version__
from compress.checkpoint.load.live_module import fingerprint
from compress.data import digest
from compress.errors import BadInput, CompressError
from compress.measure import quality
from compress.pipeline.given import NOTHING, Given
from compress.pipeline.prepare import prepare
from compress.progress import Progress, silent
from compress.ranks.ranks import Ranks
from compress.ranks.team import ONE, Team, lost
from compress.recipe import Recipe
from compress.stage import Context
from compress.user import memory
from exporters.standalone import machine
from exporters.standalone.tied import tied

_LONGEST = timedelta(days=7)
"""A process waits for the first one as long as that times, writes and decides; that one's end is known by its connection."""
_PATIENCE_S = 10
_LAST_WORDS_S = 0.1
FOLLOW = "from exporters import elsewhere; elsewhere.install(); from compress.pipeline.crew import follow_stdin; follow_stdin()"


def by_torchrun() -> int:
    """How many processes torchrun has started, of which this is one; 0 where it has not."""
    return int(os.environ.get("WORLD_SIZE", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


@contextmanager
def crew(nproc: int, recipe: Recipe, given: Given) -> Iterator[Team]:
    """The processes of a run, connected for as long as the block lasts.

    Raises:
        BadInput: there cannot be so many, or they do not find each other.
    """
    started = by_torchrun()
    if nproc < 1:
        raise BadInput(f"--nproc is {nproc}; needed is a number of processes, at least 1.")
    if started > 1 and nproc > 1:
        raise BadInput(f"torchrun has started {started} processes, and --nproc asks for {nproc} of each. Give one of the two.")
    if started > 1:
        with connected(*next(iter(rendezvous("env://"))), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) as team:
            yield team
    elif nproc > 1:
        with begun(nproc, recipe, given) as team:
            yield team
    else:
        yield ONE


@contextmanager
def begun(count: int, recipe: Recipe, given: Given) -> Iterator[Team]:
    """Processes of this machine, of which this is the first.

    Raises:
        BadInput: model or data are in memory, or no port is free.
        CompressError: one of them ends before it is there.
    """
    if given.model is not None or given.data is not None or given.inputs:
        raise BadInput(
            "--nproc starts processes that open model and data by themselves, and these are in memory. Name files, or start your "
            f"script in every process: torchrun --nproc-per-node {count} script.py."
        )
    each, free = memory.taken(), memory.free()
    if (count - 1) * each > free:  # each loads what this one has loaded, before it does anything
        raise BadInput(
            f"--nproc is {count}, and each process begins with {each / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are "
            f"free; needed is a number up to {1 + free // each}, and no more than there are cores or GPUs pays."
        )
    try:
        store = TCPStore("127.0.0.1", 0, count, True, wait_for_workers=False)
    except RuntimeError as error:
        raise BadInput(f"No port of this machine is free for {count} processes ({str(error).splitlines()[0]}).") from error
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the name of a machine may lead to an address that it does not have
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    others: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(1, count):
            own = {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(count)}
            others.append(
                subprocess.Popen(
                    tied([sys.executable, "-P", "-c", FOLLOW]),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **place, **own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            )
            pipe = others[-1].stdin
            assert pipe is not None
            pipe.write(recipe.model_dump_json().encode())
            pipe.close()
        while not store.check([f"here/{number}" for number in range(1, count)]):
            if any(other.poll() is not None for other in others):
                raise lost(count)
            time.sleep(0.05)
        with connected(store, 0, count, count) as team:
            yield team
    finally:
        for other in others:
            try:
                other.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                other.kill()


@contextmanager
def connected(store: Store, number: int, count: int, local: int) -> Iterator[Team]:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store.set(f"here/{number}", "")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=number, world_size=count, timeout=_LONGEST
    )
    before = None
    if number and threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one decides, and what it decides is heard of
    try:
        yield Team(Ranks(number, count, local), store, max(1, machine.cores() // local))
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)
        # gloo's threads let their last tensors go, for which they need the interpreter; one that asks for it when the
        # interpreter ends brings the process down (SIGABRT).
        time.sleep(_LAST_WORDS_S)
        with suppress(RuntimeError):
            dist.destroy_process_group()


def opened_by_all(team: Team, recipe: Recipe, progress: Progress, given: Given, refusing: bool) -> tuple[Context, quality.Metric]:
    """What `prepare` gives, the same in every process.

    Raises:
        BadInput: in one of them it is something else, or cannot be opened.
    """
    number, count = team.ranks.number, team.ranks.count
    if count == 1:
        return prepare(recipe, progress, given, refusing=refusing)
    mine = recipe
    if torch.cuda.is_available() and recipe.device in ("auto", "cuda"):
        mine = recipe.model_copy(update={"device": f"cuda:{torch.cuda.current_device()}"})
    found, error = None, None
    try:
        found = prepare(mine, progress, given, refusing=refusing and not number)
    except CompressError as refusal:
        error = refusal
    with team.watched():
        refused = team.ranks.gathered(error)
        for other, refusal in enumerate(refused):
            if refusal is not None:
                raise refusal if other == number else type(refusal)(f"Process {other} of {count}: {refusal}")
        assert found is not None, "or there was a refusal"
        said = team.ranks.gathered(_facts(recipe, *found))
    for other, facts in enumerate(said):
        if differ := [name for name, value in facts.items() if value != said[0][name]]:
            what = differ[0]
            raise BadInput(
                f"Process {other} of {count} has another {what} than the first ({facts[what]}, there {said[0][what]}); needed is "
                "the same for all. Give every machine the same files and the same version."
            )
    team.introduce(_named(*found))
    return found


def _facts(recipe: Recipe, context: Context, metric: quality.Metric) -> dict[str, str]:
    settings = {f"--{name.replace('_', '-')}": str(value)[:200] for name, value in recipe.model_dump(mode="json").items()}
    return {
        "version": __version__,
        "model": fingerprint(context.dense.module)[:16],
        **settings,  # before the data, whose parts are drawn by the seed
        "data": digest.exact(context.data),
    }


def _named(context: Context, metric: quality.Metric) -> dict[str, object]:
    """What every process has opened, and which therefore is not sent."""
    data, splits = context.data, (context.data.train, context.data.held_out, context.data.test)
    stores = [store for split in splits for store in (*split.inputs, split.targets) if store is not None]
    return {
        "data": data,
        "metric": metric,
        "device": context.device,
        "dense": context.dense,
        "dense module": context.dense.module,
        "initial": context.initial,
        **{f"split {number}": split for number, split in enumerate(splits)},
        **{f"store {number}": store for number, store in enumerate(stores)},
    }


def follow(team: Team, recipe: Recipe, given: Given) -> Any:
    """Do what the first process calls, until the run is over: what came out of it.

    Raises:
        CompressError: what it ended with.
    """
    team.introduce({"team": team})
    try:
        opened_by_all(team, recipe, silent, given, refusing=False)
    except Exception as error:
        team.say(error)
        raise
    return team.serve()


def follow_stdin() -> None:
    """A process that `--nproc` has started, with the recipe on its standard input."""
    recipe = Recipe.model_validate_json(sys.stdin.read())
    with suppress(CompressError), connected(*next(iter(rendezvous("env://"))), int(os.environ["LOCAL_WORLD_SIZE"])) as team:
        follow(team, recipe, NOTHING)
