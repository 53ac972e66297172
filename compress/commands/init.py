"""`compress init`: a look at the model and the folder, at most five questions, and a recipe.toml that `compress run` takes.

Nothing is written before model and data were opened and go together.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compress.commands import found_here
from compress.commands.found_here import Architecture
from compress.commands.outputs import write_text
from compress.commands.setting_schemas import FOLDER, texts
from compress.data.settings import PRESETS
from compress.edits import MODELS
from compress.errors import BadInput
from compress.measure import quality
from compress.pipeline.doubts import other_normalization
from compress.pipeline.prepare import prepare
from compress.progress import Progress, silent
from compress.recipe import Recipe, code_in, make
from compress.report.sentences import count
from compress.stage import Context
from compress.user import files
from compress.user.toml_values import toml

RECIPE, DATA = Path("recipe.toml"), Path("data.toml")
T = TypeVar("T")
Ask = Callable[[str, str, Sequence[str]], str]
"""(question, answer by default, known answers; none where anything may be said) -> answer."""
INFER = "infer"
LOSS = "1"
"""Points of quality that may be lost where nobody says otherwise."""
WRITTEN = ("model", "arch", "arch_kwargs", "weights_entry", "output", "input_shape", "data", "max_drop", "target")
"""Settings in the order in which they are written, before all others."""
ABOUT = {
    "arch": "Whose weights these are.",
    "data": "Where the images are, and how they become the model's input.",
    "max_drop": "Points of quality that may be lost; more ends with exit code 5.",
    "target": "How much stays, as a fraction of the multiply-accumulates. Without this line the smallest model that keeps\n"
    "# max_drop is looked for, which takes longer.",
}


@dataclass(frozen=True)
class Setup:
    """What `init` wrote.

    Attributes:
        files: recipe.toml, data.toml where there was none, and the schemas that both name.
        notes: what was inferred.
        command: what carries it out.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    command: str


