"""A callback of Lightning that makes a model smaller while it trains.

    trainer = Trainer(max_epochs=12, callbacks=[PruneWhileTraining(at=(3, 5, 7), target="macs=0.7")])
    trainer.fit(module, loader)             # module.model is the smaller network afterwards

At the beginning of each of these epochs channels go, what is behind them is fitted again, and the optimizers go on with the
moments of what stays: `compress.remove` and `compress.follow`. `pip install 'entropress[lightning]'`; the older package
pytorch_lightning serves as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Unpack

from torch import nn

from compress.commands.keyword_errors import speaking_keywords
from compress.commands.steps import Edited, follow, remove
from compress.errors import BadInput, MissingPackage, extra

if TYPE_CHECKING:
    from compress.keywords import DataLike, StepSettings

    Base = object
else:
    _there = [name for name in ("lightning", "pytorch_lightning") if find_spec(name)]
    if not _there:
        raise MissingPackage(f"PruneWhileTraining needs Lightning, which is not installed: {extra('lightning')}.")
    Base = import_module({"lightning": "lightning.pytorch"}.get(_there[0], _there[0])).Callback


class PruneWhileTraining(Base):
    """Removes channels of a part of a LightningModule at the beginning of some epochs.

    Attributes:
        done: what each removal made, in order.
    """

    def __init__(
        self,
        at: Sequence[int],
        *,
        target: str = "macs=0.7",
        part: str = "model",
        data: DataLike | None = None,
        refit: bool = True,
        **settings: Unpack[StepSettings],
    ) -> None:
        """What goes, and when.

        Args:
            at: numbers of epochs, from 0.
            target: of each removal, as for `compress.remove`: a share of what the one before has left.
            part: the attribute of the LightningModule that holds the network, such as model or net.backbone.
            data: as for `compress.remove`; the training batches of the trainer where it is left out.
            refit: as for `compress.remove`.
            settings: as for `compress.remove`.
        """
        super().__init__()
        if not at or any(epoch < 0 for epoch in at):
            raise BadInput(f"at is {tuple(at)}; needed is one number of an epoch or several, from 0.")
        self.at, self.target, self.part, self.data, self.refit = tuple(at), target, part, data, refit
        self.settings = settings
        self.done: list[Edited] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse before the first step what would fail at the first removal."""
        network(pl_module, self.part)
        if trainer.world_size > 1:
            raise BadInput(
                f"The trainer works in {trainer.world_size} processes, each of which would choose channels of its own. Take "
                "devices=1, or prune first and train what comes out in several."
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Remove channels where it is time to."""
        if trainer.current_epoch not in self.at:
            return
        before = network(pl_module, self.part)
        data = trainer.train_dataloader if self.data is None else self.data
        made = speaking_keywords(remove)(before, data, target=self.target, refit=self.refit, **self.settings)
        own = {id(p) for p in before.parameters()}
        for optimizer in trainer.optimizers:
            # Others, of a critic for example, hold nothing of this network.
            if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                follow(optimizer, made)
        holder, _, last = self.part.rpartition(".")
        setattr(attrgetter(holder)(pl_module) if holder else pl_module, last, made.model)
        self.done.append(made)
        pl_module.log("parameters", float(sum(p.numel() for p in made.model.parameters())))


def network(pl_module: Any, part: str) -> nn.Module:
    """The part of a LightningModule that is made smaller.

    Raises:
        BadInput: there is none of that name.
    """
    try:
        found = attrgetter(part)(pl_module)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        there = ", ".join(name for name, _ in pl_module.named_children()) or "nothing"
        what = "has no" if found is None else f"is no module but {type(found).__name__}:"
        raise BadInput(
            f"{type(pl_module).__name__} {what} '{part}'; it holds {there}. Give part=, the attribute with the network alone, "
            "without loss and metrics."
        )
    return found
