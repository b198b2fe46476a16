"""What attention takes where requests stand in a step with their guesses: a sequence's rows by one program, or each by
itself.

    PYTHONPATH=. python benchmarks/siblings.py [--models qwen3-1.7b,qwen3-8b] [--pack auto] [--output FILE]

``together_us`` is how the engine launches it, ``apart_us`` the same step as rows of any length, ``decode_us`` a step of
as many rows without guesses, which has more to read. Each is checked beside the reference, and a graph of launches with
different caches is timed, the L2 cache cold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from parhelion.bench.machine import command_line, describe_circumstances
from parhelion.ops.check import check
from parhelion.ops.choose_pack import pack_kernels
from parhelion.ops.contract import randn
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.inputs import map_tensors
from parhelion.ops.kernel_timer import time_launcher
from parhelion.ops.paged_attention.apart import siblings_apart
from parhelion.ops.paged_attention.sample import BOUND, CONTEXT, places, sample_rows
from parhelion.ops.resolve import Resolver
from parhelion.ops.rope_and_cache.contract import rotary_table
from parhelion.platform.device import device_name
from parhelion.tuning.model_calls import layer_ways, tuned_model

RESULT = Path(__file__).parent / "results" / "siblings.json"

CASES = ((1, 1), (1, 3), (1, 7), (16, 1), (16, 3), (64, 1), (64, 3))
"""Requests, and guesses of each."""

COPIES = 12
"""Caches that are read in turn."""


def attention_of(model: str) -> FusedRopeAttention:
    """What a quantized model's blocks call where they have several tokens."""
    ways = layer_ways(tuned_model(model, "fp8_per_token"), gemm_target("sm_90"))
    called = {each for way in ways for each in way if isinstance(each, FusedRopeAttention)}
    return next(each for each in called if each.quant_dtype is not None)


def step(c: FusedRopeAttention, requests: int, tokens: int, device: torch.device) -> tuple[Any, ...]:
    """So many tokens of each request, those of a request in one row."""
    generator = torch.Generator().manual_seed(requests)
    lens = [CONTEXT + 16 * (row % 5 - 2) for row in range(requests)]
    shape = (c.num_heads + 2 * c.num_kv_heads, c.num_kv_heads, c.head_dim, c.block_size)
    qkv, kv_cache, batch = sample_rows([tokens] * requests, lens, shape, c.dtype, device, generator, BOUND)
    positions, slots = places(batch, len(qkv), c.block_size)
    weights = [randn((c.head_dim,), c.dtype, device, generator) for _ in range(c.num_weights - 1)]
    return qkv, positions, slots, kv_cache, batch, rotary_table(c.max_position, c.head_dim).to(device), *weights


def measured(model: str, resolver: Resolver, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each case."""
    contract = attention_of(model)
    launch = resolver.launcher(contract)
    for requests, guesses in CASES:
        num_tokens = requests * (1 + guesses)
        inputs = step(contract, requests, 1 + guesses, device)
        together = siblings_apart(inputs[4])
        ways = {
            "together": (*inputs[:4], together, *inputs[5:]),
            "apart": (*inputs[:4], replace(together, max_siblings=1, row_slots=None), *inputs[5:]),
            "decode": step(contract, num_tokens, 1, device),
        }
        row: dict[str, Any] = {"model": model, "requests": requests, "guesses": guesses}
        for way, own in ways.items():
            problems = [f"{each.output}: {each.problem}" for each in check(contract, launch, own) if each.problem]
            copies = [own, *(map_tensors(own, torch.clone) for _ in range(COPIES - 1))]
            time = time_launcher(launch, copies, device)
            row |= {f"{way}_us": 1e6 * time.median, f"{way}_us_p90": 1e6 * time.p90}
            if problems:
                row[f"{way}_problem"] = "; ".join(problems)
        yield row


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="qwen3-1.7b,qwen3-8b", help="separated by commas")
    parser.add_argument("--pack", default="auto")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here to measure")
    device = torch.device("cuda")
    pack, notes = pack_kernels(options.pack, device)
    resolver = Resolver(device, pack=pack)
    rows = []
    for model in options.models.split(","):
        for row in measured(model, resolver, device):
            rows.append(row)
            print(
                " ".join(
                    f"{name}={each if isinstance(each, int | str) else f'{each:.1f}'}" for name, each in row.items()
                )
            )
    report = {
        "device": device_name(device),
        "command": command_line(sys.argv),
        "circumstances": asdict(describe_circumstances()),
        "pack": resolver.pack_name,
        "notes": [*notes, *resolver.all_notes()],
        "rows": rows,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
