"""``parhelion bench``: measure this machine."""

from __future__ import annotations

import asyncio
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parhelion.cli.bench_compare import compare
from parhelion.cli.load import open_llm
from parhelion.cli.options import arguments_of, record_options
from parhelion.cli.output import count_bar, print_note, stdout
from parhelion.config import EngineConfig, read_environment
from parhelion.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from parhelion.bench.report import Measurement
    from parhelion.bench.server_process import ServerProcess

Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as JSON to this file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of a table.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measured rounds; one more comes first and is not counted.")]
Requests = Annotated[int, typer.Option(min=1, help="Requests in all, or in a round.")]
PromptLength = Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")]
OutputLength = Annotated[int, typer.Option(min=1, help="Tokens generated for each prompt.")]
BenchSeed = Annotated[int, typer.Option(help="Seed of the random prompts.")]


def bench_app() -> typer.Typer:
    """The group of benchmarks."""
    app = typer.Typer(name="bench", help="Measure latency, throughput and serving here.", no_args_is_help=True)
    app.command()(latency)
    app.command()(throughput)
    app.command(name="serve")(serving)
    app.command()(kernels)
    app.command()(compare)
    return app


@record_options()
def latency(
    engine: EngineConfig,
    prompt_length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens of the prompt; may be repeated. [default: 32, 256, 1024]")
    ] = None,
    output_length: Annotated[
        list[int] | None, typer.Option(min=1, help="Tokens to generate; may be repeated. [default: 64]")
    ] = None,
    rounds: Rounds = 5,
    prompt_seed: BenchSeed = 0,
    output: Output = None,
    json_: AsJson = False,
) -> None:
    """One request at a time: time to the first token, and per token after it.

    Example: [cyan]parhelion bench latency smollm2-135m --prompt-length 128 --output latency.json[/]
    """
    from parhelion.bench.latency import LatencySettings, measure_latency

    usual = LatencySettings()
    settings = LatencySettings(
        prompt_lengths=tuple(prompt_length or usual.prompt_lengths),
        output_lengths=tuple(output_length or usual.output_lengths),
        rounds=rounds,
        seed=prompt_seed,
    )
    with open_llm(engine) as llm, count_bar("measuring latency") as bar:
        measurements = measure_latency(llm, settings, bar)
    _note_no_guesses(engine, measurements)
    _show("latency", settings, measurements, output, json_)


@record_options()
def throughput(
    engine: EngineConfig,
    num_requests: Requests = 64,
    prompt_length: PromptLength = 128,
    output_length: OutputLength = 64,
    rounds: Rounds = 3,
    prompt_seed: BenchSeed = 0,
    output: Output = None,
    json_: AsJson = False,
) -> None:
    """Many requests at once, without a server: tokens a second.

    Example: [cyan]parhelion bench throughput smollm2-135m --num-requests 32[/]
    """
    from parhelion.bench.throughput import ThroughputSettings, measure_throughput

    settings = ThroughputSettings(num_requests, prompt_length, output_length, rounds, seed=prompt_seed)
    with open_llm(engine) as llm, count_bar("measuring throughput") as bar:
        measurements = measure_throughput(llm, settings, bar)
    _note_no_guesses(engine, measurements)
    _show("throughput", settings, measurements, output, json_)


