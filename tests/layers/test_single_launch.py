"""The plan whose block of few tokens is one launch: which blocks and steps it is for, and that it computes what the
five do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.layers.alternatives import LayerPrograms
from parhelion.layers.decoder_layer import STEP_VALUES, LayerShape, LayerWeights, add_norm, layer_calls
from parhelion.layers.fusions import FUSED_ON_GPU, ON_GPU, SINGLE_LAUNCH, SINGLE_TOKEN, plans
from parhelion.layers.program import Call, Plan, Program, cover
from parhelion.ops.contract import Contract
from parhelion.ops.decoder_block import DecoderBlock
from parhelion.ops.paged_attention.sample import places, sample_rows
from parhelion.ops.resolve import Resolver
from parhelion.ops.ways import Way
from parhelion.ops.weight_only_mv import WeightOnlyMv
from parhelion.quantization import FP8_PER_TOKEN, INT8_PER_TOKEN, QuantScheme
from tests.layers.blocks import random_block

CPU = torch.device("cpu")
SHAPE = LayerShape(
    hidden_size=512,
    intermediate_size=1024,
    num_heads=4,
    num_kv_heads=1,
    head_dim=128,
    epsilon=1e-6,
    block_size=16,
    max_position=64,
    sliding_window=None,
    dtype=torch.bfloat16,
)
BLOCK = DecoderBlock(512, 1024, 4, 1, 128, 16, 64, 128**-0.5, 1e-6, 1e-6)


def block(
    generator: torch.Generator, scheme: QuantScheme = FP8_PER_TOKEN, shape: LayerShape = SHAPE, **others: Any
) -> LayerWeights:
    return random_block(shape, scheme, generator, **others)


def calls_of(weights: LayerWeights, shape: LayerShape = SHAPE, is_first: bool = False) -> list[Call]:
    angles = torch.outer(torch.arange(64.0), 100.0 ** -(torch.arange(shape.head_dim // 2) / 16))
    return layer_calls(shape, weights, torch.cat((angles.cos(), angles.sin()), dim=-1), is_first)


@pytest.mark.parametrize("head_norms", [True, False])
def test_a_block_is_one_call_of_all_that_its_five_are_given(head_norms: bool):
    calls = calls_of(block(torch.Generator().manual_seed(1), head_norms=head_norms))
    five = cover(calls, SINGLE_TOKEN)
    (one,) = cover(calls, SINGLE_LAUNCH)
    assert one.contract == (BLOCK if head_norms else replace(BLOCK, head_epsilon=None))
    assert tuple(call.contract for call in five) == one.contract.parts
    assert one.inputs == STEP_VALUES
    assert one.outputs == ("hidden", "residual", "kv_cache")
    # The very tensors that other plans are given, the products' and the norms' in order.
    given = [weight for call in five for weight in call.weights]
    assert len(given) == one.contract.num_weights
    assert all(ours is theirs for ours, theirs in zip(one.weights, given, strict=True))


OTHERS: dict[str, tuple[LayerShape, dict[str, Any]]] = {
    "int8": (SHAPE, {"scheme": INT8_PER_TOKEN}),
    "a bias": (SHAPE, {"biased": ("out",)}),
    "a window": (replace(SHAPE, sliding_window=20), {}),
    "small heads": (replace(SHAPE, head_dim=64, num_heads=8), {}),
    "an odd depth": (replace(SHAPE, intermediate_size=768), {}),
    "float32": (replace(SHAPE, dtype=torch.float32), {}),
    "several ranks": (replace(SHAPE, num_ranks=2), {}),
}


@pytest.mark.parametrize(("shape", "others"), OTHERS.values(), ids=OTHERS.keys())
def test_other_blocks_are_computed_as_in_the_plan_before(shape: LayerShape, others: dict[str, Any]):
    calls = calls_of(block(torch.Generator().manual_seed(1), shape=shape, **others), shape)
    assert cover(calls, SINGLE_LAUNCH) == cover(calls, SINGLE_TOKEN)


def test_texts_may_be_long():
    shape = replace(SHAPE, max_position=1 << 20)
    calls = calls_of(block(torch.Generator().manual_seed(1), shape=shape), shape)
    assert len(cover(calls, SINGLE_LAUNCH)) < len(cover(calls, SINGLE_TOKEN))


def test_the_first_block_and_the_last_norm_stay_as_they_are():
    weights = block(torch.Generator().manual_seed(1))
    calls = calls_of(weights, is_first=True)
    assert cover(calls, SINGLE_LAUNCH) == cover(calls, SINGLE_TOKEN)
    assert len(cover(calls, SINGLE_LAUNCH)) == 5
    norm = add_norm(512, 1e-6, torch.bfloat16, weights.input_norm)
    assert cover(norm, SINGLE_LAUNCH) == norm


def test_a_block_whose_values_someone_else_reads_keeps_its_calls():
    calls = calls_of(block(torch.Generator().manual_seed(1)))
    reader = Call(WeightOnlyMv(768, 256), ("qkv",), ("other",), (torch.empty(256, 768), torch.empty(256, 1)))
    assert len(cover([*calls, reader], SINGLE_LAUNCH)) == 6
    assert len(cover([*calls, replace(reader, inputs=("hidden",))], SINGLE_LAUNCH)) == 2
    # What gate and up add is another residual than that of qkv.
    five = cover(calls, SINGLE_TOKEN)
    five[3] = replace(five[3], inputs=("hidden", "other"))
    assert cover(five, SINGLE_LAUNCH[-1:]) == five
    five[3] = replace(five[3], inputs=("residual", "hidden"))
    assert cover(five, SINGLE_LAUNCH[-1:]) == five


def test_it_is_the_last_plan_of_a_gpu_with_ranks_that_exchange_and_without():
    assert ON_GPU[-1] is SINGLE_LAUNCH
    cuda = torch.device("cuda")
    assert plans("fused", cuda)[-1] is SINGLE_LAUNCH
    (one,) = cover(calls_of(block(torch.Generator().manual_seed(1))), plans("fused", cuda, exchanges=False)[-1])
    assert one.contract == BLOCK


class Quick(Resolver):
    """References, of which the block in one launch is said to be quick for up to two tokens."""

    def __init__(self) -> None:
        names = ("paged_attention", "fused_rope_attention", "decoder_block", "weight_only_mv")
        super().__init__(CPU, dict.fromkeys(names, "reference"))

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        if contract.name == "decoder_block":
            return 1.0 if num_tokens <= 2 else None
        if contract.name == "weight_only_mv" and num_tokens > 1:
            return None
        return 10.0


class Model:
    """Three blocks, and a step of some rows.

    Args:
        query_lens, seq_lens: of each row.
        of_batch: what the step says of its rows beyond.
    """

    def __init__(self, query_lens: list[int], seq_lens: list[int], **of_batch: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        self.blocks = [block(generator) for _ in range(3)]
        self.num_tokens = sum(query_lens)
        self._embedded = torch.randn(self.num_tokens, SHAPE.hidden_size, generator=generator).to(SHAPE.dtype)
        heads = (SHAPE.num_heads, SHAPE.num_kv_heads, SHAPE.head_dim, SHAPE.block_size)
        _, self._cache, attention = sample_rows(query_lens, seq_lens, heads, SHAPE.dtype, CPU, generator)
        self._positions, self._slots = places(attention, self.num_tokens, SHAPE.block_size)
        self._attention = replace(attention, **of_batch)
        self.resolver = Quick()

    def computed(self, program: Callable[[int, LayerWeights], Any]) -> list[torch.Tensor]:
        """What the blocks leave: hidden, the residual, and the last one's cache."""
        values: list[Any] = [None, self._embedded.clone(), self._positions, self._slots, None, self._attention]
        values += [None] * 20
        for index, weights in enumerate(self.blocks):
            values[4] = self._cache.clone()
            program(index, weights)(values)
        return [values[0], values[1], values[4]]

    def under(self, plan: Any, of_first: Any = None) -> list[torch.Tensor]:
        """With each block under a plan, the first one under another if there is one."""

        def program(index: int, weights: LayerWeights) -> Program:
            own = of_first if index == 0 and of_first is not None else plan
            return Program(cover(calls_of(weights, is_first=index == 0), own), self.resolver, STEP_VALUES)

        return self.computed(program)

    def served(self) -> tuple[list[Way], list[torch.Tensor]]:
        """As a server computes it: what is called where each token has a row of its own, and what comes of the step."""
        programs = LayerPrograms(ON_GPU, self.resolver)
        later = calls_of(self.blocks[1])
        ways: list[Way] = []

        def chosen(index: int, weights: LayerWeights) -> Any:
            program = programs.program(calls_of(weights, is_first=index == 0), STEP_VALUES, later)
            ways.append(program.contracts_at(self.num_tokens))
            return program

        found = self.computed(chosen)
        return ways, found


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("num_tokens", [1, 2, 3])
def test_a_model_computes_the_same_in_one_launch_a_block_as_in_five(num_tokens: int):
    model = Model([1] * num_tokens, [20, 33, 7][:num_tokens])
    one, five, usual = map(model.under, (SINGLE_LAUNCH, SINGLE_TOKEN, FUSED_ON_GPU))
    assert_same(one, five)
    total, other = (found[0].float() + found[1].float() for found in (one, usual))
    # The same but for what quantized activations lose, a few percent.
    assert 0 < (total - other).norm() < 0.1 * other.norm()

    served, found = model.served()
    if num_tokens == 3:
        assert all(each.name not in ("decoder_block", "weight_only_mv") for way in served for each in way)
        return
    assert [[each.name for each in way] for way in served[1:]] == [["decoder_block"]] * 2
    # The first one in five launches, or where that is for a token alone, as it would be without any of this.
    first = SINGLE_TOKEN if num_tokens == 1 else served_plan(served[0])
    assert_same(found, model.under(SINGLE_LAUNCH, first))


