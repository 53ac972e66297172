"""What the Tab key offers, and `compress completion`: methods, formats, architectures and files, without torch.

A shell asks by running `compress` with a variable of its environment set (click's own way); this has to answer at once, so that
names of architectures are read out of the sources of torchvision and timm, which nothing imports.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from compress.cli.guard import registered
from compress.cli.terminal import echo, say
from compress.cli.torchless import quick
from compress.errors import BadInput
from compress.method_table import METHODS

SHELLS = ("bash", "zsh", "fish")
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/compress",
    "zsh": "~/.zfunc/_compress",
    "fish": "~/.config/fish/completions/compress.fish",
}
"""Where each shell looks by itself, zsh once ~/.zfunc is in its fpath."""
_ASKED = "_COMPRESS_COMPLETE"
_REGISTERED = re.compile(r"^@register_model(?:\(\))?[ \t]*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
Offer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _of(names: Callable[[str], Iterable[str]], listed: bool = False) -> Offer:
    """Those that begin as what is typed does; with `listed` the last of several with commas."""

    def offer(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        head, comma, last = typed.rpartition(",") if listed else ("", "", typed)
        return [CompletionItem(f"{head}{comma}{name}") for name in names(last) if name.startswith(last)]

    return offer


def _formats(_: str) -> Iterable[str]:
    import exporters

    return exporters.EXPORTERS


def architectures(typed: str) -> Iterable[str]:
    """`torchvision:resnet18`: every name of the sources that what is typed may mean."""
    source = typed.partition(":")[0]
    found = ["hf:"]
    for package in ("timm", "torchvision"):
        spec = importlib.util.find_spec(package) if package.startswith(source) else None
        folders = [Path(place) / "models" for place in (spec.submodule_search_locations or () if spec else ())]
        names = {name for folder in folders for file in folder.glob("*.py") for name in _REGISTERED.findall(_source(file))}
        found += sorted(f"{package}:{name}" for name in names)
    return found


def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def files(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Left to the shell, which knows them best."""
    return [CompletionItem(typed, type="file")]


def _sources(ctx: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    return [*files(ctx, parameter, typed), *(CompletionItem(one) for one in ("digits", "torchvision:") if one.startswith(typed))]


OFFERS: dict[str, Offer] = {
    "method": _of(lambda _: METHODS),
    "methods": _of(lambda _: METHODS, listed=True),
    "export": _of(_formats, listed=True),
    "format": _of(_formats),
    "arch": _of(architectures),
    "data": _sources,
    **dict.fromkeys(("model", "models", "plan", "package", "run", "runs", "report", "old", "new", "recipe", "initial"), files),
}
"""By the name of a parameter, of whichever command."""


def complete_from(group: click.Group) -> None:
    """Give the parameters of every command their offers."""
    for command in group.commands.values():
        for parameter in command.params:
            if (offer := OFFERS.get(parameter.name or "")) is not None:
                parameter._custom_shell_complete = offer  # what `shell_complete=` of click sets


class Bash(BashComplete):
    """As click's, but for the colons in names: bash takes them, and equal signs, for the ends of words."""

    name = "bash"
    _held = 0

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words as the command line would get them, and the one that is being typed."""
        words, typed = super().get_completion_args()
        joined: list[str] = []
        for word in [*words, typed]:
            if joined and (word in (":", "=") or joined[-1].endswith((":", "="))):
                joined[-1] += word
            else:
                joined.append(word)
        # Of --name=value click completes the value alone.
        value = joined[-1].partition("=")[2] if joined[-1].startswith("--") else joined[-1]
        self._held = len(value) - len(re.split("[:=]", value)[-1])
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Only what stands behind the last of these, since bash replaces no more than that."""
        return f"{item.type},{item.value[self._held :] if item.type == 'plain' else item.value}"

    @staticmethod
    def _check_version() -> None:
        """No bash is asked for its version: the one that completes is recent enough, or ignores the script."""


add_completion_class(Bash)


def script(shell: str) -> str:
    """What the shell has to read once."""
    made = get_completion_class(shell)
    assert made is not None
    return made(click.Group("compress"), {}, "compress", _ASKED).source()


def completion(shell: str, install: bool) -> None:
    """Print what lets the Tab key complete commands, options, methods, formats, architectures and files.

    In bash: eval "$(compress completion bash)". --install writes it to where the shell looks by itself.
    """
    if not install:
        echo(script(shell))
        return
    place = Path(PLACES[shell]).expanduser()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(script(shell))
    except OSError as error:
        raise BadInput(f"{place} cannot be written ({error.strerror}); print the script and put it elsewhere.") from error
    more = " Your ~/.zshrc needs: fpath+=~/.zfunc; autoload -Uz compinit; compinit." if shell == "zsh" else ""
    say(f"{place} is written; a new {shell} completes.{more}")


registered(
    quick,
    click.argument("shell", type=click.Choice(SHELLS)),
    click.option("--install", is_flag=True, help="write it to where the shell looks by itself"),
    example="compress completion bash",
)(completion)