def init(
    model: str | Path | None = None,
    *,
    yes: bool = True,
    ask: Ask | None = None,
    force: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> Setup:
    """Write recipe.toml and data.toml into the current folder, with what differs from the defaults.

    Args:
        model: file or folder; looked for here where it is not given.
        yes: ask nothing, and take what is most likely.
        ask: where there is somebody to answer.
        force: replace the files that are there.
        progress: told what is being done.
        settings: of the run; nothing that is given is asked for.

    Raises:
        BadInput: there is no model or no data, or they do not go together; nothing is written.
    """
    if RECIPE.exists() and not force:
        raise BadInput(f"{RECIPE} exists already. Add --force to replace it, or carry it out with 'compress run'.")
    answer: Ask = ask if ask is not None and not yes else _likely
    given = {name: value for name, value in settings.items() if value is not None}
    given["model"] = str(model) if model is not None else _one_of(found_here.models(Path()), "model", "MODEL", answer)
    kept = not given.get("data") and DATA.exists()
    if not given.get("data"):
        given["data"] = str(DATA) if DATA.exists() else _one_of(found_here.sources(Path()), "data", "--data", answer)
    of_data = {"source": given["data"]}
    (context, metric), given = _opened(given, answer, progress)
    if not given["data"].endswith(".toml"):
        _refuse_data(force)
        of_data |= _normalization(context, metric, answer)
        given["data"] = str(DATA)
    if given.get("max_drop") is None:
        given["max_drop"] = _taken(answer, "How many points of quality may be lost?", LOSS, _points)
    made = make(**{"target": "macs=0.5", **given} if given.get("tolerance") is None else given)
    said = (f"{DATA} was here and stays as it is; name the source with --data to have it written anew.",) if kept else ()
    return _written(made, of_data, context, said)


def _likely(_: str, default: str, known: Sequence[str]) -> str:
    return default


def _one_of(found: list[str], what: str, option: str, ask: Ask) -> str:
    """The one that there is, or the one that is chosen."""
    if not found:
        needed = "pictures or an .npz" if what == "data" else f"a file {', '.join(MODELS)}"
        nothing = f"Nothing in this folder looks like {what} ({needed})."
        return _taken(
            ask, f"{nothing} Where is it?", "", lambda answer: _there(answer, what, f"{nothing} Name it with {option}.")
        )
    if len(found) > 1 and ask is _likely:
        raise BadInput(f"{', '.join(found[:5])}: any of these may be the {what}. Name one with {option}.")
    return found[0] if len(found) == 1 else ask(f"Which is the {what}?", found[0], found)


def _opened(given: dict[str, Any], ask: Ask, progress: Progress) -> tuple[tuple[Context, quality.Metric], dict[str, Any]]:
    """Model and data together; where weights alone are found, their architecture is asked for."""
    try:
        return prepare(make(**given), progress), given
    except BadInput as error:
        if given.get("arch") or "needed is the architecture" not in str(error):
            raise
        refused, likely = error, found_here.architectures(Path(), given["model"])
        if ask is _likely and not _named_in(given["model"]):
            raise BadInput(f"{error} Here {_shown(likely)}" if likely else str(error)) from error

        def opened(arch: str) -> tuple[tuple[Context, quality.Metric], dict[str, Any]]:
            if not arch:
                raise refused
            return prepare(make(**given, arch=arch), progress), {**given, "arch": arch}

        # A class of this folder is named, but only who sits there says that its code may run.
        default = _named_in(given["model"]) or next((one.arch for one in likely if not one.needs), "")
        return _taken(ask, "The file holds weights only. Which architecture are they of?", default, opened)


def _shown(found: Sequence[Architecture]) -> str:
    """Which of them there are, as a sentence with the flag; a line is proposed only where it can work."""
    ready = [one.arch for one in found if not one.needs]
    if ready:
        return f"{', '.join(ready[:5])} may be it: add --arch {ready[0]}."
    named = ", ".join(f"{one.arch} ({', '.join(one.needs)})" for one in found[:5])
    return f"{named} may be it: add --arch FILE:CLASS, and --arch-kwargs NAME=VALUE for each argument in brackets."


def _taken(ask: Ask, question: str, default: str, take: Callable[[str], T]) -> T:
    """What the answer comes to; one that cannot be taken is told why, and asked for again.

    Raises:
        BadInput: nobody sits there, or the same answer comes again.
    """
    said, before = "", None
    while True:
        answer = ask(f"{said}{question}", default, ())
        try:
            return take(answer)
        except BadInput as error:
            if ask is _likely or answer == before:
                raise
            said, before = f"{error} ", answer


def _there(answer: str, what: str, nothing: str) -> str:
    """A path that exists, or another source of data.

    Raises:
        BadInput: no answer, or nothing is there.
    """
    if not answer:
        raise BadInput(nothing)
    if what == "model" and not Path(answer).exists():
        raise BadInput(files.no_model(Path(answer)))
    if what == "data" and answer != "digits" and ":" not in answer:
        files.source(answer)
    return answer


def _named_in(model: str) -> str:
    """`torchvision:resnet18` for cats-resnet18.pt; empty where the name of the file says nothing."""
    from torchvision.models import list_models

    name = Path(model).stem.lower()
    return max((f"torchvision:{one}" for one in list_models() if one in name), key=len, default="")


def _normalization(context: Context, metric: quality.Metric, ask: Ask) -> dict[str, str]:
    inferred = next((note for note in context.data.notes if note.startswith("Normalization inferred")), None)
    if inferred is None:
        return {}
    known = [INFER, *PRESETS]
    other = other_normalization(context.dense, context.data, metric)
    likely = INFER if other is None else other.name
    chosen = ask(f"{inferred.partition('. ')[0]}. How was it in training?", likely, known)
    return {} if chosen == INFER else {"normalize": chosen}


def _points(answer: str) -> float:
    try:
        found = float(answer)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise BadInput(f"'{answer}' is no number of points, 0 or more, such as 0.5.")
    return found


def _refuse_data(force: bool) -> None:
    if DATA.exists() and not force:
        raise BadInput(f"{DATA} exists already. Add --force to replace it, or give --data {DATA}.")


def _written(recipe: Recipe, of_data: dict[str, str], context: Context, said: tuple[str, ...]) -> Setup:
    trust = ["--trust-pickle"] if recipe.trust_pickle else []
    named = code_in(recipe.model_dump()) or code_in({"data": of_data["source"]}) or recipe.trust_recipe
    command = " ".join(["compress run", *trust, *(["--trust-recipe"] if named else [])])
    texts_of = {RECIPE: recipe_text(recipe, context, command)}
    # The folder's own data.toml stays as it is.
    if recipe.data == str(DATA) and of_data["source"] != str(DATA):
        texts_of[DATA] = data_text(of_data, context.data.notes)
    texts_of |= {Path(FOLDER) / name: text for name, text in texts().items()}
    _refuse_places(texts_of)
    Path(FOLDER).mkdir(exist_ok=True)
    for path, text in texts_of.items():
        write_text(path, text, "folder")
    return Setup(tuple(texts_of), (*said, *context.data.notes), " ".join([command, *files.elsewhere("out")]))


def _refuse_places(texts_of: Mapping[Path, str]) -> None:
    """Everything that can be refused is, before the first file is written: all of them, or none.

    Raises:
        BadInput: a name that no file of text can hold, or something else in the place of a file or of the folder.
    """
    for path, text in texts_of.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            name = text[text.rfind("\n", 0, error.start) + 1 :].partition("\n")[0]
            raise BadInput(
                f"{path} would hold a name that is not UTF-8 ({name!r}); needed is one that text can hold. Rename that."
            ) from error
    home = Path(FOLDER)
    # A link would lead out of this folder, and nobody has named it.
    if home.is_symlink() or (home.exists() and not home.is_dir()):
        raise BadInput(f"{home} is {'a link' if home.is_symlink() else 'a file'}; needed is a folder of its own. Remove it.")
    if odd := next((path for path in texts_of if path.is_symlink() or (path.exists() and not path.is_file())), None):
        raise BadInput(f"{odd} is no regular file; needed is a place for one. Remove it.")


def recipe_text(recipe: Recipe, context: Context, command: str = "compress run") -> str:
    """Only what differs from the defaults, each setting with what it is for."""
    size = context.dense.cost
    shapes = ", ".join("x".join(map(str, one.shape[1:])) for one in context.dense.inputs)
    lines = [
        f"#:schema ./{FOLDER}/recipe.schema.json",
        f"# '{command}' in this folder carries this out; flags win over it.",
        *(["# The flag says that you trust the code which is named here: no file can say so itself."] if "--" in command else []),
        "# Only what differs from the defaults stands here; 'compress run --help-all' tells every setting.",
        "",
        f"# {count(size.params)} parameters, {count(size.macs)} multiply-accumulates for an input of {shapes}.",
    ]
    values = recipe.model_dump(mode="json")
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Recipe.model_fields.items()}
    names = [*WRITTEN, *(name for name in values if name not in (*WRITTEN, "trust_pickle", "trust_recipe"))]
    for name in names:
        default = list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name]
        if values[name] is not None and values[name] != default:
            about = ABOUT.get(name) or (Recipe.model_fields[name].description if name not in WRITTEN else "")
            lines += [f"# {about}"] if about else []
            lines.append(f"{name} = {toml(values[name])}")
    return "\n".join(lines) + "\n"


def data_text(values: dict[str, str], notes: Sequence[str]) -> str:
    """What is known, and as comments what was inferred."""
    lines = [f"#:schema ./{FOLDER}/data.schema.json", "# Where the images are, and how they become the model's input."]
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    lines += ["", "# What was inferred; a setting of this file says otherwise:"]
    lines += [f"#   {' '.join(note.split())}" for note in notes]
    text = "\n".join(lines) + "\n"
    tomllib.loads(text)  # a name of a folder, or a note, that no comment may hold
    return text
