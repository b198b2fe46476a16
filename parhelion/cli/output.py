"""What the commands print, and where: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)


def stdout() -> Console:
    """For results that a person reads."""
    return Console()


def stderr() -> Console:
    """For progress, notes and errors, so that stdout stays what a program may read."""
    return Console(stderr=True)


def print_json(value: object) -> None:
    """One JSON document on stdout, on one line; dataclasses become objects."""
    print(msgspec.json.encode(_plain(value)).decode(), flush=True)


def print_error(message: str) -> None:
    """One red line on stderr."""
    stderr().print(f"error: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)


def print_note(message: str) -> None:
    """A dim line on stderr."""
    stderr().print(message, style="dim", markup=False, highlight=False, soft_wrap=True)


class ProgressBar:
    """A bar on stderr that is told ``(done, total)``, and appears only once there is something to show."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=None, visible=False)

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total, visible=True)


@contextmanager
def transfer_bar(description: str) -> Iterator[ProgressBar]:
    """A bar for bytes: size done, speed and time."""
    with _bar([DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn()]) as progress:
        yield ProgressBar(progress, description)


@contextmanager
def count_bar(description: str) -> Iterator[ProgressBar]:
    """A bar for things counted: done of total and time."""
    with _bar([MofNCompleteColumn(), TimeElapsedColumn()]) as progress:
        yield ProgressBar(progress, description)


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """Says that something of unknown length is going on, and for how long."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(description, total=None)
        yield


def _bar(columns: list[ProgressColumn]) -> Progress:
    head: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn()]
    console = stderr()
    return Progress(*head, *columns, console=console, transient=True, disable=not console.is_terminal)


def _plain(value: object) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def format_bytes(count: float) -> str:
    """``1610612736`` to ``"1.50 GiB"``."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
