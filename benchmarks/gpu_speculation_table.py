"""The table of what ``h100_speculation.py`` measured, as ``tables.py`` writes it into the documents."""

from __future__ import annotations

import json
from typing import Any


def gpu_speculation_table(content: bytes) -> str:
    """A line a batch and way of guessing, a column a share of right guesses."""
    found = json.loads(content)
    rows = [row for row in found["rows"] if "failed" not in row]
    rates = sorted({row["imposed"] for row in rows if row["imposed"] is not None})
    lines = ["| batch | guesses | " + " | ".join(f"{rate:.0%} right" for rate in rates) + " |"]
    lines.append("|---:|---|" + "---:|" * len(rates))
    for batch in dict.fromkeys(row["batch"] for row in rows):
        own = [row for row in rows if row["batch"] == batch]
        [plain] = [row for row in own if row["way"] == "off"]
        for way, count in dict.fromkeys((row["way"], row["guesses"]) for row in own if row["way"] != "off"):
            cells = {row["imposed"]: _cell(row) for row in own if (row["way"], row["guesses"]) == (way, count)}
            name = f"`auto`, up to {count}" if "auto" in way else f"always {count}"
            lines.append(f"| {batch} | {name} | {' | '.join(cells.get(rate, '') for rate in rates)} |")
        lines.append(
            f"| {batch} | none | {plain['tpot_ms']:.2f} (floor {plain['floor_ms']:.2f}) |" + " |" * (len(rates) - 1)
        )
    circumstances = found["circumstances"]
    versions = {each["name"]: each["version"] for each in circumstances["packages"]}
    said = (
        f"{rows[0]['model']}, dummy FP8 weights, 512 tokens in, 128 out: milliseconds a token of one request and, in "
        "brackets, tokens a second over those without guesses. Which guesses are right is imposed; making them costs "
        "nothing."
    )
    where = f"{found['device']}, torch {versions['torch']}, {circumstances['measured_at'][:10]}"
    told = f"{where}; `{circumstances['command']}`."
    return "\n".join([*lines, "", " ".join([said, *found.get("notes", []), told])])


def _cell(row: dict[str, Any]) -> str:
    return f"{row['tpot_ms']:.2f} ({row['gain']:.2f}x)"
