"""The tables of a comparison with another engine, as ``benchmarks/tables.py`` writes it into the documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from parhelion.bench.compare.engines import OURS
from parhelion.bench.compare.results import Comparison, EngineRow, LoadFigures, OnlineRow, Row, Spread

_LEAST_SHARE = 0.1
"""Of Parhelion's requests, below which a ratio to the peer's says nothing but that there were few."""


def compare_table(content: bytes) -> str:
    """Time per output token and prefill of both, side by side, then cold start and memory."""
    result = msgspec.json.decode(content, type=Comparison)
    [peer] = sorted({name for row in result.rows for name in row.tpot_ms} - {OURS})
    lines = [
        f"| model | batch | TPOT, floor (ms) | Parhelion | {peer} | ratio "
        f"| prefill, floor (ms) | Parhelion | {peer} | ratio | tokens/s, all | {peer} | a block's calls |",
        "|---|---:|" + "---:|" * 10 + "---|",
    ]
    measured = [row for row in result.rows if {OURS, peer} <= row.tpot_ms.keys()]
    for row in measured:
        floor = "" if row.floor_ms is None else f"{row.floor_ms:.2f}"
        times = " | ".join(_time(row, name) for name in (OURS, peer))
        prefill_floor = "" if row.prefill_floor_ms is None else f"{row.prefill_floor_ms:.1f}"
        prefill = " | ".join(f"{row.prefill_ms[name]:.1f}" for name in (OURS, peer))
        total = " | ".join(f"{row.total_tokens_per_s[name]:,.0f}" for name in (OURS, peer))
        decode_ratio, prefill_ratio = _ratio(row.tpot_ratio, peer), _ratio(row.prefill_ratio, peer)
        lines.append(
            f"| {row.model} | {row.batch} | {floor} | {times} | **{decode_ratio}** "
            f"| {prefill_floor} | {prefill} | {prefill_ratio} | {total} | {_block(result, row)} |"
        )
    ratios = [row.tpot_ratio[peer].median for row in measured if peer in row.tpot_ratio]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else math.nan
    lines += ["", f"TPOT, geometric mean of the ratios: **{mean:.2f}x**."]
    for model in dict.fromkeys(row.model for row in measured):
        found = {row.engine: row for row in result.engines if row.model == model}
        if {OURS, peer} <= found.keys():
            lines[-1] += f" {_start_and_memory(model, found[OURS], found[peer], peer)}"
    failed = [f"{row.model}, which {row.engine} failed to load or run" for row in result.engines if row.error]
    if failed:
        lines += ["", f"Not measured: {'; '.join(failed)} (why stands in the result)."]
    settings = result.settings
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.get(peer, {}).items())
    note = (
        f"Dummy FP8 weights (W8A8 by token), {settings.input_length} tokens in, {settings.output_length} out, "
        f"greedy, no prefix caching, both engines alive, round by round: medians of {settings.rounds} rounds with "
        f"their range; ratios are formed within a round, above 1 Parhelion is the faster. A block's calls are those of "
        f"Parhelion's decoding, by provider: of 8, norms, activation and attention quantize what they make; of 5, "
        f"activations are not quantized, as in a single one, which is all of them. {result.device}; "
        f"{versions}; {_dates(result, measured)}; `{result.command}`."
    )
    return "\n".join([*lines, "", note])


def _time(row: Row, name: str) -> str:
    low, high = row.tpot_ms_range[name]
    return f"{row.tpot_ms[name]:.2f} ({low:.2f} to {high:.2f})"


def _block(result: Comparison, row: Row) -> str:
    """What served a block of Parhelion's when it decoded: how many calls, by whom."""
    [ours] = [each for each in result.engines if (each.model, each.engine) == (row.model, OURS)]
    calls = [call.partition("=") for call in ours.facts.block_at(row.batch)]
    counts = Counter(provider for _, _, provider in calls)
    return ", ".join(f"{count} {provider}" for provider, count in counts.most_common())


def _ratio(ratios: dict[str, Spread], peer: str) -> str:
    return f"{ratios[peer].median:.2f}x" if peer in ratios else "refused"


def servers_table(content: bytes) -> str:
    """The servers under each load: how soon tokens came, and how many requests kept each limit."""
    result = msgspec.json.decode(content, type=Comparison)
    settings = result.online_settings
    [peer] = sorted({name for row in result.online for name in row.engines} - {OURS})
    loads = [row for row in result.online if {OURS, peer} <= row.engines.keys()]
    limits = [f"{limit:g}" for limit in (settings.tpot_limit_ms, *settings.stricter_tpot_limits_ms)]
    lines = [
        f"| load | first token (ms) | {peer} | TPOT (ms) | {peer} | "
        + " | ".join(f"within {limit} ms" for limit in limits)
        + " |",
        "|---|---:|---:|---:|---:|" + "---:|" * len(limits),
    ]
    for row in loads:
        ours, theirs = row.engines[OURS], row.engines[peer]
        load = f"{row.concurrency} in flight" if row.rate is None else f"{row.rate:g} a second"
        times = (ours.ttft_ms_p50, theirs.ttft_ms_p50, ours.tpot_ms_p50, theirs.tpot_ms_p50)
        kept = [_kept(ours, theirs, limit) for limit in limits]
        figures = " | ".join(f"{each.median:.3g}" for each in times)
        lines.append(f"| {row.model}, {load} | {figures} | {' | '.join(kept)} |")
    note = (
        f"Medians of {result.settings.rounds} rounds of {settings.num_requests} requests, over HTTP on the loopback. "
        f"Within a limit: requests a second whose tokens took no longer and whose first came within "
        f"{settings.ttft_limit_ms:g} ms, Parhelion's and {peer}'s, with their ratio. {result.device}; "
        f"{_dates(result, loads)}; the command is in `benchmarks/results/h200_vs_vllm.json`."
    )
    return "\n".join([*lines, "", note])


def _dates(result: Comparison, rows: Sequence[Row | OnlineRow]) -> str:
    """The days on which these were measured."""
    return ", ".join(sorted({(row.measured_at or result.measured_at)[:10] for row in rows}))


def _kept(ours: LoadFigures, theirs: LoadFigures, limit: str) -> str:
    """How many requests a second kept a limit of TPOT in milliseconds."""
    mine, its = (each.stricter.get(limit, each.goodput_per_s).median for each in (ours, theirs))
    ratio = f" ({mine / its:.2f}x)" if its >= _LEAST_SHARE * mine else ""
    return f"{mine:.1f}, {its:.1f}{ratio}"


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
