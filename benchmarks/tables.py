"""Write the tables of README.md and docs/ again from benchmarks/results/, between their markers.

    python benchmarks/tables.py [--check]

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``, where NAME is a key of ``TABLES``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent))

from ahead_tables import cold_start_table, corners_table, tune_table
from compare_tables import compare_table, servers_table
from fault_tables import fault_table
from gpu_speculation_table import gpu_speculation_table
from gpu_step_tables import siblings_table, step_trace_table
from lm_head_table import lm_head_table
from plan_check import plan_check_table
from pp_tables import pp_table
from tp_draws import draws_table
from tp_tables import tp_speed_table, tp_sums_table

from parhelion.bench.compare import results
from parhelion.bench.compare.plot import plot
from parhelion.bench.report import format_figure
from parhelion.ops.registry import Op, ops
from parhelion.platform.cpu import CpuFingerprint
from parhelion.platform.measure import Summary
from parhelion.tuning.target import TARGETS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


class Circumstances(msgspec.Struct):
    """Where and how a result was measured."""

    command: str
    measured_at: str
    machine: CpuFingerprint


class EngineRow(msgspec.Struct):
    """One engine of the comparison."""

    engine: str
    dtype: str
    decode_ms_per_token: Summary
    batch1_tokens_per_s: Summary
    concurrent_tokens_per_s: Summary | None


class ComparisonSettings(msgspec.Struct):
    """Those options of the comparison that a reader needs."""

    threads: int
    output_length: int
    concurrency: int


class Comparison(msgspec.Struct):
    """What ``cpu_vs_transformers.py`` writes."""

    settings: ComparisonSettings
    engines: list[EngineRow]
    best_transformers_dtype: str
    decode_speedup: Summary
    throughput_ratio: Summary
    greedy_text_intact: bool
    circumstances: Circumstances


class MeasurementRow(msgspec.Struct):
    """One row of a plain report."""

    case: str
    quantity: str
    unit: str
    summary: Summary


class PlainReport(msgspec.Struct):
    """What the other scripts write."""

    measurements: list[MeasurementRow]
    circumstances: Circumstances
    settings: dict[str, Any] = {}


class OpCheck(msgspec.Struct):
    """A provider of a contract beside float64; ``skipped`` says why it was not tried."""

    op: str
    provider: str
    passed: bool
    skipped: str | None


class OpRatio(msgspec.Struct):
    """Helion's speed over a rival's, over all shapes of an op."""

    op: str
    rival: str
    geometric_mean: float
    lowest: float
    count: int


class OpsResult(msgspec.Struct):
    """What ``h100_ops.py`` writes."""

    command: str
    measured_at: str
    device: str
    versions: dict[str, str]
    correctness: list[OpCheck]
    ratios: list[OpRatio]


def comparison_table(content: bytes) -> str:
    """Both engines side by side, and the ratios."""
    result = msgspec.json.decode(content, type=Comparison)
    s = result.settings
    head = f"| | dtype | decode, batch 1 (ms/token) | batch 1 (tokens/s) | {s.concurrency} at once (tokens/s) |"
    lines = [head, "|---|---|---:|---:|---:|"]
    for row in result.engines:
        cells = [row.decode_ms_per_token, row.batch1_tokens_per_s, row.concurrent_tokens_per_s]
        lines.append(f"| {row.engine} | {row.dtype} | " + " | ".join(spread(cell) for cell in cells) + " |")
    texts = "equals" if result.greedy_text_intact else "differs from"
    lines += [
        "",
        "Parhelion over transformers' best dtype of each round: "
        f"**{result.decode_speedup.median:.2f}x** in batch-1 decode, "
        f"**{result.throughput_ratio.median:.2f}x** in throughput at {s.concurrency} requests against batch 1. "
        f"Parhelion's greedy text {texts} transformers' in float32. {s.output_length} tokens a request, "
        f"{s.threads} threads.",
        "",
        footnote(result.circumstances),
    ]
    return "\n".join(lines)


def plain_table(content: bytes) -> str:
    """One row a measurement."""
    result = msgspec.json.decode(content, type=PlainReport)
    lines = ["| case | quantity | median (p10 to p90) |", "|---|---|---:|"]
    lines += [f"| {m.case} | {m.quantity} ({m.unit}) | {spread(m.summary)} |" for m in result.measurements]
    gpu = f"{result.settings['device']}; " if "device" in result.settings else ""
    return "\n".join([*lines, "", gpu + footnote(result.circumstances)])


def speculation_table(content: bytes) -> str:
    """Speed with guesses over that without, a line for each kind of prompt and batch."""
    report = msgspec.json.decode(content, type=PlainReport)
    quantities = list(dict.fromkeys(row.quantity for row in report.measurements))
    units = {row.quantity: row.unit for row in report.measurements}
    lines = ["| | " + " | ".join(f"{each} ({units[each]})" for each in quantities) + " |"]
    lines.append("|---|" + "---:|" * len(quantities))
    for case in dict.fromkeys(row.case for row in report.measurements):
        found = {row.quantity: row.summary for row in report.measurements if row.case == case}
        lines.append(f"| {case} | " + " | ".join(spread(found.get(each)) for each in quantities) + " |")
    return "\n".join([*lines, "", footnote(report.circumstances)])


def ops_table(content: bytes) -> str:
    """One row an op: whose results are right, and how fast the tile program is."""
    result = msgspec.json.decode(content, type=OpsResult)
    rivals = list(dict.fromkeys(ratio.rival for ratio in result.ratios))
    ratios = {(ratio.op, ratio.rival): ratio for ratio in result.ratios}
    lines = [f"| op | right beside float64 | {' | '.join(f'over {rival}' for rival in rivals)} |"]
    lines.append("|---|---|" + "---:|" * len(rivals))
    for op in dict.fromkeys(check.op for check in result.correctness):
        cells = [_rightness(result.correctness, op)]
        for rival in rivals:
            ratio = ratios.get((op, rival))
            cells.append(f"{ratio.geometric_mean:.2f}x ({ratio.lowest:.2f})" if ratio is not None else "")
        lines.append(f"| `{op}` | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    note = (
        "Speed of the tile program over each rival, geometric mean over shapes and sizes of M (lowest in brackets); "
        f"{result.device}, {versions}, {result.measured_at[:10]}; {_by(result.command, 'h100_ops')}."
    )
    return "\n".join([*lines, "", note])


def providers_table(content: bytes) -> str:
    """One row an op: who can compute it, and for which targets its tile program is built without a GPU."""
    built: dict[str, list[set[str]]] = {}
    for contract, targets in msgspec.json.decode(content, type=dict[str, list[str]]).items():
        built.setdefault(contract.partition("(")[0], []).append(set(targets))
    names = [target.name for target in TARGETS]
    lines = ["| op | providers | its tile program is built for |", "|---|---|---|"]
    for op in ops():
        kinds = built[op.name]
        everywhere, somewhere = set.intersection(*kinds), set.union(*kinds)
        cell = "all seven targets" if len(everywhere) == len(names) else _listed(everywhere, somewhere, op)
        lines.append(f"| `{op.name}` | {', '.join(provider.name for provider in op.providers)} | {cell} |")
    return "\n".join([*lines, "", f"Targets: {', '.join(names)}."])


def _listed(everywhere: set[str], somewhere: set[str], op: Op) -> str:
    missing = ", ".join(target for target in (each.name for each in TARGETS) if target not in everywhere)
    if len(somewhere) <= 1:
        return f"{', '.join(somewhere) or 'none'}; elsewhere `{op.contract.instead}` serves"
    some = " for some dtypes" if everywhere != somewhere else ""
    return f"all but {missing}{some}, where `{op.contract.instead}` serves"


def engine_table(content: bytes) -> str:
    """What was checked of the engine on a GPU."""
    result = msgspec.json.decode(content)["parts"]
    lines = ["| checked on the GPU | result | bound |", "|---|---|---|"]
    lines += [
        f"| logits of a random {row['model']} shape, bfloat16 | {row['relative_error']:.4f} (relative) | "
        f"1.5 x transformers' own bfloat16 error, {row['transformers_bfloat16_error']:.4f} |"
        for row in result["parity"]
    ]
    lines += [
        f"| {row['quantization']}, {row['plan']} plan: KL divergence from the unquantized model | "
        f"{row['kl_mean']:.2g} (at most {row['kl_max']:.2g}) | mean 0.05 |"
        for row in result["fp8"]
        if row["quantization"] != "none"
    ]
    for row in result["graphs"]:
        told = "identical" if row["identical_to_eager"] else "different"
        lines.append(
            f"| tokens with {row['captured']} CUDA graphs ({row['graphs']}) beside eager steps | {told} | identical |"
        )
    lines += [
        f"| SmolLM2's greedy text, {row['dtype']}, beside a CPU's in float32 "
        f"| {row['same_text']} of {row['of']} the same | {'all' if row['dtype'] == 'float32' else 'the first token'} |"
        for row in result.get("smollm2", ())
    ]
    lines += [
        f"| `parhelion serve`, random Qwen3-8B FP8 | ready in {row['ready_s']:.0f} s, then {row['completion_tokens']} "
        f"tokens in {row['completion_s']:.2f} s | answers, streams, ends with status 0 |"
        for row in result.get("serve", ())
    ]
    return "\n".join([*lines, "", engine_note(result)])


def speed_table(content: bytes, name: str = "h100_engine") -> str:
    """Decoding and prefill on a GPU, beside the floor.

    Args:
        name: of the result.
    """
    result = msgspec.json.decode(content)["parts"]
    lines = ["| model | kernels | batch | prefill (ms) | TPOT (ms) | floor (ms) | of the floor | output tokens/s |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in result["speed"]:
        if "tpot_ms" in row:
            floor = row["floor_ms"]
            times = sorted(row["tpot_ms_all"])
            lines.append(
                f"| {row['model']} | {_kernels(row)} | {row['batch']} | {row['prefill_ms']:.1f} | {row['tpot_ms']:.2f} "
                f"({times[0]:.2f} to {times[-1]:.2f}) | {floor:.2f} | {100 * floor / row['tpot_ms']:.0f}% "
                f"| {row['output_tokens_per_s']:,.0f} |"
            )
    said = "FP8 weights and activations, 512 tokens in, 128 out, greedy; median and range of three rounds. "
    return "\n".join([*lines, "", said + engine_note(result, name)])


def _kernels(row: dict[str, Any]) -> str:
    """Where a run's kernels came from."""
    return f"pack {row['pack']}" if row.get("pack") else "untuned"


