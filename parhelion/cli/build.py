"""``parhelion build``: packs for any target, made on this machine; or a check of what builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.output import count_bar, print_json, print_note, stdout
from parhelion.config import Quantization
from parhelion.errors import ConfigError

if TYPE_CHECKING:
    from parhelion.tuning.matrix import Build
    from parhelion.tuning.page import Asked

EXIT_REGRESSED = 1


def build(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|PACK",
            help="A listed model or draft head, a folder with a config.json of either, a .gguf file, or a pack's name "
            "or path.",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="For this target (sm_90, gfx942 ...); several with commas. Default: the pack's; --check: all."
        ),
    ] = None,
    quantization: Annotated[
        list[str] | None,
        typer.Option(help="Of this quantization scheme; may be repeated. Default: the checkpoint's; --check: all."),
    ] = None,
    lm_head_quantization: Annotated[
        Quantization | None,
        typer.Option(help="Of a model's output head, as serve takes it. Default: unquantized."),
    ] = None,
    tp: Annotated[
        str | None, typer.Option(help="Of a model: for one of so many ranks; several with commas. Default: 1.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes that compile. Default: one a core.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the packs, or a .zip for one. Default: where packs are looked for. "
            "With --check: write the matrix as a page of Markdown.",
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Build every program and report; keep no binaries.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="--check: for this model's shapes; may be repeated. Default: all listed.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="--check: of contracts that differ in sizes alone only the first; no float32."),
    ] = False,
    expect: Annotated[
        Path | None, typer.Option(help="--check: exit with status 1 if a pair that this file lists is not built.")
    ] = None,
    write_expected: Annotated[
        Path | None, typer.Option(help="--check: write the pairs that are built to this file.")
    ] = None,
) -> None:
    """Cross-compile tile programs with no GPU: into packs for a model or from another pack, or to see what builds.

    Example: [cyan]parhelion build qwen3-8b --quantization fp8_per_token --target sm_90,gfx942[/]

    Example: [cyan]parhelion build ./qwen3-8b-eagle3 --target sm_90[/], for a draft head that serve is given

    Example: [cyan]parhelion build h100 --target gfx942 --output packs[/]

    Example: [cyan]parhelion build --check --model qwen3-8b --target sm_90[/]
    """
    targets = [name for each in target or () for name in each.split(",") if name]
    if check:
        if source is not None:
            raise ConfigError(
                f"--check keeps no packs, so it takes no {source!r}: pass --model {source}, or no --check"
            )
        if tp is not None:
            raise ConfigError("--check builds what one rank alone calls: leave --tp out")
        if lm_head_quantization is not None:
            raise ConfigError(
                "--check builds every kind of program once, and a quantized output head has those of quantized layers: "
                "leave --lm-head-quantization out"
            )
        _check(model, quantization, targets, quick, jobs, output, expect, write_expected, json_)
        return
    if source is None:
        raise ConfigError("build needs a model or a pack, such as parhelion build qwen3-8b --target sm_90; or --check")
    if model or quick or expect or write_expected:
        raise ConfigError(
            "--model, --quick, --expect and --write-expected belong to --check: pass that, or leave them out"
        )
    from parhelion.cli.build_packs import build_packs

    build_packs(source, targets, quantization or [], lm_head_quantization, tp, output, jobs, json_)


def _check(
    model: list[str] | None,
    quantization: list[str] | None,
    target: list[str],
    quick: bool,
    jobs: int | None,
    output: Path | None,
    expect: Path | None,
    write_expected: Path | None,
    json_: bool,
) -> None:
    """Build everything and say what builds."""
    from parhelion.platform.cores import usable_cores
    from parhelion.tuning import expected
    from parhelion.tuning.matrix import NUM_TOKENS, build_matrix
    from parhelion.tuning.model_contracts import SCHEMES, contracts_of_models, reduced, scheme, with_uncalled_kinds
    from parhelion.tuning.model_shapes import MODEL_SHAPES, model_shape
    from parhelion.tuning.page import Asked, compile_matrix_page
    from parhelion.tuning.target import TARGETS
    from parhelion.tuning.target import target as target_named

    shapes = [model_shape(name) for name in model] if model else list(MODEL_SHAPES)
    schemes = [scheme(name) for name in quantization] if quantization else list(SCHEMES)
    targets = tuple(target_named(name) for name in target) if target else TARGETS
    once = expected.read_expected(expect) if expect is not None else {}
    with count_bar("compiling") as bar:
        contracts = with_uncalled_kinds(contracts_of_models(shapes, schemes))
        if quick:
            contracts = reduced(contracts)
        builds = build_matrix(contracts, targets, jobs=jobs or usable_cores(), progress=bar)
    asked = Asked(
        tuple(shape.name for shape in shapes),
        tuple(each.name for each in schemes),
        targets,
        NUM_TOKENS,
        _command(model, quantization, target, quick, output),
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(compile_matrix_page(builds, asked))
        print_note(f"written to {output}")
    if write_expected is not None:
        expected.write_expected(write_expected, builds)
        print_note(f"written to {write_expected}")
    if json_:
        print_json(builds)
    else:
        _print_summary(builds, asked)
    lost = expected.regressions(once, builds, [each.name for each in targets])
    for line in lost:
        print_note(line)
    if lost:
        raise typer.Exit(EXIT_REGRESSED)


def _command(
    models: list[str] | None,
    quantizations: list[str] | None,
    targets: list[str],
    quick: bool,
    output: Path | None,
) -> str:
    """The command that makes the page again."""
    words = ["parhelion build --check"]
    words += [f"--model {name}" for name in models or ()]
    words += [f"--quantization {name}" for name in quantizations or ()]
    words += [f"--target {name}" for name in targets]
    words += ["--quick"] if quick else []
    words += [f"--output {output}"] if output is not None else []
    return " ".join(words)


def _print_summary(builds: list[Build], asked: Asked) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="programs built")
    table.add_column("op", overflow="fold")
    for heading in (*(target.name for target in asked.targets), "s"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    for op in dict.fromkeys(build.op for build in builds):
        own = [build for build in builds if build.op == op]
        cells = []
        for target in asked.targets:
            there = [build for build in own if build.target == target.name]
            built = sum(build.built for build in there)
            cells.append(f"{built}/{len(there)}" if built == len(there) else f"[yellow]{built}/{len(there)}[/]")
        table.add_row(op, *cells, f"{sum(build.seconds for build in own):.0f}")
    console = stdout()
    console.print(table)
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for build in builds:
        if build.reason is not None:
            reasons.setdefault((build.op, build.reason, build.instead or ""), []).append(build.target)
    for (op, reason, instead), targets in reasons.items():
        where = ", ".join(dict.fromkeys(targets))
        console.print(escape(f"{op} on {where}: {reason}; {instead} serves"), soft_wrap=True)
