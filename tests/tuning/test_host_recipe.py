"""Recipes do what Helion's host functions do, for a size of M that they were not made from.

Those of every op are compared in ``test_programs.py``, where their code is generated anyway.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.registry import op
from parhelion.tuning.cross_compile import BuildError
from parhelion.tuning.host_recipe import RecipeError, host_recipe, recipe_of
from parhelion.tuning.record import Launch
from tests.tuning.triton_programs import scale, scale_launch
from tests.tuning.watched_code import PROCESSORS, RECORDED, WatchedCode, check, launches_of, watched_code

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


@pytest.fixture(scope="module")
def code() -> Iterator[WatchedCode]:
    """Generated code of all tests here."""
    with watched_code() as watched:
        yield watched


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
