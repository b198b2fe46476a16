"""Who has to enter a GPU's stream, with a stand-in for torch's: threads that stay on it need not; and memory of the
host that a device's kernels read and write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from parhelion.platform.streams import copy_by_kernel, pinned, seen_by, work_stream

GPU = torch.device("cuda", 0)


class FakeCuda:
    """Each thread's current stream.

    Attributes:
        entered: how often a stream was entered for a while.
    """

    def __init__(self) -> None:
        self.entered = 0
        self._default = object()
        self._threads = threading.local()

    def current_stream(self, device: torch.device) -> object:
        return getattr(self._threads, "stream", self._default)

    def default_stream(self, device: torch.device) -> object:
        return self._default

    def set_stream(self, stream: object) -> None:
        self._threads.stream = stream

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.entered += 1
        before = self.current_stream(GPU)
        self.set_stream(stream)
        yield
        self.set_stream(before)


class FakeEvent:
    def __init__(self) -> None:
        self.recorded: list[object] = []

    def record(self, stream: object) -> None:
        self.recorded.append(stream)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("current_stream", "default_stream", "set_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    return fake


def current_in(cuda: FakeCuda, enter: Callable[[], AbstractContextManager[object]]) -> object:
    with enter():
        return cuda.current_stream(GPU)


def test_a_thread_that_stays_is_on_the_stream_for_good_and_others_enter_it(cuda: FakeCuda) -> None:
    stream: Any = work_stream(GPU)
    with ThreadPoolExecutor(1, initializer=stream.stay) as staying:
        for _ in range(3):
            assert staying.submit(current_in, cuda, stream.activate).result() is stream._stream
        assert cuda.entered == 0
        assert current_in(cuda, stream.activate) is stream._stream
        assert cuda.entered == 1
        assert cuda.current_stream(GPU) is cuda.default_stream(GPU)
    # A thread that comes later may have the number of one that is gone.
    with ThreadPoolExecutor(1) as later:
        assert later.submit(current_in, cuda, stream.activate).result() is stream._stream
    assert cuda.entered == 2


def test_a_thread_stays_on_one_stream_and_is_told_so(cuda: FakeCuda) -> None:
    first, second = work_stream(GPU), work_stream(GPU)
    with ThreadPoolExecutor(1, initializer=first.stay) as thread:
        assert thread.submit(first.stay).result() is None
        with pytest.raises(RuntimeError, match="let each have a thread of its own"):
            thread.submit(second.stay).result()


def test_events_are_recorded_on_their_stream_whatever_is_current(cuda: FakeCuda) -> None:
    stream: Any = work_stream(GPU)
    event: Any = stream.event()
    assert event._event.recorded == []
    event.record()
    event.record()
    assert event._event.recorded == [stream._stream] * 2


def test_a_gpu_is_told_where_memory_of_the_host_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, torch.device]] = []
    monkeypatch.setattr(torch, "as_tensor", lambda memory, device: asked.append((memory, device)))
    host = torch.zeros(6, dtype=torch.int64)[1:]
    seen_by(GPU, host)
    ((memory, device),) = asked
    assert device == GPU
    interface = {"shape": (5,), "typestr": "<i8", "data": (host.data_ptr(), False), "version": 3}
    assert memory.__cuda_array_interface__ == interface


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integers_get_to_a_device_and_back_by_kernels(dtype: torch.dtype) -> None:
    where = torch.device("cpu")
    stream = work_stream(where)
    host, back = pinned(1000, where, dtype), pinned(1000, where, dtype)
    there = torch.zeros(1200, dtype=dtype, device=where)
    host.copy_(torch.arange(1000, dtype=dtype) - 500)
    with stream.activate():
        copy_by_kernel(there[100:1100], seen_by(where, host))
        copy_by_kernel(seen_by(where, back), there[100:1100])
    stream.synchronize()
    assert torch.equal(back, host)
    assert there[:100].tolist() == there[1100:].tolist() == [0] * 100
