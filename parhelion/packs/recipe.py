"""Whether a binary's recipe can be followed, without following it."""

from __future__ import annotations

import ast
import re

from parhelion.errors import PackError
from parhelion.packs.expression import check_parameters, parse
from parhelion.packs.format import Binary

POINTER = "*"
ARGUMENT_TYPES = (POINTER, "i32", "i64", "fp32", "fp64", "i1")
MAX_GRID = 3

_TENSOR_KIND = re.compile(r"\w+\[(\d{1,2})\]")
_NUMBER_KIND = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?|True|False")


def tensors_and_scalars(binary: Binary) -> tuple[list[str], list[str]]:
    """The names of a recipe's parameters that are tensors, and those of numbers. The rest (None, dtypes) have no use.

    Raises:
        PackError: the recipe has not a parameter for every kind.
    """
    names, kinds = binary.recipe.parameters, binary.kinds
    if len(names) != len(kinds):
        raise PackError(f"the recipe has {len(names)} parameters, and the binary {len(kinds)} kinds; build it again")
    tensors = [name for name, kind in zip(names, kinds, strict=True) if _TENSOR_KIND.fullmatch(kind)]
    return tensors, [name for name, kind in zip(names, kinds, strict=True) if _NUMBER_KIND.fullmatch(kind)]


def recipe_problems(binary: Binary) -> list[str]:
    """What is wrong with a binary's recipe, in words."""
    try:
        check_parameters(binary.recipe.parameters)
        tensors, scalars = tensors_and_scalars(binary)
    except PackError as error:
        return [str(error)]
    recipe = binary.recipe
    problems = []
    if not 1 <= len(recipe.grid) <= MAX_GRID:
        problems.append(f"its grid has {len(recipe.grid)} dimensions, and it must have 1 to {MAX_GRID}")
    for argument in recipe.arguments:
        if argument.type not in ARGUMENT_TYPES:
            problems.append(f"an argument is of type {argument.type!r}; types are {', '.join(ARGUMENT_TYPES)}")
        if argument.type == POINTER and argument.value not in tensors:
            problems.append(f"a pointer is to {argument.value!r}, which is none of its tensors")
    expressions = [
        *recipe.grid,
        *(argument.value for argument in recipe.arguments if argument.type != POINTER),
        *(expression for expression, _ in recipe.equal),
        *(text for text in recipe.aligned if text not in tensors),
    ]
    dimensions = _dimensions(binary)
    for text in expressions:
        try:
            problems += _unknown_dimensions(parse(text, tensors, scalars), dimensions)
        except PackError as error:
            problems.append(str(error))
    return problems


def _dimensions(binary: Binary) -> dict[str, int]:
    """How many each tensor has."""
    kinds = zip(binary.recipe.parameters, map(_TENSOR_KIND.fullmatch, binary.kinds), strict=True)
    return {name: int(kind[1]) for name, kind in kinds if kind is not None}


def _unknown_dimensions(tree: ast.expr, dimensions: dict[str, int]) -> list[str]:
    return [
        f"it asks for {ast.unparse(node)}, and {name} has {dimensions[name]} dimensions"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (name := ast.unparse(node.func.value)) in dimensions
        and int(ast.unparse(node.args[0])) >= dimensions[name]
    ]
