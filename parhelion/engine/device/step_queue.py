"""How the integers of steps, and what changes in the tables of requests, get to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from parhelion.engine.device.state import DeviceState, Update, merged
from parhelion.engine.step_layout import Bucket, StepRows, num_ints, pack
from parhelion.platform.streams import Event, pinned, record_event

ROOM_FOR_UPDATES = 1 << 17
"""Integers behind a step's own fields for the prompts, blocks and parameters of new requests; more go separately."""


_NO_ROWS = StepRows(*np.zeros((5, 0), np.int64))


class DeviceQueue:
    """Copies one buffer of integers a step, without waiting for the steps before.

    Args:
        state: the tables that are changed.
        largest: bucket of any step.
        num_buffers: on the host, used in turn: a step's own is not touched before so many others were sent.
        device: where.

    Attributes:
        ints: int32 on the device; the step that was sent last lies at its front.
    """

    def __init__(self, state: DeviceState, largest: Bucket, num_buffers: int, device: torch.device) -> None:
        room = num_ints(largest) + ROOM_FOR_UPDATES
        self.ints = torch.zeros(room, dtype=torch.int32, device=device)
        self._state = state
        self._device = device
        self._host_buffers = [pinned(room, device) for _ in range(num_buffers)]
        self._copied: list[Event] = [record_event(device) for _ in range(num_buffers)]
        self._turn = 0
        self._updates: list[Update] = []

    def write(self, updates: Sequence[Update]) -> None:
        """Change entries of tables before the step that is sent next."""
        self._updates += updates

    def send(self, rows: StepRows, bucket: Bucket) -> None:
        """Copy a step's fields and what changes in tables to the device, and write the latter.

        Args:
            rows: the step's.
            bucket: what it is padded to.
        """
        buffer = self._next_buffer()
        host = buffer.numpy()
        end = pack(rows, bucket, host, self._state.spare_slot, self._state.spare_position)
        if not self._updates:
            self._copy(buffer, end)
            return
        changes = merged(self._updates).flat()
        self._updates = []
        # The first of them have 64 bits.
        start = end + end % 2
        end = start + len(changes)
        if end <= len(host):
            host[start:end] = changes
            self._copy(buffer, end)
            self._change(self.ints[start:end])
        else:
            self._copy(buffer, start)
            self._change(torch.from_numpy(changes).to(self._device))

    def send_padding(self, bucket: Bucket) -> None:
        """A step of no rows."""
        self.send(_NO_ROWS, bucket)

    def _copy(self, buffer: torch.Tensor, count: int) -> None:
        self.ints[:count].copy_(buffer[:count], non_blocking=True)
        self._copied[self._turn].record()

    def _change(self, changes: torch.Tensor) -> None:
        """Write what an update's ``flat`` has brought to the device."""
        count = len(changes) // 3
        self._state.flat.scatter_(0, changes[: 2 * count].view(torch.int64), changes[2 * count :])

    def _next_buffer(self) -> torch.Tensor:
        """The host buffer whose turn it is, once the device has copied the step that was in it."""
        self._turn = (self._turn + 1) % len(self._host_buffers)
        self._copied[self._turn].synchronize()
        return self._host_buffers[self._turn]
