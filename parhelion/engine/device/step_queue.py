"""How the integers of steps, and what changes in the tables of requests, get to the device."""

from __future__ import annotations

import numpy as np
import torch

from parhelion.engine.device.state import DeviceState, Update, merged
from parhelion.engine.step_layout import Bucket, StepRows, num_ints, pack
from parhelion.platform.streams import Event, pinned, record_event

ROOM_FOR_UPDATES = 1 << 17
"""Integers behind a step's own fields for the prompts, blocks and parameters of new requests; more go separately."""


_NO_ROWS = StepRows(*np.zeros((5, 0), np.int64))

Updates = tuple[list[Update], list[Update], list[Update]]
"""Of the tables of tokens, blocks and parameters."""


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
        self._copied: list[Event | None] = [None] * num_buffers
        self._turn = 0

    def send(self, rows: StepRows, bucket: Bucket, updates: Updates = ([], [], [])) -> None:
        """Copy a step's fields and the entries of changed tables to the device, and write the entries.

        Args:
            rows: the step's.
            bucket: what it is padded to.
            updates: entries of tables that change before the step.
        """
        tables = (self._state.tokens, self._state.block_table, self._state.parameters)
        entries = [merged(each) for each in updates]
        buffer = self._next_buffer()
        host = buffer.numpy()
        end = pack(rows, bucket, host, self._state.spare_slot, self._state.spare_position)
        behind = np.concatenate([each.flat() for each in entries])
        fits = end + len(behind) <= len(host)
        if fits:
            host[end : end + len(behind)] = behind
            end += len(behind)
        self.ints[:end].copy_(buffer[:end], non_blocking=True)
        self._copied[self._turn] = record_event(self._device)
        written = self.ints[end - len(behind) : end] if fits else torch.from_numpy(behind).to(self._device)
        for table, each in zip(tables, entries, strict=True):
            count = len(each.offsets)
            if count:
                table.view(-1)[written[:count].long()] = written[count : 2 * count]
            written = written[2 * count :]

    def send_padding(self, bucket: Bucket) -> None:
        """A step of no rows."""
        self.send(_NO_ROWS, bucket)

    def write(self, updates: Updates) -> None:
        """Only entries of tables, if there are any."""
        if any(updates):
            self.send(_NO_ROWS, Bucket(0, 0), updates)

    def _next_buffer(self) -> torch.Tensor:
        """The host buffer whose turn it is, once the device has copied the step that was in it."""
        self._turn = (self._turn + 1) % len(self._host_buffers)
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        return self._host_buffers[self._turn]
