"""The table of what ``h100_speculation.py`` measured, as ``tables.py`` writes it into the documents."""

from __future__ import annotations

import json
from typing import Any

_BY = {"given": "", "draft": ", by a draft model", "head": ", by a head"}
"""Who makes the guesses, by the word that the result has."""


def gpu_speculation_table(content: bytes) -> str:
    """A line a batch, engine and way of guessing, a column a share of right guesses."""
    found = json.loads(content)
    rows = [row for row in found["rows"] if "failed" not in row]
    rates = sorted({row["imposed"] for row in rows if row["imposed"] is not None})
    lines = ["| batch | guesses | " + " | ".join(f"{rate:.0%} right" for rate in rates) + " |"]
    lines.append("|---:|---|" + "---:|" * len(rates))
    for batch in dict.fromkeys(row["batch"] for row in rows):
        for engine in dict.fromkeys(_engine(row) for row in rows):
            own = [row for row in rows if (row["batch"], _engine(row)) == (batch, engine)]
            lines += [f"| {batch} | {line} |" for line in _engine_lines(own, rates)]
    return "\n".join([*lines, "", _footnote(found, rows)])


def _engine_lines(own: list[dict[str, Any]], rates: list[float]) -> list[str]:
    """What one engine did with one batch; what it did without guesses comes last."""
    lines = []
    for way, count in dict.fromkeys((row["way"], row["guesses"]) for row in own if row["way"] != "off"):
        cells = {row["imposed"]: _cell(row) for row in own if (row["way"], row["guesses"]) == (way, count)}
        times = f"`auto`, up to {count}" if "auto" in way else f"always {count}"
        name = _named(own[0], times + _BY[way.split(",")[0]])
        lines.append(f"{name} | {' | '.join(cells.get(rate, '') for rate in rates)}")
    for plain in (row for row in own if row["way"] == "off"):
        floor = f" (floor {plain['floor_ms']:.2f})" if _engine(plain) == "parhelion" else ""
        lines.append(f"{_named(plain, 'none')} | {plain['tpot_ms']:.2f}{floor}" + " |" * (len(rates) - 1))
    return lines


def _footnote(found: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    circumstances, settings = found["circumstances"], found.get("settings", {})
    versions = {each["name"]: each["version"] for each in circumstances["packages"]}
    ways = {row["way"].split(",")[0] for row in rows}
    free = "making them costs nothing" + (
        "" if ways <= {"off", "given"} else ", but where a model or a head makes them"
    )
    lengths = f"{settings.get('input_length', 512)} tokens in, {settings.get('output_length', 128)} out"
    said = (
        f"{rows[0]['model']}, dummy FP8 weights, {lengths}: milliseconds a token of one request and, in brackets, "
        f"tokens a second over those without guesses. Which guesses are right is imposed; {free}."
    )
    peers = [
        f"{_engine(row)} {row['versions'][_engine(row)]}" for row in rows if _engine(row) in row.get("versions", {})
    ]
    where = ", ".join([found["device"], f"torch {versions['torch']}", *dict.fromkeys(peers)])
    told = f"{where}, {circumstances['measured_at'][:10]}; `{circumstances['command']}`."
    return " ".join([said, *found.get("notes", []), told])


def _engine(row: dict[str, Any]) -> str:
    engine: str = row.get("engine", "parhelion")
    return engine


def _named(row: dict[str, Any], text: str) -> str:
    return text if _engine(row) == "parhelion" else f"vLLM: {text}"


def _cell(row: dict[str, Any]) -> str:
    gain = "" if row["gain"] is None else f" ({row['gain']:.2f}x)"
    return f"{row['tpot_ms']:.2f}{gain}"
