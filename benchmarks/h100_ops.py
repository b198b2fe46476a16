"""Every op on a GPU: correctness of each provider against float64, then speed beside TorchInductor and torch.

    PYTHONPATH=. python benchmarks/h100_ops.py [--only OP,OP] [--quick] [--skip-timing] [--warm-jobs N] [--output FILE]
    PYTHONPATH=. compute-sanitizer --tool memcheck python benchmarks/h100_ops.py --sanitize

Needs torch, Triton, Helion and what they need; not the packages of the server and the command.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import torch

from parhelion.bench.correctness import CorrectnessRow, check_contract
from parhelion.bench.kernels import KernelRow, measure_case
from parhelion.errors import first_line
from parhelion.ops.contract import Contract
from parhelion.ops.kernel_timer import Timing, random_inputs
from parhelion.ops.provider import forget_shapes
from parhelion.ops.registry import Op, op, op_names
from parhelion.platform.ceilings import measure_ceilings
from parhelion.tuning.model_contracts import SCHEMES, contracts_of_models, kind, with_uncalled_ops
from parhelion.tuning.model_shapes import model_shape

RESULT = Path(__file__).parent / "results" / "h100_ops.json"
GEMM_OPS = ("linear", "scaled_mm", "scaled_mm_blockwise", "weight_only_mm")
OTHER_OPS = (
    "paged_attention",
    "fused_rope_attention",
    "embedding",
    "argmax",
    "top_k_top_p_sampling",
    "step_inputs",
)
"""Neither row kernels nor matrix products: timed at the sizes of a decode step, without TorchInductor."""

SANITIZED_M = (1, 19, 130)
"""Sizes of M whose configs differ."""

ROUNDS = Timing(rounds=12)


@dataclass(frozen=True)
class Plan:
    """What is done.

    Attributes:
        check_m: sizes of M for correctness.
        models: whose row kernels are timed. gemm_models: whose matrix products and other ops are.
        row_m: sizes of M of row kernels. slow_m: those of them at which TorchInductor and the reference are timed too.
        gemm_m, other_m: sizes of M of matrix products, and of the rest.
        timing: rounds.
        examples: how many of an op's examples are checked, smallest first.
        time_budget_s: seconds after which no further contract is timed.
    """

    check_m: tuple[int, ...] = (1, 2, 7, 67, 256)
    models: tuple[str, ...] = ("qwen3-8b", "qwen3-1.7b", "qwen3-32b")
    gemm_models: tuple[str, ...] = ("qwen3-8b",)
    row_m: tuple[int, ...] = tuple(1 << power for power in range(14))
    slow_m: tuple[int, ...] = (1, 16, 256, 2048, 8192)
    gemm_m: tuple[int, ...] = (1, 16, 64, 256, 1024)
    other_m: tuple[int, ...] = (1, 16, 256)
    timing: Timing = ROUNDS
    examples: int = 100
    time_budget_s: float = 300.0


QUICK = Plan(
    check_m=(1, 7),
    models=("smollm2-135m",),
    gemm_models=("smollm2-135m",),
    row_m=(1, 4),
    slow_m=(4,),
    gemm_m=(2,),
    other_m=(2,),
    timing=Timing(rounds=2, warmup=1),
    examples=1,
    time_budget_s=60.0,
)


Cases = list[tuple[int, tuple[str, ...]]]
"""Sizes of M, each with the names of the providers that are tried at it."""


def check_cases(contract: Contract, plan: Plan) -> Cases:
    """All providers at all sizes; TorchInductor, which takes seconds a shape, at one size of an op's last example."""
    names = tuple(provider.name for provider in op(contract.name).providers)
    quick = tuple(name for name in names if name != "inductor")
    is_last = contract == op(contract.name).examples[: plan.examples][-1]
    return [(size, names if is_last and size == plan.check_m[-1] else quick) for size in plan.check_m]


