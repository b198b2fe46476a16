"""The server's peak resident memory under load, beside the KV cache that it was given.

Starts a server, sends concurrent requests that fill the cache, and adds up ``VmHWM`` of all its processes (pages that
they share, such as torch's code, are counted in each, so the sum is an upper bound).

    python benchmarks/memory.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from parhelion.bench.report import Measurement, make_report, to_table, write_json
from parhelion.bench.server_process import running_server
from parhelion.bench.serving import ServingSettings, generate_load, summarize_load
from parhelion.platform.measure import summarize

RESULT = Path(__file__).parent / "results" / "memory.json"
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """``limit_bytes`` is what the server may take beside its KV cache.

    The requests must need more tokens than the cache holds: a block counts as resident only once it has been used.
    """

    model: str = "smollm2-135m"
    kv_cache_bytes: int = 512 * MIB
    limit_bytes: int = 1536 * MIB
    num_requests: int = 32
    prompt_length: int = 512
    output_length: int = 32
    concurrency: int = 32


def measure_memory(settings: Settings, *options: str) -> list[Measurement]:
    """Peak memory once ready and once loaded, in MiB, of a server with these further options."""
    load = ServingSettings(
        num_requests=settings.num_requests,
        prompt_length=settings.prompt_length,
        output_length=settings.output_length,
        concurrency=settings.concurrency,
    )
    with running_server(settings.model, ["--kv-cache-memory", str(settings.kv_cache_bytes), *options]) as server:
        ready = server.peak_resident_bytes()
        records = asyncio.run(generate_load(server.url, server.model, load))
        summarize_load(records, load)  # refuses a run in which nothing succeeded
        peak = server.peak_resident_bytes()
    case = f"KV cache {settings.kv_cache_bytes // MIB} MiB, {settings.concurrency} requests at once"
    case = ", ".join([case, *options])

    def mebibytes(quantity: str, count: int) -> Measurement:
        return Measurement(case, quantity, "MiB", summarize([count / MIB]))

    return [
        mebibytes("peak when ready", ready),
        mebibytes("peak under load", peak),
        mebibytes("peak beyond the KV cache", peak - settings.kv_cache_bytes),
        mebibytes("limit beyond the KV cache", settings.limit_bytes),
    ]


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few requests, to see that it works; no figure to quote")
    parser.add_argument("--output", type=Path, default=None, help=f"default: benchmarks/results/{RESULT.name}")
    options = parser.parse_args()
    quick = replace(Settings(), kv_cache_bytes=32 * MIB, num_requests=4, prompt_length=160)
    settings = quick if options.quick else Settings()
    report = make_report("memory", settings, [*measure_memory(settings), *measure_memory(settings, "--compile")])
    Console().print(to_table(report))
    if options.output or not options.quick:
        write_json(report, options.output or RESULT)


if __name__ == "__main__":
    main()
