"""`--arch hf:FOLDER_OR_CONFIG`: an architecture of the transformers library, as a local config.json describes it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from compress.checkpoint.load.most_values import beyond, bounded
from compress.errors import BadInput, extra
from compress.user import files, wording

_CONFIG = "config.json"
_LEFT_OUT = frozenset({"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "use_cache"})
"""Of the whole model, not of its network's sizes."""
_NAMING = frozenset(
    {"attn_implementation", "auto_map", "checkpoint_path", "fusion_config", "quantization_config", "transformers_weights"}
)
"""What may name code to be fetched, or a file to be opened; so may whatever begins with an underscore."""
_SILENT = 100  # beyond logging.CRITICAL
_PARTS = frozenset({"backbone", "architecture", "model_name", "name_or_path"})


def factory(where: str) -> Callable[..., nn.Module]:
    """What builds the model of a config: the class that it names, with fresh weights; nothing is downloaded or imported by name.

    Args:
        where: a folder with a config.json, or such a file.

    Raises:
        BadInput: transformers is not installed, no config is there, or it needs code that is not part of transformers.
    """
    if find_spec("transformers") is None:
        raise BadInput(f"--arch hf:{where} needs transformers, which is not installed: {extra('hf')}.")
    found = _read(Path(where))
    with _offline():
        transformers: Any = importlib.import_module("transformers")
    if name := beyond(found):
        given = f" ({wording.quoted(found[name])})" if name in found else ""
        raise BadInput(f"{where} gives a {name} that no network has{given}. Correct the config.")
    kind, names = found.get("model_type"), found.get("architectures")
    _require_here(found, where)
    if found.get("auto_map"):
        raise BadInput(
            f"--arch hf:{where} needs code of its own (auto_map in the config, for trust_remote_code), which is not run. Write a "
            "function that makes the model, and give it with --arch file.py:function."
        )
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        known = f"transformers {transformers.__version__}"
        raise BadInput(f"{known} has no model type {wording.quoted(kind)}, which {where} names. Install a version that has it.")
    made = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    if not isinstance(made, type) or not issubclass(made, transformers.PreTrainedModel):
        raise BadInput(
            f"--arch hf:{where} names no class of transformers under 'architectures' ({wording.quoted(names)}); needed is one "
            "such as ViTForImageClassification. Save the model with save_pretrained, which writes it."
        )
    own = {name: value for name, value in _harmless(found).items() if name not in _LEFT_OUT}

    def make(**arguments: Any) -> nn.Module:
        if name := next((name for table in _tables(arguments) for name in table if _naming(name, table[name])), None):
            raise BadInput(
                f"--arch-kwargs gives {name}, which may name code or a file; needed are sizes of a network. Leave it out."
            )
        # A cache of keys and values is no output that anybody measures.
        settings = {"use_cache": False} | own | arguments
        _require_here({"model_type": kind} | settings, where)
        with _offline():
            return cast(Any, made)(transformers.AutoConfig.for_model(kind, **settings))

    return make


def filled(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module | None:
    """The same architecture with the weights of a file of transformers, None where they do not belong together.

    Such files keep the names that weights had when their kind of model was first published, where classes have others by now,
    and hold tied weights once.
    """
    with _offline(), bounded(sum(tensor.numel() for tensor in weights.values())):
        logging: Any = importlib.import_module("transformers.utils.logging")
        shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        # What it reports has names of the file in it, as they are: no terminal should see them.
        logging.set_verbosity(_SILENT)
        try:
            # Without a name of a model nothing is looked up anywhere.
            how = {"config": module.config, "state_dict": dict(weights), "output_loading_info": True}
            made, told = cast(Any, type(module)).from_pretrained(None, **how)
        # Of any kind: it acts on whatever the config says. What does not belong together is told by its names.
        except Exception:
            return None
        finally:
            logging.set_verbosity(level)
            if shown:
                logging.enable_progress_bar()
    # What a class lets files leave out (a position that is computed, a layer that nothing uses) counts as there.
    return None if any(told.values()) else made


@contextmanager
def _offline() -> Generator[None]:
    """Nothing is asked of the hub, whatever the environment says and whoever has imported its library before."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # read by the import
    constants: Any = sys.modules.get("huggingface_hub.constants")
    was = constants and constants.HF_HUB_OFFLINE
    if constants:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        if constants:
            constants.HF_HUB_OFFLINE = was
        if before is not None:
            os.environ["HF_HUB_OFFLINE"] = before


def _tables(config: Any) -> Iterator[dict[str, Any]]:
    """A config and the configs of its parts, at any depth."""
    if isinstance(config, dict):
        yield (table := cast("dict[str, Any]", config))
        config = list(table.values())
    for part in cast("list[Any]", config) if isinstance(config, list) else ():
        yield from _tables(part)


def _require_here(config: dict[str, Any], where: str) -> None:
    """Refuse parts that a config takes from elsewhere by a name: a repository of the hub, or a folder.

    Raises:
        BadInput: one does.
    """
    for table in _tables(config):
        for key in sorted(_PARTS & table.keys()):
            name = table[key]
            if isinstance(name, str) and (re.search(r"[/:\\]", name) or (key == "backbone" and not _of_timm(table))):
                raise BadInput(
                    f"--arch hf:{where} takes its {key} from {wording.quoted(name)}, which would be fetched or opened. Needed "
                    "is one that describes all its parts; save the whole model with save_pretrained."
                )


def _of_timm(table: Mapping[str, Any]) -> bool:
    """Whether the backbone that a config names is made by timm; of others transformers asks the hub first."""
    of_old = table.get("use_timm_backbone") is True and not table.get("backbone_kwargs")
    return table.get("model_type") == "timm_backbone" or of_old


def _naming(name: str, value: Any) -> bool:
    """Whether an entry would fetch code or open a file in the place of a setting of a network."""
    plain = name == "attn_implementation" and value in ("eager", "sdpa")
    return not plain and (name in _NAMING or name.startswith("_"))


def _harmless(config: Any) -> Any:
    """A config without such entries, in the configs of its parts, too."""
    if isinstance(config, dict):
        table = cast("dict[str, Any]", config)
        return {name: _harmless(value) for name, value in table.items() if not _naming(name, value)}
    return [_harmless(one) for one in cast("list[Any]", config)] if isinstance(config, list) else config


def _read(path: Path) -> dict[str, Any]:
    path = path / _CONFIG if path.is_dir() else path
    try:
        found = files.json_in(path)
    except FileNotFoundError:
        raise BadInput(f"There is no {path}; --arch hf: needs a local folder with a {_CONFIG}, or such a file.") from None
    except (OSError, ValueError) as error:
        why = files.told(error)
        raise BadInput(f"{path} is no config of transformers ({why}). Save it again with save_pretrained.") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no config of transformers: it holds no table. Save it again with save_pretrained.")
    return found
