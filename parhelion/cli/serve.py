"""``parhelion serve``: the OpenAI-compatible server."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.options import record_options
from parhelion.cli.output import count_bar, format_bytes, print_json, stdout
from parhelion.cli.pull import fetch
from parhelion.config import EngineConfig, ServerConfig, read_environment
from parhelion.engine.messages import Phase

if TYPE_CHECKING:
    from parhelion.server.run import ReadyInfo


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@record_options()
def serve(
    engine: EngineConfig,
    server: ServerConfig,
    json_: Annotated[bool, typer.Option("--json", help="Print one line of JSON once the server is ready.")] = False,
) -> None:
    """Serve a model over HTTP under OpenAI's interface, until SIGTERM or Ctrl-C; running requests are let finish.

    API keys may also come from PARHELION_API_KEY, where other users of the machine do not see them.

    Example: [cyan]parhelion serve smollm2-135m --port 8000 --kv-cache-memory 512MiB[/]
    """
    from parhelion.server.listener import bind
    from parhelion.server.run import run

    server = replace(server, api_keys=server.api_keys + read_environment().api_keys)
    # A taken port is better known before a model is fetched; the server takes it for good later.
    bind(server.host, server.port).close()
    fetch(engine.model)
    with ExitStack() as waiting:
        bar = waiting.enter_context(count_bar(f"loading {engine.model}"))

        def announce(ready: ReadyInfo) -> None:
            waiting.close()
            banner = describe(ready)
            if json_:
                print_json(banner)
            else:
                print_banner(banner, has_keys=bool(server.api_keys), local=server.host in _LOOPBACK)

        run(engine, server, announce, load_progress=bar)


@dataclass(frozen=True)
class Banner:
    """What is printed, or given as JSON, once the server answers; sizes in bytes."""

    url: str
    model: str
    dtype: str
    compute_dtype: str
    linear_provider: str
    device: str
    quantization: str
    lm_head_quantization: str
    kernels: list[str]
    kernel_notes: list[str]
    pack: str
    phases: list[Phase]
    threads: int
    tp: int
    pp: int
    dp: int
    max_model_len: int
    kv_cache_blocks: int
    kv_cache_block_size: int
    kv_cache_tokens: int
    kv_cache_bytes: int
    weight_bytes: int
    resident_bytes: int
    load_s: float
    peak_host_bytes: int
    compile_s: float
    num_graphs: int
    graph_bytes: int
    graph_s: float


def describe(ready: ReadyInfo) -> Banner:
    """What the server and its engine say of themselves; resident memory is that of all their processes now."""
    info = ready.engine.info
    return Banner(
        url=ready.url,
        model=ready.model_name,
        dtype=info.dtype,
        compute_dtype=info.compute_dtype,
        linear_provider=info.linear_provider,
        device=info.device,
        quantization=info.quantization,
        lm_head_quantization=info.lm_head_quantization,
        kernels=info.kernels,
        kernel_notes=info.kernel_notes,
        pack=info.pack,
        phases=info.phases,
        threads=info.threads,
        tp=info.tp,
        pp=info.pp,
        dp=info.dp,
        max_model_len=ready.max_model_len,
        kv_cache_blocks=info.num_blocks,
        kv_cache_block_size=info.block_size,
        kv_cache_tokens=info.num_blocks * info.block_size,
        kv_cache_bytes=info.kv_cache_bytes,
        weight_bytes=info.weight_bytes,
        resident_bytes=resident_bytes_of_family(),
        load_s=info.load_s,
        peak_host_bytes=info.peak_host_bytes,
        compile_s=info.compile_s,
        num_graphs=info.num_graphs,
        graph_bytes=info.graph_bytes,
        graph_s=info.graph_s,
    )


def resident_bytes_of_family() -> int:
    """Memory that this process and all its children hold now."""
    import psutil

    here = psutil.Process()
    return sum(process.memory_info().rss for process in (here, *here.children(recursive=True)))


def print_banner(banner: Banner, *, has_keys: bool, local: bool) -> None:
    """The figures, and two ways to try it; ``local`` says that no other machine reaches the server."""
    sizes = (("replicas", banner.dp), ("stages", banner.pp), ("ranks", banner.tp))
    several = [f"{size} {name}" for name, size in sizes if size > 1]
    each_of = "".join(f"{one}, each " for one in several)
    rank = " of the first rank" if banner.pp > 1 else " of each rank" * (banner.tp > 1)
    whose = rank + " of each replica" * (banner.dp > 1)
    lines = [
        f"{banner.model} is served at {banner.url}",
        *(["  reach      this machine only; --host 0.0.0.0 lets others in, --api-key only those who have it"] * local),
        f"  dtype      {banner.dtype} weights ({format_bytes(banner.weight_bytes)} on disk), "
        f"{banner.compute_dtype} arithmetic, linear layers by {banner.linear_provider}",
        f"  device     {each_of}{banner.device}, {banner.threads} threads",
        f"  linear     {banner.quantization}, output head {banner.lm_head_quantization}; "
        f"kernels: {', '.join(banner.kernels)}",
        *([f"  pack       {banner.pack}"] if banner.pack else []),
        *(f"  note       {note}" for note in banner.kernel_notes),
        f"  KV cache   {banner.kv_cache_blocks} blocks of {banner.kv_cache_block_size} tokens = "
        f"{banner.kv_cache_tokens} tokens, {format_bytes(banner.kv_cache_bytes)}{whose}",
        f"  memory     {format_bytes(banner.resident_bytes)} resident; KV blocks join as they are first used",
        f"  started    in {banner.load_s:.1f} s, of which {banner.compile_s:.1f} s compiling; "
        f"at most {format_bytes(banner.peak_host_bytes)} of host memory meanwhile",
        f"             {', '.join(f'{phase.name} {phase.seconds:.1f} s' for phase in banner.phases if phase.seconds)}",
        *_graph_lines(banner),
        "",
        "Try it:",
        f"  {curl_line(banner, has_keys)}",
        f"  {python_line(banner, has_keys)}",
    ]
    stdout().print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _graph_lines(banner: Banner) -> list[str]:
    if not banner.num_graphs:
        return []
    taken = format_bytes(banner.graph_bytes)
    return [f"  graphs     {banner.num_graphs} captured in {banner.graph_s:.1f} s, {taken} of device memory"]


def curl_line(banner: Banner, has_keys: bool) -> str:
    """A chat request for the shell."""
    body = f'{{"model": "{banner.model}", "messages": [{{"role": "user", "content": "Hello!"}}], "max_tokens": 64}}'
    key = '-H "Authorization: Bearer $PARHELION_API_KEY" ' if has_keys else ""
    return f"curl {banner.url}/v1/chat/completions -H 'Content-Type: application/json' {key}-d {shlex.quote(body)}"


def python_line(banner: Banner, has_keys: bool) -> str:
    """The same with OpenAI's client."""
    key = "YOUR_KEY" if has_keys else "none"
    code = (
        f"from openai import OpenAI; print(OpenAI(base_url='{banner.url}/v1', api_key='{key}').chat.completions.create("
        f"model='{banner.model}', messages=[{{'role': 'user', 'content': 'Hello!'}}], max_tokens=64)"
        ".choices[0].message.content)"
    )
    return f'python -c "{code}"'
