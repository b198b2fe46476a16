"""``parhelion tune``: find out on this GPU who serves what best, and write it down as a pack."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.bench import integers
from parhelion.cli.output import print_json, print_note, stdout
from parhelion.cli.tune_view import progress_view
from parhelion.config import Quantization
from parhelion.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from parhelion.tuning.estimate import Estimate
    from parhelion.tuning.head_calls import TunedHead
    from parhelion.tuning.model_calls import TunedModel
    from parhelion.tuning.plan import Plan
    from parhelion.tuning.tune import TuneResult

EXIT_INTERRUPTED = 130
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def tune(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A listed model or draft head, or a folder with a config.json of either."),
    ],
    quantization: Annotated[
        str | None, typer.Option(help="The scheme's name, such as fp8_per_token. Default: the checkpoint's own.")
    ] = None,
    lm_head_quantization: Annotated[
        Quantization | None, typer.Option(help="Of the output head, as serve takes it. Default: unquantized.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cuda:N.")] = "cuda",
    budget: Annotated[str, typer.Option(help="How long it may take: 90s, 10m, 1h30m.")] = "10m",
    ops: Annotated[str, typer.Option(help="Only these ops, separated by commas. Default: all that it calls.")] = "",
    effort: Annotated[str, typer.Option(help="quick, normal or full: how many configs of a row are tried.")] = "normal",
    seed_pack: Annotated[
        list[str] | None, typer.Option(help="A pack whose configs are tried first; may be repeated.")
    ] = None,
    m: Annotated[str, typer.Option(help="Only the buckets of these sizes of M, separated by commas.")] = "",
    tp: Annotated[
        str, typer.Option(help="Ranks that share each layer: one rank's shapes are tuned. Several with commas.")
    ] = "1",
    helion_search: Annotated[
        str, typer.Option(help="Ask Helion's own search too, and give it so long a product: 5m. Default: not asked.")
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The pack: a folder, or a .zip. Default: named after the GPU, among yours."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be tuned. Needs no GPU.")] = False,
    target: Annotated[str | None, typer.Option(help="--dry-run: for this target, such as sm_90.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Measure every provider and config of every op that a model calls, and write a pack of the best.

    Interrupted, it leaves a pack of what is known; the same command goes on from there.

    Example: [cyan]parhelion tune qwen3-8b --quantization fp8_per_token --budget 10m[/]

    Example: [cyan]parhelion tune ./qwen3-8b-eagle3 --budget 5m[/], for a draft head, into the same pack
    """
    from parhelion.tuning.head_calls import tuned
    from parhelion.tuning.passes import EFFORTS
    from parhelion.tuning.tune import least_budget_s

    budget_s = seconds("--budget", budget)
    helion_search_s = seconds("--helion-search", helion_search) if helion_search else 0.0
    if effort not in EFFORTS:
        raise ConfigError(f"--effort is {effort!r}; the efforts are {', '.join(EFFORTS)}")
    if target is not None and not dry_run:
        raise ConfigError("--target belongs to --dry-run: what is tuned is the GPU that is here")
    asked = [tuned(model, quantization, each, lm_head_quantization) for each in ranks(tp)]
    # A head that cannot be divided is whole on however many ranks.
    wanted = list({each.tp: each for each in asked}.values())
    # Each number of ranks has its share.
    least_s = len(wanted) * least_budget_s(helion_search_s)
    if helion_search_s and budget_s < least_s:
        raise ConfigError(
            f"--helion-search is {helion_search} a product and --budget {budget} in all, which leaves no time for one: "
            f"pass --budget {math.ceil(least_s / 60)}m or more"
        )
    names = tuple(name.strip() for name in ops.split(",") if name.strip())
    sizes = integers("--m", m) if m else ()
    if dry_run:
        _show_plans(wanted, target or "sm_90", names, sizes, effort, helion_search_s, budget_s, json_)
        return
    scheme = wanted[0].quantization.name
    command = _command(model, scheme, lm_head_quantization, budget, names, effort, seed_pack or [], m, tp)
    command += f" --helion-search {helion_search}" if helion_search else ""
    result, path = _tune(
        wanted, _gpu(device), names, sizes, effort, seed_pack or [], budget_s, helion_search_s, output, command
    )
    _report(result, path, json_)
    if result.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def seconds(option: str, text: str) -> float:
    """``"1h30m"``, ``"10m"``, ``"90"`` as seconds.

    Raises:
        ConfigError: the text is no time, or none at all.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([hms]?)", text.strip().lower())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != re.sub(r"\s", "", text.lower()) or total <= 0:
        raise ConfigError(f"{option} is {text!r}; write a time such as 90s, 10m or 1h30m")
    return total


def ranks(text: str) -> tuple[int, ...]:
    """``--tp`` of commands that prepare kernels: the numbers of ranks, ascending, each once."""
    return tuple(sorted(set(integers("--tp", text))))


def slug(device: str) -> str:
    """A device's name as a pack's: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _gpu(name: str) -> torch.device:
    from parhelion.platform.device import choose_device

    way_out = "pass --dry-run to see what it would do, or make an untuned pack with parhelion build"
    try:
        device = choose_device(name)
    except ConfigError:
        raise ConfigError(f"tuning measures on a GPU, and torch sees no {name} here: {way_out}") from None
    if device.type != "cuda":
        raise ConfigError(f"tuning measures on a GPU, and --device is {name}: {way_out}")
    return device


