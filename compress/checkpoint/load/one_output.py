"""`--output`: one output of several is kept, and everything that only the others need goes."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from compress.errors import BadInput
from compress.graph.trace.recorded import changes_others

_SHOWN = 12


def keep_one(module: GraphModule, path: str) -> GraphModule:
    """Let a traced model give one of its outputs; changes it.

    Args:
        module: gives tensors in tuples, lists or dictionaries.
        path: keys and positions from the outermost inwards, with dots: `logits`, `0`, `1.boxes`.

    Raises:
        BadInput: there is no such output; names those that there are.
    """
    end = next(iter(module.graph.find_nodes(op="output")))
    outputs = _paths(end.args[0])
    if path not in outputs:
        if len(outputs) == 1:
            raise BadInput(f"--output is '{path}', and the model gives one tensor. Leave it out.")
        more = f" and {len(outputs) - _SHOWN} more" if len(outputs) > _SHOWN else ""
        raise BadInput(f"--output is '{path}'; the model gives {', '.join(list(outputs)[:_SHOWN])}{more}. Give one of them.")
    end.args = (outputs[path],)
    end.meta["shape"] = outputs[path].meta.get("shape")
    module.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or changes_others(module, n))
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    for name in {*module._parameters, *module._buffers} - {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}:
        delattr(module, name)
    return module


def _paths(value: Any, before: str = "") -> dict[str, Node]:
    """Every output by its path."""
    if isinstance(value, Node):
        return {before or "0": value}
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, tuple | list) else ()
    found: dict[str, Node] = {}
    for key, part in entries:
        found |= _paths(part, f"{before}.{key}" if before else str(key))
    return found
