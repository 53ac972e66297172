"""The settings of a run: one typed, validated place. Flags, TOML and the Python call all end here.

A run writes its resolved recipe to `out/recipe.toml`; `compress run --recipe out/recipe.toml` repeats it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from compress.errors import BadInput
from compress.measure import known_names
from compress.measure.asked import parse_memory, parse_target
from compress.method_table import CHANNELS_TARGET, METHODS, WEIGHTS_TARGET
from compress.user import files, wording
from compress.user.settings_table import SettingsTable
from compress.user.toml_values import toml

DEFAULT_TARGET, DEFAULT_WEIGHTS = CHANNELS_TARGET, WEIGHTS_TARGET
DRAWN, MOST = "drawn", 2**31 - 1
RENAMED = {"turns": "iterations", "arms": "variants"}
"""Settings that were called otherwise: flags, TOML keys and keywords of the old name go on working."""
RENAMED_VALUES = {"gentle": "gradual"}
RENAMED_UNITS = {"rectifiers": "activations"}


class Recipe(SettingsTable):
    """Every setting of `compress run`. Field names are the flags' names with underscores."""

    # No setting means anything at infinity, and many would be found out in the middle of a run.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # model
    model: str = Field("", description="model file: pickled module, state_dict, .safetensors or model.compressed/")
    arch: str | None = Field(None, description="torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory, file.py:factory")
    arch_kwargs: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    trust_pickle: bool = Field(False, description="run the code inside the pickle; counts only where it is typed")
    trust_recipe: bool = Field(False, description="run the code that a recipe or data.toml names; counts only where it is typed")
    weights_entry: str | None = Field(
        None, description="entry of a checkpoint, or first part of its names, with the weights; averaged ones by default"
    )
    output: str | None = Field(None, description="the output that is kept of several, such as 0 or logits; by default all")
    input_shape: tuple[str, ...] = Field((), description="CxHxW, once per model input; inferred where it can be")
    # data
    data: str = Field("", description="folder, .npz, .tar, .parquet, torchvision:NAME@DIR, digits, module:factory or data.toml")
    metric: str = Field(
        "auto",
        description=f"quality: auto, {', '.join(known_names.METRICS)} or module:function",
    )
    allow_doubtful: bool = Field(
        False, description="go on where the model guesses on this data, or does far better with another normalization"
    )
    loss: str = Field("auto", description=f"fine-tuning loss: auto, {', '.join(known_names.LOSSES)} or module:function")
    # what to do
    method: str = Field("entropic", description="a name that 'compress methods' lists")
    target: str | None = Field(
        None,
        description="params=0.25, macs=0.5, latency=0.5, memory=0.5 (fractions of the dense model), latency=5ms, memory=20MB "
        "or size=6.5MB; activations=0.5 with a depth method, weights=0.1 with one that masks weights; "
        f"{DEFAULT_TARGET} where neither it nor a tolerance is given and the method removes channels",
    )
    plan: str | None = Field(None, description="plan.json of an earlier run that this one begins with")
    tolerance: float | None = Field(None, gt=0, lt=1, description="relative error allowed per layer, instead of a target")
    inputs: Literal["sequential", "original"] = Field("sequential", description="what a layer is refitted on")
    depth: float | None = Field(
        None,
        ge=0,
        description="points of held-out quality that linearized activations may cost before fine-tuning, where layers are "
        "faster as one; 0 for none; by default 1 where fine-tuning follows",
    )
    order: Literal["width-depth", "depth-width", "auto"] = Field(
        "width-depth",
        description="whether channels are removed before activations are linearized or after; auto tries both and measures",
    )
    iterations: int = Field(
        1,
        ge=1,
        le=100,
        description="remove, linearize and fine-tune so many times on the way to the target, epochs divided among them",
    )
    cheap: bool = Field(
        False, description="easier: several activations linearized and refitted at once, and a tenth of the epochs between"
    )
    linearize: Literal["affine", "identity", "gradual"] = Field(
        "affine",
        description="what replaces an activation: its closest affine function, the identity, or that function gradually, in "
        "fine-tuning",
    )
    entropy: Literal["pooled", "easier", "egp"] = Field(
        "pooled", description="state entropy over all calibration images, or the mean of batch entropies as those papers take it"
    )
    spatial: Literal["pairwise", "aura"] = Field(
        "pairwise", description="spatial entropy of feature maps: of pairs of neighbors, or of all four neighbors pooled (aura)"
    )
    reward: Literal["entropy", "accuracy", "mixed"] = Field(
        "entropy", description="what rl-entropy looks for: little spatial entropy, quality on held-out images, or their sum"
    )
    episodes: int = Field(200, ge=1, le=MOST, description="choices that rl-entropy tries")
    initial: str | None = Field(
        None, description=f"checkpoint of the weights that training began with, or '{DRAWN}': they are drawn, and trained here"
    )
    variants: tuple[Literal["original", "random"], ...] = Field(
        ("original", "random"), min_length=1, description="what lottery trains again: the original weights, others, or both"
    )
    structure: Literal["weights", "channels"] = Field(
        "weights", description="what lottery and sensitivity prune: single weights, held at zero, or channels, which go"
    )
    scope: Literal["layer", "global"] = Field("layer", description="whether weights are ranked in each layer, or all together")
    prune: float = Field(0.2, gt=0, lt=1, description="fraction that each level of lottery prunes")
    prune_of: Literal["remaining", "original"] = Field("remaining", description="what that is a fraction of")
    rewind: int = Field(0, ge=0, le=MOST, description="epochs of the first training behind which lottery takes its weights")
    align: int | None = Field(
        None,
        ge=1,
        le=64,
        description="round channel counts to this multiple; without it: to 8 where that is faster by more than it is smaller",
    )
    calibration: int = Field(1000, ge=1, le=MOST, description="training images for the statistics")
    reconstruct: int = Field(0, ge=0, le=MOST, description="label-free block reconstruction steps per block")
    from_scratch: bool = Field(False, description="train the found architecture from fresh weights")
    # fine-tuning
    epochs: float = Field(3, ge=0, le=1e6, description="fine-tuning epochs; 0 for none")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="SGD has momentum 0.9")
    lr: float | None = Field(None, gt=0, le=1e6, description="peak learning rate; without it by the size of each layer's weights")
    weight_decay: float = Field(1e-4, ge=0, le=1e6, description="not applied to biases and norms")
    batch_size: int = Field(128, ge=1, le=MOST, description="images per training step")
    warmup: float = Field(0.05, ge=0, lt=1, description="fraction of the steps that warm the learning rate up")
    distill: float = Field(0.7, ge=0, le=1, description="weight of the distillation loss; 1 where there are no labels")
    temperature: float = Field(2.0, gt=0, le=1e6, description="softens both sides of the distillation loss")
    entropy_guidance: float = Field(
        0.0, ge=-1, le=1, description="weight of the reward for the log volume of layers in training; 0 for none"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the forward passes in training, weights stay fp32; auto: half on CUDA, fp32 elsewhere; bf16 is "
        "quicker for wide layers on processors with AVX-512 BF16, slower for depthwise ones",
    )
    clip: float = Field(1.0, ge=0, le=1e6, description="gradient norm limit; 0 for none")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0 for none")
    patience: int = Field(0, ge=0, le=MOST, description="stop after that many epochs without gain on held-out data; 0: never")
    fsdp: bool = Field(False, description="processes of a run hold weights and optimizer in parts while they train")
    # measuring and exporting
    max_drop: float | None = Field(
        None,
        ge=0,
        description="points of quality that may be lost; more ends with exit code 5. Without a target the smallest model that "
        "keeps it is looked for",
    )
    minimize: Literal["latency", "macs", "params", "size", "memory"] = Field(
        "latency", description="what --max-drop without a target makes small"
    )
    on_noise: Literal["pass", "fail"] = Field("pass", description="where samples cannot tell whether --max-drop is kept")
    runtime: Literal["auto", "ort", "ort-cuda", "torch", "openvino", "openvino-int8"] = Field(
        "auto", description="where latency is measured"
    )
    batch: int = Field(1, ge=1, le=MOST, description="batch size of the latency measurement")
    threads: int = Field(0, ge=0, le=1024, description="threads of the latency measurement; 0: all cores")
    rounds: int = Field(40, ge=5, le=10_000, description="interleaved latency rounds")
    on: str | None = Field(
        None, description="ssh://user@host:port, the device whose ONNX Runtime latency is measured in; without it, here"
    )
    on_python: str = Field("python3", description="the Python of that device")
    export: tuple[str, ...] = Field(("onnx",), description="formats of the result; 'compress doctor' lists them")
    opset: int = Field(18, ge=17, le=25, description="ONNX operator set; 17 for TensorRT before 10")
    calibrator: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="how onnx-int8 takes the ranges of activations from the calibration images"
    )
    int8_error: float = Field(
        0.05, gt=0, lt=1, description="relative error of outputs that 8 bits may cost; onnx-int8 keeps layers in float for it"
    )
    qat: float = Field(1, ge=0, le=1e6, description="epochs of 8-bit training where onnx-int8 breaks --max-drop; 0 for none")
    # the run
    device: str = Field("auto", description=known_names.DEVICES)
    memory: str | None = Field(
        None,
        description="bytes that statistics and reconstruction may hold at once, such as 4GB; what does not fit goes to files; "
        "by default half of what is free",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is drawn: splits, batches, samples, fresh weights")

    @field_validator("target")
    @classmethod
    def _target_can_be_read(cls, value: str | None) -> str | None:
        if value is None:
            return None
        unit, equals, asked = value.partition("=")
        value = f"{RENAMED_UNITS.get(unit, unit)}{equals}{asked}"
        parse_target(value)
        return value

    @field_validator("memory")
    @classmethod
    def _memory_can_be_read(cls, value: str | None) -> str | None:
        if value is not None:
            parse_memory(value)
        return value

    @field_validator("linearize", mode="before")
    @classmethod
    def _values_of_the_old_name(cls, value: Any) -> Any:
        return RENAMED_VALUES.get(value, value) if isinstance(value, str) else value

    @field_validator("input_shape", mode="before")
    @classmethod
    def _shapes_as_text(cls, value: Any) -> Any:
        """(1, 28, 28) and "1x28x28" are one shape; ((1, 28, 28), (1, 28, 28)) are two."""
        if isinstance(value, str) or (isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value)):
            value = (value,)
        if not isinstance(value, list | tuple):
            return value
        return tuple("x".join(map(str, v)) if isinstance(v, list | tuple) else v for v in value)

    @field_validator("export", "variants", mode="before")
    @classmethod
    def _names_with_commas(cls, value: Any) -> Any:
        """A text with commas gives several names."""
        # Flags come as one text with commas, TOML and Python as lists.
        parts = (value,) if isinstance(value, str) else value
        return [name for part in parts for name in str(part).split(",") if name] if isinstance(parts, list | tuple) else value

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> Recipe:
        if self.target is not None and self.tolerance is not None:
            raise ValueError(
                f"--target {self.target} and --tolerance {self.tolerance:g} both say how much is removed. Give one of them."
            )
        return self

    @model_validator(mode="after")
    def _iterations_that_build_on_each_other(self) -> Recipe:
        if self.iterations > 1 and (self.epochs == 0 or self.from_scratch or self.linearize == "gradual"):
            rival = "--epochs 0" if self.epochs == 0 else "--from-scratch" if self.from_scratch else "--linearize gradual"
            raise ValueError(
                f"--iterations {self.iterations} trains between two removals, which {rival} does not go with. "
                "Leave one of them out."
            )
        return self

    def to_toml(self) -> str:
        """The recipe as TOML; defaults are written out, so that later defaults cannot change the run."""
        # TOML has no null: what is None is left out and becomes None again.
        return "".join(f"{key} = {toml(value)}\n" for key, value in self.model_dump(mode="json").items() if value is not None)


