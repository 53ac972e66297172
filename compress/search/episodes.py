"""Episode after episode, each written down: a search that was cut off goes on as if nothing had happened.

A line per episode (actions, what came of them) is all that is kept. An agent that is fed the same episodes in the same order is
the same agent, so no networks and no memory are written; taking up a search again costs the gradient steps, and no look at a
model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from compress.errors import BadInput
from compress.search.agents import Agent, Step
from compress.search.gym_environment import Pruning
from compress.user import files, wording
from exporters import atomic

_FILE = "episodes.jsonl"
_Figure = Annotated[float, Field(ge=-1e9, le=1e9)]


@dataclass(frozen=True)
class Episode:
    """What was done and what came of it.

    Attributes:
        shares: of its channels that each group kept, behind the wall.
        reward: more is better.
        quality: on the held-out images of the search.
        entropy: ratio to the dense model's, where the reward takes it.
        constant: share of constant maps, likewise.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...]
    reward: _Figure
    quality: _Figure
    entropy: _Figure | None = None
    constant: _Figure | None = None


_EPISODE = TypeAdapter(Episode)


def search(
    environment: Pruning,
    agent: Agent,
    episodes: int,
    scratch: Path | None = None,
    progress: Callable[[int, Episode], None] = lambda number, episode: None,
) -> list[Episode]:
    """Run episodes.

    Args:
        environment: of the task.
        agent: who decides.
        episodes: how many, those in the scratch directory included.
        scratch: folder in which each episode is written down, and from which a search goes on; None for neither.
        progress: told the number of episodes done and the last one.
    """
    # A search of fewer episodes than were recorded replays only so many.
    done = recorded(scratch, len(environment.task.widths.groups))[:episodes]
    for number in range(episodes):
        if number < len(done):
            _replay(environment, agent, number, done[number])
        else:
            done.append(_episode(environment, agent, number))
            if scratch is not None:
                scratch.mkdir(parents=True, exist_ok=True)
                lines = (json.dumps(dataclasses.asdict(one)) + "\n" for one in done)
                # Whole and at once: a line that was cut off would be read as a damaged file.
                atomic.write(scratch / _FILE, "".join(lines).encode())
        progress(number + 1, done[number])
    return done


def best(episodes: list[Episode]) -> int:
    """Number of the first episode of the highest reward."""
    return max(range(len(episodes)), key=lambda number: (episodes[number].reward, -number))  # of equal ones the first


def recorded(scratch: Path | None, groups: int | None = None) -> list[Episode]:
    """What a scratch directory has of a search that decides on so many groups (None: any number).

    Raises:
        BadInput: it cannot be read, or holds what no search writes.
    """
    if scratch is None or not (scratch / _FILE).exists():
        return []
    place = scratch / _FILE
    try:
        found = [_EPISODE.validate_python(files.parsed_json(line)) for line in files.text(place).splitlines()]
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {wording.needed(first)}"
        raise BadInput(f"{place} is not as a search writes it ({why}). Start again with --force.") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{place} cannot be read ({files.told(error)}). Start again with --force.") from error
    if other := next((one for one in found if len(one.shares) != (groups or len(one.shares))), None):
        raise BadInput(
            f"{place} is of another search: an episode decides on {len(other.shares)} groups, needed are {groups}. Start again "
            "with --force."
        )
    return found


def _episode(environment: Pruning, agent: Agent, number: int) -> Episode:
    """One episode, and the agent's lesson from it."""
    observation, _ = environment.reset()
    steps: list[Step] = []
    shares: list[float] = []
    while True:
        action = agent.act(observation, number)
        following, reward, over, _, info = environment.step(np.array([action], dtype=np.float32))
        steps.append(Step(observation, action, following))
        shares.append(info["share"])
        observation = following
        if over:
            agent.learn(steps, reward, number)
            return Episode(tuple(shares), reward, info["quality"], info["entropy"], info["constant"])


def _replay(environment: Pruning, agent: Agent, number: int, known: Episode) -> None:
    """The same lesson from what was written down; the agent draws what it drew then."""
    widths = environment.task.widths
    decided: list[int] = []
    steps: list[Step] = []
    for share in known.shares:
        observation = widths.observe(decided)
        # Its draw is needed, as it moves the agent's random numbers on.
        action = agent.act(observation, number)
        decided.append(widths.kept(decided, share))
        steps.append(Step(observation, action, widths.observe(decided)))
    agent.learn(steps, known.reward, number)