def served_plan(way: Way) -> Plan:
    """The plan of a first block, which is none for a token alone."""
    assert all(each.name != "weight_only_mv" for each in way)
    first = calls_of(block(torch.Generator().manual_seed(3)), is_first=True)
    return next(plan for plan in ON_GPU if tuple(call.contract for call in cover(first, plan)) == tuple(way))


ONE_SEQUENCE = torch.zeros(2, dtype=torch.int32)
"""Whose two rows are."""


def test_a_step_with_guesses_is_computed_as_one_of_single_tokens():
    model = Model([1, 1], [20, 21], max_query_len=2, max_siblings=2, row_slots=ONE_SEQUENCE)
    served, found = model.served()
    assert [each.name for each in served[1]] == ["decoder_block"]
    assert_same(found, model.under(SINGLE_LAUNCH, served_plan(served[0])))


@pytest.mark.parametrize(
    ("query_lens", "seq_lens", "of_batch"),
    [
        ([2], [20], {}),
        ([1, 1], [20, 33], {"max_query_len": 2}),
        ([1, 1], [20, 21], {"max_query_len": 2, "max_siblings": 16, "row_slots": ONE_SEQUENCE}),
    ],
    ids=["a prompt", "rows that may be prompts", "as many guesses as no program is for"],
)
def test_a_step_whose_rows_may_have_several_tokens_is_computed_in_another_way(
    query_lens: list[int], seq_lens: list[int], of_batch: dict[str, Any]
):
    model = Model(query_lens, seq_lens, **of_batch)
    served, found = model.served()
    # Of single tokens the same program would be another.
    assert [each.name for each in served[1]] == ["decoder_block"]
    assert_same(found, model.under(served_plan(served[0])))
