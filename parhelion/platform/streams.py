"""Streams, events and page-locked memory: a GPU's where there is one, and nothing where the device is the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch


class Event(Protocol):
    """A point in a stream's work."""

    def record(self) -> None:
        """Put it behind everything that the current stream was given so far."""
        ...

    def synchronize(self) -> None:
        """Block until the device has got there."""
        ...


class WorkStream(Protocol):
    """The stream that a worker's steps run on."""

    def activate(self) -> AbstractContextManager[object]:
        """Make it the current stream of this thread for a while."""
        ...

    def synchronize(self) -> None:
        """Block until all its work is done."""
        ...


class _CpuStream:
    def record(self) -> None:
        return

    def activate(self) -> AbstractContextManager[object]:
        return nullcontext()

    def synchronize(self) -> None:
        return


class _GpuStream:
    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def activate(self) -> AbstractContextManager[object]:
        current: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return current

    def synchronize(self) -> None:
        self._stream.synchronize()


def work_stream(device: torch.device) -> WorkStream:
    """A stream of its own on a GPU; on a CPU work is done when it is called for."""
    return _GpuStream(device) if device.type == "cuda" else _CpuStream()


def record_event(device: torch.device) -> Event:
    """An event behind everything that the current stream was given so far."""
    if device.type != "cuda":
        return _CpuStream()
    event: Event = torch.cuda.Event()
    event.record()
    return event


def pinned(size: int, device: torch.device) -> torch.Tensor:
    """[size] int32 on the host, page-locked if the device is a GPU, so that copies need not wait."""
    return torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
