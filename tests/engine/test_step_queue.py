"""What changes in the tables of a device gets there with the next step, however much it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from parhelion.engine.device import step_queue
from parhelion.engine.device.state import PARAMETERS, DeviceState, Update
from parhelion.engine.device.step_queue import DeviceQueue
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import Bucket, StepRows, num_ints, pack, view_ints
from parhelion.ops.resolve import Resolver
from parhelion.platform.streams import work_stream
from tests.engine.requests import add_request

CPU = torch.device("cpu")
LARGEST = Bucket(4, 8)
ROWS = StepRows(*np.array([[2, 0], [4, 3], [1, 1], [1, 1], [0, 1]]))


@pytest.mark.parametrize("room", [1 << 10, 3])
@pytest.mark.parametrize("bucket", [Bucket.decoding(2), Bucket(3, 4), Bucket.verifying(2, 2, entries=4)])
def test_entries_of_all_tables_are_written_and_the_step_is_sent(
    bucket: Bucket, room: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(step_queue, "ROOM_FOR_UPDATES", room)
    state = DeviceState(3, 17, 4, CPU, Resolver(CPU))
    queue = DeviceQueue(state, LARGEST, 2, work_stream(CPU))
    sampling = SamplingState(3)
    sampling.set(1, add_request("r", [1, 2], temperature=0.5, top_k=9, seed=77))
    queue.write([state.token_update(2, np.array([5, 6, 7])), state.block_update(0, 1, np.array([8, 9]))])
    queue.write([state.parameter_update(1, sampling)])
    queue.send(ROWS, bucket)
    tokens, blocks = torch.zeros(4, 19, dtype=torch.int32), torch.zeros(4, 5, dtype=torch.int32)
    tokens[2, :3] = torch.tensor([5, 6, 7])
    blocks[0, 1:3] = torch.tensor([8, 9])
    assert torch.equal(state.tokens, tokens)
    assert torch.equal(state.block_table, blocks)
    assert state.parameters[1, :1].view(torch.float32).tolist() == [0.5]
    assert state.parameters[1, 3:].tolist() == [9, 77, 0]
    assert not state.parameters[[0, 2, 3]].any()
    assert state.parameters.shape == (4, PARAMETERS)
    # A step with entries has none of its own then.
    state.take_in(queue.ints, bucket)
    tokens[3, state.spare_position] = state.tokens[3, state.spare_position]
    assert torch.equal(state.tokens, tokens)
    ints = view_ints(queue.ints, bucket)
    assert ints.row_slot.tolist()[:2] == [2, 0]
    assert ints.token_position.tolist()[:2] == [4, 3]
    # Once is enough.
    state.flat.zero_()
    queue.send_padding(bucket)
    assert not state.flat.any()


VERIFYING = Bucket.verifying(4, 2, entries=4)
GUESSES = StepRows(*np.array([[2, 2, 0], [4, 5, 3], [1, 1, 1], [1, 1, 1], [0, 1, 1]]))


class Calls(TorchDispatchMode):
    """Notes what torch is asked to do, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def small_queue(num_buffers: int = 1) -> tuple[DeviceState, DeviceQueue]:
    state = DeviceState(3, 17, 4, CPU, Resolver(CPU))
    return state, DeviceQueue(state, VERIFYING, num_buffers, work_stream(CPU))


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_entries_that_fit_are_written_by_the_step_and_its_other_entries_touch_no_slot(count: int):
    state, queue = small_queue()
    # Somebody has filled all of them before.
    queue.write([state.token_update(1, np.array([90, 91, 92, 93]))])
    queue.send(GUESSES, VERIFYING)
    state.flat.zero_()
    guesses = list(range(5, 5 + count))
    queue.write([Update(range(2 * 19 + 5, 2 * 19 + 5 + count), guesses)] if count else [])
    with Calls() as calls:
        queue.send(GUESSES, VERIFYING)
    assert calls.names == ["add"]
    assert not state.flat.any()
    ints = state.take_in(queue.ints, VERIFYING)
    tokens = torch.zeros(4, 19, dtype=torch.int32)
    tokens[2, 5 : 5 + count] = torch.tensor(guesses)
    tokens[state.spare_slot, state.spare_position] = state.tokens[state.spare_slot, state.spare_position]
    assert torch.equal(state.tokens, tokens)
    assert not state.flat[tokens.numel() :].any()
    assert ints.row_slot.tolist() == [2, 2, 0, 3]


def test_a_block_and_guesses_come_together_and_are_there_when_tokens_are_looked_up():
    state, queue = small_queue()
    state.tokens[2, 4], state.tokens[0, 3] = 70, 71
    queue.write([state.block_update(2, 1, (8,)), Update((2 * 19 + 5,), (72,))])
    queue.send(GUESSES, VERIFYING)
    batch = state.tensors(state.take_in(queue.ints, VERIFYING), VERIFYING).batch
    assert batch.token_ids.tolist()[:3] == [70, 72, 71]
    assert batch.slot_mapping.tolist() == [32, 33, 3, -1]


def test_one_entry_more_than_fits_is_written_before_the_step():
    state, queue = small_queue()
    queue.write([state.token_update(0, np.arange(1, 6))])
    with Calls() as calls:
        queue.send(GUESSES, VERIFYING)
    assert calls.names == ["add", "scatter_"]
    expected = state.flat.clone()
    assert state.tokens[0, :5].tolist() == [1, 2, 3, 4, 5]
    state.take_in(queue.ints, VERIFYING)
    expected[state.spare_offset] = state.flat[state.spare_offset]
    assert torch.equal(state.flat, expected)


def test_entries_of_a_large_table_have_offsets_of_64_bits():
    state, queue = small_queue()
    queue.write([Update((2**33 + 5,), (1,))])
    queue.send(GUESSES, VERIFYING)
    first = num_ints(VERIFYING) - 3 * VERIFYING.entries
    assert queue.ints[first : first + 8].view(torch.int64).tolist() == [2**33 + 5] + [state.spare_offset] * 3


@pytest.mark.parametrize(
    "bucket",
    [
        Bucket.decoding(4),
        Bucket.decoding(4, at_bounds=True),
        VERIFYING,
        Bucket.verifying(4, 4, at_bounds=True),
    ],
    ids=str,
)
def test_what_a_buffer_held_before_does_not_show(bucket: Bucket):
    """Steps of as many rows are written over each other in part."""
    state, queue = small_queue()
    random = np.random.default_rng(3)
    others = Bucket(4, 8), Bucket.decoding(2)
    for count in (3, 3, 3, 4, 4, 2, 2, 0, 3, 3, 1):
        fields = [np.sort(random.integers(0, 3, count)), *random.integers(1, 16, (1, count))]
        unchecked = random.integers(-2, 3, count) if bucket.at_bounds and random.random() < 0.7 else None
        rows = StepRows(
            *fields, np.ones(count, int), random.integers(0, 2, count), random.integers(0, 9, count), unchecked
        )
        if random.random() < 0.2:
            queue.send(ROWS, others[count % 2])
        queue.send(rows, bucket)
        expected = np.full(200, 77, np.int32)
        end = pack(rows, bucket, expected, state.spare_slot, state.spare_position)
        assert queue.ints[:end].tolist() == expected[:end].tolist()
