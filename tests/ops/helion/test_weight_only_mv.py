"""``weight_only_mv``'s tile programs in the interpreter, beside the reference in float64: with and without a norm, a
residual and an activation, FP8 and INT8, K and N that are no multiples of tiles.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.ops.check import check, compare
from parhelion.ops.contract import Launcher, Tensors, as_tuple
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import interpret, tile_program
from parhelion.ops.inputs import map_tensors
from parhelion.ops.oracle import Oracle
from parhelion.ops.quantize import per_token_quantized
from parhelion.ops.weight_only_mv import OP, WeightOnlyMv
from parhelion.ops.weight_only_mv.config import MOST_CANDIDATES, MvConfig
from parhelion.ops.weight_only_mv.launch import candidates, default_config, launch, with_more_or_less_ahead
from tests.ops.helion.awkward import AWKWARD_ROWS, generator, with_awkward_row

CPU = torch.device("cpu")

KINDS = {
    "product": {},
    "norm": {"epsilon": 1e-6},
    "norm_of_sum": {"epsilon": 1e-5, "add_residual": True},
    "activation": {"gated": True},
    "all": {"epsilon": 1e-6, "add_residual": True, "gated": True},
}

CONFIGS = {
    "whole_rows": MvConfig(8, 512),
    "two_steps": MvConfig(16, 128, 4, 2),
    "many_steps": MvConfig(4, 32, 4, 4),
    "nothing_ahead": MvConfig(2, 64, 4, 0),
    "more_ahead_than_there_is": MvConfig(16, 256, 8, 4),
    "two_blocks": MvConfig(4, 256, 8, 1, blocks=2),
    "three_blocks_beyond_the_end": MvConfig(16, 128, 4, 3, blocks=3),
}

ON_MATRIX_UNIT = {
    "one_program_a_tile": MvConfig(64, 64, 4, 0, on_matrix_unit=True),
    "all_ahead": MvConfig(32, 64, 4, 2, on_matrix_unit=True, split_k=3),
    "some_ahead_of_shared_tiles": MvConfig(64, 32, 4, 2, on_matrix_unit=True, split_k=4),
}
"""For a K of 384, no power of two, and an N that is no multiple of tiles."""


def contract_of(kind: str, quant_dtype: torch.dtype, dtype: torch.dtype = torch.bfloat16) -> WeightOnlyMv:
    return WeightOnlyMv(200, 72, quant_dtype, dtype, **KINDS[kind])  # type: ignore[arg-type]


def launcher(contract: WeightOnlyMv, config: MvConfig, run: Any = interpret) -> Launcher:
    return functools.partial(launch, contract, run, config)


def assert_agrees(contract: WeightOnlyMv, launch: Launcher, num_tokens: int) -> None:
    """With the reference in float64 and in float32, launched once."""
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    launched: list[Tensors] = []

    def keep(*given: torch.Tensor) -> Tensors:
        launched.append(as_tuple(launch(*given)))
        return launched[0]

    errors = Oracle(contract, inputs).compare(keep)
    for error in (*errors, *compare(contract, launched[0], as_tuple(contract.reference(*inputs)))):
        assert error.problem is None, error


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
@pytest.mark.parametrize("contract", OP.examples[:3], ids=str)
def test_agrees_with_the_reference(contract: WeightOnlyMv, num_tokens: int):
    assert_agrees(contract, OP.provider("helion").launcher(contract), num_tokens)


CODES = ((torch.float8_e4m3fn, 1), (torch.float8_e4m3fn, 3), (torch.int8, 2))
"""Of a weight, and how many tokens there are."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_kind_and_config_agrees_with_the_reference(kind: str, config: str):
    """Each kind and each config with all codes in turn."""
    quant_dtype, num_tokens = CODES[([*KINDS].index(kind) + [*CONFIGS].index(config)) % len(CODES)]
    assert_agrees(contract_of(kind, quant_dtype), launcher(contract_of(kind, quant_dtype), CONFIGS[config]), num_tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", ON_MATRIX_UNIT)
def test_two_codes_an_element_are_close_enough(kind: str, config: str):
    """Far closer than the one code an element of quantized activations, which this compares with as well."""
    contract = WeightOnlyMv(384, 200, **KINDS[kind])  # type: ignore[arg-type]
    num_tokens = 1 + [*ON_MATRIX_UNIT].index(config)
    assert_agrees(contract, launcher(contract, ON_MATRIX_UNIT[config]), num_tokens)
    plain = WeightOnlyMv(384, 200)
    inputs = plain.sample_inputs(num_tokens, CPU, generator())
    [error] = Oracle(plain, inputs).compare(launcher(plain, ON_MATRIX_UNIT[config]))
    codes, scales = per_token_quantized(inputs[0].float(), torch.float8_e4m3fn)
    [usual] = Oracle(plain, inputs).compare(lambda x, *weights: plain.reference(codes.float() * scales, *weights))
    assert error.relative < usual.relative / 8


@pytest.mark.parametrize("row", AWKWARD_ROWS)
def test_an_awkward_row_stays_by_itself_on_the_matrix_unit(row: str):
    contract = WeightOnlyMv(384, 200, epsilon=1e-6, add_residual=True, gated=True)
    config = ON_MATRIX_UNIT["some_ahead_of_shared_tiles"]
    inputs = list(contract.sample_inputs(3, CPU, generator()))
    usual = launcher(contract, config)(*inputs)
    inputs[0] = with_awkward_row(inputs[0], row, 1)
    if row == "zeros":
        inputs[1] = with_awkward_row(inputs[1], row, 1)
    changed = launcher(contract, config)(*inputs)
    for got, want in zip(changed, usual, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]])
    if row == "zeros":
        assert not changed[0][1].any()
    elif row in ("nan", "inf"):
        assert changed[0][1].isnan().all()


