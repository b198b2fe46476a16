"""A real server in processes of its own, for benchmarks: started, watched and ended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

import msgspec
import psutil

from parhelion.config import child_environment
from parhelion.errors import EngineDeadError

_STOP_SECONDS = 60.0


class ReadyLine(msgspec.Struct, frozen=True):
    """What ``parhelion serve --json`` prints once it answers; fields not needed here are ignored."""

    url: str
    model: str


@dataclass(frozen=True)
class ServerProcess:
    """A running server: where it answers, what it serves, and its first process (None if it was started elsewhere)."""

    url: str
    model: str
    process: subprocess.Popen[bytes] | None = None

    def peak_resident_bytes(self) -> int:
        """Peak resident set of the server and all its children, each at its own peak (``VmHWM``)."""
        if self.process is None:
            return 0
        first = psutil.Process(self.process.pid)
        return sum(peak_resident_bytes(process.pid) for process in (first, *first.children(recursive=True)))

    def exit_status(self) -> int | None:
        """How its first process ended; None while it runs, or if it was started elsewhere."""
        return None if self.process is None else self.process.poll()


@contextmanager
def running_server(
    model: str,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
    own_session: bool = False,
) -> Iterator[ServerProcess]:
    """Start ``parhelion serve`` on a free port of the loopback and end it when the block ends.

    Args:
        model: what to serve.
        arguments: further options of the command.
        environment: variables that differ from this process's.
        log: where its log goes; None: to this process's standard error.
        own_session: all that it starts is in a session of its own, by which it is found.

    Raises:
        EngineDeadError: it ended before it was ready.
    """
    command = [sys.executable, "-m", "parhelion.cli", "serve", model, "--port", "0", "--json", *arguments]
    with (
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(environment or {}),
            start_new_session=own_session,
        ) as process,
        _terminate_on_sigterm(),
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise EngineDeadError(
                    f"the server ended with status {process.wait()} before it was ready; its own message stands above"
                )
            ready = msgspec.json.decode(line, type=ReadyLine)
            yield ServerProcess(ready.url, ready.model, process)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def peak_resident_bytes(pid: int) -> int:
    """The most memory that a process has held at once, from ``/proc`` (Linux); what it holds now elsewhere."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return int(psutil.Process(pid).memory_info().rss)
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) << 10 if match else 0


@contextmanager
def _terminate_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind this process like Ctrl-C does, so that the server does not outlive it."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
