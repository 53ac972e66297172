"""The shape of the code, checked: who may import whom, and how long a file or a function may get.

The order stands in ARCHITECTURE.md. `TIERS` is that order: an import goes to a lower tier, or to another unit of the same tier
where that tier is a shelf of independent files, never in a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE = 350
LONGEST_FUNCTION = 60

MODULES_IN_THE_ROOT = 12

TIERS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "curves", "progress"}),
    frozenset({"user", "ranks"}),
    frozenset({"edits", "method_table"}),
    frozenset({"graph", "entropy", "measure"}),
    frozenset({"recipe"}),
    frozenset({"graph.trace"}),
    frozenset({"graph.channels"}),
    frozenset({"graph.surgery", "graph.merge"}),
    frozenset({"artifact", "data"}),
    frozenset({"stage", "checkpoint", "keywords"}),
    frozenset({"checkpoint.load", "training", "statistics", "detection"}),
    frozenset({"refit"}),
    frozenset({"selection"}),
    frozenset({"search"}),
    frozenset({"stages"}),
    frozenset({"report"}),
    frozenset({"packaging", "remote", "loggers"}),
    frozenset({"pipeline"}),
    frozenset({"tuning"}),
    frozenset({"commands"}),
    frozenset({"integrations"}),
    frozenset({"api"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
TIER = {unit: number for number, units in enumerate(TIERS) for unit in units}
STRANGERS = frozenset({"graph", "entropy", "measure"})
"""Folders that know nothing of each other."""
SAME_NAME: dict[str, str] = {
    "__init__": "a package",
    "errors": "each of the two distributions' packages has a tree of its own: exporters never import compress",
    "linearize": "the stage decides which activations, graph/ replaces them",
    "analyze": "the command tells all, the stage of a run counts states only",
    "sensitivity": "the command diagnoses, the stage prunes by it",
    "finetune": "the command takes any module or file, the stage is a step of a run",
    "remove": "the stage decides which channels go, graph/surgery takes them out",
    "save": "the command takes any module, checkpoint/ writes a traced one",
    "merge": "the stage decides what becomes one layer, graph/merge composes it",
    "bench": "the command, and the script of the same name that goes to a device",
    "verify": "the command, and the script of the same name that goes to a device",
    "executorch": "what writes the format, and runtimes/ what opens it",
    "litert": "what writes the format, and runtimes/ what opens it",
    "openvino": "what writes the format, and runtimes/ what opens it",
}
"""File names that occur more than once, and why the folder makes the difference plain."""

Edge = tuple[str, str]
"""(importing module, imported module), dotted names."""


def test_imports_follow_the_order_of_the_tiers():
    assert violations(ROOT) == []


def test_no_file_is_longer_than_the_limit():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources(ROOT)
        if (lines := len(path.read_text().splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_no_function_is_longer_than_the_limit():
    assert [name for path in sources(ROOT) for name in long_functions(path)] == []


def test_the_root_holds_few_modules():
    assert len(list((ROOT / "compress").glob("*.py"))) <= MODULES_IN_THE_ROOT


def test_a_file_name_that_occurs_twice_has_its_reason():
    names = [path.stem for path in sources(ROOT)]
    assert {name for name in names if names.count(name) > 1} == set(SAME_NAME)


@pytest.mark.parametrize(
    ("file", "line", "reason"),
    [
        ("compress/graph/planted.py", "from compress.entropy import state", "compress.graph.planted imports compress.entropy"),
        ("compress/entropy/planted.py", "import compress.measure.cost", "compress.entropy.planted imports compress.measure.cost"),
        ("compress/edits.py", "from compress.artifact import Artifact", "compress.edits imports compress.artifact"),
        ("compress/stages/remove.py", "from compress.stages.analyze import x", "stages never import each other"),
        (
            "compress/stages/remove.py",
            "from compress.pipeline.run import run",
            "compress.stages.remove imports compress.pipeline.run",
        ),
        (
            "compress/measure/cost.py",
            "def f():\n    from compress.data import open_data",
            "compress.measure.cost imports compress.data",
        ),
        ("compress/data.py", "from compress import run", "compress.data imports compress.api"),
        ("compress/graph/b.py", "from . import a", "circle"),
        ("compress/nowhere.py", "x = 1", "compress.nowhere is in no tier"),
        ("exporters/onnx.py", "from compress.errors import BadInput", "exporters never import compress"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, reason: str):
    planted_tree(tmp_path)
    assert violations(tmp_path) == []
    (tmp_path / file).write_text(line + "\n")
    assert any(reason in found for found in violations(tmp_path)), violations(tmp_path)


def test_a_planted_long_function_is_found(tmp_path: Path):
    path = tmp_path / "long.py"
    path.write_text("def f():\n" + "    x = 1\n" * LONGEST_FUNCTION + "\n\ndef g():\n    return 1\n")
    assert long_functions(path) == [f"long.py:1 f has {LONGEST_FUNCTION + 1} lines"]


def violations(root: Path) -> list[str]:
    """Every import that the order does not allow, one sentence each."""
    names = {module_name(root, path) for path in sources(root)}
    edges = sorted({edge for path in sources(root) for edge in imports(root, path, names)})
    unplaced = sorted(name for name in names if name.startswith("compress") and unit(name) not in TIER)
    return (
        [f"{name} is in no tier" for name in unplaced]
        + [reason for edge in edges if (reason := objection(edge))]
        + circles(edges)
    )


def objection(edge: Edge) -> str | None:
    source, target = edge
    if source.startswith("exporters"):
        return f"{source} imports {target}: exporters never import compress" if target.startswith("compress") else None
    if target.startswith("exporters") or unit(source) not in TIER or unit(target) not in TIER:
        return None
    one, other = unit(source), unit(target)
    if one == other == "stages" and source != target and target != "compress.stages":
        return f"{source} imports {target}: stages never import each other"
    apart = {one.partition(".")[0], other.partition(".")[0]}
    if TIER[other] > TIER[one] or (len(apart) == 2 and apart <= STRANGERS):
        return f"{source} imports {target}: {one} may import only what stands below it"
    return None


def circles(edges: list[Edge]) -> list[str]:
    after: dict[str, set[str]] = {}
    for source, target in edges:
        if source != target:
            after.setdefault(source, set()).add(target)
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        return ["circle: " + " -> ".join(error.args[1])]
    return []


def imports(root: Path, path: Path, names: set[str]) -> Iterator[Edge]:
    """Edges of one file, imports inside functions included; what only a type checker reads counts too."""
    source = module_name(root, path)
    package = source if path.name == "__init__.py" else source.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names_of_ours = [alias.name for alias in node.names if alias.name.split(".")[0] in ("compress", "exporters")]
            yield from ((source, "compress.api" if name == "compress" else name) for name in names_of_ours)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            if base.split(".")[0] in ("compress", "exporters"):
                yield from ((source, target) for alias in node.names if (target := resolve(base, alias.name, names)))


def resolve(base: str, name: str, names: set[str]) -> str | None:
    """What `from base import name` reads: a module, or the module that `base` is."""
    if f"{base}.{name}" in names:
        return f"{base}.{name}"
    if base == "compress":  # public names come lazily from compress.api; the version belongs to nobody
        return None if name == "__version__" else "compress.api"
    return base


def unit(module: str) -> str:
    """`compress.graph.trace.shapes` -> `graph.trace`, `compress.graph.linearize` -> `graph`; the package itself -> `__init__`."""
    parts = module.split(".")[1:]
    folder = ".".join(parts[:2])
    return (folder if folder in TIER else parts[0]) if parts else "__init__"


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(root: Path) -> list[Path]:
    return sorted(path for package in ("compress", "exporters") for path in (root / package).rglob("*.py"))


def long_functions(path: Path) -> list[str]:
    """Functions over the limit, docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = node.body[0] if ast.get_docstring(node) is not None else None
            lines = (node.end_lineno or 0) - node.lineno + 1 - ((doc.end_lineno or 0) - doc.lineno + 1 if doc else 0)
            if lines > LONGEST_FUNCTION:
                found.append(f"{path.name}:{node.lineno} {node.name} has {lines} lines")
    return found


