"""The training of a project that keeps its model small by a gate: a small net on the digits of scikit-learn, into model.pt.

python train.py                a good model
python train.py --planted      one with a regression in it, to see the gate turn red: it no longer knows its last two digits
"""

from __future__ import annotations

import argparse

import torch

from compress.commands.demo import make_demo


def main() -> None:
    parser = argparse.ArgumentParser(description="Train model.pt.")
    parser.add_argument("--planted", action="store_true", help="with a regression in it")
    planted = parser.parse_args().planted
    made = make_demo(".")
    if planted:
        weights = torch.load(made.model, weights_only=True)
        weights["fc.weight"][8:], weights["fc.bias"][8:] = 0, -100
        torch.save(weights, made.model)
    print(f"model.pt: top-1 {100 * made.top1:.1f} %" + (", then two digits were taken out" if planted else ""))


if __name__ == "__main__":
    main()
