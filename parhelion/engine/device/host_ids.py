"""Where sampled ids get to on the host: memory and events that steps use in turn."""

from __future__ import annotations

from collections import defaultdict

import torch

from parhelion.platform.streams import WorkStream, copy_by_kernel, pinned, seen_by


class HostIds:
    """Ids on their way from the device.

    Attributes:
        array: [num_rows] int64, valid once ``done``.
        done: when they are here.
    """

    def __init__(self, num_rows: int, stream: WorkStream, device: torch.device) -> None:
        ids = pinned(num_rows, device, torch.int64)
        self.array = ids.numpy()
        self._seen = seen_by(device, ids)
        self.done = stream.event()

    def fetch(self, token_ids: torch.Tensor) -> None:
        """Let the device write ids [num_rows] int64 here, behind everything that the stream was given so far."""
        copy_by_kernel(self._seen, token_ids)
        self.done.record()


class HostIdsPool:
    """Lends ``HostIds``: page-locking memory takes longer than copying to it. There are as many as steps need that have
    not been read.

    Args:
        stream: that the ids are sampled on.
        device: its device.
    """

    def __init__(self, stream: WorkStream, device: torch.device) -> None:
        self._stream = stream
        self._device = device
        self._free: defaultdict[int, list[HostIds]] = defaultdict(list)

    def take(self, num_rows: int) -> HostIds:
        """Some that nobody reads."""
        free = self._free[num_rows]
        return free.pop() if free else HostIds(num_rows, self._stream, self._device)

    def give_back(self, ids: HostIds) -> None:
        """Nobody will read them any more."""
        self._free[len(ids.array)].append(ids)
