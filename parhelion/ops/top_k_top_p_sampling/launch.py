"""How ``top_k_top_p_sampling`` is launched: two programs that most rows need, then those that finish the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, build_sizes
from parhelion.ops.top_k_top_p_sampling.contract import TopKTopPSampling

UNIT = 32
"""As in the tile programs."""

_MOST_CLASSES = 512
"""Of a row, or a little more: rows that keep half as many tokens are resolved from them."""

_STATE = 8
"""Numbers of a row's record; see ``state.py``."""

_LANES, _PASS_WARPS = 512, 8
"""Of a pass: tokens that a program takes at a time, two a thread."""

_MOST_LANES, _MOST_WEIGHED = 2048, 256
"""Tokens that are collected, and units that are weighed, at a time."""

_MOST_COLLECTED = 16384
"""Tokens of a row that are left to search when passes are done; 64 KiB a row."""

_TILINGS = {"sampling_search.settle": (2048,) * 4}


@dataclass(frozen=True)
class SamplingConfig:
    """Attributes:
    units: of 32 tokens that a program of the first pass holds in registers; a power of two.
    row_warps: of the programs that take a row.
    most: tokens of a row that are compared each with each; a power of two. Rows that keep more than half as many are
        searched in passes.
    gathered: units that are read at once to find those tokens; a power of two.
    parts: programs that a row is divided among in such a pass; a quarter as many weigh what is kept.
    pivots: at which a pass divides what is left; a power of two.
    rounds: passes, before what is left is searched by one program a row.
    programmatic: see ``ops/programmatic.py``.
    """

    units: int
    parts: int
    row_warps: int = 16
    most: int = 512
    gathered: int = 128
    pivots: int = 8
    rounds: int = 2
    programmatic: bool = False


Config = SamplingConfig

_FEW_ROWS = 16


def default_config(contract: TopKTopPSampling, bucket: int, target: GemmTarget) -> SamplingConfig:
    """Untuned, the same on all targets: as many programs a pass as an H100 has room for at a time, or a little less."""
    if bucket <= 2:
        return SamplingConfig(units=32, parts=150)
    return SamplingConfig(units=64 if bucket <= _FEW_ROWS else 128, parts=max(1, min(150, 512 // bucket)))


def candidates(contract: TopKTopPSampling, bucket: int, target: GemmTarget) -> list[SamplingConfig]:
    """What is worth trying."""
    usual = default_config(contract, bucket, target)
    found = [
        usual,
        *(replace(usual, units=each) for each in (usual.units // 2, usual.units * 2)),
        *(replace(usual, gathered=each) for each in (64, 256)),
        *(replace(usual, parts=each) for each in (max(1, usual.parts // 2), usual.parts * 2)),
        replace(usual, row_warps=8),
    ]
    return list(dict.fromkeys(found))


def build_inputs(contract: TopKTopPSampling, bucket: int) -> list[tuple[torch.Tensor, ...]]:
    """Parameters are columns of a table: of a single row the engine's are views of it, at any address and stride."""
    found = []
    for num_tokens in build_sizes(bucket):
        logits = torch.empty((num_tokens, contract.vocab_size))
        temperature, top_p, min_p, uniform = (torch.empty((num_tokens, 5))[:, column] for column in (1, 2, 3, 1))
        top_k = torch.empty((num_tokens, 5), dtype=torch.int32)[:, 1]
        found.append((logits, temperature, top_k, top_p, min_p, uniform))
    return found


def launch(
    contract: TopKTopPSampling,
    run: Runner,
    config: SamplingConfig,
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """See ``TopKTopPSampling``."""
    num_tokens, device = logits.shape[0], logits.device
    num_units = -(-contract.vocab_size // UNIT)
    all_units = _power_of_two(num_units)
    units = min(config.units, all_units)
    slices = -(-num_units // units)
    num_classes = min(UNIT, max(1, _power_of_two(_MOST_CLASSES // slices)))

    def floats(size: int) -> torch.Tensor:
        return torch.empty((num_tokens, size), dtype=torch.float32, device=device)

    peaks, masses, classes = floats(num_units), floats(num_units), floats(slices * num_classes)
    tops, floors, values, state = floats(slices), floats(slices), floats(config.most), floats(_STATE)
    places, picked = (torch.empty_like(values, dtype=torch.int32) for _ in range(2))
    cursors = torch.empty((num_tokens,), dtype=torch.int32, device=device)
    ids = torch.empty((num_tokens,), dtype=torch.int64, device=device)
    programmatic = config.programmatic

    def start(program: str, warps: int, *arguments: object) -> None:
        tiling = KernelConfig(_TILINGS.get(program, ()), num_warps=warps, programmatic=programmatic)
        run(program, tiling, logits, temperature, *arguments, programmatic)

    start(
        "top_k_top_p_sampling.scan",
        max(1, min(8, units // 16)),
        peaks,
        masses,
        classes,
        tops,
        floors,
        UNIT,
        slices,
        units,
        num_classes,
    )
    start(
        "top_k_top_p_sampling.resolve",
        config.row_warps,
        top_k,
        top_p,
        min_p,
        uniform,
        peaks,
        masses,
        classes,
        tops,
        floors,
        picked,
        values,
        places,
        cursors,
        state,
        ids,
        UNIT,
        slices,
        _power_of_two(slices),
        all_units,
        _power_of_two(slices * num_classes),
        num_classes,
        config.most,
        config.gathered,
    )
    arrivals = arrival_counters(device, num_tokens)
    span = _share(contract.vocab_size, config.parts, _LANES)
    parts = -(-contract.vocab_size // span)
    tallies, ends = floats(parts * config.pivots), floats(parts * 2)
    passes = (top_p, state, tallies, ends, arrivals, parts, _power_of_two(parts), span, config.pivots, _LANES)
    for _ in range(config.rounds):
        start("sampling_search.narrow", _PASS_WARPS, *passes)
    collected = floats(_MOST_COLLECTED)
    span = 2 * units * UNIT
    parts = -(-contract.vocab_size // span)
    collecting = (top_p, state, collected, cursors, parts, span, min(span, _MOST_LANES), _MOST_COLLECTED)
    start("sampling_search.collect", _PASS_WARPS, *collecting)
    start("sampling_search.settle", config.row_warps, top_p, state, collected, cursors, _MOST_COLLECTED)
    span = _share(num_units, max(1, config.parts // 4), 1)
    parts = -(-num_units // span)
    tile = min(_MOST_WEIGHED, _power_of_two(span))
    weighing = (uniform, masses, tops, state, arrivals, ids, UNIT, slices, all_units, parts, span, tile)
    start("sampling_search.weigh", config.row_warps, *weighing)
    return ids


def _share(size: int, parts: int, multiple: int) -> int:
    """What each of ``parts`` takes of a size, rounded up to a multiple."""
    return -(-size // (parts * multiple)) * multiple


def _power_of_two(size: int) -> int:
    """The least that is not below ``size``."""
    return 1 << (size - 1).bit_length()
