"""The table of a comparison with another engine, as ``benchmarks/tables.py`` writes it into the documents."""

from __future__ import annotations

import math

import msgspec

from parhelion.bench.compare.engines import OURS
from parhelion.bench.compare.results import Comparison, EngineRow, LoadFigures, OnlineRow, Row, Spread
from parhelion.bench.compare.settings import OnlineSettings


def compare_table(content: bytes) -> str:
    """Time per output token and prefill of both, side by side, then cold start and memory."""
    result = msgspec.json.decode(content, type=Comparison)
    [peer] = sorted({name for row in result.rows for name in row.tpot_ms} - {OURS})
    lines = [
        f"| model | batch | TPOT, floor (ms) | Parhelion | {peer} | TPOT ratio | prefill (ms) | {peer} | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    measured = [row for row in result.rows if {OURS, peer} <= row.tpot_ms.keys()]
    for row in measured:
        floor = "" if row.floor_ms is None else f"{row.floor_ms:.2f}"
        times = " | ".join(_time(row, name) for name in (OURS, peer))
        prefill = " | ".join(f"{row.prefill_ms[name]:.1f}" for name in (OURS, peer))
        decode_ratio, prefill_ratio = _ratio(row.tpot_ratio, peer), _ratio(row.prefill_ratio, peer)
        lines.append(
            f"| {row.model} | {row.batch} | {floor} | {times} | **{decode_ratio}** | {prefill} | {prefill_ratio} |"
        )
    ratios = [row.tpot_ratio[peer].median for row in measured if peer in row.tpot_ratio]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    lines += ["", f"TPOT, geometric mean of the ratios: **{mean:.2f}x**."]
    for model in dict.fromkeys(row.model for row in measured):
        found = {row.engine: row for row in result.engines if row.model == model}
        if {OURS, peer} <= found.keys():
            lines[-1] += f" {_start_and_memory(model, found[OURS], found[peer], peer)}"
    loads = [row for row in result.online if {OURS, peer} <= row.engines.keys()]
    if loads:
        lines += ["", *(_under_load(row, peer, result.online_settings) for row in loads)]
    failed = [f"{row.model}, which {row.engine} failed to load or run" for row in result.engines if row.error]
    if failed:
        lines += ["", f"Not measured: {'; '.join(failed)} (why stands in the result)."]
    settings = result.settings
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.get(peer, {}).items())
    note = (
        f"Dummy FP8 weights (W8A8 by token), {settings.input_length} tokens in, {settings.output_length} out, "
        f"greedy, no prefix caching, both engines alive, round by round: medians of {settings.rounds} rounds with "
        f"their range; ratios are formed within a round, above 1 Parhelion is the faster. {result.device}; "
        f"{versions}; {result.measured_at[:10]}; `{result.command}`."
    )
    return "\n".join([*lines, "", note])


def _time(row: Row, name: str) -> str:
    low, high = row.tpot_ms_range[name]
    return f"{row.tpot_ms[name]:.2f} ({low:.2f} to {high:.2f})"


def _ratio(ratios: dict[str, Spread], peer: str) -> str:
    return f"{ratios[peer].median:.2f}x" if peer in ratios else "refused"


def _under_load(row: OnlineRow, peer: str, settings: OnlineSettings) -> str:
    """What the servers reached, and how soon their first tokens came."""
    ours, theirs = row.engines[OURS], row.engines[peer]
    load = f"{row.concurrency} requests in flight" if row.rate is None else f"{row.rate:.1f} requests a second"
    good, their_good = ours.goodput_per_s.median, theirs.goodput_per_s.median
    first, their_first = ours.ttft_ms_p50.median, theirs.ttft_ms_p50.median
    return (
        f"Servers, {row.model}, {load}: {good:.0f} requests a second with their first token within "
        f"{settings.ttft_limit_ms:.0f} ms and {settings.tpot_limit_ms:.0f} ms a token, {peer} {their_good:.0f} "
        f"(**{good / their_good:.2f}x**); first token after {first:.0f} ms, {peer} {their_first:.0f} (medians)."
        f"{_stricter(ours, theirs, peer)}"
    )


def _stricter(ours: LoadFigures, theirs: LoadFigures, peer: str) -> str:
    """How many requests kept stricter limits."""
    shared = [limit for limit in ours.stricter if limit in theirs.stricter]
    each = [f"{limit} ms: {ours.stricter[limit].median:.0f}, {theirs.stricter[limit].median:.0f}" for limit in shared]
    return f" Requests a second with stricter limits a token, {peer}'s second: {'; '.join(each)}." if each else ""


def _start_and_memory(model: str, ours: EngineRow, theirs: EngineRow, peer: str) -> str:
    """Seconds to the first token, and memory beside the KV cache."""
    parts = []
    if ours.first_token_s and theirs.first_token_s:
        times = f"{ours.first_token_s:.1f} s, {peer} {theirs.first_token_s:.1f} s"
        parts.append(f"first token {times} ({theirs.first_token_s / ours.first_token_s:.1f}x)")
    beside = [
        row.peak_gib - row.kv_cache_gib for row in (ours, theirs) if row.peak_gib is not None and row.kv_cache_gib
    ]
    if len(beside) == 2:
        parts.append(f"memory beside the KV cache {beside[0]:.1f} GiB, {peer} {beside[1]:.1f} GiB")
    return f"{model}: {'; '.join(parts)}." if parts else ""
