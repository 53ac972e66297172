"""The methods: a name and the stages that it runs in a row. A new one is a line here and, where needed, a file in `stages/`."""

from __future__ import annotations

from dataclasses import dataclass

from compress.errors import BadInput
from compress.recipe import Recipe
from compress.stage import Stage
from compress.stages.analyze import Analyze
from compress.stages.easier import Easier
from compress.stages.finetune import Finetune
from compress.stages.iteration import InTurn
from compress.stages.lottery import Lottery
from compress.stages.merge import Merge
from compress.stages.nepenthe import Nepenthe
from compress.stages.order import Order
from compress.stages.reconstruct import Reconstruct
from compress.stages.relocate import Relocate
from compress.stages.remove import Remove
from compress.stages.replay import Replay
from compress.stages.search import Search
from compress.stages.sensitivity import Sensitivity
from compress.stages.shorten import Shorten


@dataclass(frozen=True)
class Method:
    """A way to compress a model.

    Attributes:
        stages: in the order in which they run; a run leaves out those that its recipe does not ask for.
        what: what goes, in a sentence.
        source: where it is described; "-" for a control.
        needs: what has to be there besides the model.
        costs: what it takes before fine-tuning.
    """

    stages: tuple[Stage, ...]
    what: str = ""
    source: str = "-"
    needs: str = "training images, labels or not"
    costs: str = "one pass over the calibration images, and a refit"


METHODS: dict[str, Method] = {
    "entropic": Method(
        (Analyze(), Remove("entropic"), Shorten(), Reconstruct(), Finetune(), Merge()),
        "Channels go that the readers' moments can do without, then layers become one where that is faster.",
        "Barisin and Horenko, entropic regression (arXiv 2404.04734); merging as in LayerMerge (ICML 2024)",
    ),
    "depth": Method(
        (Analyze(), Shorten(alone=True), Reconstruct(), Finetune(), Merge()),
        "Rectifiers become lines and the layers around them one, where a race shows that this is faster.",
        "EASIER (ECML 2024) for the entropy, LayerMerge (ICML 2024) for the choice by latency",
        costs="as entropic, and a race per stretch of layers, remembered per machine",
    ),
    "obs": Method(
        (Analyze(), Remove("obs"), Reconstruct(), Finetune()),
        "The channel whose loss the readers can best make up for goes first (block-OBS).",
        "Hassibi and Stork, Optimal Brain Surgeon (1993), by blocks",
    ),
    "taylor": Method(
        (Analyze(), Remove("taylor"), Reconstruct(), Finetune()),
        "The channels with the least first-order effect on the loss go.",
        "Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019)",
    ),
    "magnitude": Method(
        (Analyze(), Remove("magnitude"), Reconstruct(), Finetune()),
        "The smallest filters go (L1).",
        "Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017)",
    ),
    "state-entropy": Method(
        (Analyze(), Remove("state-entropy"), Reconstruct(), Finetune()),
        "The channels go whose rectifier switches least; one that is always off goes without any loss.",
        "the channel-wise reading of EASIER (ECML 2024), whose own unit is the layer",
        needs="training images, labels or not; rectifiers",
    ),
    "rl-entropy": Method(
        (Analyze(), Search(Remove("entropic")), Reconstruct(), Finetune()),
        "An agent tries how many channels every group keeps and is rewarded for little spatial entropy of the feature maps.",
        "Musat and Andonie (arXiv 2312.04918), on AMC (ECCV 2018)",
        needs="training images, labels or not; convolutions; pip install 'compress[rl]'",
        costs="as entropic, and --episodes choices, each judged on 256 held-out images",
    ),
    "random": Method((Analyze(), Remove("random"), Reconstruct(), Finetune()), "Channels are drawn: the control."),
    "easier": Method(
        (Easier(), Relocate(), Finetune(), Merge()),
        "The rectifier of the lowest state entropy goes, one at a time, until --max-drop.",
        "Quetu et al., The Simpler The Better: EASIER (ECML 2024)",
        costs="a whole training per rectifier",
    ),
    "nepenthe": Method(
        (Nepenthe(), Relocate(), Finetune(), Merge()),
        "Weights are pruned where rectifiers hardly switch, until whole layers do not switch at all.",
        "Liao et al., NEPENTHE (arXiv 2404.16890) and EGP (ICCVW 2023)",
        costs="up to nine trainings",
    ),
    "lottery": Method(
        (Lottery(),),
        "The smallest weights go level by level, and what is left is trained from its initial weights, or from others.",
        "Frankle and Carbin, The Lottery Ticket Hypothesis (ICLR 2019)",
        needs="labelled training images; --initial FILE or drawn for the arm 'original'",
        costs="a whole training per level and arm; masks make nothing faster, --structure channels does",
    ),
    "sensitivity": Method(
        (Sensitivity("learned"),),
        "The untrained net loses the weights that moved and mattered least in a first training, and is trained again.",
        "Learned weight sensitivity (ICLR 2023 Tiny Papers), our reading",
        needs="labelled training images; --initial FILE, else weights are drawn",
        costs="two whole trainings",
    ),
    "snip": Method(
        (Sensitivity("snip", name="snip"),),
        "The untrained net loses the weights whose gates hardly move its first loss, and is trained then.",
        "Lee et al., SNIP (ICLR 2019)",
        needs="labelled training images; --initial FILE, else weights are drawn",
        costs="one whole training",
    ),
}
"""By the name that --method takes."""

_IN_TURNS = (Remove, Shorten, Order, Reconstruct, Finetune)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the recipe's method that the recipe needs.

    Raises:
        BadInput: no such method.
    """
    if recipe.method not in METHODS:
        raise BadInput(f"The method is '{recipe.method}'; known are {', '.join(METHODS)}. See 'compress methods'.")
    stages = [stage for stage in (Replay(), *METHODS[recipe.method].stages) if stage.needed(recipe)]
    if recipe.order != "width-depth":
        stages = _exchanged(stages) if recipe.order == "depth-width" else _tried(stages)
    if recipe.turns == 1:
        return tuple(stages)
    repeated = [stage for stage in stages if isinstance(stage, _IN_TURNS)]
    if not any(isinstance(stage, Remove | Shorten | Order) for stage in repeated):
        raise BadInput(f"--turns {recipe.turns} repeats removals, and {recipe.method} has none to repeat. Leave --turns out.")
    first, last = stages.index(repeated[0]), stages.index(repeated[-1]) + 1
    turns = (InTurn(stage, n, recipe.turns) for n in range(1, recipe.turns + 1) for stage in repeated)
    return (*stages[:first], *turns, *stages[last:])


def _exchanged(stages: list[Stage]) -> list[Stage]:
    """Depth before width: these two change places, the others stay where they are."""
    places = [i for i, stage in enumerate(stages) if isinstance(stage, Remove | Shorten)]
    both = sorted((stages[i] for i in places), key=lambda stage: isinstance(stage, Remove))
    return [both.pop(0) if i in places else stage for i, stage in enumerate(stages)]


def _tried(stages: list[Stage]) -> list[Stage]:
    """Both orders as one stage, where there are two to put in order."""
    remove, shorten = (next((s for s in stages if isinstance(s, kind)), None) for kind in (Remove, Shorten))
    if remove is None or shorten is None:
        return stages
    both = Order(remove, shorten, Merge())
    return [both if stage is remove else stage for stage in stages if stage is not shorten]