def make(**settings: Any) -> Recipe:
    """A recipe from keyword settings; with neither a target nor a tolerance it gets the default target.

    Raises:
        BadInput: an unknown setting or a value out of range; names the first one.
    """
    for old, new in RENAMED.items():
        if old in settings:
            settings[new] = settings.pop(old)
    if settings.get("target") is None and settings.get("tolerance") is None:
        named = settings.get("method") or "entropic"
        method = METHODS.get(named) if isinstance(named, str) else None  # one that is unknown is refused with its stages
        structure = settings.get("structure") or "weights"
        if settings.get("max_drop") is None or method is None or not method.sizes or settings.get("plan"):
            settings["target"] = CHANNELS_TARGET if method is None else method.default_target(structure)
    known_names.require(settings)
    try:
        return Recipe(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]).replace("_", "-")
        if first["type"] == "extra_forbidden":
            raise BadInput(_unknown(str(first["loc"][0]))) from error
        message = wording.needed(first)
        if not name:
            raise BadInput(message) from error
        raise BadInput(f"--{name} is {wording.quoted(first['input'])}; {message}.".replace("..", ".")) from error


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, Recipe.model_fields, n=1)
    remedy = f"Did you mean {close[0]}?" if close else "'compress run --help' lists them."
    return f"There is no setting '{name}'. {remedy}"


