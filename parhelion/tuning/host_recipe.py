"""From Helion's generated host code to launch recipes.

For each tile program, Helion generates a Triton function and a host function, which works out sizes and ends in

    _launcher(_helion_<name>, grid, *arguments, num_warps=..., num_stages=...)

A Gluon kernel's module has such a host function too, written by hand. The host function is read here, never run:
assignments are put into one another until the grid and each argument is one expression over the tile program's
parameters, as ``parhelion.packs.format.Recipe`` spells it. What does not come down to such an expression is refused: a
recipe either does what the host function does, for every M, or there is none.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from parhelion.errors import ParhelionError
from parhelion.packs.format import Argument, Recipe
from parhelion.tuning.cross_compile import Specialization, specialize
from parhelion.tuning.record import Launch

NUM_PROCESSORS = "num_processors"

_RESERVED = ("min", "max", "cdiv", NUM_PROCESSORS)
"""What a tile program's parameters may not be called: it means something else in expressions."""

_UNSTATED_OPTIONS = {"launch_cooperative_grid": False, "num_ctas": 1}
"""Options that change how a program is launched and of which a recipe says nothing, with what changes nothing."""

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class RecipeError(ParhelionError):
    """A host function does something that recipes cannot say; the message names it."""


@dataclass(frozen=True)
class HostLaunch:
    """The one launch of a host function, in the expressions of recipes.

    Attributes:
        parameters: of the tile program, in order.
        grid: one to three expressions.
        arguments: of the Triton function, in order, its ``constexpr`` parameters included.
    """

    parameters: tuple[str, ...]
    grid: tuple[str, ...]
    arguments: tuple[str, ...]


def host_recipe(source: str, kernel: str) -> HostLaunch:
    """What the host function of a generated module launches.

    Args:
        source: the module.
        kernel: the tile program's name, with or without its folder; the host function has the same.

    Raises:
        RecipeError: there is no such function, or it does something that recipes cannot say.
    """
    name = kernel.rpartition(".")[2]
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _Host(node).launch()
    raise RecipeError(f"{kernel}: the generated module has no host function of that name")


def recipe_of(launches: Sequence[Launch]) -> tuple[Recipe, Specialization]:
    """How one program is launched for any M, and what may be compiled in.

    What holds for all the launches is compiled in, and guarded by the recipe: integers that are 1, integers and
    pointers that are multiples of 16. A launcher refuses a launch for which it does not hold. So the launches should be
    for several M, an odd one among them, lest a size that follows M be taken for a multiple of 16.

    Args:
        launches: of one program from one generated module, with ``run``'s scalar arguments all the same.

    Raises:
        RecipeError: the launches are not of one program, or recipes cannot say what it needs.
        BuildError: its arguments are of different types, or what must be compiled in differs among the launches.
    """
    first = launches[0]
    _check_one_program(launches)
    host = host_recipe(first.source, first.kernel)
    how = specialize(*launches)
    arguments: list[Argument] = []
    equal: dict[str, int] = {}
    aligned: dict[str, None] = {}
    for position, (parameter, value) in enumerate(zip(first.function.params, host.arguments, strict=True)):
        is_tensor = isinstance(first.arguments[position], torch.Tensor)
        if is_tensor and value not in host.parameters:
            raise RecipeError(f"{first.kernel}: {parameter.name} is a tensor and not one of the parameters: {value}")
        # Literals are what they are, and scalar parameters are among the kinds that a binary is found by.
        is_known = value.isdecimal() or (value in host.parameters and not is_tensor)
        if how.signature[parameter.name] == "constexpr":
            if not is_known:
                equal[value] = how.constants[parameter.name]
            continue
        # An integer is i32 if it was in all the launches. A larger M may take it beyond: a launcher packs arguments by
        # their type, and packing refuses what does not fit, so such a launch fails and never computes nonsense.
        arguments.append(Argument(value, "*" if is_tensor else how.signature[parameter.name]))
        if (position,) in how.attributes and not is_known:
            aligned[value] = None
    return Recipe(host.parameters, host.grid, tuple(arguments), tuple(equal.items()), tuple(aligned)), how


def _check_one_program(launches: Sequence[Launch]) -> None:
    first = launches[0]
    for other in launches[1:]:
        if (other.kernel, other.source, other.options) != (first.kernel, first.source, first.options):
            raise RecipeError(f"{first.kernel}: the launches are of different programs; sort them by their kinds")
    for option, value in _UNSTATED_OPTIONS.items():
        if first.options.get(option, value) != value:
            raise RecipeError(f"{first.kernel}: recipes know no launch with {option} = {first.options[option]}")


