"""Recipes do what Helion's host functions do, for a size of M that they were not made from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import helion.runtime
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.registry import op, op_names
from parhelion.packs.format import Recipe
from parhelion.tuning.cross_compile import BuildError, Specialization
from parhelion.tuning.host_recipe import RecipeError, host_recipe, recipe_of
from parhelion.tuning.record import GeneratedCode, Launch, record
from tests.tuning.triton_programs import scale, scale_launch

PROCESSORS = 132
RECORDED, THIRD = (35, 48), 43
"""Sizes of M of one bucket, of which none divides another, and one size is odd."""

GEMM_CONFIGS = {
    "standard": GemmConfig(16, 32, 32),
    "swapped": GemmConfig(16, 32, 32, swap_ab=True, group_m=4),
    "split": GemmConfig(16, 32, 32, split_k=2),
    "split, swapped": GemmConfig(32, 16, 32, split_k=2, swap_ab=True),
    "persistent": GemmConfig(16, 32, 32, pid_type="persistent_blocked"),
    "persistent, swapped, split": GemmConfig(
        16, 32, 32, pid_type="persistent_interleaved", swap_ab=True, split_k=2, group_m=2
    ),
}


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


@pytest.fixture(scope="module")
def code() -> Iterator[WatchedCode]:
    """Generated code of all tests here. A persistent program asks for the number of processors, which no CPU has."""
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


LARGE = ("fused_rope_attention", "paged_attention", "top_k_top_p_sampling")


@pytest.mark.parametrize("name", op_names())
def test_a_recipe_launches_what_the_host_function_does_at_another_size_of_m(name: str, code: WatchedCode):
    examples = op(name).examples
    # Large programs take long to build: one of them.
    chosen = examples[:1] if name in LARGE else (examples[0], examples[len(examples) // 2])
    for contract in chosen:
        check(code, contract)


@pytest.mark.parametrize("name", ["linear", "scaled_mm_blockwise"])
@pytest.mark.parametrize("config", GEMM_CONFIGS.values(), ids=GEMM_CONFIGS.keys())
def test_so_it_does_for_every_algorithm_of_the_gemm(name: str, config: GemmConfig, code: WatchedCode):
    recipes = check(code, op(name).examples[0], config)
    assert len(recipes) == 1
    if config.pid_type != "flat":
        assert recipes[0].grid == ("num_processors",)
        assert ("num_processors", PROCESSORS) in recipes[0].equal


def test_expressions_are_short(code: WatchedCode):
    (recipe,) = check(code, op("linear").examples[0], GEMM_CONFIGS["standard"])
    assert recipe.grid == ("(left.size(0) + 15) // 16 * 3",)
    assert recipe.parameters[:2] == ("left", "right")
    assert [argument.value for argument in recipe.arguments if argument.type == "*"] == ["left", "right", "out"]
    assert ("left.stride(1)", 1) in recipe.equal
    assert "left.size(0)" not in recipe.aligned
    assert {"left", "out", "left.stride(0)"} <= set(recipe.aligned)


def test_a_size_that_is_one_in_all_launches_is_compiled_in_and_guarded(code: WatchedCode):
    contract = op("linear").examples[0]
    config = GEMM_CONFIGS["standard"]
    one = [launch for launch, _ in launches_of(code, contract, 1, config)]
    assert ("left.size(0)", 1) in recipe_of(one)[0].equal
    two = [launch for launch, _ in launches_of(code, contract, 2, config)]
    recipe, how = recipe_of([*one, *two])
    assert "left.size(0)" not in dict(recipe.equal)
    assert how.signature["rows"] == "i32"


def test_the_binary_has_the_arguments_of_the_recipe(code: WatchedCode, tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    launches = [launches_of(code, op("rms_norm").examples[0], size, None)[0][0] for size in RECORDED]
    recipe, how = recipe_of(launches)
    source = ASTSource(launches[0].function, how.signature, how.constants, how.attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launches[0].options)
    signature = built.asm["ptx"].partition(".entry")[2].partition(")")[0]
    scratch = 2
    assert signature.count(".param") == len(recipe.arguments) + scratch


HOST = """
def program(x: torch.Tensor, y: torch.Tensor, factor: hl.constexpr, *, _launcher=_default_launcher):
    '''What it does.'''
    {}
    _launcher(_helion_program, ({},), x, y, {}, num_warps=4)
