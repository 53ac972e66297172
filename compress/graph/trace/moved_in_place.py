"""`x.unsqueeze_(1)` becomes `x = x.unsqueeze(1)`: what is read afterwards is what it gives.

Such methods change nothing but the shape under which the tensor itself goes; its other views keep theirs.
"""

from __future__ import annotations

import operator

from torch.fx import Graph, Node

_MOVES = {f"{name}_": name for name in ("unsqueeze", "squeeze", "transpose", "t", "swapaxes", "swapdims")}
_SAME = frozenset({operator.iadd, operator.isub, operator.imul, operator.itruediv})


def moved(graph: Graph) -> None:
    """Rewrite every such call, in place."""
    calls = [node for node in graph.nodes if node.op == "call_method" and node.target in _MOVES]
    places = {node: i for i, node in enumerate(graph.nodes)} if calls else {}
    for node in calls:
        node.target = _MOVES[str(node.target)]
        for same in _itself(node.args[0]):
            same.replace_all_uses_with(node, lambda user, of=node: places[user] > places[of])


def _itself(x: object) -> list[Node]:
    """All nodes that give the same tensor object: methods that write into one give it back."""
    found: list[Node] = []
    waiting = [x]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Node) or node in found:
            continue
        found.append(node)
        waiting += [user for user in node.users if _gives_its_input(user) and user.args[0] is node]
        if _gives_its_input(node):
            waiting.append(node.args[0])
    return found


def _gives_its_input(node: Node) -> bool:
    name = str(node.target)
    writes = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
    return writes or node.target in _SAME
