"""What ``parhelion tune`` shows while it works: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from parhelion.cli.output import stderr

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from parhelion.tuning.row_state import RowState
    from parhelion.tuning.tune import TuneProgress

_LINE_EVERY_S = 10.0


@contextmanager
def progress_view() -> Iterator[Callable[[TuneProgress], None]]:
    """Shows the progress that it is told of, on stderr."""
    console = stderr()
    if not console.is_terminal:
        yield _Lines(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
        return
    from rich.live import Live

    table = LiveTable()
    with Live(table, console=console, refresh_per_second=4, transient=True):
        yield table.show


class LiveTable:
    """The table of the latest progress, whose time left goes on by itself: one of Helion's searches takes minutes."""

    def __init__(self) -> None:
        self._shown: tuple[Table, str, float] | None = None

    def show(self, progress: TuneProgress) -> None:
        """From now on."""
        self._shown = progress_table(progress), _done(progress), time.monotonic() + progress.seconds_left

    def __rich__(self) -> RenderableType:
        if self._shown is None:
            return ""
        # Drawn by another thread, which must not look into rows that are in work.
        table, done, end = self._shown
        table.title = _with_time(done, end - time.monotonic())
        return table


def progress_table(progress: TuneProgress) -> Table:
    """The row in work and the costliest rows, each beside its floor."""
    from rich.table import Table

    table = Table(title=progress_line(progress))
    table.add_column("row", overflow="fold")
    for heading in ("M", "by", "us", "floor us", "of floor"):
        table.add_column(heading, justify="right", no_wrap=True)
    if progress.current is not None:
        table.add_row(*_cells(progress.current), style="bold", end_section=True)
    for row in progress.costliest:
        table.add_row(*_cells(row))
    return table


def progress_line(progress: TuneProgress) -> str:
    """How far it is, in words."""
    return _with_time(_done(progress), progress.seconds_left)


def _done(progress: TuneProgress) -> str:
    line = f"{progress.stage}: {progress.covered} of {progress.num_rows} rows measured"
    row = progress.current
    if row is not None:
        _, size, by, us, floor_us, _ = _cells(row)
        line += f"; {row.contract.name} at M = {size}: {us} us of {floor_us} by {by}"
    return line


def _with_time(done: str, seconds_left: float) -> str:
    return f"{done}; {max(0.0, seconds_left):.0f} s left"


def _cells(row: RowState) -> tuple[str, ...]:
    from rich.markup import escape

    best, time_us = row.serving, row.time_us
    if best is None or time_us is None:
        return escape(row.contract.key()), str(row.bucket), "-", "-", f"{row.floor_us:.2f}", "-"
    return (
        escape(row.contract.key()),
        str(row.bucket),
        best.provider,
        f"{time_us:.2f}",
        f"{row.floor_us:.2f}",
        f"{100 * row.floor_us / time_us:.0f}%",
    )


class _Lines:
    """Prints a line for every stage, and within one every few seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._stage = ""
        self._last = 0.0

    def __call__(self, progress: TuneProgress) -> None:
        now = time.monotonic()
        if progress.stage != self._stage or now - self._last >= _LINE_EVERY_S:
            self._stage, self._last = progress.stage, now
            self._write(progress_line(progress))
