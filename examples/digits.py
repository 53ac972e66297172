"""From a trained net to a smaller one, and on in torch: read top to bottom, run with `python examples/digits.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import compress
from compress.commands.demo import make_demo
from compress.data import open_data

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "digits-example")

# A net to start from: trained on scikit-learn's digits in seconds. Yours is a file of torch.save.
dense = make_demo(folder, epochs=3)

# Which channels belong together, and which stay as they are?
for group in compress.explain(dense.model, arch=dense.arch, data=dense.data):
    print(f"{group.name:12} {group.channels:3} channels  {group.frozen or 'removable'}")

# Half of the multiply-accumulates, one epoch of fine-tuning; the table of every stage is in FOLDER/out/report.md.
report = compress.run(
    dense.model, arch=dense.arch, data=dense.data, target="macs=0.5", epochs=1, rounds=10, out=folder / "out", force=True
)
print(report.verdict)

# The result is an ordinary torch module: it trains, and nobody needs the class that it came from.
model = compress.load(folder / "out" / "model.compressed").train()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batch = next(open_data("digits").train.batches(64))
loss = torch.nn.functional.cross_entropy(model(*batch.inputs), batch.target)
loss.backward()
optimizer.step()
print(f"one more step of training: loss {float(loss):.3f}")
