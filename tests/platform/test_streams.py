"""Who has to enter a GPU's stream, with a stand-in for torch's: threads that stay on it need not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch

from parhelion.platform.streams import work_stream

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