def test_what_is_ahead_on_the_matrix_unit_fits_in_registers_and_in_the_span():
    contract = WeightOnlyMv(4096, 6144, epsilon=1e-6)
    short = MvConfig(64, 256, 4, 0, on_matrix_unit=True, split_k=8, num_stages=2)
    assert [config.ahead for config in with_more_or_less_ahead(contract, short)] == [0, 1, 2]
    wide = MvConfig(128, 512, 4, 0, on_matrix_unit=True, split_k=2, num_stages=2)
    assert [config.ahead for config in with_more_or_less_ahead(contract, wide)] == [0, 1]
    gated = replace(contract, gated=True)
    assert [config.ahead for config in with_more_or_less_ahead(gated, wide)] == [0]


@pytest.mark.parametrize("contract", OP.examples[3:], ids=str)
def test_the_matrix_unit_is_tried_for_fp8_codes_where_it_takes_them(contract: WeightOnlyMv):
    for name, has_it in (("sm_80", False), ("sm_90", True), ("gfx950", False)):
        found = [config for config in candidates(contract, 1, gemm_target(name)) if config.on_matrix_unit]
        assert bool(found) == (has_it and contract.quant_dtype == torch.float8_e4m3fn)
        for config in found:
            assert contract.in_features % (config.split_k * config.block_k) == 0
            assert config.num_stages * config.block_k * config.split_k <= contract.in_features


@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_agree_with_the_reference(kind: str):
    for dtype in (torch.float16, torch.float32):
        contract = contract_of(kind, torch.int8, dtype)
        assert_agrees(contract, launcher(contract, CONFIGS["two_steps"]), 2)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_rounded_in_between(kind: str):
    """The reference in float64, rounded once, is met almost everywhere to the bit."""
    contract = contract_of(kind, torch.float8_e4m3fn)
    inputs = contract.sample_inputs(13, CPU, generator())
    y = as_tuple(launcher(contract, CONFIGS["two_steps"])(*inputs))[0]
    exact = as_tuple(contract.reference(*map_tensors(inputs, lambda x: x if x.dtype.itemsize == 1 else x.double())))[0]
    if contract.add_residual:
        # In float64 the reference does not round the residual.
        total = (inputs[0].float() + inputs[1].float()).to(contract.dtype)
        without = replace(contract, add_residual=False)
        exact = as_tuple(
            without.reference(total.double(), *(x if x.dtype.itemsize == 1 else x.double() for x in inputs[2:]))
        )[0]
    assert exact.dtype == torch.float64
    assert (y != exact.to(contract.dtype)).double().mean() < 0.01


