"""Streams, events and page-locked memory: a GPU's where there is one, and nothing where the device is the CPU.

A copy by the device's copy engine holds up a stream for some 5 us at either end, while the engine and the kernels
before and behind it tell each other that they are done. What is small goes between two kernels by a third one
(``seen_by`` and ``copy_by_kernel``).
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch


class Event(Protocol):
    """A point in a stream's work."""

    def record(self) -> None:
        """Put it behind everything that its stream was given so far."""
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
        """Make it the current stream of this thread for a while; nothing is to be done where the thread stays on it."""
        ...

    def stay(self) -> None:
        """Make it the current stream of this thread for good: for a thread that hands over one step after the other.

        Raises:
            RuntimeError: the thread is on another stream than its device's default.
        """
        ...

    def event(self) -> Event:
        """An event that is recorded on this stream, whatever stream is current. Until then nobody waits for it."""
        ...

    def synchronize(self) -> None:
        """Block until all its work is done."""
        ...


_NOTHING = nullcontext()


class _CpuStream:
    def record(self) -> None:
        return

    def activate(self) -> AbstractContextManager[object]:
        return _NOTHING

    def stay(self) -> None:
        return

    def event(self) -> Event:
        return self

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
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # By thread, not by a thread's number, which another one may have later.
        self._thread = threading.local()

    def activate(self) -> AbstractContextManager[object]:
        if getattr(self._thread, "stays", False):
            return _NOTHING
        current: AbstractContextManager[object] = torch.cuda.stream(self._stream)
        return current

    def stay(self) -> None:
        if torch.cuda.current_stream(self._device) not in (self._stream, torch.cuda.default_stream(self._device)):
            raise RuntimeError(
                "this thread is on another stream already, perhaps another worker's: let each have a thread of its own"
            )
        torch.cuda.set_stream(self._stream)
        self._thread.stays = True

    def event(self) -> Event:
        return _GpuEvent(self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()


class _GpuEvent:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._event = torch.cuda.Event()

    def record(self) -> None:
        # To look for the current stream takes longer than all the rest.
        self._event.record(self._stream)

    def synchronize(self) -> None:
        self._event.synchronize()


def work_stream(device: torch.device) -> WorkStream:
    """A stream of its own on a GPU; on a CPU work is done when it is called for."""
    return _GpuStream(device) if device.type == "cuda" else _CpuStream()


def mark(device: torch.device) -> Mark:
    """A mark behind everything that the current stream was given so far."""
    return _GpuMark() if device.type == "cuda" else _CpuMark()


def pinned(size: int, device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    """[size] zeros on the host, page-locked if the device is a GPU, so that copies need not wait. A copy between two
    dtypes is two: the device converts first.
    """
    return torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")


class _Memory:
    """A tensor's memory, as what is not torch's own hands it to torch."""

    def __init__(self, tensor: torch.Tensor) -> None:
        sizes = {torch.int32: "<i4", torch.int64: "<i8"}
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": tuple(tensor.shape),
            "typestr": sizes[tensor.dtype],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }
        self._tensor = tensor


def seen_by(device: torch.device, host: torch.Tensor) -> torch.Tensor:
    """Page-locked memory (see ``pinned``) as a tensor of the device, whose kernels read and write it over the bus.

    Args:
        host: contiguous, int32 or int64. On a CPU it is what is returned.
    """
    return host if device.type == "cpu" else torch.as_tensor(_Memory(host), device=device)


def copy_by_kernel(there: torch.Tensor, here: torch.Tensor) -> None:
    """Copy a tensor of integers in a kernel, in the current stream's order: ``copy_`` would be the copy engine's."""
    torch.add(here, 0, out=there)
