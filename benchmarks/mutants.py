"""How many planted faults the tests find: mutants of the core, drawn with a seed, one at a time.

    python benchmarks/mutants.py                                  draw, run, write results/mutants.json
    python benchmarks/mutants.py --equivalent ID "why no test can tell"

Every mutant goes into a scratch copy of the tree. The tests that execute its line run, the quickest first, as a trace of one run
of the default tier tells (a test file that changes is traced again); `--all` adds, for what survives, slow tests, the whole of
those files (fixtures and caches carry values from test to test) and the rest of the tier. A run that takes too long counts as
killed. A stopped call goes on where it was; one that has ended is followed by one for its survivors, unless it is --fresh.
What tests do in processes of their own is not traced.

A process is forked for each run, torch is imported once before: a mutant takes as long as its tests.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mutations import Mutant, draw

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "mutants.json"
SEED, NUMBER = 0, 200
CORE = (
    *(f"compress/{folder}" for folder in ("graph", "entropy", "selection", "refit", "statistics", "measure")),
    *(f"compress/report/{name}.py" for name in ("rules", "rulings", "intervals", "comparison")),
    "exporters/parity.py",
)
ELSEWHERE = ("apart", "arm64", "ci", "docker", "docs", "examples", "gpu_figures", "package", "remote")
"""Test files whose work is done in processes of their own."""
SLACK, TIMES = 30.0, 6.0
"""A run may take that many seconds, and that many times what its tests took on the unchanged tree."""
SLOW, ENOUGH = 2.0, 45.0
"""Seconds, traced, from which on a test is left to --all, and what all tests of a mutant may take without it."""
PRELOADED = (
    "numpy",
    "torch",
    "torchvision",
    "torch.fx",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "hypothesis",
    "sklearn",
    "PIL.Image",
)

Cover = dict[str, dict[str, Any]]
"""Test -> its seconds and, by file, the lines that it executed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=NUMBER)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "mutants")
    parser.add_argument("--fresh", action="store_true", help="forget what was killed before")
    parser.add_argument("--all", action="store_true", help="the whole default tier for what survives")
    parser.add_argument("--equivalent", nargs=2, metavar=("ID", "WHY"))
    options = parser.parse_args()
    if options.equivalent:
        return declare(*options.equivalent)
    drawn = draw({name: (ROOT / name).read_bytes() for name in core()}, options.number, options.seed)
    progress = options.scratch / "progress.json"
    before = {} if options.fresh else {row["id"]: row for row in known() if row["outcome"] != "survived"}
    before |= {row["id"]: row for row in json.loads(progress.read_text())} if progress.exists() else {}
    tree = options.scratch / "tree"
    prepare(tree)
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    cover = traced(options.scratch)
    rows = []
    for number, one in enumerate(drawn):
        row = before.get(one.id)
        if row is None:
            row = described(one) | judged(one, tree, cover, options.all)
            print(f"{number + 1}/{len(drawn)} {row['outcome']}  {one.file}:{one.line}  {one.after}", flush=True)
        rows.append(row | {"line": one.line})
        progress.write_text(json.dumps(rows))
    write({"seed": options.seed, **summary(rows), "mutants": rows})
    progress.unlink()
    print(json.dumps(summary(rows)))


def core() -> list[str]:
    found = [path for name in CORE for path in ((ROOT / name).rglob("*.py") if (ROOT / name).is_dir() else [ROOT / name])]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.exists())


def described(one: Mutant) -> dict[str, Any]:
    keys = ("id", "file", "function", "line", "operator", "before", "after")
    return {key: getattr(one, key) for key in keys}


# ---- results ---------------------------------------------------------------------------------------------------------------


def known() -> list[dict[str, Any]]:
    return json.loads(RESULT.read_text())["mutants"] if RESULT.exists() else []