def test_the_new_residual_is_the_sum_and_the_old_one_stays():
    contract = contract_of("all", torch.float8_e4m3fn)
    inputs = contract.sample_inputs(3, CPU, generator())
    before = [x.clone() for x in inputs[:2]]
    _, total = launcher(contract, CONFIGS["many_steps"])(*inputs)
    assert torch.equal(total, (inputs[0].float() + inputs[1].float()).to(contract.dtype))
    assert all(map(torch.equal, inputs[:2], before))


@pytest.mark.parametrize("row", AWKWARD_ROWS)
@pytest.mark.parametrize("kind", ["norm_of_sum", "all"])
def test_an_awkward_row_stays_by_itself(kind: str, row: str):
    contract = contract_of(kind, torch.int8)
    inputs = list(contract.sample_inputs(4, CPU, generator()))
    usual = launcher(contract, CONFIGS["two_steps"])(*inputs)
    inputs[0] = with_awkward_row(inputs[0], row, 2)
    if row == "zeros":
        inputs[1] = with_awkward_row(inputs[1], row, 2)
    changed = launcher(contract, CONFIGS["two_steps"])(*inputs)
    others = [0, 1, 3]
    for got, want in zip(changed, usual, strict=True):
        assert torch.equal(got[others], want[others])
    if row == "zeros":
        assert not changed[0][2].any()
    elif row in ("nan", "inf"):
        assert changed[0][2].isnan().all()
    else:
        for error in check(contract, lambda *_: changed, tuple(inputs)):
            assert error.problem is None, error


def test_no_more_is_read_ahead_than_there_is():
    """The interpreter knows no launches, so none is programmatic."""
    contract = contract_of("all", torch.float8_e4m3fn)
    seen: list[int] = []

    def interpret_alone(kernel: str, config: Any, *arguments: Any) -> None:
        program = tile_program(kernel)
        given = dict(zip(inspect.signature(program.fn).parameters, arguments, strict=True))
        seen.append(given["ahead"])
        assert config.programmatic
        program(*(given | {"programmatic": False}).values())

    for ahead, blocks in ((0, 1), (1, 1), (2, 1), (4, 1), (8, 2)):
        config = MvConfig(8, 128, ahead=ahead, blocks=blocks, programmatic=True)
        assert_agrees_once(contract, launcher(contract, config, interpret_alone))
    assert seen == [0, 1, 2, 2, 4]


def assert_agrees_once(contract: WeightOnlyMv, launch: Launcher) -> None:
    for error in check(contract, launch, contract.sample_inputs(1, CPU, generator())):
        assert error.problem is None, error


def test_no_token_is_no_launch():
    contract = contract_of("all", torch.float8_e4m3fn)
    y, total = launcher(contract, CONFIGS["whole_rows"])(*contract.sample_inputs(0, CPU, generator()))
    assert (y.shape, total.shape) == ((0, 72), (0, 200))


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "gfx950"])
def test_candidates_are_few_differ_and_begin_with_the_untuned_one(name: str):
    target = gemm_target(name)
    for contract, bucket in itertools.product(OP.examples, (1, 8)):
        found = [config for config in candidates(contract, bucket, target) if not config.on_matrix_unit]
        assert 1 <= len(set(found)) == len(found) <= MOST_CANDIDATES
        assert found[0] == default_config(contract, bucket, target)
        parts = 2 if contract.gated else 1
        for config in found:
            # Of a thread: no less than one load, no more than it has registers for beside all else.
            assert 16 <= parts * config.block_n * config.block_k // (32 * config.num_warps) <= 256


def test_a_residual_without_a_norm_is_refused():
    with pytest.raises(ValueError, match="a residual is added only before a norm"):
        WeightOnlyMv(64, 96, add_residual=True)


def test_traffic_counts_each_input_and_output_once():
    # Codes 2 x 32 x 64 and 64 scales; x, the residual twice and the norm's weight, 64 of two bytes each; y 32.
    traffic = WeightOnlyMv(64, 32, epsilon=1e-6, add_residual=True, gated=True).traffic(3)
    assert traffic.bytes == 4096 + 4 * 64 + 2 * (3 * 3 * 64 + 64 + 3 * 32)
    assert traffic.flops == 3 * (2 * 64 * 64 + 5 * 64 + 5 * 32)
    assert WeightOnlyMv(64, 32).traffic(1).bytes == 2048 + 4 * 32 + 2 * (64 + 32)
