"""What an op's binaries and configs depend on, as a hash of its sources: a pack of other sources is stale.

An op's sources are its ``helion_kernel.py`` or ``gluon_kernel.py``, ``launch.py`` and ``contract.py``, the modules of
``parhelion.ops`` that those import, and the files of the tile programs that they name (``"gemm.gemm"``), and so on from
there. They are read and never imported. A package's ``__init__.py`` is not among them: it names the providers, on which
no binary depends. Where a provider has its programs in another folder (``ops/tile_programs.py``), that folder's sources
are hashed in the same way and by themselves: an op's own binaries do not depend on them.

What is hashed is the syntax tree, so that comments, strings that stand alone (docstrings) and formatting do not count.
It is written out here: ``ast.dump`` and ``ast.unparse`` write the same tree in different ways in different versions of
Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from parhelion.ops.registry import op, op_names
from parhelion.ops.tile_programs import folder_of, providers_of

HASH_VERSION = 1
"""Raised when what is hashed changes, or what binaries depend on besides sources."""

_PACKAGE = "parhelion.ops"
_KERNELS = ("helion_kernel.py", "gluon_kernel.py")
_ROOTS = (*_KERNELS, "launch.py", "contract.py")

_UNHASHED_FILES = frozenset({"candidates.py"})
"""What is worth trying says nothing of what was found."""

_UNHASHED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""What follows from the rest of the tree, or has no meaning: ``ctx`` of a name, ``u`` before a string."""


_TILE_PROGRAM = re.compile(r"(\w+)\.\w+")


def source_hash(name: str) -> str:
    """16 hexadecimal digits that change when an op's binaries or configs may have to.

    Args:
        name: the op's, or ``op.provider`` of a provider with a folder of its own.

    Raises:
        ConfigError: there is no such op.
    """
    op_name, _, provider = name.partition(".")
    if op_name not in op_names():
        op(op_name)
    return hash_in(Path(__file__).parent, folder_of(op_name, provider) if provider else op_name)


def source_hashes(ops: Iterable[str] | None = None) -> dict[str, str]:
    """The hash of every op, or of these, and under ``op.provider`` of their providers with a folder of their own."""
    return {name: source_hash(name) for op_name in (op_names() if ops is None else ops) for name in _names(op_name)}


def _names(op_name: str) -> Iterator[str]:
    yield op_name
    yield from (f"{op_name}.{each}" for each in providers_of(op_name) if folder_of(op_name, each) != op_name)


@functools.cache
def hash_in(folder: Path, op_name: str) -> str:
    """``source_hash`` of an op whose folder is in ``folder``, a copy of ``parhelion/ops``."""
    digest = hashlib.sha256(f"{HASH_VERSION}".encode())
    for path in sources_in(folder, op_name):
        digest.update(f"\n{path.relative_to(folder).as_posix()}\n{_normal_form(path)}".encode())
    return digest.hexdigest()[:16]


def sources_in(folder: Path, op_name: str) -> list[Path]:
    """The files that an op depends on, in alphabetical order."""
    waiting = [folder / op_name / root for root in _ROOTS]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file() and path.name not in _UNHASHED_FILES:
            found.add(path)
            waiting += _referred(folder, path)
    return sorted(found)


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _normal_form(path: Path) -> str:
    return _written(_tree(path))


@functools.cache
def _referred(folder: Path, path: Path) -> tuple[Path, ...]:
    """The files that a file imports from ``parhelion.ops`` or whose tile programs it names; many ops ask for some."""
    return tuple(_references(folder, path))


def _references(folder: Path, path: Path) -> Iterator[Path]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            yield from (module.with_suffix(".py") for alias in node.names for module in _inside(folder, alias.name))
        elif isinstance(node, ast.ImportFrom):
            for module in _inside(folder, node.module or ""):
                yield module.with_suffix(".py")
                # Names that are imported may be modules themselves.
                yield from (module / f"{alias.name}.py" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = _TILE_PROGRAM.fullmatch(node.value)
            if named is not None:
                yield from (folder / named[1] / kernel for kernel in _KERNELS)
        elif isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
            # f"rms_norm_per_block_quant.{kernel}"
            named_folder = folder / str(node.values[0].value).rstrip(".")
            yield from (named_folder / kernel for kernel in _KERNELS)


def _inside(folder: Path, module: str) -> Iterator[Path]:
    """Where a module of ``parhelion.ops`` stands, without the suffix; nothing for any other module."""
    package, *names = module.removeprefix(_PACKAGE).split(".")
    if module.startswith(_PACKAGE) and not package:
        yield folder.joinpath(*names)


def _written(node: object) -> str:
    """A syntax tree as text that all versions of Python agree on: node names and fields by name, no empty ones."""
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr(_in_one_piece(node.values))
    if isinstance(node, ast.AST):
        fields = (
            f"{name}={_written(value)}"
            for name, value in sorted(ast.iter_fields(node))
            if name not in _UNHASHED_FIELDS and value is not None and value != []
        )
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(_written(item) for item in node if not _is_lone_string(item))}]"
    return f"{type(node).__name__}:{node!r}"


def _is_lone_string(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _in_one_piece(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with adjacent text joined, of which versions of Python make different pieces."""
    parts: list[ast.expr] = []
    for value in values:
        match parts, value:
            case _, ast.Constant(value=""):
                pass
            case [*_, ast.Constant(value=str(before))], ast.Constant(value=str(after)):
                parts[-1] = ast.Constant(before + after)
            case _:
                parts.append(value)
    return parts
