"""The methods: a name, the stages that it runs in a row, and what to know before one takes it.

A stage is named by its file in `compress/stages/`, so that this table is read without torch; `pipeline/sequence.py` makes the
stages. A new method is a line here and, where it decides something new, a file there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from compress.errors import BadInput, extra

CHANNELS_TARGET, WEIGHTS_TARGET = "macs=0.5", "weights=0.1"
"""What is asked for by default, of a method that removes channels and of one that masks single weights."""


@dataclass(frozen=True)
class Step:
    """One stage of a method.

    Attributes:
        file: in `compress/stages/`, without its ending; the class in it has the same name (`merge.py`: `Merge`).
        settings: what the class is made with.
    """

    file: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        """What its row in a report is called."""
        return self.settings.get("name", self.file)


class Named(Protocol):
    """A stage that is made already, as a program or a test puts one into the table."""

    @property
    def name(self) -> str:
        """What its row in a report is called."""
        ...


def step(file: str, **settings: Any) -> Step:
    """A stage by the name of its file, made with these settings."""
    return Step(file, settings)


@dataclass(frozen=True)
class Method:
    """A way to compress a model.

    Attributes:
        steps: in the order in which they run; a run leaves out those that its recipe does not ask for.
        what: what goes, in a sentence.
        source: where it is described; "-" for a control.
        needs: what has to be there besides the model.
        costs: what it takes before fine-tuning.
        target: what is asked for by default; None where quality says when to stop.
        weights_target: the same where `--structure` is weights, which are masked; None where the method knows no such thing.
    """

    steps: tuple[Step | Named, ...]
    what: str = ""
    source: str = "-"
    needs: str = "training images, labels or not"
    costs: str = "one pass over the calibration images, and a least-squares reconstruction"
    target: str | None = CHANNELS_TARGET
    weights_target: str | None = None

    @property
    def sizes(self) -> bool:
        """Whether it removes channels down to any target, so that a contract alone may decide how far."""
        return any(isinstance(step, Step) and step.file == "remove" for step in self.steps)

    def default_target(self, structure: str) -> str | None:
        """What is asked for where neither a target nor a tolerance is given."""
        return self.weights_target if structure == "weights" and self.weights_target else self.target


METHODS: dict[str, Method] = {
    "entropic": Method(
        (
            *(step("analyze"), step("remove", selector="entropic"), step("linearize")),
            *(step("reconstruct"), step("finetune"), step("merge")),
        ),
        "Channels go that the moments of their consumers can do without, then layers become one where that is faster.",
        "Barisin and Horenko, entropic regression (arXiv 2404.04734); merging as in LayerMerge (ICML 2024)",
    ),
    "depth": Method(
        (step("analyze"), step("linearize", alone=True), step("reconstruct"), step("finetune"), step("merge")),
        "Activations are linearized and the layers around them become one, where a race shows that this is faster.",
        "EASIER (ECML 2024) for the entropy, LayerMerge (ICML 2024) for the choice by latency",
        costs="as entropic, and a race per segment of layers, remembered per machine",
        target=None,
    ),
    "obs": Method(
        (step("analyze"), step("remove", selector="obs"), step("reconstruct"), step("finetune")),
        "The channel whose loss its consumers can best make up for goes first (block-OBS).",
        "Hassibi and Stork, Optimal Brain Surgeon (1993), by blocks",
    ),
    "taylor": Method(
        (step("analyze"), step("remove", selector="taylor"), step("reconstruct"), step("finetune")),
        "The channels with the least first-order effect on the loss go.",
        "Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019)",
    ),
    "magnitude": Method(
        (step("analyze"), step("remove", selector="magnitude"), step("reconstruct"), step("finetune")),
        "The smallest filters go (L1).",
        "Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017)",
    ),
    "state-entropy": Method(
        (step("analyze"), step("remove", selector="state-entropy"), step("reconstruct"), step("finetune")),
        "The channels go whose activation switches least; one that is always off goes without any loss.",
        "the channel-wise reading of EASIER (ECML 2024), whose own unit is the layer",
        needs="training images, labels or not; activations that switch, such as ReLU",
    ),
    "rl-entropy": Method(
        (step("analyze"), step("search"), step("reconstruct"), step("finetune")),
        "An agent tries how many channels every group keeps and is rewarded for little spatial entropy of the feature maps.",
        "Musat and Andonie (arXiv 2312.04918), on AMC (ECCV 2018)",
        needs=f"training images, labels or not; convolutions; {extra('rl')}",
        costs="as entropic, and --episodes choices, each judged on 256 held-out images",
    ),
    "random": Method(
        (step("analyze"), step("remove", selector="random"), step("reconstruct"), step("finetune")),
        "Channels are drawn: the control.",
    ),
    "easier": Method(
        (step("easier"), step("relocate"), step("finetune"), step("merge")),
        "The activation of the lowest state entropy goes, one at a time, until --max-drop.",
        "Quetu et al., The Simpler The Better: EASIER (ECML 2024)",
        costs="a whole training per activation",
        target=None,
    ),
    "nepenthe": Method(
        (step("nepenthe"), step("relocate"), step("finetune"), step("merge")),
        "Weights are pruned where activations hardly switch, until whole layers do not switch at all.",
        "Liao et al., NEPENTHE (arXiv 2404.16890) and EGP (ICCVW 2023)",
        costs="up to nine trainings",
        target=None,
    ),
    "lottery": Method(
        (step("lottery"),),
        "The smallest weights go level by level, and what is left is trained from its initial weights, or from others.",
        "Frankle and Carbin, The Lottery Ticket Hypothesis (ICLR 2019)",
        needs="labeled training images; --initial FILE or drawn for the variant 'original'",
        costs="a whole training per level and variant; masks make nothing faster, --structure channels does",
        weights_target=WEIGHTS_TARGET,
    ),
    "sensitivity": Method(
        (step("sensitivity", criterion="learned"),),
        "The untrained net loses the weights that moved and mattered least in a first training, and is trained again.",
        "Learned weight sensitivity (ICLR 2023 Tiny Papers), our reading",
        needs="labeled training images; --initial FILE, else weights are drawn",
        costs="two whole trainings",
        weights_target=WEIGHTS_TARGET,
    ),
    "snip": Method(
        (step("sensitivity", criterion="snip", name="snip"),),
        "The untrained net loses the weights whose gates hardly move its first loss, and is trained then.",
        "Lee et al., SNIP (ICLR 2019)",
        needs="labeled training images; --initial FILE, else weights are drawn",
        costs="one whole training",
        weights_target=WEIGHTS_TARGET,
    ),
}
"""By the name that --method takes."""


def method(name: str) -> Method:
    """A method of the table.

    Raises:
        BadInput: no such method.
    """
    if name in METHODS:
        return METHODS[name]
    close = difflib.get_close_matches(name, METHODS, 1)
    meant = f" Did you mean {close[0]}?" if close else ""
    raise BadInput(f"The method is '{name}'; known are {', '.join(METHODS)}.{meant} See 'compress methods'.")
