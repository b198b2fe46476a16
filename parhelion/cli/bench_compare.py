"""``parhelion bench compare``: Parhelion and other engines on the same device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.output import print_note, stdout
from parhelion.errors import ConfigError, ParhelionError

if TYPE_CHECKING:
    from parhelion.bench.compare.engines import Engine

OFFLINE, ONLINE = "Without a server", "With a server"


def compare(
    peer: Annotated[
        list[str] | None,
        typer.Option(help="vllm, or parhelion for itself; may be repeated. Default: vllm, or none beside --url."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="qwen3-1.7b, qwen3-8b, qwen3-0.6b, tiny, or a folder. Default: the first two."),
    ] = None,
    mode: Annotated[str, typer.Option(help="offline, online or both.")] = "both",
    url: Annotated[
        list[str] | None,
        typer.Option(help="An OpenAI-compatible server that runs already, such as SGLang's or TensorRT-LLM's."),
    ] = None,
    peer_python: Annotated[str | None, typer.Option(help="The peer's Python. Default: this one.")] = None,
    peer_path: Annotated[str | None, typer.Option(help="Folders for the peer's PYTHONPATH.")] = None,
    sequential: Annotated[
        bool, typer.Option(help="One engine after the other, where not all fit into the device's memory.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds; one more comes first and is not counted.")] = 3,
    input_length: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 512,
    output_length: Annotated[int, typer.Option(min=2, help="Tokens generated for each prompt.")] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option(min=1, help="The token budget of a step, for all.")] = 8192,
    batches: Annotated[
        str, typer.Option(help="Prompts at once, separated by commas.", rich_help_panel=OFFLINE)
    ] = "1,16,64,256",
    num_requests: Annotated[int, typer.Option(min=1, help="Requests of a run.", rich_help_panel=ONLINE)] = 200,
    concurrency: Annotated[int, typer.Option(min=1, help="In the closed loop.", rich_help_panel=ONLINE)] = 64,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            help="Poisson arrivals a second of the open loop; may be repeated. "
            "Default: 0.3, 0.7 and 1.1 of what the slowest server reaches in the closed loop.",
            rich_help_panel=ONLINE,
        ),
    ] = None,
    ttft_limit: Annotated[
        float, typer.Option(help="A request is good within this TTFT in ms ...", rich_help_panel=ONLINE)
    ] = 1000.0,
    clients: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that send the requests.",
            show_default="a quarter of the processors",
            rich_help_panel=ONLINE,
        ),
    ] = None,
    tpot_limit: Annotated[
        float, typer.Option(help="... and this time per output token in ms.", rich_help_panel=ONLINE)
    ] = 50.0,
    stricter_tpot_limits: Annotated[
        str, typer.Option(help="Count goodput at these limits as well, in ms.", rich_help_panel=ONLINE)
    ] = "10,5,3,2",
    timeout: Annotated[float, typer.Option(help="Seconds that an engine may take to load, or to answer.")] = 900.0,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    pack: Annotated[str, typer.Option(help="Parhelion's: auto, off, a name or a path.")] = "auto",
    graphs: Annotated[
        str, typer.Option(help="When Parhelion captures CUDA graphs; the peers do at startup.")
    ] = "startup",
    peer_weights: Annotated[
        bool, typer.Option(help="Draw vLLM's dummy weights as Parhelion's are. Its own are nearly all zeros in FP8.")
    ] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the result as JSON, anew after each point.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write time per output token against batch as SVG.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
) -> None:
    """Parhelion beside another engine on the same device, round by round: A, B, A, B.

    Each engine runs in a process of its own with the same model, prompts, KV memory and step size. Figures stand beside
    the floor that the device's copy bandwidth sets; ratios are formed within each round. An engine that fails is named,
    and the others are measured all the same.

    SGLang and TensorRT-LLM can only be compared through a server of theirs that runs already (--url, --mode online).

    Example: [cyan]parhelion bench compare --peer vllm --model qwen3-8b --output compare.json --plot compare.svg[/]
    """
    from parhelion.bench.compare.plot import write_plot
    from parhelion.bench.compare.run import MODES, Plan, failed_engines
    from parhelion.bench.compare.run import compare as run
    from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
    from parhelion.bench.compare.table import to_tables
    from parhelion.bench.load_clients import default_clients
    from parhelion.bench.report import to_json
    from parhelion.cli.bench import integers

    if mode not in MODES:
        raise ConfigError(f"--mode is {mode!r}; it must be one of {', '.join(MODES)}")
    offline = OfflineSettings(
        batches=integers("--batches", batches),
        input_length=input_length,
        output_length=output_length,
        rounds=rounds,
        sequential=sequential,
        device=device,
        max_num_batched_tokens=max_num_batched_tokens,
        timeout_s=timeout,
        seed=seed,
        pack=pack,
        graphs=graphs,
        peer_weights=peer_weights,
    )
    online = OnlineSettings(
        num_requests=num_requests,
        concurrency=concurrency,
        rates=tuple(rate or ()),
        ttft_limit_ms=ttft_limit,
        tpot_limit_ms=tpot_limit,
        stricter_tpot_limits_ms=_limits(stricter_tpot_limits),
        clients=clients or default_clients(),
    )
    peers = _peers(peer, url, peer_python, peer_path)
    models = tuple(model or ("qwen3-1.7b", "qwen3-8b"))
    comparison = run(Plan(peers, models, MODES[mode], offline, online), output, print_note)
    if plot is not None:
        write_plot(comparison, plot)
    for path in (output, plot):
        if path is not None:
            print_note(f"written to {path}")
    failed = failed_engines(comparison)
    if json_:
        print(to_json(comparison).decode(), end="")
    else:
        stdout().print(to_tables(comparison))
    if failed:
        raise ParhelionError("not all could be measured:\n" + "\n".join(failed))


def _limits(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(limit) for limit in text.split(",") if limit)
    except ValueError:
        raise ConfigError(
            f"--stricter-tpot-limits is {text!r}; it must be milliseconds separated by commas, such as 10,5,2.5"
        ) from None


def _peers(names: list[str] | None, urls: list[str] | None, python: str | None, path: str | None) -> tuple[Engine, ...]:
    from parhelion.bench.compare.engines import peer, running_peer

    default = [] if urls else ["vllm"]
    return (*(peer(name, python, path) for name in names or default), *map(running_peer, urls or []))
