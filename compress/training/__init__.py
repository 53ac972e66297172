"""Training: one loop for fine-tuning, for training a found architecture from fresh weights, and for the demo net."""

from __future__ import annotations

from compress.training.loop import Epoch, Training, train
from compress.training.losses import distillation
from compress.training.reinitialize import reinitialized

__all__ = ["Epoch", "Training", "distillation", "reinitialized", "train"]
