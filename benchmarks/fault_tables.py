"""The table of what ``faults.py`` found, as ``tables.py`` writes it into the documents."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from fault_kinds import KINDS

OUTCOMES = ("200", "503", "error in stream", "connection closed")


def fault_table(content: bytes) -> str:
    """A line a kind, and where it was measured."""
    found = json.loads(content)
    circumstances = found["circumstances"]
    machine = circumstances["machine"]
    rounds = found["rounds"]
    missed = sum(bool(row["missed"]) for row in rounds)
    bars = "no bar was missed" if not missed else f"**a bar was missed in {missed}**"
    note = (
        f"{len(rounds)} rounds, {bars}; median (longest); greedy, float32, eight clients; {machine['name']}, "
        f"{machine['cores']} cores, torch {machine['torch']}, {circumstances['measured_at'][:10]}; "
        f"`{circumstances['command']}`."
    )
    return "\n".join([*fault_lines(rounds), "", note])


def fault_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a kind."""
    head = ["what is struck", "model", "options", "how", "rounds", *OUTCOMES]
    head += ["last answer (s)", "settled (s)", "missed"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|" + "---:|" * (len(head) - 4)]
    for kind in KINDS:
        ours = [row for row in rows if row["kind"] == kind.name]
        if not ours:
            continue
        got = sum((Counter(row["got"]) for row in ours), Counter[str]())
        options = f"`{' '.join(kind.options)}`" if kind.options else ""
        cells = [kind.who, ours[0]["model"], options, kind.what_happens, f"{len(ours)}"]
        cells += [f"{got[outcome]}" for outcome in OUTCOMES]
        cells += [_spread(row[name] for row in ours) for name in ("last_answer_s", "settled_s")]
        cells.append(f"{sum(bool(row['missed']) for row in ours)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(values: Iterable[float | None]) -> str:
    """Median and longest; nothing where nothing was measured."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.1f} ({max(known):.1f})" if known else ""
