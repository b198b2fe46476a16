"""Who computes is alive, who is stopped is not, and who was stopped together with its watcher is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from parhelion.engine import heartbeats
from parhelion.engine.heartbeats import RETURN_S, LifeLine

TIMEOUT_S = 1.0

LIVES = """
import sys, time, zmq
from parhelion.engine.heartbeats import answer_heartbeats
kept = answer_heartbeats(zmq.Context(), sys.argv[1])
print("connected", flush=True)
if sys.argv[2] == "computes":
    # One call that never lets another thread of Python run.
    sum(range(1 << 62))
time.sleep(60)
"""

WATCHES = f"""
import subprocess, sys, time, zmq
from parhelion.engine.heartbeats import LifeLine
line = LifeLine(zmq.Context(), sys.argv[1], {TIMEOUT_S})
process = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1], "sleeps"], stdout=subprocess.PIPE)
process.stdout.readline()
while True:
    print(line.is_lost, flush=True)
    time.sleep(0.05)
"""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # Relative, since the paths of sockets must be short.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    return "ipc://life"


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script, *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield run
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def seconds_until(condition: Callable[[], bool], most: float) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < most
        time.sleep(0.02)
    return time.monotonic() - began


def never(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return False
        time.sleep(0.02)
    return True


def test_who_computes_is_not_lost_and_who_is_stopped_is_until_it_goes_on(
    context: zmq.Context[zmq.Socket[bytes]], address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    line = LifeLine(context, address, TIMEOUT_S)
    process = start(LIVES, address, "computes")
    assert line_of(process) == "connected"
    assert never(lambda: line.is_lost, 3 * TIMEOUT_S)
    process.send_signal(signal.SIGSTOP)
    assert seconds_until(lambda: line.is_lost, 10) <= TIMEOUT_S + RETURN_S + 2
    process.send_signal(signal.SIGCONT)
    seconds_until(lambda: not line.is_lost, 10)
    process.kill()
    seconds_until(lambda: line.is_lost, 10)


def test_a_timeout_of_nothing_waits_for_ever(
    context: zmq.Context[zmq.Socket[bytes]], address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    line = LifeLine(context, address, 0.0)
    process = start(LIVES, address, "sleeps")
    assert line_of(process) == "connected"
    process.send_signal(signal.SIGSTOP)
    assert never(lambda: line.is_lost, 2 * (TIMEOUT_S + RETURN_S))


def test_who_never_connects_is_lost_in_the_end(
    context: zmq.Context[zmq.Socket[bytes]], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "CONNECT_TIMEOUT_S", 0.3)
    line = LifeLine(context, address, TIMEOUT_S)
    assert not line.is_lost
    seconds_until(lambda: line.is_lost, 5)


def test_who_was_stopped_together_with_its_watcher_is_not_lost(
    address: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """As Ctrl-Z in a terminal does, and fg."""
    watcher = start(WATCHES, address, LIVES)
    assert line_of(watcher) == "False"
    for _ in range(2):
        os.killpg(watcher.pid, signal.SIGSTOP)
        time.sleep(2 * TIMEOUT_S)
        os.killpg(watcher.pid, signal.SIGCONT)
        deadline = time.monotonic() + RETURN_S + TIMEOUT_S
        while time.monotonic() < deadline:
            assert line_of(watcher) == "False"
