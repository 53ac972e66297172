"""Small faults that can be planted in Python source, found in its syntax tree and spliced into its text.

    compare   < to <=, == to !=, is to is not, in to not in      arithmetic  + to -, * to /, // to /, & to |
    constant  one more, one less, the other sign, the other bool  default     the same, where an argument has it by default
    axis      the same, where it is a dim or an axis              slice       a bound left out, or moved by one
    logic     and to or, not dropped                              condition   an if that always or never holds
    return    None instead of a value, an early return left out   statement   a call, a raise or an update left out

Left alone is what no test ought to pin: docstrings, annotations, decorators, the words of errors and f-strings, asserts,
`strict=` of zip, `__repr__`, progress.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
_QUIET_CALLS = frozenset({"progress", "print", "echo", "warn", "cast", "debug", "info"})
_QUIET_FUNCTIONS = frozenset({"__repr__", "extra_repr", "__str__"})
_AXIS_WORDS = frozenset({"dim", "axis", "dims", "start_dim", "end_dim", "dim0", "dim1"})
_BY_AXIS = """
    sum mean amax amin argmax argmin max min any all cat stack concat concatenate narrow index_select index_add_ index_copy_
    unsqueeze squeeze flatten transpose movedim softmax log_softmax chunk split unbind size cumsum prod norm sort topk gather