def engine_note(result: dict[str, Any], name: str = "h100_engine") -> str:
    """Device, versions and command of ``h100_engine.py``; ``name`` is the result's."""
    circumstances = result["circumstances"]
    versions = ", ".join(f"{package['name']} {package['version']}" for package in circumstances["packages"][:3])
    by = _by(circumstances["command"], name)
    return f"{result['device']}, {versions}, {circumstances['measured_at'][:10]}; {by}."


def _by(command: str, name: str) -> str:
    """The command; of several only where they stand."""
    return f"`{command}`" if "; " not in command else f"the commands are in `benchmarks/results/{name}.json`"


def _rightness(checks: list[OpCheck], op: str) -> str:
    """Each provider that was tried, with how many of its contracts passed."""
    tried = [check for check in checks if check.op == op and check.skipped is None]
    cells = []
    for provider in dict.fromkeys(check.provider for check in tried):
        passed = [check.passed for check in tried if check.provider == provider]
        cells.append(f"{provider} {sum(passed)}/{len(passed)}")
    return ", ".join(cells)


def spread(summary: Summary | None) -> str:
    """The median and, where there was more than one value, how far the rest lies from it."""
    if summary is None:
        return ""
    median = format_figure(summary.median)
    if summary.count == 1:
        return median
    return f"{median} ({format_figure(summary.p10)} to {format_figure(summary.p90)})"