def check_all(ops: Sequence[Op], plan: Plan, device: torch.device) -> Iterator[CorrectnessRow]:
    """Every provider of every example."""
    for number, each in enumerate(ops):
        for contract in each.examples[: plan.examples]:
            cases = [(size, [each.provider(name) for name in names]) for size, names in check_cases(contract, plan)]
            try:
                rows = check_contract(contract, cases, device, seed=number)
            # After an illegal access nothing works any more on the device; what was found until then is still written.
            except Exception as error:
                rows = [CorrectnessRow(each.name, contract.key(), "all", (), problems=(first_line(error),))]
            for row in rows:
                state = "skipped" if row.skipped else "ok" if row.passed else f"FAILED {row.problems[0]}"
                print(f"check {row.contract} {row.provider}: {state}", flush=True)
                yield row


def contracts_to_time(only: Sequence[str], plan: Plan) -> list[Contract]:
    """Row kernels of all models, then the rest."""

    def of(models: Sequence[str]) -> list[Contract]:
        return [
            contract
            for name in models
            for contract in with_uncalled_ops(contracts_of_models([model_shape(name)], SCHEMES))
            if contract.name in only
        ]

    apart = (*GEMM_OPS, *OTHER_OPS)
    rows = [contract for contract in of(plan.models) if contract.name not in apart]
    rest = [contract for contract in of(plan.gemm_models) if contract.name in apart]
    return list(dict.fromkeys((*rows, *rest)))


def time_cases(contract: Contract, plan: Plan) -> Cases:
    """The sizes of M of a contract, and who is timed there."""
    names = tuple(provider.name for provider in op(contract.name).providers)
    quick = tuple(name for name in names if name not in ("inductor", "reference"))
    if contract.name in GEMM_OPS + OTHER_OPS:
        return [(size, quick) for size in (plan.gemm_m if contract.name in GEMM_OPS else plan.other_m)]
    return [(size, names if size in plan.slow_m else quick) for size in plan.row_m]


def time_all(contracts: Sequence[Contract], plan: Plan, device: torch.device) -> Iterator[KernelRow]:
    """Every case, until the time is used up; what is left over is named."""
    deadline = time.monotonic() + plan.time_budget_s
    for number, contract in enumerate(contracts):
        if time.monotonic() > deadline:
            for left in contracts[number:]:
                yield KernelRow(left.name, left.key(), 0, "all", None, 0.0, problem="no time was left")
            return
        for size, names in time_cases(contract, plan):
            named = [op(contract.name).provider(name) for name in names]
            providers = [each for each in named if not each.why_not(device) and not each.refuses(contract)]
            try:
                yield from measure_case(contract, size, providers, device, plan.timing)
            except Exception as error:
                yield KernelRow(contract.name, contract.key(), size, "all", None, 0.0, problem=first_line(error))
        print(f"timed {contract.key()}", flush=True)


def warm(contract: Contract, cases: Cases, device: torch.device) -> None:
    """Fill the compile caches on disk with what these cases will need."""
    for size, names in cases:
        for name in set(names) & {"inductor", "helion"}:
            provider = op(contract.name).provider(name)
            if provider.why_not(device) or provider.refuses(contract):
                continue
            forget_shapes(provider)
            try:
                provider.launcher(contract)(*random_inputs(contract, size, device))
            # The run itself will meet the same error and report it.
            except Exception:
                continue


def warm_all(work: Sequence[tuple[Contract, Cases]], device: torch.device, jobs: int) -> None:
    """``warm`` in so many processes. Nothing depends on it: a process that dies only makes the rest slower."""
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for contract, future in [(contract, pool.submit(warm, contract, cases, device)) for contract, cases in work]:
            if (error := future.exception()) is not None:
                print(f"not warmed: {contract.key()}: {type(error).__name__}", flush=True)


def sanitize(ops: Sequence[Op], device: torch.device) -> None:
    """Launch every Helion kernel at small shapes and do nothing else, for a run under compute-sanitizer."""
    for each in ops:
        provider = each.provider("helion")
        # Smallest first, so these are the smallest of each kind.
        for contract in {kind(example): example for example in reversed(each.examples)}.values():
            why_not = provider.why_not(device) or provider.refuses(contract)
            for size in SANITIZED_M:
                if why_not is None:
                    inputs = contract.sample_inputs(size, device, torch.Generator().manual_seed(size))
                    provider.launcher(contract)(*inputs)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                print(f"{contract.key()} M = {size}: {why_not or 'launched'}", flush=True)