"""
_AXIS_METHODS = frozenset(_BY_AXIS.split())
_LARGE = 16
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Mutant:
    """One fault: `text` in place of the bytes `start` to `end` of a file.

    Attributes:
        lines: first and last line of the statement that has it (of an if or a loop: of its head).
        before, after: that part of the text, with what stands around it in the line.
    """

    file: str
    function: str
    line: int
    lines: tuple[int, int]
    operator: str
    before: str
    after: str
    start: int
    end: int
    text: str

    @property
    def id(self) -> str:
        """Stays as it is where other lines of the file move or change."""
        return _digest(self.file, self.function, self.operator, self.before, self.after)

    def planted(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.end :]


def draw(sources: dict[str, bytes], number: int, seed: int) -> list[Mutant]:
    """So many of all mutants, at most one for a line. A change elsewhere in the code leaves the draw of the other lines alone."""
    ranked = sorted((_digest(str(seed), one.id), one) for name, text in sources.items() for one in mutants(name, text))
    first: dict[tuple[str, int], Mutant] = {}
    for _, one in ranked:
        first.setdefault((one.file, one.line), one)
    return list(first.values())[:number]


def mutants(file: str, source: bytes) -> list[Mutant]:
    """Every mutant of a file that still compiles, each once."""
    found: dict[str, Mutant] = {}
    for one in _Finder(file, source).found():
        try:
            compile(one.planted(source), file, "exec")
        except SyntaxError:
            continue
        found.setdefault(one.id, one)
    return list(found.values())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class _Finder:
    def __init__(self, file: str, source: bytes):
        self.file, self.source = file, source
        self.rows = source.split(b"\n")
        self.starts = [0]
        for row in self.rows:
            self.starts.append(self.starts[-1] + len(row) + 1)
        self.where: list[str] = []
        self.span = (1, 1)

    def found(self) -> Iterator[Mutant]:
        yield from self.block(ast.parse(self.source).body)

    # ---- statements ------------------------------------------------------------------------------------------------------

    def block(self, body: list[ast.stmt]) -> Iterator[Mutant]:
        for one in body:
            yield from self.statement(one)

    def statement(self, s: ast.stmt) -> Iterator[Mutant]:
        inner = [b for name in ("body", "orelse", "finalbody") for b in getattr(s, name, [])]
        head = min((b.lineno for b in inner), default=0)
        self.span = (s.lineno, max(s.lineno, head - 1) if head else s.end_lineno or s.lineno)
        if isinstance(s, (*_FUNCTIONS, ast.ClassDef)):
            yield from self.definition(s)
            return
        if isinstance(s, ast.Import | ast.ImportFrom | ast.Assert) or self.silent(s):
            return
        yield from self.left_out(s)
        if isinstance(s, ast.Raise):
            return
        if isinstance(s, ast.If | ast.While):
            yield from self.condition(s.test, (True, False) if isinstance(s, ast.If) else (False,))
        if isinstance(s, ast.Return) and s.value is not None and not _is_none(s.value):
            yield self.mutant("return", s.value, "None")
        if isinstance(s, ast.AugAssign) and type(s.op) in _ARITHMETIC:
            old, new = _ARITHMETIC[type(s.op)]
            yield from self.between(s.target, s.value, "arithmetic", old + "=", new + "=")
        for name, value in ast.iter_fields(s):
            if name == "annotation" or (isinstance(s, ast.AnnAssign) and name == "target"):
                continue
            for node in value if isinstance(value, list) else [value]:
                if isinstance(node, ast.expr):
                    yield from self.expression(node)
                elif isinstance(node, ast.withitem):
                    yield from self.expression(node.context_expr)
        for name in ("body", "orelse", "finalbody"):
            yield from self.block(getattr(s, name, []))
        for handler in getattr(s, "handlers", []):
            yield from self.block(handler.body)

    def definition(self, s: ast.stmt) -> Iterator[Mutant]:
        name = s.name  # type: ignore[attr-defined]
        if name in _QUIET_FUNCTIONS:
            return
        self.where.append(name)
        if isinstance(s, _FUNCTIONS):
            for value in (*s.args.defaults, *s.args.kw_defaults):
                if value is not None:
                    yield from self.expression(value, "default")
        yield from self.block(s.body)  # type: ignore[attr-defined]
        self.where.pop()

    def left_out(self, s: ast.stmt) -> Iterator[Mutant]:
        call = isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)
        into = isinstance(s, ast.Assign) and not any(isinstance(t, ast.Name | ast.Tuple) for t in s.targets)
        if call or into or isinstance(s, ast.AugAssign | ast.Raise):
            yield self.mutant("statement", s, "pass")
        # The last statement of a function returns a value, which is another mutant; those before it return early.
        if isinstance(s, ast.Continue | ast.Break) or (isinstance(s, ast.Return) and s.col_offset > 4):
            yield self.mutant("return", s, "pass")

    def silent(self, s: ast.stmt) -> bool:
        if not isinstance(s, ast.Expr):
            return False
        return isinstance(s.value, ast.Constant) or (isinstance(s.value, ast.Call) and _name(s.value.func) in _QUIET_CALLS)

    # ---- expressions -----------------------------------------------------------------------------------------------------

    def expression(self, e: ast.expr, role: str = "constant") -> Iterator[Mutant]:
        if isinstance(e, ast.JoinedStr):
            return
        if isinstance(e, ast.Call):
            yield from self.call(e)
            return
        if isinstance(e, ast.Constant):
            yield from self.constant(e, role)
        elif isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub) and isinstance(e.operand, ast.Constant):
            yield from self.constant(e.operand, role)
            yield self.mutant(role, e, self.text(e.operand))
            return
        elif isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.Not):
            yield self.mutant("logic", e, f"({self.text(e.operand)})")
        elif isinstance(e, ast.BinOp) and type(e.op) in _ARITHMETIC and not (_is_text(e.left) or _is_text(e.right)):
            yield from self.between(e.left, e.right, "arithmetic", *_ARITHMETIC[type(e.op)])
        elif isinstance(e, ast.BoolOp):
            old, new = ("and", "or") if isinstance(e.op, ast.And) else ("or", "and")
            for left, right in zip(e.values, e.values[1:], strict=False):
                yield from self.between(left, right, "logic", old, new)
        elif isinstance(e, ast.Compare):
            for left, op, right in zip([e.left, *e.comparators], e.ops, e.comparators, strict=False):
                yield from self.between(left, right, "compare", None, _COMPARISONS[type(op)])
        elif isinstance(e, ast.IfExp):
            yield from self.condition(e.test, (True, False))
        elif isinstance(e, ast.Slice):
            yield from self.bounds(e)
        if isinstance(e, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            for loop in e.generators:
                yield from self.expression(loop.iter)
                for test in loop.ifs:
                    yield from self.condition(test, (True, False))
                    yield from self.expression(test)
        inner = role if isinstance(e, ast.Tuple | ast.List) else "constant"
        for child in ast.iter_child_nodes(e):
            if isinstance(child, ast.expr):
                yield from self.expression(child, inner)

    def call(self, e: ast.Call) -> Iterator[Mutant]:
        name = _name(e.func)
        if name in _QUIET_CALLS or name in ("TypeVar", "getattr"):
            return
        yield from self.expression(e.func)
        arguments = e.args[:1] if name in ("isinstance", "issubclass") else e.args
        method = isinstance(e.func, ast.Attribute) and name in _AXIS_METHODS
        for argument in arguments:
            yield from self.expression(argument, "axis" if method else "constant")
        for keyword in e.keywords:
            if keyword.arg != "strict":
                yield from self.expression(keyword.value, "axis" if keyword.arg in _AXIS_WORDS else "constant")

    def constant(self, e: ast.Constant, role: str) -> Iterator[Mutant]:
        value = e.value
        if isinstance(value, bool):
            yield self.mutant(role, e, str(not value))
        elif isinstance(value, int | float):
            large = abs(value) > _LARGE  # a buffer's rows, a limit: one more of these is no fault
            yield self.mutant(role, e, repr(2 * value if large else value + 1))
            if isinstance(value, int) and not large:
                yield self.mutant(role, e, repr(value - 1))
            elif value:
                yield self.mutant(role, e, repr(-value))

    def condition(self, test: ast.expr, values: tuple[bool, ...]) -> Iterator[Mutant]:
        for value in values:
            yield self.mutant("condition", test, str(value))

    def bounds(self, e: ast.Slice) -> Iterator[Mutant]:
        for bound in (e.lower, e.upper):
            if bound is not None:
                yield self.mutant("slice", bound, "")
                if not isinstance(bound, ast.Constant):
                    yield self.mutant("slice", bound, f"({self.text(bound)}) + 1")

    # ---- text ------------------------------------------------------------------------------------------------------------

    def at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def ends(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.at(node.lineno, node.col_offset),  # type: ignore[attr-defined]
            self.at(node.end_lineno, node.end_col_offset),  # type: ignore[attr-defined]
        )

    def text(self, node: ast.AST) -> str:
        start, end = self.ends(node)
        return self.source[start:end].decode()

    def between(self, left: ast.expr, right: ast.expr, operator: str, old: str | None, new: str) -> Iterator[Mutant]:
        """The operator between two operands; brackets around them stay."""
        start, end = self.ends(left)[1], self.ends(right)[0]
        gap = self.source[start:end].decode()
        core = gap.strip(" \n()")
        if "#" in gap or (old is not None and core != old):
            return
        at = start + len(gap[: gap.index(core)].encode())
        yield self.made(operator, at, at + len(core.encode()), new, left)

    def mutant(self, operator: str, node: ast.AST, text: str) -> Mutant:
        return self.made(operator, *self.ends(node), text, node)

    def made(self, operator: str, start: int, end: int, text: str, node: ast.AST) -> Mutant:
        first = self.starts[node.lineno - 1]  # type: ignore[attr-defined]
        last = self.source.find(b"\n", end)
        before = self.source[first:last]
        after = self.source[first:start] + text.encode() + self.source[end:last]
        return Mutant(
            self.file,
            ".".join(self.where),
            node.lineno,  # type: ignore[attr-defined]
            self.span,
            operator,
            " ".join(before.decode().split()),
            " ".join(after.decode().split()),
            start,
            end,
            text,
        )


def _name(e: ast.expr) -> str:
    return e.id if isinstance(e, ast.Name) else e.attr if isinstance(e, ast.Attribute) else ""


def _is_text(e: ast.expr) -> bool:
    return isinstance(e, ast.JoinedStr) or (isinstance(e, ast.Constant) and isinstance(e.value, str))


def _is_none(e: ast.expr) -> bool:
    return isinstance(e, ast.Constant) and e.value is None
