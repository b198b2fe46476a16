"""How ``decoder_block`` is laid out over a device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from parhelion.ops.decoder_block.contract import DecoderBlock

MOST_SPLITS = 16
"""Programs that share the keys of a head, at most: each leaves what it has found, a maximum and a sum."""

ROWS = 64
"""Of a weight, in a tile."""

GROUPS = (1, 2, 4)
"""Programs that may share a tile's rows."""


@dataclass(frozen=True)
class DecoderBlockConfig:
    """How the program is laid out.

    Attributes:
        num_programs: the grid, no more than the device has processors.
        tile_k: of a weight's tile of ``ROWS`` rows, in codes.
        ring: tiles that shared memory holds.
        in_flight: of these, how many a thread that asks for them leaves open at a time; 0: as many as there is room.
        group_qkv, group_out, group_gate_up, group_down: programs that share the rows of a tile, each a part of K.
        keys_a_program: of a head, that a program attends to before others join it.
        producer_warps: that ask for tiles, beside those that compute.
        programmatic: started before the kernel before it has ended; see ``ops/programmatic.py``.
    """

    num_programs: int
    tile_k: int = 256
    ring: int = 8
    in_flight: int = 3
    group_qkv: int = 4
    group_out: int = 4
    group_gate_up: int = 1
    group_down: int = 4
    keys_a_program: int = 128
    producer_warps: int = 4
    programmatic: bool = True


def untuned(contract: DecoderBlock, num_processors: int) -> DecoderBlockConfig:
    """The usual one, with groups no larger than the depths allow."""
    usual = DecoderBlockConfig(num_processors)
    for name, depth in depths(contract).items():
        fitting = [each for each in GROUPS if each <= getattr(usual, name) and divides(depth, each, usual.tile_k)]
        usual = with_group(usual, name, max(fitting, default=1))
    return usual


def depths(contract: DecoderBlock) -> dict[str, int]:
    """By the field that says how many programs share it: K of each product."""
    return {
        "group_qkv": contract.hidden_size,
        "group_out": contract.attended_size,
        "group_gate_up": contract.hidden_size,
        "group_down": contract.intermediate_size,
    }


def divides(depth: int, group: int, tile_k: int) -> bool:
    """Whether each of a group has whole tiles of K."""
    return depth % (group * tile_k) == 0


def with_group(config: DecoderBlockConfig, name: str, group: int) -> DecoderBlockConfig:
    """The config with another number of programs that share a product's tiles."""
    changed: dict[str, Any] = {name: group}
    return replace(config, **changed)
