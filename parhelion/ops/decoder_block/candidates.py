"""Configs of ``decoder_block`` that are worth trying."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parhelion.ops.decoder_block.config import (
    GROUPS,
    MOST_SPLITS,
    ROWS,
    DecoderBlockConfig,
    depths,
    divides,
    with_group,
)
from parhelion.ops.decoder_block.contract import DecoderBlock
from parhelion.ops.gemm.target import GemmTarget

_COLUMNS = 8
"""Of the matrix unit's right operand, one code of an activation in each, though two are used."""

_RESERVED = 4 << 10
"""Bytes of shared memory beside the ring and the activations."""


def worth_trying(contract: DecoderBlock, usual: DecoderBlockConfig, target: GemmTarget) -> list[DecoderBlockConfig]:
    """The usual config, and those that differ from it in one choice or two."""
    # As many programs for each head's keys, beside one for every processor.
    whole = replace(usual, num_programs=usual.num_programs // MOST_SPLITS * MOST_SPLITS)
    found = dict.fromkeys([usual, whole, *_varied(usual), *_varied(whole)])
    return [each for each in found if _fits(contract, each, target)]


def _varied(config: DecoderBlockConfig) -> Iterator[DecoderBlockConfig]:
    """Those that differ from a config in one choice."""
    for ring in (6, 10, 12):
        yield replace(config, ring=ring)
    for in_flight in (0, 1, 2, 5):
        yield replace(config, in_flight=in_flight)
    for name in ("group_qkv", "group_out", "group_gate_up", "group_down"):
        for group in GROUPS:
            yield with_group(config, name, group)
    for keys in (64, 256):
        yield replace(config, keys_a_program=keys)
    yield replace(config, tile_k=512, ring=max(2, config.ring // 2))


def _fits(contract: DecoderBlock, config: DecoderBlockConfig, target: GemmTarget) -> bool:
    """Whether every group has whole tiles, and shared memory room for the ring and the longest part of K."""
    of_groups = depths(contract)
    groups = {name: int(getattr(config, name)) for name in of_groups}
    if not all(divides(depth, groups[name], config.tile_k) for name, depth in of_groups.items()):
        return False
    widest = max(depth // groups[name] for name, depth in of_groups.items())
    needed = config.ring * ROWS * config.tile_k + _COLUMNS * widest + _RESERVED
    return needed <= target.shared_bytes
