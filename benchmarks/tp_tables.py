"""Tables of what ``h100x2_tp.py`` found, as ``tables.py`` writes them into the documents."""

from __future__ import annotations

import json
from typing import Any


def tp_speed_table(content: bytes) -> str:
    """Two ranks beside one."""
    found = json.loads(content)
    said = "FP8 weights and activations, 512 tokens in, 128 out, greedy; median and range of three rounds. "
    return "\n".join([*speed_lines(found), "", said + tp_note(found)])


def tp_sums_table(content: bytes) -> str:
    """Sums over ranks, launch by launch."""
    found = json.loads(content)
    links = next((row for row in _rows(found) if row["what"] == "links"), None)
    said = "Microseconds of one launch among 20 in a CUDA graph on both GPUs, the slower one's median. "
    if links is not None:
        copied = links["copy_bytes_per_s"]
        said += (
            f"A sum of {links['large_bytes'] >> 20} MiB moves {links['all_reduce_bytes_per_s'] / 1e9:.0f} GB/s each way"
        )
        said += f", a copy {copied / 1e9:.0f} GB/s. " if copied else ". "
    return "\n".join([*sums_lines(found), "", said + tp_note(found)])


def tp_note(found: dict[str, Any]) -> str:
    """Devices, versions and command."""
    versions = ", ".join(
        f"{name} {found['versions'][name]}"
        for name in ("torch", "triton", "helion", "nccl")
        if name in found["versions"]
    )
    gpus = f"{found['num_gpus']} x {found['device']}" if found["num_gpus"] else found["device"]
    return f"{gpus}, {versions}, {found['measured_at'][:10]}; `{found['command']}`."


def speed_lines(found: dict[str, Any]) -> list[str]:
    """A line a batch and number of ranks."""
    rows = [row for row in _rows(found) if row["what"] == "speed"]
    beside = {(row["tp"], row["batch"]): row for row in found["beside"] if row["what"] == "beside" and "tp" in row}
    lines = [
        "| model | batch | tp | prefill (ms) | TPOT (ms) | TPOT of one rank over it | collectives | output tokens/s "
        "| TPOT planned (ms) | off |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (row["batch"], row["tp"])):
        other = beside.get((row["tp"], row["batch"]), {})
        times = sorted(row["tpot_ms_all"])
        cells = (
            f"{row['model']}",
            f"{row['batch']}",
            f"{row['tp']}",
            f"{row['prefill_ms']:.1f}",
            f"{row['tpot_ms']:.2f} ({times[0]:.2f} to {times[-1]:.2f})",
            _cell(other.get("tpot_speedup") if row["tp"] > 1 else None, "{:.2f}x"),
            _cell(other.get("collectives_of_tpot"), "{:.0%}"),
            f"{row['output_tokens_per_s']:,.0f}",
            _cell(other.get("tpot_predicted_ms"), "{:.2f}"),
            _cell(other.get("tpot_off"), "{:+.0%}"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def sums_lines(found: dict[str, Any]) -> list[str]:
    """A line an M, a column an op and provider."""
    rows = [row for row in _rows(found) if row.get("time_us") is not None]
    columns = list(dict.fromkeys(_column(row) for row in rows))
    times = {(row["m"], _column(row)): row["time_us"] for row in rows}
    floors = {row["m"]: row["floor_us"] for row in rows}
    lines = ["| M | floor (us) | " + " | ".join(columns) + " |", "|---:|---:|" + "---:|" * len(columns)]
    for size, floor_us in floors.items():
        cells = (_cell(times.get((size, column)), "{:.1f}") for column in columns)
        lines.append(f"| {size} | {floor_us:.1f} | {' | '.join(cells)} |")
    return lines


def _column(row: dict[str, Any]) -> str:
    quantized = " and FP8" if "quant_dtype=float8_e4m3fn" in row["contract"] else ""
    return f"`{row['what']}`{quantized}, {row['provider']}"


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for piece in found["pieces"].values() for row in piece["rows"]]


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
