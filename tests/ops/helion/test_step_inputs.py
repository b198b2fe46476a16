"""``step_inputs``'s tile program in the interpreter, beside the reference and beside plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parhelion.engine.device.state import DeviceState
from parhelion.engine.step_layout import Bucket, StepRows, num_ints, pack, view_ints
from parhelion.ops.check import check
from parhelion.ops.contract import Tensors
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import interpret
from parhelion.ops.inputs import tensors_in
from parhelion.ops.resolve import Resolver
from parhelion.ops.step_inputs import OP, StepInputs
from parhelion.ops.step_inputs.launch import candidates, launch
from tests.ops.helion.awkward import generator

CPU = torch.device("cpu")

SIZES = (1, 2, 5, 67)

BLOCK_SIZE = 4


def step(num_rows: int, num_padding: int, *, num_slots: int = 9, max_blocks: int = 7) -> Tensors:
    """As an engine packs a step: views of one buffer of integers, one after another, padding last.

    Rows may share slots, as guesses do. The spare slot and the spare column come last.
    """
    random, width = generator(num_rows), max_blocks * BLOCK_SIZE + 2
    is_padding = torch.arange(num_rows) >= num_rows - num_padding
    position = torch.randint(width - 2, (num_rows,), generator=random)
    samples = torch.rand(num_rows, generator=random) < 0.8
    fields = (
        torch.where(is_padding, num_slots, torch.randint(num_slots, (num_rows,), generator=random)),
        torch.where(is_padding, -1, torch.arange(num_rows)),
        torch.where(is_padding, 0, position),
        torch.where(is_padding | ~samples, width - 1, position + 1),
    )
    # One integer in front, and three of another field between any two.
    buffer = torch.full((1 + sum(len(field) + 3 for field in fields),), 77, dtype=torch.int32)
    views, first = [], 1
    for field in fields:
        view = buffer[first : first + num_rows]
        views.append(view.copy_(field))
        first += num_rows + 3
    tokens = torch.randint(2**17, (num_slots + 1, width), generator=random, dtype=torch.int32)
    # Places beyond 32 bits.
    block_table = torch.randint(2**30, 2**31 - 1, (num_slots + 1, max_blocks), generator=random, dtype=torch.int32)
    return (*views, tokens, block_table)


def assert_agrees(contract: StepInputs, inputs: Tensors) -> None:
    for error in check(contract, OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("num_rows", SIZES)
@pytest.mark.parametrize("share_of_padding", [0.0, 0.4, 1.0])
def test_agrees_with_the_reference(num_rows: int, share_of_padding: float):
    assert_agrees(StepInputs(BLOCK_SIZE), step(num_rows, int(num_rows * share_of_padding)))


@pytest.mark.parametrize("num_rows", SIZES)
def test_views_of_the_buffer_are_read_where_they_lie(num_rows: int):
    """``check`` copies its inputs; here they are at odd addresses."""
    contract, inputs = StepInputs(BLOCK_SIZE), step(num_rows, num_rows // 3)
    assert any(field.data_ptr() % 16 for field in inputs[:4])
    found = OP.provider("helion").launcher(contract)(*inputs)
    for output, got, want in zip(contract.outputs, found, contract.reference(*inputs), strict=True):
        assert got.dtype == want.dtype, output
        assert torch.equal(got, want), output


@pytest.mark.parametrize("num_rows", SIZES)
def test_samples_agree_with_the_reference(num_rows: int):
    contract = StepInputs(16)
    assert_agrees(contract, contract.sample_inputs(num_rows, CPU, generator()))


@pytest.mark.parametrize("max_blocks", [1, 300])
def test_rows_of_one_block_and_of_more_than_one_program(max_blocks: int):
    inputs = step(5, 1, max_blocks=max_blocks)
    contract, target = StepInputs(BLOCK_SIZE), gemm_target("sm_90")
    for config in candidates(contract, 8, target):
        found = launch(contract, interpret, config, *inputs)
        for got, want in zip(found, contract.reference(*inputs), strict=True):
            assert torch.equal(got, want)


def test_where_an_id_goes_may_be_beyond_32_bits():
    """The table is one row that stands for all slots, so that it takes no memory."""
    width, num_slots = 2**20, 2**12
    tokens = torch.arange(width, dtype=torch.int32)[None].expand(num_slots, width)
    integers = (torch.tensor([each], dtype=torch.int32) for each in (num_slots - 1, 0, 5, 6))
    block_table = torch.zeros((num_slots, 2), dtype=torch.int32)
    launch_step = OP.provider("helion").launcher(StepInputs(BLOCK_SIZE))
    token_ids, *_, sample_index = launch_step(*integers, tokens, block_table)
    assert token_ids.tolist() == [5]
    assert sample_index.tolist() == [(num_slots - 1) * width + 6]


@pytest.mark.parametrize("bucket", [Bucket.decoding(1), Bucket.decoding(5), Bucket.verifying(8, 4)], ids=str)
def test_it_serves_the_steps_of_an_engine(bucket: Bucket):
    found = []
    for provider in ("helion", "reference"):
        resolver = Resolver(CPU, {"step_inputs": provider})
        state = DeviceState(4, 30, BLOCK_SIZE, CPU, resolver)
        assert resolver.chosen == {"step_inputs": {provider}}
        state.tokens.random_(2**17, generator=generator())
        state.block_table.random_(2**10, generator=generator())
        rows = StepRows(*np.array([[2, 0, 2], [9, 4, 10], [1, 1, 1], [1, 0, 1], [0, 0, 0]])[:, : bucket.num_rows])
        buffer = np.zeros(num_ints(bucket), np.int32)
        pack(rows, bucket, buffer, state.spare_slot, state.spare_position)
        step = state.tensors(view_ints(torch.from_numpy(buffer), bucket), bucket)
        state.store(step.sample_index, torch.arange(bucket.num_rows))
        found.append((*tensors_in(step.batch), step.sample_index, state.tokens[:-1]))
    for ours, reference in zip(*found, strict=True):
        assert torch.equal(ours, reference)
