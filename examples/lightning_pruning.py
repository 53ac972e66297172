"""Pruning while training with Lightning (`pip install lightning`); it takes seconds."""

from __future__ import annotations

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import compress
from compress.integrations.lightning import PruneWhileTraining


class Digits(L.LightningModule):
    """A network, and around it what Lightning wants to know."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
L.seed_everything(0, verbose=False)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]
loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=64, shuffle=True)

module = Digits()
print(sum(p.numel() for p in module.model.parameters()), "parameters before")
pruning = PruneWhileTraining(at=(3, 4, 5), target="macs=0.7", calibration=500)
trainer = L.Trainer(
    max_epochs=8, accelerator="cpu", callbacks=[pruning], logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False,
)  # fmt: skip
trainer.fit(module, loader)

model = module.model.eval()
with torch.no_grad():
    right = (model(images[test]).argmax(1) == labels[test]).float().mean()
print(sum(p.numel() for p in model.parameters()), f"parameters after, top-1 {right:.3f}")
compress.save(model, "digits.compressed", inputs=images[:1])
