"""Streams, events and page-locked memory: a GPU's where there is one, and nothing where the device is the CPU."""

from __future__ import annotations

import time
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


class Mark(Protocol):
    """A point in a stream's work whose time is taken."""

    def seconds_until(self, later: Mark) -> float:
        """Seconds from here to a later point, both of which the device has reached."""
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


class _CpuMark:
    def __init__(self) -> None:
        self.time = time.perf_counter()

    def seconds_until(self, later: Mark) -> float:
        assert isinstance(later, _CpuMark)
        return later.time - self.time


class _GpuMark:
    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def seconds_until(self, later: Mark) -> float:
        assert isinstance(later, _GpuMark)
        return float(self.event.elapsed_time(later.event)) / 1e3


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


def mark(device: torch.device) -> Mark:
    """A mark behind everything that the current stream was given so far."""
    return _GpuMark() if device.type == "cuda" else _CpuMark()


def pinned(size: int, device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """[size] zeros on the host, page-locked if the device is a GPU, so that copies need not wait. A copy between two
    dtypes is two: the device converts first.
    """
    return torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