def _tune(
    models: Sequence[TunedModel | TunedHead],
    device: torch.device,
    ops: tuple[str, ...],
    sizes: tuple[int, ...],
    effort: str,
    seed_packs: list[str],
    budget_s: float,
    helion_search_s: float,
    output: Path | None,
    command: str,
) -> tuple[TuneResult, Path]:
    from dataclasses import replace
    from functools import partial

    from parhelion.ops.gemm.target import gemm_target
    from parhelion.packs.location import open_pack, user_packs

    start = time.monotonic()
    from parhelion.tuning.compile_pool import CompilePool, import_compilers
    from parhelion.tuning.gpu_worker import GpuTimer
    from parhelion.tuning.helion_search import full_effort_search
    from parhelion.tuning.helion_strategy import grace_s
    from parhelion.tuning.plan import make_plan, why_not_on
    from parhelion.tuning.target import target as target_named
    from parhelion.tuning.tune import TuneOptions, tune_each
    from parhelion.tuning.tune_ranks import tune_all_ranks

    seeds = tuple(open_pack(name).pack for name in seed_packs)
    import_compilers()
    with GpuTimer(device) as timer:
        fingerprint = timer.fingerprint
        assert fingerprint is not None
        target = target_named(fingerprint.target)
        configs_target = replace(gemm_target(target.name), num_processors=fingerprint.num_processors)
        plans = [make_plan(model, configs_target, why_not_on(device), ops=ops, sizes=sizes) for model in models]
        path = output or user_packs() / slug(fingerprint.device)
        # Importing compilers and starting on the device take some of it.
        left_s = max(0.0, budget_s - (time.monotonic() - start))
        options = TuneOptions(path, left_s, effort, seeds, command, helion_search_s)
        searched = partial(full_effort_search, device=str(device), grace_s=grace_s(helion_search_s))
        with CompilePool(target, num_processors=fingerprint.num_processors) as pool, progress_view() as progress:
            result = tune_each(
                plans,
                target,
                fingerprint,
                timer,
                pool,
                options,
                step_tuner=timer.tune_step,
                helion_search=searched,
                progress=progress,
            )
            if not ops and not result.interrupted:
                # The process that has timed so far would share its GPU with a rank.
                timer.close()
                result = tune_all_ranks(plans, target, fingerprint, pool, options, device, result, sizes)
    return result, path