def write(found: dict[str, Any]) -> None:
    """In a process of its own, because what describes the machine is ours as well."""
    code = (
        "import json, sys; sys.path.insert(0, 'benchmarks'); import results_io; results_io.write('mutants', json.load(sys.stdin))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], input=json.dumps(found), text=True, cwd=ROOT, env=environment, check=True)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The score is the share of killed among those that are not equivalent."""
    counts = Counter(row["outcome"] for row in rows)
    equivalent = counts["equivalent"]
    killed = counts["killed"] + counts["timeout"]
    return {
        "killed": killed,
        "survived": counts["survived"],
        "equivalent": equivalent,
        "score": killed / max(1, len(rows) - equivalent),
    }


def declare(which: str, why: str) -> None:
    rows = known()
    (row,) = (row for row in rows if row["id"].startswith(which))
    row |= {"outcome": "equivalent", "reason": why}
    write({"seed": SEED, **summary(rows), "mutants": rows})


# ---- the scratch tree ------------------------------------------------------------------------------------------------------


def prepare(tree: Path) -> None:
    """A copy of what git would commit, old enough that a mutant is never taken for the file whose bytecode is there."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    wanted = {name for name in names if (ROOT / name).is_file()}
    for path in [p for p in tree.rglob("*") if p.is_file() and "__pycache__" not in p.parts]:
        if str(path.relative_to(tree)) not in wanted:
            path.unlink()
    for name in wanted:
        path, data = tree / name, (ROOT / name).read_bytes()
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            for stale in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
                stale.unlink()
            os.utime(path, (1e9, 1e9))


@contextlib.contextmanager
def planted(one: Mutant, tree: Path) -> Iterator[None]:
    path = tree / one.file
    whole = path.read_bytes()
    path.write_bytes(one.planted(whole))
    try:
        yield
    finally:
        path.write_bytes(whole)
        os.utime(path, (1e9, 1e9))


# ---- which test executes what ----------------------------------------------------------------------------------------------


class Tracing:
    """Notes for each test how long it takes and which lines of ours it executes, fixtures included."""

    def __init__(self, tree: Path, out: Path):
        self.prefix, self.out = f"{tree}/", out
        self.cover: Cover = {}
        self.here: dict[str, set[int]] = {}
        self.names: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.here, start = defaultdict(set), time.perf_counter()
        threading.settrace(self.called)
        sys.settrace(self.called)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            lines = {name: sorted(found) for name, found in self.here.items()}
            self.cover[item.nodeid] = {"seconds": round(time.perf_counter() - start, 3), "lines": lines, "failed": False}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.cover.setdefault("failed", {"tests": []})["tests"].append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        failed = self.cover.pop("failed", {"tests": []})["tests"]
        for name in failed:
            self.cover[name]["failed"] = True
        self.out.write_text(json.dumps(self.cover))

    def called(self, frame: Any, event: str, arg: object) -> Any:
        path = frame.f_code.co_filename
        name = self.names.get(path)
        if name is None:
            wanted = path.startswith(self.prefix) and "/tests/" not in path
            name = self.names[path] = path.removeprefix(self.prefix) if wanted else ""
        if not name:
            return None
        lines = self.here[name]
        lines.add(frame.f_lineno)

        def line(frame: Any, event: str, arg: object) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line


def traced(scratch: Path) -> Cover:
    """The trace of the default tier; of the last one, files that have not changed are taken over."""
    tree, stored, out = scratch / "tree", scratch / "cover.json", scratch / "traced.json"
    skipped = {f"tests/test_{name}.py" for name in ELSEWHERE}
    files = {str(p.relative_to(tree)): p.read_bytes() for p in sorted(tree.glob("tests/test_*.py"))}
    now = {name: hashlib.sha256(text).hexdigest() for name, text in files.items() if name not in skipped}
    before = json.loads(stored.read_text()) if stored.exists() else {"files": {}, "tests": {}}
    changed = [name for name in now if before["files"].get(name) != now[name]]
    cover = {name: test for name, test in before["tests"].items() if file_of(name) in now and file_of(name) not in changed}
    if changed:
        print(f"tracing {len(changed)} files", flush=True)
        forked(tree, changed, [Tracing(tree, out)], 3600, scratch / "trace.log", writing=True)
        cover |= json.loads(out.read_text())
        stored.write_text(json.dumps({"files": now, "tests": cover}))
    return cover


# ---- running ---------------------------------------------------------------------------------------------------------------


class Chosen:
    """Runs these tests, and those of their files that were never traced; remembers the first that failed."""

    def __init__(self, tests: Sequence[str], cover: Cover, out: Path):
        self.left_out, self.out = set(cover) - set(tests), out

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.left_out]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.out.write_text(report.nodeid)


def judged(one: Mutant, tree: Path, cover: Cover, everything: bool) -> dict[str, Any]:
    """Killed by which test, or survived."""
    good = {name: test for name, test in cover.items() if not test["failed"]}
    span = range(one.lines[0], one.lines[1] + 1)
    direct = [n for n, t in good.items() if not set(t["lines"].get(one.file, ())).isdisjoint(span)]
    if not direct or not one.function:  # executed when it is imported: whoever uses the module may see it
        direct = [n for n, t in good.items() if one.file in t["lines"]]
    files = {file_of(n) for n in direct}
    rounds = [quick(direct, good)]
    if everything:
        rounds += [direct, [n for n in good if file_of(n) in files], list(good)]
    done: set[str] = set()
    with planted(one, tree):
        for tests in rounds:
            if set(tests) <= done:
                continue
            outcome, by = run(tests, cover, tree)
            if outcome != "survived":
                return {"outcome": outcome, "by": by}
            done |= set(tests)
    return {"outcome": "survived", "tests": len(direct)}


def quick(tests: Sequence[str], cover: Cover) -> list[str]:
    taken, seconds = list[str](), 0.0
    for name in sorted(tests, key=lambda name: cover[name]["seconds"]):
        seconds += cover[name]["seconds"]
        if cover[name]["seconds"] > SLOW or seconds > ENOUGH:
            break
        taken.append(name)
    return taken


def file_of(test: str) -> str:
    return test.partition("::")[0]


def run(tests: Sequence[str], cover: Cover, tree: Path) -> tuple[str, str]:
    cost: Counter[str] = Counter()
    for test in tests:
        cost[file_of(test)] += cover[test]["seconds"]
    files = sorted(cost, key=lambda name: cost[name])
    out = tree.parent / "failed"
    out.unlink(missing_ok=True)
    limit = SLACK + TIMES * sum(cost.values())
    code = forked(tree, files, [Chosen(tests, cover, out)], limit, tree.parent / "run.log")
    if code is None:
        return "timeout", f"more than {limit:.0f} s"
    if code == 0:
        return "survived", ""
    return "killed", out.read_text() if out.exists() else "the import fails"


def forked(tree: Path, arguments: list[str], plugins: list[Any], limit: float, log: Path, writing: bool = False) -> int | None:
    """Exit code of pytest in a process of its own; None where it ran out of time."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(tree)
            os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "" if writing else "1"}
            sys.dont_write_bytecode = not writing
            here = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(here, 1)
            os.dup2(here, 2)
            sys.path[:] = [str(tree), *(p for p in sys.path if p not in (str(ROOT), str(Path(__file__).parent)))]
            quick = [] if writing else ["-x"]
            quiet = ["-q", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            code = int(pytest.main([*arguments, *quick, *quiet], plugins))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    ends = time.monotonic() + limit
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


if __name__ == "__main__":
    main()
