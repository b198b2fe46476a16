"""Generated code whose host functions are overheard, and recipes compared with what they launched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import helion.runtime
import pytest
import torch

from parhelion.ops.contract import Contract
from parhelion.packs.format import Recipe
from parhelion.tuning.cross_compile import Specialization
from parhelion.tuning.host_recipe import host_recipe, recipe_of
from parhelion.tuning.record import GeneratedCode, Launch, record

PROCESSORS = 132
RECORDED, THIRD = (19, 32), 27
"""Sizes of M of one bucket, of which none divides another, and one size is odd."""


@dataclass(frozen=True)
class Made:
    """One call of a host function.

    Attributes:
        inputs: what the tile program was called with.
        grid, arguments: what the host function launched.
    """

    inputs: tuple[Any, ...]
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]


class WatchedCode(GeneratedCode):
    """Generated modules whose host functions are overheard."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Made] = []

    def module(self, source: str) -> Any:
        functions = vars(super().module(source))
        return SimpleNamespace(
            **{name: self._watched(value) for name, value in functions.items() if callable(value) and name[0] != "_"}
        )

    def _watched(self, host: Any) -> Any:
        def watched(*inputs: Any, _launcher: Any) -> None:
            def launcher(function: Any, grid: Any, *arguments: Any, **options: Any) -> None:
                self.made.append(Made(inputs, grid, arguments))
                _launcher(function, grid, *arguments, **options)

            host(*inputs, _launcher=launcher)

        return watched


@contextmanager
def watched_code() -> Iterator[WatchedCode]:
    """Code to be generated. A persistent program asks for the number of processors, which no CPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helion.runtime, "get_num_sm", lambda device: PROCESSORS)
        yield WatchedCode()


def evaluated(expression: str, names: dict[str, Any]) -> Any:
    functions = {"min": min, "max": max, "cdiv": lambda a, b: -(-a // b)}
    return eval(expression, {"__builtins__": {}}, functions | names | {"num_processors": PROCESSORS})


def same(a: Any, b: Any) -> bool:
    if isinstance(b, torch.Tensor):
        return a is b
    return type(a) is type(b) and a == b


def launches_of(code: WatchedCode, contract: Contract, num_tokens: int, config: Any) -> list[tuple[Launch, Made]]:
    code.made.clear()
    launches = record(contract, num_tokens, "sm_90", code, config)
    return list(zip(launches, code.made, strict=True))


def check(code: WatchedCode, contract: Contract, config: Any = None) -> list[Recipe]:
    """Recipes made from two sizes of M, compared with what is launched for a third."""
    recorded = [launches_of(code, contract, num_tokens, config) for num_tokens in RECORDED]
    recipes = []
    for launch, made, *others in (
        (launch, made, *(run[position][0] for run in recorded))
        for position, (launch, made) in enumerate(launches_of(code, contract, THIRD, config))
    ):
        recipe, how = recipe_of(others)
        names = dict(zip(recipe.parameters, made.inputs, strict=True))
        assert tuple(evaluated(each, names) for each in recipe.grid) == made.grid
        by_name = zip(launch.function.params, made.arguments, strict=True)
        passed = [value for parameter, value in by_name if how.signature[parameter.name] != "constexpr"]
        assert len(recipe.arguments) == len(passed)
        for argument, value in zip(recipe.arguments, passed, strict=True):
            assert same(evaluated(argument.value, names), value), argument
        check_guards(recipe, how, launch, names)
        recipes.append(recipe)
    assert recipes
    return recipes


def check_guards(recipe: Recipe, how: Specialization, launch: Launch, names: dict[str, Any]) -> None:
    """What is compiled in holds for the third size, and whatever is compiled in is guarded or cannot change."""
    values = dict(zip((parameter.name for parameter in launch.function.params), launch.arguments, strict=True))
    for name, constant in how.constants.items():
        assert values[name] == constant
    assert all(evaluated(expression, names) == value for expression, value in recipe.equal)
    for expression in recipe.aligned:
        value = evaluated(expression, names)
        assert (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0
    host = host_recipe(launch.source, launch.kernel)
    for position, expression in enumerate(host.arguments):
        if not ("." in expression or expression == "num_processors"):
            continue
        name = launch.function.params[position].name
        assert (expression in dict(recipe.equal)) == (name in how.constants)
        assert (expression in recipe.aligned) == ((position,) in how.attributes)