@record_options()
def serving(
    engine: EngineConfig,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already, such as http://127.0.0.1:8000; else one is started.")
    ] = None,
    num_requests: Requests = 100,
    prompt_length: PromptLength = 128,
    output_length: OutputLength = 64,
    request_rate: Annotated[
        float, typer.Option(help="Mean arrivals a second (Poisson); inf sends all at once.")
    ] = math.inf,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests in flight.")] = 16,
    ttft_objective_ms: Annotated[float, typer.Option(help="Goodput counts requests that keep this TTFT ...")] = 1000.0,
    tpot_objective_ms: Annotated[float, typer.Option(help="... and this time per output token.")] = 100.0,
    prompt_seed: BenchSeed = 0,
    output: Output = None,
    json_: AsJson = False,
) -> None:
    """Load a server over HTTP: TTFT, TPOT, ITL, end-to-end latency and goodput.

    Example: [cyan]parhelion bench serve smollm2-135m --num-requests 100 --concurrency 16[/]
    """
    from parhelion.bench.serving import ServingSettings, describe_load, generate_load, summarize_load
    from parhelion.bench.speculation import read_guess_counts, summarize_guesses

    settings = ServingSettings(
        num_requests=num_requests,
        prompt_length=prompt_length,
        output_length=output_length,
        request_rate=request_rate,
        concurrency=concurrency,
        ttft_objective_ms=ttft_objective_ms,
        tpot_objective_ms=tpot_objective_ms,
        seed=prompt_seed,
    )
    key = next(iter(read_environment().api_keys), None)
    with _server(engine, url) as server, count_bar("sending requests") as bar:
        before = read_guess_counts(server.url, key)
        records = asyncio.run(generate_load(server.url, server.model, settings, key, bar))
        after = read_guess_counts(server.url, key)
    measurements = summarize_load(records, settings)
    if before is not None and after is not None:
        measurements += summarize_guesses(describe_load(settings), [after.since(before)])
    _note_no_guesses(engine, measurements)
    _show("serving", settings, measurements, output, json_)


def kernels(
    model: Annotated[list[str] | None, typer.Option(help="For this model's shapes. Default: qwen3-8b.")] = None,
    op: Annotated[list[str] | None, typer.Option(help="This op; may be repeated. Default: all.")] = None,
    m: Annotated[str, typer.Option(help="Numbers of tokens, separated by commas.")] = "1,16,64,256,1024,8192",
    providers: Annotated[str, typer.Option(help="Providers, separated by commas; none means all there are.")] = "",
    quantization: Annotated[
        list[str] | None, typer.Option(help="Of this quantization scheme; may be repeated. Default: all.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each case.")] = 20,
    output: Output = None,
    json_: AsJson = False,
) -> None:
    """Every provider of an op beside the others and beside this device's measured limits.

    On a GPU: CUDA-graph replays with inputs and weights cold. On a CPU: a plain loop.

    Example: [cyan]parhelion bench kernels --model qwen3-8b --op rms_norm --m 1,16,256[/]
    """
    from parhelion.bench.kernel_report import KernelSettings, measure_report, to_kernel_table
    from parhelion.bench.report import to_json, write_json

    settings = KernelSettings(
        models=tuple(model or ("qwen3-8b",)),
        ops=tuple(op or ()),
        num_tokens=integers("--m", m),
        providers=tuple(name.strip() for name in providers.split(",") if name.strip()),
        quantizations=tuple(quantization or ()),
        device=device,
        rounds=rounds,
    )
    with count_bar("measuring kernels") as bar:
        report = measure_report(settings, bar)
    if output is not None:
        write_json(report, output)
        print_note(f"written to {output}")
    if json_:
        print(to_json(report).decode(), end="")
    else:
        stdout().print(to_kernel_table(report))


def integers(option: str, text: str) -> tuple[int, ...]:
    """``"1,16"`` as numbers.

    Raises:
        ConfigError: one of them is none, or is below 1.
    """
    try:
        numbers = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{option} is {text!r}; write positive integers separated by commas, such as 1,16,256")
    return numbers


def _server(engine: EngineConfig, url: str | None) -> AbstractContextManager[ServerProcess]:
    """The server at the address, or a fresh one for the block."""
    from parhelion.bench.server_process import ServerProcess, running_server

    if url is not None:
        return nullcontext(ServerProcess(url.rstrip("/").removesuffix("/v1"), engine.model))
    return running_server(engine.model, arguments_of(engine))


def _note_no_guesses(engine: EngineConfig, measurements: list[Measurement]) -> None:
    """Say so where guesses were asked for and none were made."""
    from parhelion.bench.speculation import ACCEPTANCE_RATE

    if engine.speculate != "off" and all(each.quantity != ACCEPTANCE_RATE for each in measurements):
        print_note(f"--speculate {engine.speculate}: no tokens were guessed ahead in what was measured")


def _show(name: str, settings: Any, measurements: list[Measurement], output: Path | None, as_json: bool) -> None:
    from parhelion.bench.report import make_report, to_json, to_table, write_json

    report = make_report(name, settings, measurements)
    if output is not None:
        write_json(report, output)
        print_note(f"written to {output}")
    if as_json:
        print(to_json(report).decode(), end="")
    else:
        stdout().print(to_table(report))