@dataclass(frozen=True)
class Ratio:
    """How much faster Helion's kernels of an op are than a rival's, over all contracts and sizes that have both."""

    op: str
    rival: str
    geometric_mean: float
    lowest: float
    lowest_at: str
    count: int


@dataclass(frozen=True)
class Timed:
    """A median time, in microseconds."""

    op: str
    contract: str
    num_tokens: int
    provider: str
    time_us: float


def timed_rows(rows: Sequence[KernelRow]) -> list[Timed]:
    """Those that were measured."""
    return [
        Timed(row.op, row.contract, row.num_tokens, row.provider, row.time_us.median)
        for row in rows
        if row.time_us is not None
    ]


def ratios(rows: Sequence[Timed]) -> list[Ratio]:
    """Helion beside each rival, op by op; above 1 Helion is faster."""
    times = {(row.op, row.contract, row.num_tokens, row.provider): row.time_us for row in rows}
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for (name, contract, size, provider), microseconds in times.items():
        own = times.get((name, contract, size, "helion"))
        if own is not None and provider != "helion":
            found.setdefault((name, provider), []).append((microseconds / own, f"{contract} M = {size}"))
    result = []
    for (name, rival), values in sorted(found.items()):
        mean = math.exp(sum(math.log(value) for value, _ in values) / len(values))
        lowest, where = min(values)
        result.append(Ratio(name, rival, mean, lowest, where, len(values)))
    return result


def circumstances(device: torch.device) -> dict[str, object]:
    """Device, versions and command."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "triton", "helion", "flashinfer-python", "vllm", "deep_gemm", "flash-attn"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    on_gpu = device.type == "cuda"
    return {
        "command": " ".join(["python", "benchmarks/h100_ops.py", *map(shlex.quote, sys.argv[1:])]),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "capability": list(torch.cuda.get_device_capability(device)) if on_gpu else None,
        "cuda": torch.version.cuda,
        "versions": versions,
    }


def timing_record(row: KernelRow) -> dict[str, object]:
    """A row without what can be computed from the others, and with four digits of its figures."""
    record: dict[str, object] = {
        "contract": row.contract,
        "num_tokens": row.num_tokens,
        "provider": row.provider,
        "floor_us": _rounded(row.floor_us),
    }
    if row.time_us is None:
        return record | {"problem": row.problem}
    spread = {"median": row.time_us.median, "p10": row.time_us.p10, "p90": row.time_us.p90, "count": row.time_us.count}
    return record | {"time_us": {name: _rounded(value) for name, value in spread.items()}}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def correctness_records(checks: Sequence[CorrectnessRow]) -> list[dict[str, object]]:
    """A record for each contract and provider."""
    return [asdict(row) | {"passed": row.passed} for row in checks]


def write(report: dict[str, object], path: Path) -> None:
    """Write the result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(report))


