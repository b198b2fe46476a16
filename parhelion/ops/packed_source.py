"""A recipe as the Python function that launches its binary.

The function's text is made of fixed words, checked names, and expressions that went through ``packs.expression``:
nothing in a pack is copied into it. Names of its own begin with two underscores, which no parameter's may. For a kernel
of two tensors it reads:

    def launch(x, y, epsilon, /):
        __shape_x = x.shape
        __pointer_x = x.data_ptr()
        __pointer_y = y.data_ptr()
        if (__pointer_x | __pointer_y) & 15 or __shape_x[1] != 4096:
            __refuse(x, y, epsilon)
        __grid_0 = (-(-__shape_x[0] // 16))
        if not (__grid_0):
            return
        try:
            __pack(__slots, 0, __pointer_x, __pointer_y, __shape_x[0], epsilon)
            __launch(__grid_0, 1, 1)
        except __Unpackable:
            __refuse_values(x, y, epsilon)
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parhelion.errors import PackError
from parhelion.ops.packed_kinds import is_number, num_dimensions
from parhelion.packs.expression import NUM_PROCESSORS, check_parameters, to_python
from parhelion.packs.format import Binary, Recipe

ALIGNMENT = 16
FORMATS = {"*": "Q", "i32": "i4x", "i64": "q", "fp32": "f4x", "fp64": "d", "i1": "?7x"}
"""How ``struct`` writes an argument of each type into eight bytes, of which the driver reads as many as it needs."""


@dataclass(frozen=True)
class Assumption:
    """Something that a binary was compiled for.

    Attributes:
        expression: as the recipe spells it; a tensor's name stands for its address.
        value: what it must be; None if it must be a multiple of 16.
    """

    expression: str
    value: int | None

    def holds(self, value: int) -> bool:
        """Whether it holds if the expression has this value."""
        return value % ALIGNMENT == 0 if self.value is None else value == self.value

    def words(self) -> str:
        """What the expression must be."""
        return f"multiples of {ALIGNMENT}" if self.value is None else str(self.value)


@dataclass(frozen=True)
class LaunchSource:
    """The text of a launching function and what it refers to.

    Attributes:
        text: of the function, which is called ``launch``.
        kernel: whose it is.
        layout: of the arguments, for ``struct``.
        assumptions: what it checks, in order.
        tensors, scalars: names of parameters; the rest (None, dtypes) are not used.
        num_processors: of the device.
    """

    text: str
    kernel: str
    layout: str
    assumptions: tuple[Assumption, ...]
    tensors: tuple[str, ...]
    scalars: tuple[str, ...]
    num_processors: int

    def function(self, names: Mapping[str, object]) -> Callable[..., None]:
        """The function, with what its own names mean."""
        scope: dict[str, Any] = {"__builtins__": {}, **names}
        exec(compile(self.text, f"<launch of {self.kernel}>", "exec"), scope)
        launch: Callable[..., None] = scope["launch"]
        return launch


def launch_source(binary: Binary, num_processors: int) -> LaunchSource:
    """What launches a binary.

    Raises:
        PackError: its recipe or its kinds cannot be used.
    """
    recipe = binary.recipe
    check_parameters(recipe.parameters)
    _check_shape(binary)
    writer = _Writer(binary, num_processors)
    pointers = [name for name in recipe.aligned if name in writer.dimensions]
    sizes = [text for text in recipe.aligned if text not in writer.dimensions]
    addresses = [writer.pointer(name) for name in pointers]
    # A number is a multiple of 16 if its last four bits are 0, and so are several if their union's are.
    aligned = [*addresses, *map(writer.value, sizes)]
    conditions = [f"({' | '.join(aligned)}) & {ALIGNMENT - 1}"] if aligned else []
    conditions += [f"{writer.value(text)} != {value:d}" for text, value in recipe.equal]
    grid = [writer.value(text) for text in recipe.grid]
    values = [writer.pointer(each.value) if each.type == "*" else writer.value(each.value) for each in recipe.arguments]
    text = "\n    ".join(
        (*_head(recipe, writer), *_checks(recipe, conditions), *_grid(grid), *_launch(recipe, grid, values))
    )
    assumptions = [Assumption(text, None) for text in (*pointers, *sizes)]
    assumptions += [Assumption(text, value) for text, value in recipe.equal]
    layout = "=" + "".join(FORMATS[each.type] for each in recipe.arguments)
    tensors, scalars = tuple(writer.dimensions), writer.scalars
    return LaunchSource(text + "\n", binary.kernel, layout, tuple(assumptions), tensors, scalars, num_processors)


def evaluate(text: str, arguments: Mapping[str, Any], source: LaunchSource) -> Any:
    """The value of an expression, slowly: for messages. A tensor's name stands for its address."""
    if text in source.tensors:
        return arguments[text].data_ptr()
    scope = {"__builtins__": {}, NUM_PROCESSORS: source.num_processors, **arguments}
    return eval(to_python(text, source.tensors, source.scalars), scope)


