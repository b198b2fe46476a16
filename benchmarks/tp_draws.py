"""What it takes ranks to draw tokens from gathered logits, from candidates, by a search, and, for comparison, each for
its share of the rows, whose logits it is sent; in a CUDA graph each, and whether they are the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from tp_collectives import CALLS, median_s
from tp_tables import tp_note

from parhelion.distributed.group import Group
from parhelion.distributed.sampling import Among, Filters, SamplingOverRanks
from parhelion.distributed.sampling_model import SamplingModel, sampling_model
from parhelion.layers.vocabulary import rows_per_rank
from parhelion.ops.choose_pack import pack_kernels
from parhelion.ops.resolve import Resolver
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling

VOCAB_SIZE = 151936
"""Two ranks need no padding behind so many tokens, nor behind those of a rehearsal."""
SIZES = (1, 4, 16, 64, 256)

WAYS = ("gathered", "among few", "among all", "search", "rows shared out")


def measure_draws(
    group: Group, device: torch.device, sizes: tuple[int, ...], vocab_size: int, pack: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for every way at every M: median microseconds, those that are expected, and tokens that differ from the
    contract's reference.
    """
    resolver = Resolver(device, pack=pack_kernels(pack, device)[0])
    model = sampling_model(vocab_size, group.size, torch.bfloat16, resolver)
    contract = TopKTopPSampling(vocab_size)
    for size in sizes:
        logits, filters = _inputs(contract, size, device)
        expected = [contract.reference(logits.float(), *vars(each).values()) for each in (filters, _without(filters))]
        for way, call in _ways(logits, filters, contract, resolver, group).items():
            differing = int((call() != expected[way == "among all"]).sum())
            yield {
                "what": "draws",
                "way": way,
                "num_rows": size,
                "vocab_size": vocab_size,
                "drawn_us": 1e6 * median_s(call, CALLS, group, device, rounds),
                "expected_us": None if model is None else _expected_us(model, way, size),
                "differing": differing,
                # Sums that are rounded may find a neighbour.
                "passed": differing <= 0.02 * size,
            }


def _expected_us(model: SamplingModel, way: str, num_rows: int) -> float | None:
    if way == "gathered":
        return model.gathered_us(num_rows)
    among = {"among few": Among.FEW, "among all": Among.ALL, "search": Among.ANY}.get(way)
    return None if among is None else model.shared_us(num_rows, among)


def _inputs(contract: TopKTopPSampling, num_rows: int, device: torch.device) -> tuple[torch.Tensor, Filters]:
    """The contract's rows, in bfloat16 and the same on all ranks; all of them have a top-k."""
    logits, temperature, top_k, *others = contract.sample_inputs(num_rows, torch.device("cpu"), torch.Generator())
    filters = Filters(temperature, torch.where(top_k == 0, 50, top_k).int(), *others)
    moved = {name: value.to(device) for name, value in vars(filters).items()}
    return logits.bfloat16().to(device), Filters(**moved)


def _without(filters: Filters) -> Filters:
    """The same rows without top-k and top-p."""
    return replace(filters, top_k=torch.zeros_like(filters.top_k), top_p=torch.ones_like(filters.top_p))


def _ways(
    logits: torch.Tensor, filters: Filters, contract: TopKTopPSampling, resolver: Resolver, group: Group
) -> dict[str, Callable[[], torch.Tensor]]:
    """Each begins with this rank's logits, as its output head leaves them."""
    rows = rows_per_rank(contract.vocab_size, group)
    own = logits[:, group.rank * rows : (group.rank + 1) * rows].contiguous()
    together = SamplingOverRanks(contract.vocab_size, rows, group)
    from_all = resolver.launcher(contract)

    def gathered() -> torch.Tensor:
        whole = group.gather_columns(own).float()
        ids: torch.Tensor = from_all(whole, *vars(filters).values())
        return group.from_first(ids)

    share = len(logits) // group.size
    begin = group.rank * share
    part = [value[begin : begin + share].contiguous() for value in vars(filters).values()]

    def shared_out() -> torch.Tensor:
        received = torch.empty_like(own)
        dist.all_to_all_single(received, own)
        whole = received.view(group.size, share, rows).transpose(0, 1).reshape(share, -1).float()
        return group.gather_columns(from_all(whole, *part)[None])[0]

    plain = _without(filters)
    ways = {} if len(logits) % group.size else {"rows shared out": shared_out}
    return {
        "gathered": gathered,
        "among few": lambda: together.draw(own, filters, Among.FEW),
        "among all": lambda: together.draw(own, plain, Among.ALL),
        "search": lambda: together.draw(own, filters, Among.ANY),
        **ways,
    }


def draws_table(content: bytes) -> str:
    """As ``tables.py`` writes it into the documents."""
    found = json.loads(content)
    return "\n".join([*draws_lines(found), "", f"Medians of 20 calls in a CUDA graph on both GPUs. {tp_note(found)}"])


def draws_lines(found: dict[str, Any]) -> list[str]:
    """A line a number of rows."""
    rows = [row for piece in found["pieces"].values() for row in piece["rows"] if "way" in row]
    lines = [
        "| M | " + " | ".join(f"{way} (us) | expected" for way in WAYS) + " |",
        "|---:|" + "---:|---:|" * len(WAYS),
    ]
    for size in sorted({row["num_rows"] for row in rows}):
        cells = [str(size)]
        found_here = {row["way"]: row for row in rows if row["num_rows"] == size}
        for way in WAYS:
            times = [found_here.get(way, {}).get(name) for name in ("drawn_us", "expected_us")]
            cells += ["" if time is None else f"{time:.0f}" for time in times]
        lines.append(f"| {' | '.join(cells)} |")
    return lines if rows else []
