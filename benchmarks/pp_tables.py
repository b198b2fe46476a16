"""The table of what ``h200x2_pp.py`` found, as ``tables.py`` writes it into the documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tp_tables import tp_note


def pp_table(content: bytes) -> str:
    """Two stages beside one GPU."""
    found = json.loads(content)
    said = "FP8 weights and activations, 512 tokens in, 128 out, greedy; median and range of three rounds. "
    return "\n".join([*pp_lines(found), "", said + tp_note(found)])


def pp_lines(found: dict[str, Any]) -> list[str]:
    """A line a batch and number of stages."""
    rows = [row for piece in found["pieces"].values() for row in piece["rows"] if row["what"] == "speed"]
    beside = {row["batch"]: row for row in found["beside"]}
    lines = [
        "| model | batch | pp | prefill (ms) | TPOT (ms) | tokens/s, in and out | over those of one GPU |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["batch"], row.get("pp", 1))):
        stages = row.get("pp", 1)
        gain = beside.get(row["batch"], {}).get("throughput_gain") if stages > 1 else None
        cells = (
            row["model"],
            str(row["batch"]),
            str(stages),
            _spread(row["prefill_ms"], row["prefill_ms_all"], "{:.1f}"),
            _spread(row["tpot_ms"], row["tpot_ms_all"], "{:.2f}"),
            _spread(row["tokens_per_s"], row["tokens_per_s_all"], "{:,.0f}"),
            "" if gain is None else f"{gain:.2f}x",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(median: float, values: Sequence[float], form: str) -> str:
    return f"{form.format(median)} ({form.format(min(values))} to {form.format(max(values))})"
