"""Real signals to a real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        yield process
        process.kill()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_under_load_drains_and_exits_with_zero(process: subprocess.Popen[str], number: signal.Signals) -> None:
    url = url_of(process)
    counts: list[int] = []

    def request() -> None:
        body = {"prompt": "x", "max_tokens": 150}
        counts.append(httpx.post(f"{url}/v1/completions", json=body, timeout=30).json()["usage"]["completion_tokens"])

    threads = [threading.Thread(target=request) for _ in range(10)]
    for thread in threads:
        thread.start()
    while "requests_running 10.0" not in httpx.get(f"{url}/metrics").text:
        time.sleep(0.01)
    process.send_signal(number)
    for thread in threads:
        thread.join(30)
    assert counts == [150] * 10
    assert process.wait(30) == 0


def test_second_signal_ends_at_once_with_zero(process: subprocess.Popen[str]) -> None:
    url = url_of(process)
    with httpx.stream("POST", f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 2000, "stream": True}):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
