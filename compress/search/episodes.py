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

import numpy as np

from compress.search.agents import Agent, Step
from compress.search.gym_environment import Pruning
from exporters import atomic

_FILE = "episodes.jsonl"


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

    shares: tuple[float, ...]
    reward: float
    quality: float
    entropy: float | None = None
    constant: float | None = None


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
    done = recorded(scratch)[:episodes]
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


def recorded(scratch: Path | None) -> list[Episode]:
    """What a scratch directory has."""
    if scratch is None or not (scratch / _FILE).exists():
        return []
    lines = map(json.loads, (scratch / _FILE).read_text().splitlines())
    return [Episode(tuple(values.pop("shares")), **values) for values in lines]


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
