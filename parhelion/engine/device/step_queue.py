"""How the integers of steps, and what changes in the tables of requests, get to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from parhelion.engine.device.state import NO_UPDATE, DeviceState, Update, merged
from parhelion.engine.step_layout import Bucket, Repacking, StepRows, entry_places, num_ints, pack
from parhelion.platform.streams import Event, WorkStream, copy_by_kernel, pinned, seen_by

ROOM_FOR_UPDATES = 1 << 17
"""Integers behind a step's own fields for the prompts, blocks and parameters of new requests; more go separately."""


_NO_ROWS = StepRows(*np.zeros((5, 0), np.int64))


class _Front:
    """A bucket's fields at the front of a buffer of the host, and of the device's.

    Attributes:
        here, there: int32, of either, as the device sees them.
    """

    def __init__(self, bucket: Bucket, array: npt.NDArray[np.int32], seen: torch.Tensor, ints: torch.Tensor) -> None:
        count, (offsets, values) = num_ints(bucket), entry_places(bucket)
        self.here, self.there = seen[:count], ints[:count]
        self._offsets, self._values = array[offsets].view(np.int64), array[values]

    def pack_entries(self, update: Update, spare_offset: int) -> None:
        """Write an update of at most as many entries as the bucket has; the others go where padding does."""
        count = len(update.offsets)
        if count:
            self._offsets[:count] = update.offsets
            self._values[:count] = update.values
        self._offsets[count:] = spare_offset


class _HostBuffer:
    """A step's integers on the host.

    Args:
        ints: the device's.
        copied: when the device has them.

    Attributes:
        array: int32; ``seen`` is the same memory, as the device sees it.
        copied: see above.
    """

    def __init__(self, ints: torch.Tensor, copied: Event) -> None:
        own = pinned(len(ints), ints.device)
        self.array = own.numpy()
        self.seen = seen_by(ints.device, own)
        self.copied = copied
        self._there = ints
        self._fronts: dict[Bucket, _Front] = {}
        # Of the step that is in it, if its rows have one token each.
        self._shape: tuple[Bucket, int] | None = None
        self._repacking: Repacking | None = None

    def pack(self, rows: StepRows, bucket: Bucket, update: Update, state: DeviceState) -> None:
        """Write a step's fields, and an update to its entries, if it has any."""
        shape = bucket, len(rows.slots)
        if self._repacking is not None and shape == self._shape:
            self._repacking.write(rows, state.spare_position)
        else:
            pack(rows, bucket, self.array, state.spare_slot, state.spare_position)
            self._shape, self._repacking = shape, Repacking(*shape, self.array) if bucket.decodes else None
        if bucket.entries:
            self.front(bucket).pack_entries(update, state.spare_offset)

    def front(self, bucket: Bucket) -> _Front:
        """As much of it as a step of the bucket takes."""
        found = self._fronts.get(bucket)
        if found is None:
            found = self._fronts[bucket] = _Front(bucket, self.array, self.seen, self._there)
        return found


class DeviceQueue:
    """Copies one buffer of integers a step, without waiting for the steps before.

    What changes in tables comes with it. A step whose bucket has enough entries writes that by itself; else it is
    written before the step.

    Args:
        state: the tables that are changed.
        largest: bucket of any step.
        num_buffers: on the host, used in turn: a step's own is not touched before so many others were sent.
        stream: the worker's, which is the current one when something is sent.

    Attributes:
        ints: int32 on the device; the step that was sent last lies at its front.
    """

    def __init__(self, state: DeviceState, largest: Bucket, num_buffers: int, stream: WorkStream) -> None:
        room = num_ints(largest) + ROOM_FOR_UPDATES
        self.ints = torch.zeros(room, dtype=torch.int32, device=state.flat.device)
        self._state = state
        self._host_buffers = [_HostBuffer(self.ints, stream.event()) for _ in range(num_buffers)]
        self._turn = 0
        self._updates: list[Update] = []

    def write(self, updates: Sequence[Update]) -> None:
        """Change entries of tables before the step that is sent next looks anything up."""
        self._updates += updates

    def send(self, rows: StepRows, bucket: Bucket) -> None:
        """Copy a step's fields and what changes in tables to the device.

        Args:
            rows: the step's.
            bucket: what it is padded to.
        """
        host = self._next_buffer()
        update, self._updates = merged(self._updates), []
        is_in_step = len(update.offsets) <= bucket.entries
        host.pack(rows, bucket, update if is_in_step else NO_UPDATE, self._state)
        if is_in_step:
            self._copy(host, bucket)
        else:
            self._copy_and_write(host, bucket, update)
        host.copied.record()

    def send_padding(self, bucket: Bucket) -> None:
        """A step of no rows."""
        self.send(_NO_ROWS, bucket)

    def _copy(self, host: _HostBuffer, bucket: Bucket) -> None:
        front = host.front(bucket)
        copy_by_kernel(front.there, front.here)

    def _copy_and_write(self, host: _HostBuffer, bucket: Bucket, update: Update) -> None:
        """Copy a step's fields and, in the same copy if there is room, an update; write that."""
        changes, start = update.flat(), num_ints(bucket)
        # The offsets, which are the first of them, have 64 bits.
        start += start % 2
        end = start + len(changes)
        if end <= len(host.array):
            host.array[start:end] = changes
            copy_by_kernel(self.ints[:end], host.seen[:end])
            changed = self.ints[start:end]
        else:
            self._copy(host, bucket)
            changed = torch.from_numpy(changes).to(self.ints.device)
        count = 2 * len(update.offsets)
        self._state.write(changed[:count], changed[count:])

    def _next_buffer(self) -> _HostBuffer:
        """The host buffer whose turn it is, once the device has copied the step that was in it."""
        self._turn = (self._turn + 1) % len(self._host_buffers)
        buffer = self._host_buffers[self._turn]
        buffer.copied.synchronize()
        return buffer