def planted_tree(root: Path) -> None:
    """A small tree that keeps to the order."""
    files = {
        "compress/__init__.py": "__version__ = '0'",
        "compress/errors.py": "",
        "compress/edits.py": "from compress.errors import BadInput",
        "compress/graph/__init__.py": "",
        "compress/graph/a.py": "from compress.graph import b",
        "compress/graph/b.py": "",
        "compress/graph/trace/__init__.py": "",
        "compress/graph/trace/trace.py": "from compress.graph import a",
        "compress/graph/merge/__init__.py": "",
        "compress/graph/merge/merge.py": "from compress.graph.trace import trace",
        "compress/entropy/__init__.py": "",
        "compress/entropy/state.py": "",
        "compress/measure/__init__.py": "",
        "compress/measure/cost.py": "import compress.errors",
        "compress/artifact.py": "from compress.edits import Plan\nfrom compress.graph import a",
        "compress/data.py": "from compress import __version__",
        "compress/stages/__init__.py": "",
        "compress/stages/analyze.py": "",
        "compress/stages/remove.py": "from compress.artifact import Artifact",
        "compress/pipeline/run.py": "from compress.stages import remove\nimport exporters",
        "compress/api.py": "from compress.pipeline.run import run",
        "exporters/__init__.py": "from exporters import onnx",
        "exporters/onnx.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