def from_toml(path: Path, **overrides: Any) -> Recipe:
    """A recipe from a file; `overrides` win.

    Somebody else may have written the file. It may name torchvision, timm and data; what would run code counts only with
    `trust_recipe` among the overrides, and trust itself is nothing that a file can give.

    Raises:
        BadInput: it cannot be read, a setting is wrong, or it names code.
    """
    settings = {name: value for name, value in settings_in(path).items() if name not in TRUST}
    used = {name: value for name, value in settings.items() if overrides.get(name) is None}
    if not overrides.get("trust_recipe") and (named := code_in(used)):
        raise BadInput(
            f"The recipe {path} names code ({named}), and using it would run that code. Give that setting yourself, or, if you "
            "trust whoever wrote the recipe, add --trust-recipe."
        )
    return merged(settings, overrides)


def settings_in(path: Path) -> dict[str, Any]:
    """What a recipe file says, as it stands there.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return files.toml_in(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The recipe {path} cannot be read ({files.told(error)}). Give a TOML file such as out/recipe.toml."
        ) from error


TRUST = ("trust_pickle", "trust_recipe")
_OWN_CODE = ("compress.commands.demo:digits_net", "compress.demo:digits_net")
"""Of this package, as it is called now and as recipes name it."""


def code_in(settings: Mapping[str, Any]) -> str:
    """The first setting that names code which would be imported and called, as `arch = os:system`; empty where there is none."""
    for name in ("arch", "data", "metric", "loss", "on", "on_python"):
        value = settings.get(name) or ""
        value = str(value) if not isinstance(value, int) else ""  # a number names nothing, and has an error of its own
        if name == "arch":
            known = value.startswith(("torchvision:", "timm:", "hf:"))
        elif name == "on_python":
            known = value == Recipe.model_fields[name].default
        else:
            known = is_data(value) if name == "data" else ":" not in value
        if value and value not in _OWN_CODE and not known:
            return f"{name} = {value}"
    return ""


def is_data(text: str) -> bool:
    """Whether a source of data is read, and not imported and called."""
    return text.startswith("torchvision:") or ":" not in text or os.path.exists(text) or files.is_address(text)


def merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    """A recipe of settings and others that win over them: a new target drops an old tolerance, and the other way round."""
    rivals = {"target": "tolerance", "tolerance": "target"}
    # Only what is given wins: an override of None is a flag that was not used.
    dropped = {rivals[name] for name in rivals if overrides.get(name) is not None}
    return make(**{**{name: value for name, value in settings.items() if name not in dropped}, **overrides})
