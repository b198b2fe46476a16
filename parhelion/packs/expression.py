"""The arithmetic of launch recipes: read with a whitelist, and written out again as Python.

What is written out is put together from the checked tree and never copied from the text, so that nothing in a pack can
become code but integers, ``+ - * // %``, names that the caller gave, and ``.size(i)`` and ``.stride(i)``.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Collection, Sequence

from parhelion.errors import PackError

NUM_PROCESSORS = "num_processors"
"""The name that stands for the number of the device's processors."""

FUNCTIONS = ("min", "max", "cdiv")
MAX_LENGTH = 512
"""Characters of an expression."""

MAX_DEPTH = 32
"""Operations within one another."""

MAX_PYTHON = 8192
"""Characters of the Python that an expression becomes: ``min`` and ``max`` name their arguments twice."""

MAX_DIMENSIONS = 16
MAX_INTEGER = 1 << 63

_CHARACTERS = re.compile(r"[A-Za-z0-9_ +\-*/%(),.]+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
}


def parse(text: str, tensors: Collection[str], scalars: Collection[str]) -> ast.expr:
    """An expression as a tree that holds nothing but what the format allows.

    Args:
        text: such as ``cdiv(x.size(0), 16) * num_processors``.
        tensors, scalars: the names that may stand in it; a tensor's only before ``.size(i)`` and ``.stride(i)``.

    Raises:
        PackError: it holds anything else, divides by the constant 0, or is too long or too deep.
    """
    if len(text) > MAX_LENGTH:
        raise PackError(f"an expression has {len(text)} characters, and {MAX_LENGTH} are allowed: {text[:40]!r}...")
    if not _CHARACTERS.fullmatch(text):
        raise _refused(text, "it may hold letters, digits, spaces and _ + - * / % ( ) , . only")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _refused(text, "it does not parse") from None
    _Checker(text, tensors, scalars).check(tree, 0)
    return tree


def to_python(text: str, tensors: Collection[str], scalars: Collection[str]) -> str:
    """An expression as a fragment of Python, in parentheses where it needs them.

    Its names are those of the expression: tensors with ``.size(i)`` and ``.stride(i)``, scalars, ``num_processors``.
    ``min``, ``max`` and ``cdiv`` are written out as arithmetic, which costs less than a call.

    Raises:
        PackError: as ``parse``, or what comes out is too long.
    """
    return _Writer(text).write(parse(text, tensors, scalars))


def check_parameters(names: Sequence[str]) -> None:
    """Make sure that a recipe's parameters may become the parameters of a generated function.

    Raises:
        PackError: one is no plain name, has a meaning of its own in Python or in expressions, or comes twice.
    """
    for name in names:
        if not _NAME.fullmatch(name) or keyword.iskeyword(name) or name.startswith("__"):
            raise PackError(
                f"a recipe's parameter is called {name[:40]!r}, which is no plain name; build the pack again"
            )
        if name in (*FUNCTIONS, NUM_PROCESSORS):
            raise PackError(f"a recipe's parameter is called {name!r}, which means something else in expressions")
    if len(set(names)) < len(names):
        raise PackError(f"a recipe names a parameter twice: {', '.join(names)}")


class _Checker:
    """Walks a tree and refuses whatever is not listed here."""

    def __init__(self, text: str, tensors: Collection[str], scalars: Collection[str]) -> None:
        self._text = text
        self._tensors = tensors
        self._scalars = scalars

    def check(self, node: ast.expr, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._refused(f"it nests more than {MAX_DEPTH} operations")
        match node:
            case ast.Constant(value=value):
                self._check_integer(value, MAX_INTEGER)
            case ast.Name(id=name):
                self._check_name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                self.check(operand, depth + 1)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
                self.check(left, depth + 1)
                self.check(right, depth + 1)
                if isinstance(operator, ast.FloorDiv | ast.Mod):
                    self._check_divisor(right)
            case ast.Call(func=ast.Name(id=name), args=[left, right], keywords=[]) if name in FUNCTIONS:
                self.check(left, depth + 1)
                self.check(right, depth + 1)
                if name == "cdiv":
                    self._check_divisor(right)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="size" | "stride"),
                args=[ast.Constant(value=dimension)],
                keywords=[],
            ):
                if name not in self._tensors:
                    raise self._refused(f"{name!r} is none of its tensors ({', '.join(self._tensors) or 'none'})")
                self._check_integer(dimension, MAX_DIMENSIONS)
            case _:
                raise self._refused(f"{type(node).__name__} is not part of the format")

    def _check_integer(self, value: object, limit: int) -> None:
        if type(value) is not int or not 0 <= value < limit:
            raise self._refused(f"{str(value)[:40]} is no integer from 0 to {limit - 1}")

    def _check_name(self, name: str) -> None:
        if name in self._tensors:
            raise self._refused(f"{name!r} is a tensor: ask for its .size(i) or .stride(i)")
        if name != NUM_PROCESSORS and name not in self._scalars:
            known = ", ".join((*self._scalars, NUM_PROCESSORS))
            raise self._refused(f"{name!r} is none of its numbers ({known})")

    def _check_divisor(self, node: ast.expr) -> None:
        if isinstance(node, ast.Constant) and node.value == 0:
            raise self._refused("it divides by 0")

    def _refused(self, why: str) -> PackError:
        return _refused(self._text, why)


class _Writer:
    """Writes a checked tree."""

    def __init__(self, text: str) -> None:
        self._text = text

    def write(self, node: ast.expr) -> str:
        written = self._written(node)
        if len(written) > MAX_PYTHON:
            raise _refused(self._text, "its min and max nest too deeply")
        return written

    def _written(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int() as value):
                return repr(value)
            case ast.Name(id=name):
                return name
            case ast.UnaryOp(operand=operand):
                return f"(-{self.write(operand)})"
            case ast.BinOp(left=left, op=operator, right=right):
                return f"({self.write(left)} {_OPERATORS[type(operator)]} {self.write(right)})"
            case ast.Call(func=ast.Name(id=name), args=[first, second]):
                return _call(name, self.write(first), self.write(second))
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr=method), args=[ast.Constant(value=int() as dimension)]
            ):
                return f"{name}.{method}({dimension!r})"
        raise AssertionError(f"{type(node).__name__} was let through")


def _call(name: str, a: str, b: str) -> str:
    if name == "cdiv":
        return f"(-(-{a} // {b}))"
    return f"({a} if {a} {'<' if name == 'min' else '>'} {b} else {b})"


def _refused(text: str, why: str) -> PackError:
    return PackError(f"the expression {text!r} cannot be used: {why}; build the pack again")