def footnote(circumstances: Circumstances) -> str:
    """Machine, date and command."""
    machine = circumstances.machine
    return (
        f"Median and 10th to 90th percentile; {machine.name}, {machine.cores} cores, {machine.capability}, "
        f"torch {machine.torch}, {circumstances.measured_at[:10]}; `{circumstances.command}`."
    )


TABLES: Mapping[str, Callable[[bytes], str]] = {
    "cpu_vs_transformers": comparison_table,
    "scheduler_overhead": plain_table,
    "host_overhead": plain_table,
    "memory": plain_table,
    "inductor": plain_table,
    "speculation": speculation_table,
    "h200_speculation": gpu_speculation_table,
    "h200_siblings": siblings_table,
    "h200_step_trace": step_trace_table,
    "h100_ops": ops_table,
    "h100_engine": engine_table,
    "h100_speed": speed_table,
    "h200_vs_vllm": compare_table,
    "h200_servers": servers_table,
    "h200_speed": lambda content: speed_table(content, "h200_engine"),
    "h200_tune": tune_table,
    "h200_tune_32b": tune_table,
    "h100_launchers": plain_table,
    "h100_tune": tune_table,
    "cold_start": cold_start_table,
    "faults": fault_table,
    "plan_check": plan_check_table,
    "lm_head_accuracy": lm_head_table,
    "h100x2_tp": tp_speed_table,
    "h100x2_sums": tp_sums_table,
    "h200x2_pp": pp_table,
    "h200x2_tp": tp_speed_table,
    "h200x2_sums": tp_sums_table,
    "h200x2_draws": draws_table,
    "three_corners": lambda content: corners_table(content, RESULTS),
    "ops_and_targets": providers_table,
}