def as_json(report: dict[str, object]) -> str:
    """JSON with a line for each record of a list."""
    parts = []
    for name, value in report.items():
        text = json.dumps(value)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def print_tables(checks: Sequence[CorrectnessRow], means: Sequence[Ratio], timed: Sequence[KernelRow]) -> None:
    """The short version, last."""
    print("\ncorrectness: contracts passed, worst relative error, largest share of codes one step away")
    for name, provider in dict.fromkeys((row.op, row.provider) for row in checks):
        rows = [row for row in checks if (row.op, row.provider) == (name, provider)]
        tried = [row for row in rows if row.skipped is None]
        if not tried:
            print(f"  {name:40} {provider:12} - {rows[0].skipped}")
            continue
        worst = max((error.relative for row in tried for error in row.outputs), default=0.0)
        flips = max((error.flips for row in tried for error in row.outputs), default=0.0)
        passed = sum(row.passed for row in tried)
        print(f"  {name:40} {provider:12} {passed}/{len(tried)}  {worst:.2e}  {flips:.1e}")
        for row in tried:
            for problem in row.problems:
                print(f"      {row.contract}: {problem}")
    print("\nspeed of helion over its rivals (geometric mean, lowest)")
    for ratio in means:
        print(
            f"  {ratio.op:40} {ratio.rival:12} {ratio.geometric_mean:6.2f}x {ratio.lowest:6.2f}x"
            f" of {ratio.count}, {ratio.lowest_at}"
        )
    for problem in dict.fromkeys(f"{row.contract} {row.provider}: {row.problem}" for row in timed if row.problem):
        print(f"  not timed: {problem}")


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", default="", help="ops, separated by commas")
    parser.add_argument("--quick", action="store_true", help="smallest shapes, few rounds")
    parser.add_argument("--skip-check", action="store_true")
    parser.add_argument("--skip-timing", action="store_true")
    parser.add_argument("--sanitize", action="store_true", help="only launch every Helion kernel, at small shapes")
    parser.add_argument("--warm-jobs", type=int, default=0, help="processes that fill the compile caches first")
    parser.add_argument("--output", type=Path, default=RESULT)
    for name in ("check-m", "row-m", "slow-m", "gemm-m", "other-m"):
        parser.add_argument(f"--{name}", default="", help="sizes of M, separated by commas")
    for name in ("models", "gemm-models"):
        parser.add_argument(f"--{name}", default="", help="models, separated by commas")
    parser.add_argument("--time-budget", type=float, help="seconds of timing")
    return parser.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """The usual or the quick plan with what the options replace."""
    plan = QUICK if options.quick else Plan()
    changes: dict[str, object] = {}
    for name in ("check_m", "row_m", "slow_m", "gemm_m", "other_m"):
        if text := getattr(options, name):
            changes[name] = tuple(map(int, text.split(",")))
    for name in ("models", "gemm_models"):
        if text := getattr(options, name):
            changes[name] = tuple(text.split(","))
    if options.time_budget is not None:
        changes["time_budget_s"] = options.time_budget
    return replace(plan, **changes)  # type: ignore[arg-type]


def main() -> None:
    """Check, time, write, print."""
    options = parse()
    # The reference's matrix products are an oracle.
    torch.backends.cuda.matmul.allow_tf32 = False
    device, plan = torch.device(options.device), plan_of(options)
    ops = [op(name) for name in (options.only.split(",") if options.only else op_names())]
    if options.sanitize:
        sanitize(ops, device)
        return
    start = time.monotonic()
    report = circumstances(device)
    contracts = [] if options.skip_timing else contracts_to_time([each.name for each in ops], plan)
    if options.warm_jobs:
        work = [(contract, time_cases(contract, plan)) for contract in contracts]
        if not options.skip_check:
            work += [(c, check_cases(c, plan)) for each in ops for c in each.examples[: plan.examples]]
        warm_all(work, device, options.warm_jobs)
    seconds = {"warming": time.monotonic() - start}
    checks: list[CorrectnessRow] = []
    for row in () if options.skip_check else check_all(ops, plan, device):
        checks.append(row)
        # The run may be cut short: what is known by then shall not be lost.
        write(report | {"correctness": correctness_records(checks)}, options.output)
    seconds["checks"] = time.monotonic() - start - seconds["warming"]
    report["ceilings"] = asdict(measure_ceilings(device))
    timed = list(time_all(contracts, plan, device))
    means = ratios(timed_rows(timed))
    seconds["all"] = time.monotonic() - start
    report |= {
        "seconds": seconds,
        "correctness": correctness_records(checks),
        "ratios": [asdict(ratio) for ratio in means],
        "timing": [timing_record(row) for row in timed],
    }
    write(report, options.output)
    print_tables(checks, means, timed)
    print(f"\n{seconds['all']:.0f} s; written to {options.output}")


if __name__ == "__main__":
    main()
