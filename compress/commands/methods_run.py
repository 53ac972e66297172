"""`compress run --methods`: one model, one budget and one recipe, by several methods, beside each other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from compress.commands.compare import write
from compress.commands.outputs import write_text
from compress.errors import BadInput, CompressError, GateFailed
from compress.method_table import METHODS
from compress.pipeline import run
from compress.pipeline.given import NOTHING, Given
from compress.pipeline.lock import NAME as LOCK
from compress.pipeline.lock import locked
from compress.pipeline.sequence import stages_of
from compress.pipeline.workspace import beside
from compress.progress import Progress, silent, under
from compress.recipe import Recipe, merged
from compress.report import records
from compress.report.comparison import Comparison, compared
from compress.report.html import PAGE
from compress.report.html.page import page_of
from compress.user import files
from exporters.errors import ExportError


def run_methods(
    recipe: Recipe,
    methods: Sequence[str],
    out: Path,
    *,
    given: Given = NOTHING,
    resume: bool = False,
    force: bool = False,
    log: str | Sequence[str] = (),
    progress: Progress = silent,
) -> Comparison:
    """A run of each method into a folder of its name, and compare.md, compare.json, compare.svg and report.html beside
    them.

    A method that cannot do it is told with the reason, and the others go on. With `resume` finished runs are taken as they are.

    Raises:
        BadInput: fewer than two methods, one that is not known, or a folder that holds another comparison.
        CompressError: none of them came to a result: what the first one said.
    """
    recipe = _unrounded(recipe)
    chosen = list(dict.fromkeys(methods))
    for name in chosen:
        if name not in METHODS:
            raise BadInput(f"--methods names '{name}'; known are {', '.join(METHODS)}. See 'compress methods'.")
        stages_of(_by(recipe, name))
    if len(chosen) < 2:
        raise BadInput(f"--methods names {len(chosen)}; needed are two or more to compare. For one, take --method.")
    if (out / "compare.json").exists() and not (force or resume):
        raise BadInput(f"{out} holds another comparison. Give another --out, --force to replace it, or --resume to go on.")
    beside(out, recipe)
    with in_use(out):

        def one(name: str, progress: Progress) -> records.Report:
            again = resume and (out / name / "recipe.toml").exists()
            how = {"given": given, "resume": again, "force": force and not again, "progress": progress, "log": log}
            return run.run(_by(recipe, name), out / name, **how)

        return _all(chosen, out, one, progress)


@contextmanager
def in_use(out: Path) -> Generator[None]:
    """Nobody else runs methods in this folder meanwhile; every run in it has a lock of its own folder, too."""
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            files.unlinked(out, lambda name: name == LOCK or name in METHODS)
            stack.enter_context(locked(out))
        except OSError as error:
            raise BadInput(f"{out} cannot be written ({error.strerror}). Choose a folder that can with --out.") from error
        try:
            yield
        finally:
            stack.close()
            with suppress(OSError):  # it is not empty, as a rule
                out.rmdir()


def _all(chosen: Sequence[str], out: Path, one: Callable[[str, Progress], records.Report], progress: Progress) -> Comparison:
    reports, failed = dict[str, records.Report](), dict[str, CompressError | ExportError]()
    for number, name in enumerate(chosen):
        try:
            reports[name] = one(name, _named(progress, name, number / len(chosen)))
        except GateFailed as error:  # the report is there, and says which contract failed
            failed[name] = error
            if (out / name / "report.json").exists():
                reports[name] = records.read(out / name)[0]
        except (CompressError, ExportError) as error:
            failed[name] = error
    if not reports:
        raise failed[chosen[0]]
    found = compared(reports, {name: str(error) for name, error in failed.items() if name not in reports})
    write(found, out, force=True)
    there = [name for name in chosen if name in reports or (out / name / "recipe.toml").exists()]
    write_text(out / PAGE, page_of(*(out / name for name in there), names=there))
    return found


def _unrounded(recipe: Recipe) -> Recipe:
    """Channel counts as they come, unless it is said how: what each method would round would be a budget of its own."""
    counted = recipe.target is not None and not recipe.target.startswith("latency")
    return recipe.model_copy(update={"align": 1}) if counted and recipe.align is None else recipe


def _by(recipe: Recipe, method: str) -> Recipe:
    return merged(recipe.model_dump(), {"method": method})


def _named(progress: Progress, method: str, share: float) -> Callable[[str, float, str], None]:
    """Tasks under the name of the method, below a bar for all of them."""
    progress("methods", share, method)
    return lambda what, done, detail="": progress(under(method, what), done, detail)
