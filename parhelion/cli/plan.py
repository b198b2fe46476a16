"""``parhelion plan``: what fits on so many GPUs, which layout is preferred, and how long its steps would take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.output import print_json, print_note, stdout
from parhelion.config import Quantization
from parhelion.distributed.collectives import NETWORK_GB_S
from parhelion.errors import ConfigError

if TYPE_CHECKING:
    from parhelion.cli.plan_report import PlanReport
    from parhelion.cli.planned_model import KnownTimes
    from parhelion.distributed.collectives import Fabric
    from parhelion.distributed.model_size import ModelSize
    from parhelion.distributed.planner import Workload
    from parhelion.tuning.model_calls import TunedModel

OBJECTIVES = ("latency", "throughput")
MOST_REASONS = 3


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A listed model, or a folder with a config.json.")],
    gpus: Annotated[int, typer.Option(help="GPUs in all.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="Of them, linked to each other without the network.")] = 8,
    device: Annotated[
        str, typer.Option(help="h100, h200, b200, a100, l40s, mi300x or mi355x; or a pack, for the device it is of.")
    ] = "h100",
    quantization: Annotated[
        str | None, typer.Option(help="The scheme's name, such as fp8_per_token. Default: the checkpoint's own.")
    ] = None,
    lm_head_quantization: Annotated[
        Quantization | None, typer.Option(help="Of the output head, as serve takes it. Default: unquantized.")
    ] = None,
    draft_model: Annotated[
        str | None,
        typer.Option(help="A draft model, or an EAGLE-3 head, whose weights, keys and values are beside the model's."),
    ] = None,
    objective: Annotated[
        str, typer.Option(help="latency: the shortest request; throughput: most tokens/s.")
    ] = "latency",
    batch: Annotated[
        int | None,
        typer.Option(
            help="Requests at once, over all replicas. Default: 1 for latency, as many as fit for throughput."
        ),
    ] = None,
    input_len: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 512,
    output_len: Annotated[int, typer.Option(help="Tokens of an answer.")] = 128,
    tp: Annotated[int | None, typer.Option(help="Only layouts in which so many ranks share each layer.")] = None,
    pp: Annotated[int | None, typer.Option(help="Only layouts with so many pipeline stages.")] = None,
    network: Annotated[float, typer.Option(help="GB/s of each GPU between nodes, one direction.")] = NETWORK_GB_S,
    pack: Annotated[str, typer.Option(help="Kernel times: a pack's name or path, auto, or off for floors.")] = "auto",
    untuned: Annotated[bool, typer.Option("--untuned", help="The pack's times of what serves without a pack.")] = False,
    max_num_seqs: Annotated[int, typer.Option(help="Requests of a replica at once, at most.")] = 256,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens of a step, at most.")] = 4096,
    top: Annotated[int, typer.Option(help="How many layouts are shown.")] = 8,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Plan a model on GPUs that need not be here: what fits, which layout is best, how long steps take, and why.

    It predicts. serve --tp divides layers among the devices of one machine, serve --pp has stages of them, and
    serve --dp has replicas.

    Example: [cyan]parhelion plan qwen3-8b --gpus 8 --device h100 --quantization fp8_per_token[/]
    """
    from parhelion.cli.planned_model import known_times, model_size, with_draft
    from parhelion.distributed.collectives import Fabric
    from parhelion.distributed.collectives import network as network_of
    from parhelion.distributed.planner import Workload
    from parhelion.tuning.model_calls import tuned_model

    if objective not in OBJECTIVES:
        raise ConfigError(f"--objective is {objective!r}; the objectives are {', '.join(OBJECTIVES)}")
    workload = Workload(
        input_len=input_len,
        output_len=output_len,
        objective="latency" if objective == "latency" else "throughput",
        batch=batch,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    times = known_times(device, pack, untuned)
    fabric = Fabric(times.device.link, network_of(network), gpus_per_node)
    tuned = tuned_model(model, quantization, lm_head_quantization=lm_head_quantization)
    size = model_size(tuned, model)
    size = size if draft_model is None else with_draft(size, draft_model)
    report = _report(model, tuned, size, times, fabric, workload, gpus, (tp, pp), top)
    if json_:
        print_json(report)
    else:
        _show(report)


def _report(
    name: str,
    model: TunedModel,
    size: ModelSize,
    times: KnownTimes,
    fabric: Fabric,
    workload: Workload,
    gpus: int,
    asked: tuple[int | None, int | None],
    top: int,
) -> PlanReport:
    from parhelion.cli.plan_report import PlanReport, planned_fits, planned_layouts, refused_layouts
    from parhelion.cli.planned_model import calls_of
    from parhelion.distributed.planner import plan_layouts, what_fits
    from parhelion.distributed.step_model import StepModel

    steps = StepModel(size, calls_of(model, size, times.target), times.times, fabric)
    memory = times.device.memory_bytes
    planned = plan_layouts(steps, memory, gpus, workload, *asked)
    best = planned.ranked[0].layout
    fits = what_fits(_quantizations(size, name), best, gpus, memory, fabric.gpus_per_node, workload)
    return PlanReport(
        model=model.name,
        quantization=model.quantization.name,
        device=times.device.device,
        num_gpus=gpus,
        gpus_per_node=fabric.gpus_per_node,
        workload=workload,
        layouts=planned_layouts(planned, workload, top),
        why=planned.why,
        refused=refused_layouts(planned),
        fits=planned_fits(fits, workload),
        assumptions=_assumptions(size, times, fabric, gpus),
    )


def _quantizations(size: ModelSize, name: str) -> list[ModelSize]:
    """The model in every scheme that it may be served in: a quantized checkpoint has one."""
    from parhelion.tuning.model_calls import tuned_model
    from parhelion.tuning.model_contracts import SCHEMES

    if tuned_model(name).quantization.is_quantized:
        return [size]
    return [replace(size, quantization=scheme) for scheme in SCHEMES]


def _assumptions(size: ModelSize, times: KnownTimes, fabric: Fabric, gpus: int) -> tuple[str, ...]:
    """Where the figures are from."""
    from parhelion.distributed.collectives import LINK_FRACTION
    from parhelion.distributed.step_model import FIRST_TOKEN_US

    device, inside, between = times.device, fabric.inside, fabric.between
    found = [*times.notes, f"{device.name}: {device.source}"]
    if size.head_quantization.is_quantized:
        beside = ", beside the embedding's table" if size.tied else ""
        found.append(f"the output head is in {size.head_quantization.name} whatever the layers are in{beside}")
    if gpus > 1:
        found.append(
            f"links at {LINK_FRACTION:.0%}: {inside.name} {inside.bandwidth / 1e9:g} GB/s one way ({inside.source}), "
            "latencies of NCCL's cost model; nothing of it was measured"
        )
    if gpus > fabric.gpus_per_node:
        found.append(f"nodes of {fabric.gpus_per_node} with {between.bandwidth / 1e9:g} GB/s a GPU between them")
    if size.draft is not None:
        found.append(
            f"{size.draft.name} is counted in memory, without graphs of its own; what guesses gain is not planned"
        )
    of_host = f"of the host's work {FIRST_TOKEN_US / 1e3:.1f} ms until a first token are counted"
    return (*found, f"requests come together and are answered greedily; {of_host}")


def _show(report: PlanReport) -> None:
    from parhelion.cli.plan_tables import fits_table, layouts_table, memory_table

    console = stdout()
    console.print(layouts_table(report))
    for sentence in report.why:
        console.print(f"- {sentence}", markup=False, highlight=False)
    console.print()
    console.print(memory_table(report.layouts[0]))
    console.print()
    console.print(fits_table(report.fits))
    for each in report.refused[:MOST_REASONS]:
        print_note(f"refused {each.layouts[0]}{_and_more(len(each.layouts) - 1)}: {each.reason}")
    if len(report.refused) > MOST_REASONS:
        print_note(f"and for {len(report.refused) - MOST_REASONS} more reasons: --json has them")
    for sentence in report.assumptions:
        print_note(sentence)
    if report.num_gpus > 1:
        print_note("a plan only: serve takes --tp, --pp and --dp so on the GPUs of one machine, or with Ray of several")


def _and_more(number: int) -> str:
    return f" and {number} more" if number else ""