def _check_shape(binary: Binary) -> None:
    """Make sure of all that is counted or listed."""
    recipe = binary.recipe
    if len(recipe.parameters) != len(binary.kinds):
        given = f"{len(recipe.parameters)} parameters and {len(binary.kinds)} kinds"
        raise PackError(f"{binary.kernel}: its recipe has {given}, which must be as many; build the pack again")
    if not 1 <= len(recipe.grid) <= 3:
        raise PackError(f"{binary.kernel}: its grid has {len(recipe.grid)} dimensions instead of 1 to 3")
    for argument in recipe.arguments:
        if argument.type not in FORMATS:
            known = ", ".join(FORMATS)
            raise PackError(f"{binary.kernel}: an argument is of type {argument.type!r} instead of one of {known}")


class _Writer:
    """Turns expressions into Python, and remembers what they need of tensors.

    Attributes:
        dimensions: of each parameter that is a tensor.
        scalars: the parameters that are numbers.
        needed: names of locals with what they are, in the order of their first use.
    """

    def __init__(self, binary: Binary, num_processors: int) -> None:
        kinds = dict(zip(binary.recipe.parameters, binary.kinds, strict=True))
        found = {name: num_dimensions(kind) for name, kind in kinds.items()}
        self.dimensions = {name: count for name, count in found.items() if count is not None}
        self.scalars = tuple(name for name, kind in kinds.items() if is_number(kind))
        self.needed: dict[str, str] = {}
        self._kernel = binary.kernel
        self._localize = _Localizer(self, num_processors)

    def pointer(self, name: str) -> str:
        """The address of a tensor."""
        if name not in self.dimensions:
            known = ", ".join(self.dimensions) or "none"
            raise PackError(
                f"{self._kernel}: {name[:40]!r} is passed as a pointer and is none of its tensors ({known})"
            )
        return self.local(f"__pointer_{name}", f"{name}.data_ptr()")

    def value(self, text: str) -> str:
        """An expression, in parentheses where it needs them."""
        tree = ast.parse(to_python(text, tuple(self.dimensions), self.scalars), mode="eval").body
        return _atom(self._localize.visit(tree))

    def extent(self, name: str, method: str, dimension: int) -> str:
        """A tensor's size or stride in a dimension: ``x.shape[0]`` takes half as long as ``x.size(0)``."""
        if dimension >= self.dimensions[name]:
            found = f"{name}.{method}({dimension}), and {name} has {self.dimensions[name]} dimensions"
            raise PackError(f"{self._kernel}: its recipe has {found}; build the pack again")
        if method == "size":
            return f"{self.local(f'__shape_{name}', f'{name}.shape')}[{dimension}]"
        return f"{self.local(f'__stride_{name}', f'{name}.stride()')}[{dimension}]"

    def local(self, name: str, value: str) -> str:
        self.needed[name] = value
        return name


class _Localizer(ast.NodeTransformer):
    """Puts locals in the place of what tensors are asked, and the number of processors in that of its name."""

    def __init__(self, writer: _Writer, num_processors: int) -> None:
        self._writer = writer
        self._num_processors = num_processors

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self._num_processors) if node.id == NUM_PROCESSORS else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), args=[ast.Constant(value=int(at))]):
                return ast.parse(self._writer.extent(name, method, at), mode="eval").body
        raise AssertionError(f"{ast.unparse(node)} is no call that expressions are written with")


def _atom(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if isinstance(node, ast.Name | ast.Subscript | ast.Constant) else f"({text})"


def _head(recipe: Recipe, writer: _Writer) -> list[str]:
    signature = ", ".join((*recipe.parameters, "/")) if recipe.parameters else ""
    return [f"def launch({signature}):", *(f"{name} = {value}" for name, value in writer.needed.items())]


def _checks(recipe: Recipe, conditions: Sequence[str]) -> list[str]:
    if not conditions:
        return []
    return [f"if {' or '.join(conditions)}:", f"    __refuse({', '.join(recipe.parameters)})"]


def _grid(grid: Sequence[str]) -> list[str]:
    """The grid's dimensions, and a way out if one is 0."""
    names = [f"__grid_{index}" for index in range(len(grid))]
    lines = [f"{name} = {value}" for name, value in zip(names, grid, strict=True)]
    return [*lines, f"if not ({' and '.join(names)}):", "    return"]


def _launch(recipe: Recipe, grid: Sequence[str], values: Sequence[str]) -> list[str]:
    dimensions = [f"__grid_{index}" for index in range(len(grid))] + ["1"] * (3 - len(grid))
    return [
        "try:",
        f"    __pack({', '.join(('__slots', '0', *values))})",
        f"    __launch({', '.join(dimensions)})",
        "except __Unpackable:",
        f"    __refuse_values({', '.join(recipe.parameters)})",
    ]
