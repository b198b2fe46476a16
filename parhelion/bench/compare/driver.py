"""Drives a runner: starts its process, asks, waits so long and no longer, and says what its log said if it fails."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from parhelion.bench.compare.protocol import Done, Failure, Quit, Request
from parhelion.config import child_environment
from parhelion.errors import ParhelionError

Answer = TypeVar("Answer", bound=msgspec.Struct)

_LOG_LINES = 15
_POLL_S = 0.2
_QUIT_S = 30.0


class RunnerError(ParhelionError):
    """An engine died, hung, or refused what it was asked; the others are measured all the same."""


@dataclass(frozen=True)
class Launch:
    """How to start a process.

    Attributes:
        name: in errors.
        command: the words.
        log: where its stderr goes.
        environment: variables that it gets besides this process's own.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def start(launch: Launch, stdout: int) -> subprocess.Popen[bytes]:
    """The process, in a session of its own, so that ``stop`` reaches its children too.

    Raises:
        RunnerError: the program does not exist or cannot be run.
    """
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    with launch.log.open("wb") as log:
        try:
            return subprocess.Popen(
                launch.command,
                stdin=subprocess.PIPE,
                stdout=log if stdout == subprocess.STDOUT else stdout,
                stderr=log,
                env=child_environment(launch.environment),
                start_new_session=True,
            )
        except OSError as error:
            raise RunnerError(f"{launch.name} cannot be started: {error}; the command is {launch.command[0]}") from None


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """End a process and its children: with SIGTERM, and with SIGKILL what is left after so many seconds."""
    try:
        process.terminate()
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            # A request that it ended without reading is still in the pipe's buffer.
            with suppress(BrokenPipeError):
                pipe.close()


def log_tail(launch: Launch) -> str:
    """The last lines of the log, and where all of it is."""
    lines = launch.log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if launch.log.exists() else []
    return f"its log {launch.log} ends:\n" + "\n".join(lines or ["(empty)"])


class Runner:
    """A runner's process, one request at a time."""

    def __init__(self, launch: Launch) -> None:
        """Start it; ``ask`` it to load next.

        Raises:
            RunnerError: it cannot be started.
        """
        self.name = launch.name
        self._started = time.perf_counter()
        self._launch = launch
        self._process = start(launch, subprocess.PIPE)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # A thread, because a line has to be waited for with a limit, and a pipe cannot be asked for that everywhere.
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: Request, answer: type[Answer], timeout_s: float) -> Answer:
        """The answer to a request.

        Raises:
            RunnerError: the process has ended, refused, did not answer in time, or spoke no JSON of the right form.
        """
        doing = f"asked to {type(request).__struct_config__.tag}"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died(doing) from None
        line = self._next_line(doing, timeout_s)
        try:
            # Asked first: an answer whose fields all have defaults would take an error for one.
            failure = _failure(line)
            if failure is None:
                return msgspec.json.decode(line, type=answer)
        except msgspec.DecodeError:
            failure = f"something that is no answer: {line[:200]!r}"
        raise RunnerError(f"{self.name} was {doing} and said {failure}; {log_tail(self._launch)}")

    def elapsed_s(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self._started

    def close(self) -> None:
        """Let it quit, and make it if it does not."""
        try:
            if self._process.poll() is None:
                self.ask(Quit(), Done, _QUIT_S)
                self._process.wait(_QUIT_S)
        except (RunnerError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """End it now."""
        stop(self._process, 0.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:
            # Closed while it was read: the process is being ended.
            pass

    def _next_line(self, doing: str, timeout_s: float) -> bytes:
        limit = time.perf_counter() + timeout_s
        while True:
            # Whether it has ended is asked first: what it said before that is in the queue by the time it is read.
            ended = self._process.poll() is not None
            try:
                return self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                if ended:
                    raise self._died(doing) from None
                if time.perf_counter() > limit:
                    raise RunnerError(
                        f"{self.name} was {doing} and did not answer within {timeout_s:g} s (--timeout); "
                        + log_tail(self._launch)
                    ) from None

    def _died(self, doing: str) -> RunnerError:
        try:
            status: int | str = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = "unknown"
        return RunnerError(f"{self.name} ended with status {status} when {doing}; {log_tail(self._launch)}")


def _failure(line: bytes) -> str | None:
    try:
        return msgspec.json.decode(line, type=Failure).error
    except msgspec.ValidationError:
        return None