SOURCES: Mapping[str, Path] = {
    "ops_and_targets": ROOT / "tests" / "tuning" / "expected_matrix.json",
    "h100_speed": RESULTS / "h100_engine.json",
    "h200_speed": RESULTS / "h200_engine.json",
    "h200_servers": RESULTS / "h200_vs_vllm.json",
    "three_corners": RESULTS / "h100_tune.json",
    "h100x2_sums": RESULTS / "h100x2_tp.json",
    "h200x2_sums": RESULTS / "h200x2_tp.json",
}
"""Files of tables that are not made of a benchmark's result."""

PLOTS: Mapping[Path, Path] = {ROOT / "docs" / "h200_vs_vllm.svg": RESULTS / "h200_vs_vllm.json"}
"""Pictures that documents show, with the comparisons that they are of."""


def table_named(name: str, results: Path = RESULTS) -> str:
    """The table of a result file, or a line that says how to measure it.

    Raises:
        ValueError: no table has that name.
    """
    if name not in TABLES:
        raise ValueError(f"no table is called {name!r}; there are {', '.join(TABLES)}")
    file = SOURCES.get(name, results / f"{name}.json")
    if not file.exists():
        return f"Not measured yet: `python benchmarks/{name}.py`."
    return TABLES[name](file.read_bytes())


def with_fresh_tables(text: str, results: Path = RESULTS) -> str:
    """The document with every marked table written again."""
    return _MARKED.sub(lambda match: f"{match[1]}{table_named(match[2], results)}\n{match[3]}", text)


def documents() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fresh_files() -> Iterator[tuple[Path, str]]:
    """Every file that is made of results, with what should be in it."""
    for path in documents():
        yield path, with_fresh_tables(path.read_text())
    for path, result in PLOTS.items():
        yield path, plot(msgspec.json.decode(result.read_bytes(), type=results.Comparison))


def main() -> None:
    """Rewrite documents and plots, or with ``--check`` only say which are out of date (status 1)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a table is out of date")
    check_only = parser.parse_args().check
    stale = {path: text for path, text in fresh_files() if text != path.read_text()}
    for path, text in stale.items():
        print(f"{'out of date' if check_only else 'written'}: {path.relative_to(ROOT)}")
        if not check_only:
            path.write_text(text)
    sys.exit(1 if check_only and stale else 0)


if __name__ == "__main__":
    main()
