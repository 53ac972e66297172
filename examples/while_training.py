"""Pruning while training, in a plain loop of torch: run with `python examples/while_training.py`; it takes seconds."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import compress

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
labels = torch.tensor(digits.target)
torch.manual_seed(0)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]
loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=64, shuffle=True)

model: nn.Module = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

for epoch in range(8):
    # Three times on the way, a smaller model: its optimizer goes on with the moments of the channels that stay.
    if epoch in (3, 4, 5):
        made = compress.remove(model, loader, target="macs=0.7", calibration=500)
        compress.follow(optimizer, made)
        model = made.model
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        right = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"epoch {epoch}: {sum(p.numel() for p in model.parameters())} parameters, top-1 {right:.3f}")

compress.save(model, "digits.compressed", inputs=images[:1])
