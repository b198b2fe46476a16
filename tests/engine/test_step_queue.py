"""What changes in the tables of a device gets there with the next step, however much it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parhelion.engine.device import step_queue
from parhelion.engine.device.state import PARAMETERS, DeviceState
from parhelion.engine.device.step_queue import DeviceQueue
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import Bucket, StepRows, view_ints
from parhelion.ops.resolve import Resolver
from tests.engine.requests import add_request

CPU = torch.device("cpu")
LARGEST = Bucket(4, 8)
ROWS = StepRows(*np.array([[2, 0], [4, 3], [1, 1], [1, 1], [0, 1]]))


@pytest.mark.parametrize("room", [1 << 10, 3])
@pytest.mark.parametrize("bucket", [Bucket.decoding(2), Bucket(3, 4)])
def test_entries_of_all_tables_are_written_and_the_step_is_sent(
    bucket: Bucket, room: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(step_queue, "ROOM_FOR_UPDATES", room)
    state = DeviceState(3, 17, 4, CPU, Resolver(CPU))
    queue = DeviceQueue(state, LARGEST, 2, CPU)
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
    ints = view_ints(queue.ints, bucket)
    assert ints.row_slot.tolist()[:2] == [2, 0]
    assert ints.token_position.tolist()[:2] == [4, 3]
    # Once is enough.
    state.flat.zero_()
    queue.send_padding(bucket)
    assert not state.flat.any()