"""


def host(argument: str, *before: str, grid: str = "x.size(0)") -> str:
    return HOST.format("\n    ".join(before or ("n = 1",)), grid, argument)


@pytest.mark.parametrize(
    ("before", "argument", "expected"),
    [
        ("rows, _, columns = x.size()", "columns * rows", "x.size(2) * x.size(0)"),
        ("a, b = y.stride()", "a % b", "y.stride(0) % y.stride(1)"),
        ("B = 64", "(x.size(0) + B - 1) // B * (128 // B) * 1", "(x.size(0) + 63) // 64 * 2"),
        ("B = 1", "(x.size(0) + B - 1) // B", "x.size(0)"),
        ("n = x.size(0) - 1", "n * (n - 1)", "(x.size(0) - 1) * (x.size(0) - 1 - 1)"),
        ("n = 4 // 2 * 3 % 4", "n", "2"),
        ("n = 2 - 3", "n * factor", "(2 - 3) * factor"),
        ("same = y", "min(same.size(0), max(factor, 3))", "min(y.size(0), max(factor, 3))"),
        ("n = triton.cdiv(x.size(1), 16)", "n", "cdiv(x.size(1), 16)"),
        ("n = helion.runtime.get_num_sm(x.device)", "n * 2", "num_processors * 2"),
        ("unused = torch.empty(3)", "7", "7"),
        ("if True:\n        n = 1\n    else:\n        n = f(x)", "n", "1"),
        ("if False:\n        n = f(x)\n    else:\n        n = 2", "n", "2"),
    ],
)
def test_assignments_are_put_into_expressions(before: str, argument: str, expected: str):
    assert host_recipe(host(argument, before), "folder.program").arguments == ("x", "y", expected)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (host("n", "n = torch.empty(3).size(0)"), "torch.empty(3)"),
        (host("x.size(-1)"), "x.size(-1)"),
        (host("x.size(factor)"), "x.size(factor)"),
        (host("x.shape[0]"), "x.shape[0]"),
        (host("z"), "'z'"),
        (host("-1"), "-1"),
        (host("0.5"), "0.5"),
        (host("True"), "True"),
        (host("x.size(0) / 2"), "x.size(0) / 2"),
        (host("x.size(0) ** 2"), "x.size(0) ** 2"),
        (host("helion.runtime.get_num_sm(x.device, reserved_sms=4)"), "reserved_sms=4"),
        (host("1", "if factor:\n        n = 1"), "if factor:"),
        (host("1", "for n in range(3):\n        pass"), "for n in range(3):"),
        (host("1", "n += 1"), "n += 1"),
        (host("1", "a, b = factor"), "a, b = factor"),
        (host("1", "helion.runtime.set_triton_allocator()"), "set_triton_allocator"),
        (host("1", "_launcher(_helion_program, (1,), x)"), "launches 2 programs"),
        (host("1", grid="1, 1, 1, 1"), "(1, 1, 1, 1)"),
        (host("*x"), "*x"),
        (host("1").replace("factor", "min"), "its parameter min"),
        (host("1").replace("def program", "def other"), "no host function of that name"),
    ],
)
def test_what_recipes_cannot_say_is_refused_by_its_text(source: str, named: str):
    with pytest.raises(RecipeError, match="program: ") as error:
        host_recipe(source, "folder.program")
    assert named in str(error.value)


SCALE = textwrap.dedent("""
    def scale(source, target, factor, *, _launcher=_default_launcher):
        _launcher(_helion_scale, (1,), source, target, factor, source.size(0), 1024, num_warps=4)
""")


def scaled(**changes: Any) -> Launch:
    return replace(scale_launch(**changes), source=SCALE)


def test_what_only_some_launches_have_is_not_compiled_in():
    recipe, how = recipe_of([scaled(count=32), scaled(count=31)])
    assert "source.size(0)" not in recipe.aligned
    assert sorted(how.attributes) == [(0,), (1,)]
    recipe, how = recipe_of([scaled(count=32), scaled(count=64)])
    assert recipe.aligned == ("source", "target", "source.size(0)")
    recipe, how = recipe_of([scaled(count=32), scaled(count=64, offset=1)])
    assert recipe.aligned == ("target", "source.size(0)")
    recipe, how = recipe_of([scaled(count=1), scaled(count=2)])
    assert recipe.equal == ()
    assert how.constants == {"BLOCK": 1024}
    assert recipe_of([scaled(count=1)])[0].equal == (("source.size(0)", 1),)


def test_scalar_parameters_need_no_guard_as_binaries_are_found_by_them():
    recipe, how = recipe_of([scaled(factor=1), scaled(factor=1)])
    assert how.constants == {"factor": 1, "BLOCK": 1024}
    assert "factor" not in dict(recipe.equal)
    recipe, _ = recipe_of([scaled(factor=16)])
    assert "factor" not in recipe.aligned
    assert [argument.value for argument in recipe.arguments] == ["source", "target", "factor", "source.size(0)"]


def test_an_integer_has_the_widest_type_that_it_had():
    recipe, _ = recipe_of([scaled(count=1000), scaled(count=1 << 31)])
    assert [argument.type for argument in recipe.arguments] == ["*", "*", "fp32", "i64"]


def test_launches_of_different_programs_are_refused():
    with pytest.raises(RecipeError, match="scale: the launches are of different programs"):
        recipe_of([scaled(), scaled(num_warps=8)])
    with pytest.raises(BuildError, match=r"argument factor differs in type among launches: \['fp32', 'i32'\]"):
        recipe_of([scaled(), scaled(factor=3)])
    with pytest.raises(BuildError, match="constant factor differs among launches: None, 3"):
        recipe_of([scaled(factor=None), scaled(factor=3)])


def test_launches_that_a_recipe_does_not_describe_are_refused():
    cooperative = replace(scaled(), options={"num_warps": 4, "launch_cooperative_grid": True})
    with pytest.raises(RecipeError, match="no launch with launch_cooperative_grid = True"):
        recipe_of([cooperative])
    assert recipe_of([replace(scaled(), options={"num_ctas": 1})])
    derived = replace(scaled(), function=scale, source=SCALE.replace("source, target,", "source.size(0), target,"))
    with pytest.raises(RecipeError, match=r"source is a tensor and not one of the parameters: source.size\(0\)"):
        recipe_of([replace(derived, source=SCALE.replace("(1,), source", "(1,), source.size(0)"))])
