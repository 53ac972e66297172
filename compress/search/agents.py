"""Who decides in a search: an agent that learns (DDPG), or nobody (uniform draws, the control).

    first quarter of the episodes, 100 at most    a ~ U(0, 1)
    after that                                    a ~ N(actor(observation), sigma^2) cut off to [0, 1],  sigma = 0.5 0.95^episode

An episode's reward counts for each of its transitions, and one gradient step is taken per transition. Rewards are scaled by
mean and deviation of the drawn episodes.

Source: He et al., AMC (ECCV 2018), and its public code: networks 300-300, tau 0.01, batches of 64, memory of 100 episodes,
exploration as above. Departs from it: the critic learns the episode's reward itself instead of a sum of copies of it along the
episode (there is no discount, so this is all that is left to come); it learns what was asked for, where AMC's learns the share
behind the wall: else it never sees what lies beyond, and the actor goes there and stays; Stable-Baselines3 has one learning rate,
1e-3, for actor and critic, so the actor takes a step for every ten of the critic where AMC's has a tenth of its rate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch

DRAWN_SHARE, DRAWN_MOST = 0.25, 100
_SIGMA, _DECAY = 0.5, 0.95
_MEMORY = 100  # episodes
# The actor takes a tenth of the critic's steps (docstring: one learning rate for both).
_DELAY = 10


@dataclass(frozen=True)
class Step:
    """One transition: what was seen, the share that was asked for, before any wall, what was seen then."""

    observation: np.ndarray
    action: float
    following: np.ndarray


class Agent(Protocol):
    """Decides, and may learn. The same episodes in the same order make the same agent."""

    def act(self, observation: np.ndarray, episode: int) -> float:
        """A share in [0, 1]."""
        ...

    def learn(self, steps: Sequence[Step], reward: float, episode: int) -> None:
        """Take in a finished episode."""
        ...


class Uniform:
    """Draws every share: random search."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)

    def act(self, observation: np.ndarray, episode: int) -> float:
        return float(self.random.random())

    def learn(self, steps: Sequence[Step], reward: float, episode: int) -> None:
        """Nothing is learned."""


class Ddpg:
    """Stable-Baselines3's DDPG, fed episode by episode.

    Args:
        environment: whose spaces the agent acts in.
        groups: steps of an episode.
        episodes: of the whole search.
        seed: of networks, batches and exploration.
    """

    def __init__(self, environment: gymnasium.Env[Any, Any], groups: int, episodes: int, seed: int):
        from stable_baselines3 import DDPG
        from stable_baselines3.common.logger import Logger

        self.drawn = drawn(episodes)
        self.random = np.random.default_rng(seed)
        self.model = DDPG(
            "MlpPolicy",
            environment,
            learning_rate=1e-3,
            buffer_size=_MEMORY * groups,
            batch_size=64,
            tau=0.01,
            gamma=1.0,
            policy_kwargs={"net_arch": [300, 300]},
            seed=seed,
            device="cpu",
        )
        self.model.policy_delay = _DELAY
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.waiting: list[tuple[Sequence[Step], float]] = []
        self.scale = (0.0, 1.0)

    def act(self, observation: np.ndarray, episode: int) -> float:
        if episode < self.drawn:
            # Drawn from our own generator and not the environment's, so that a replay draws the same.
            return float(self.random.random())
        mean = float(self.model.predict(observation, deterministic=True)[0][0])
        return truncated_normal(mean, _SIGMA * _DECAY ** (episode - self.drawn), float(self.random.random()))

    def learn(self, steps: Sequence[Step], reward: float, episode: int) -> None:
        self.waiting.append((steps, reward))
        # Learning starts when the scale of rewards is known.
        if episode + 1 < self.drawn:
            return
        if episode + 1 == self.drawn:
            rewards = [r for _, r in self.waiting]
            self.scale = (float(np.mean(rewards)), float(np.std(rewards)) or 1.0)  # all drawn rewards may be equal
        for known, value in self.waiting:
            for step in known:
                self._remember(step, (value - self.scale[0]) / self.scale[1])
        self.waiting = []
        self.model.train(gradient_steps=len(steps), batch_size=64)

    def _remember(self, step: Step, reward: float) -> None:
        action = self.model.policy.scale_action(np.array([[step.action]], dtype=np.float32))
        # Done after each step: the reward is all that is still to come, whichever step it was.
        memory = self.model.replay_buffer
        assert memory is not None, "the agent was made with a memory"
        memory.add(step.observation[None], step.following[None], action, np.array([reward]), np.array([True]), [{}])


def drawn(episodes: int) -> int:
    """Episodes in which shares are drawn before an agent decides."""
    return max(1, min(DRAWN_MOST, math.ceil(DRAWN_SHARE * episodes)))


def truncated_normal(mean: float, sigma: float, uniform: float) -> float:
    """A draw from N(mean, sigma^2) cut off to [0, 1], by its inverse distribution function at `uniform` in [0, 1]."""
    low, high = (float(torch.special.ndtr(torch.tensor((x - mean) / sigma, dtype=torch.float64))) for x in (0.0, 1.0))
    # The interval lies so far out that its mass is lost in rounding.
    if high - low < 1e-12:
        return min(max(mean, 0.0), 1.0)
    at = torch.special.ndtri(torch.tensor(low + uniform * (high - low), dtype=torch.float64))
    return min(max(mean + sigma * float(at), 0.0), 1.0)


@contextmanager
def own_randomness() -> Iterator[None]:
    """Whatever is seeded and drawn inside, the caller's random numbers go on as if nothing had happened."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # devices=[]: the agent runs on the CPU only.
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