class _Host:
    """A host function in the course of being read.

    Names stand for expressions over the parameters: for trees of which nothing but ``Recipe``'s arithmetic is part. One
    that was assigned something else stands for that, which is an error only where it is used.
    """

    def __init__(self, function: ast.FunctionDef) -> None:
        self._function = function
        self._parameters = tuple(argument.arg for argument in (*function.args.posonlyargs, *function.args.args))
        self._names: dict[str, ast.expr | RecipeError] = {name: ast.Name(name) for name in self._parameters}
        self._launches: list[HostLaunch] = []

    def launch(self) -> HostLaunch:
        for name in self._parameters:
            if name in _RESERVED:
                raise RecipeError(f"{self._function.name}: its parameter {name} means something else in recipes")
        self._follow(self._function.body)
        if len(self._launches) != 1:
            raise RecipeError(f"{self._function.name}: it launches {len(self._launches)} programs, and must launch one")
        return self._launches[0]

    def _launched(self, call: ast.Call) -> HostLaunch:
        match call.args:
            case [ast.Name(), ast.Tuple(elts=grid), *arguments] if 1 <= len(grid) <= 3:
                return HostLaunch(self._parameters, self._texts(grid), self._texts(arguments))
        raise self._refused(call)

    def _texts(self, nodes: Sequence[ast.expr]) -> tuple[str, ...]:
        return tuple(ast.unparse(self._reduced(node)) for node in nodes)

    def _follow(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            match statement:
                case ast.Assign(targets=[target], value=value):
                    self._assign(target, value)
                case ast.If(test=ast.Constant(value=bool() as taken), body=body, orelse=orelse):
                    self._follow(body if taken else orelse)
                case ast.Expr(value=ast.Constant()):
                    pass
                case ast.Expr(value=ast.Call(func=ast.Name(id="_launcher")) as call):
                    self._launches.append(self._launched(call))
                case _:
                    raise self._refused(statement)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        match target, value:
            case ast.Name(id=name), _:
                try:
                    self._names[name] = self._reduced(value)
                except RecipeError as error:
                    self._names[name] = error
            case ast.Tuple(elts=targets), ast.Call(func=ast.Attribute(attr="size" | "stride"), args=[], keywords=[]):
                for dimension, each in enumerate(targets):
                    self._assign(each, ast.Call(value.func, [ast.Constant(dimension)], []))
            case _:
                raise self._refused(ast.Assign([target], value, lineno=0))

    def _reduced(self, node: ast.expr) -> ast.expr:
        """An expression over the parameters.

        Raises:
            RecipeError: it is none that recipes know.
        """
        match node:
            case ast.Constant(value=int() as value) if not isinstance(value, bool) and value >= 0:
                return node
            case ast.Name(id=name) if name in self._names:
                known = self._names[name]
                if isinstance(known, RecipeError):
                    raise known
                return known
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _simplified(ast.BinOp(self._reduced(left), op, self._reduced(right)))
            case ast.Call(keywords=[]):
                return self._reduced_call(node)
        raise self._refused(node)

    def _reduced_call(self, node: ast.Call) -> ast.expr:
        match node.func, node.args:
            case ast.Attribute(value=value, attr="size" | "stride" as method), [ast.Constant(value=int(dimension))]:
                tensor = self._reduced(value)
                if isinstance(tensor, ast.Name) and dimension >= 0:
                    return ast.Call(ast.Attribute(tensor, method), node.args, [])
            case ast.Name(id="min" | "max"), [left, right]:
                return ast.Call(node.func, [self._reduced(left), self._reduced(right)], [])
            case ast.Attribute(value=ast.Name(id="triton"), attr="cdiv"), [left, right]:
                return ast.Call(ast.Name("cdiv"), [self._reduced(left), self._reduced(right)], [])
            case _ if ast.unparse(node.func) == "helion.runtime.get_num_sm":
                return ast.Name(NUM_PROCESSORS)
        raise self._refused(node)

    def _refused(self, node: ast.AST) -> RecipeError:
        text = ast.unparse(node).partition("\n")[0]
        return RecipeError(f"{self._function.name}: recipes cannot say {text!r}; leave this config out")


def _simplified(node: ast.BinOp) -> ast.expr:
    """Integers calculated; ``x * 1``, ``x // 1`` and ``x + 0`` as x; ``x + 128 - 1`` as ``x + 127``."""
    match node:
        case ast.BinOp(_, ast.FloorDiv() | ast.Mod(), ast.Constant(0)):
            return node
        case ast.BinOp(ast.Constant(int() as left), op, ast.Constant(int() as right)):
            value = _OPERATORS[type(op)](left, right)
            # Integers of recipes have no sign.
            return ast.Constant(value) if value >= 0 else node
        case ast.BinOp(left, ast.Mult() | ast.FloorDiv(), ast.Constant(1)):
            return left
        case ast.BinOp(left, ast.Add() | ast.Sub(), ast.Constant(0)):
            return left
        case ast.BinOp(
            ast.BinOp(left, ast.Add() as plus, ast.Constant(int() as more)), ast.Sub(), ast.Constant(int() as less)
        ):
            return _simplified(ast.BinOp(left, plus, ast.Constant(more - less))) if more >= less else node
    return node
