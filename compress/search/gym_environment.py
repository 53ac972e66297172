"""The search as a Gymnasium environment: an agent decides, group by group, how many channels stay.

    observation   (11,) in [0, 1]: what is known of the next group and of the budget (`search.widths`)
    action        (1,) in [0, 1]: share of its channels that the group keeps, cut off by the wall
    reward        0 until the last group, then what the refitted model is worth on the held-out images (`search.rewards`)

Any agent for continuous actions can act in it; it passes Gymnasium's own checker. At the end `info` has the counts, and what
came of them. An episode takes no pass over the training images.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np

from compress.search.task import Task
from compress.search.widths import FACTS, PROGRESS


class Pruning(gymnasium.Env[np.ndarray, np.ndarray]):
    """The environment of a `Task`.

    Attributes:
        observation_space, action_space: see the module's docstring.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, task: Task):
        self.task = task
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(FACTS) + len(PROGRESS),), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.decided: list[int] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.decided = []
        # The seed is not used: nothing in the environment is random.
        return self.task.widths.observe([]), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        widths = self.task.widths
        if len(self.decided) == len(widths.groups):
            raise ValueError("the episode is over; call reset first")
        self.decided.append(widths.kept(self.decided, float(np.clip(np.asarray(action).reshape(-1)[0], 0, 1))))
        share = self.decided[-1] / widths.groups[len(self.decided) - 1].channels
        info: dict[str, Any] = {"share": share}
        over = len(self.decided) == len(widths.groups)
        reward = 0.0
        if over:
            counts = {group.name: n for group, n in zip(widths.groups, self.decided, strict=True)}
            outcome = self.task.outcome(counts)
            reward = outcome.reward
            info |= {"counts": counts, "cost": widths.cost(np.array(self.decided, dtype=float)), **dataclasses.asdict(outcome)}
        return widths.observe(self.decided), reward, over, False, info