def _command(
    model: str,
    quantization: str,
    lm_head_quantization: str | None,
    budget: str,
    ops: tuple[str, ...],
    effort: str,
    seed_packs: list[str],
    m: str,
    tp: str,
) -> str:
    """The command that tunes again, without folders of this machine."""
    words = ["parhelion", "tune", Path(model).name, "--quantization", quantization]
    words += [] if lm_head_quantization is None else ["--lm-head-quantization", lm_head_quantization]
    words += ["--budget", budget]
    words += ["--ops", ",".join(ops)] if ops else []
    words += ["--effort", effort]
    for name in seed_packs:
        words += ["--seed-pack", Path(name).name]
    words += ["--m", m] if m else []
    words += ["--tp", tp] if ranks(tp) != (1,) else []
    return shlex.join(words)


def _show_plans(
    models: Sequence[TunedModel | TunedHead],
    target: str,
    ops: tuple[str, ...],
    sizes: tuple[int, ...],
    effort: str,
    helion_search_s: float,
    budget_s: float,
    json_: bool,
) -> None:
    from parhelion.ops.gemm.target import gemm_target
    from parhelion.platform.cores import usable_cores
    from parhelion.tuning.estimate import estimate
    from parhelion.tuning.passes import EFFORTS
    from parhelion.tuning.plan import make_plan, refuses
    from parhelion.tuning.target import target as target_named

    aimed = gemm_target(target_named(target).name)
    plans = [make_plan(model, aimed, refuses, ops=ops, sizes=sizes) for model in models]
    found = [estimate(plan, EFFORTS[effort], usable_cores()) for plan in plans]
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        print_note(note)
    if json_:
        print_json(found if len(found) > 1 else found[0])
        return
    for plan, each in zip(plans, found, strict=True):
        _print_plan(plan, each, effort, helion_search_s, budget_s / len(plans))


def _print_plan(plan: Plan, found: Estimate, effort: str, helion_search_s: float, budget_s: float) -> None:
    from rich.markup import escape
    from rich.table import Table

    from parhelion.packs.format import NEVER_SERVE
    from parhelion.tuning.helion_search import has_twin
    from parhelion.tuning.plan import COMPILING_SIZES, grouped
    from parhelion.tuning.tune import most_searches

    head = plan.model.lm_head_quantization
    model = f"{plan.model.name} ({plan.model.quantization.name}{f', lm_head {head}' if head is not None else ''})"
    model += f", a rank of {plan.model.tp}," if plan.model.tp > 1 else ""
    table = Table(title=f"{found.num_rows} rows to tune for {model} on {plan.target.name}, effort {effort}")
    for heading in ("contract", "M up to"):
        table.add_column(heading, overflow="fold")
    for heading in ("a step", "configs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("rivals, if they are here", overflow="fold")
    for each in found.ops:
        sizes = ", ".join(map(str, each.buckets))
        rivals = ", ".join(each.rivals)
        table.add_row(escape(each.contract), sizes, str(each.weight), str(each.candidates), rivals)
    console = stdout()
    console.print(table)
    console.print(
        f"an estimate: {found.compile_s:.0f} s of compiling and {found.gpu_s:.0f} s on the device ({found.formula})",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"providers that compile for seconds at each size ({', '.join(NEVER_SERVE)}) are measured at M = "
        f"{', '.join(map(str, COMPILING_SIZES))} alone, and never win",
        soft_wrap=True,
        highlight=False,
    )
    if helion_search_s:
        able = [group for group in grouped(plan.rows, lambda row: row) if has_twin(group[-1].contract)]
        console.print(
            f"Helion's own search takes {helion_search_s:g} s for each product that it is asked for: those of "
            f"{len(able)} that may still gain most, at most {most_searches(helion_search_s, budget_s)} in this budget",
            soft_wrap=True,
            highlight=False,
        )


def _report(result: TuneResult, path: Path, json_: bool) -> None:
    from parhelion.packs.store import read_pack
    from parhelion.packs.summary import summarize

    for note in result.notes:
        print_note(note)
    if result.pack is None:
        raise ConfigError("nothing was tuned; see the notes above")
    summary = summarize(read_pack(path))
    if json_:
        print_json(summary)
        return
    from parhelion.cli.pack_tables import pack_table

    stdout().print(pack_table(summary))
    print_note(f"written to {path}; parhelion serve finds it if it lies among your packs; parhelion report shows it")
