"""How ``decoder_block`` is laid out over a device."""

from __future__ import annotations

from dataclasses import dataclass

from parhelion.ops.decoder_block.contract import PARTS, DecoderBlock
from parhelion.ops.gemm.target import GemmTarget

MOST_SPLITS = 16
"""Programs that share the keys of a head, at most: each leaves what it has found, and a logarithm of its sum."""

ROWS = 64
"""Of a weight's tile."""

_COLUMNS = 8
"""Of the matrix unit's right operand: two for each part of K."""

_RESERVED = 4 << 10
"""Bytes of shared memory beside the ring and the activations."""

_LONGEST_RING = 12


@dataclass(frozen=True)
class DecoderBlockConfig:
    """How the program is laid out.

    Attributes:
        num_programs: the grid, no more than the device has processors.
        tile_k: of each part of K, in a tile of a weight.
        ring: tiles that shared memory holds.
        in_flight: of these, how many the warps that ask for them leave open before they ask for more.
        keys_a_program: of a head, that a program attends to before others join it.
        producer_warps: that ask for tiles, beside those that compute.
        programmatic: started before the kernel before it has ended; see ``ops/programmatic.py``.
    """

    num_programs: int
    tile_k: int = 256
    ring: int = 8
    in_flight: int = 2
    keys_a_program: int = 128
    producer_warps: int = 4
    programmatic: bool = True


def untuned(contract: DecoderBlock, target: GemmTarget) -> DecoderBlockConfig:
    """As many programs for each head's keys, with as long a ring as there is room for."""
    tile_k = 256 if all(depth % (PARTS * 256) == 0 for depth in contract.depths) else 128
    num_programs = max(1, target.num_processors // MOST_SPLITS * MOST_SPLITS) if target.num_processors else 1
    room = target.shared_bytes - _COLUMNS * max(contract.depths) // PARTS - _RESERVED
    ring = max(2, min(_LONGEST_RING * 256 // tile_k, room // (ROWS * tile_k)))
    return DecoderBlockConfig(num_programs, tile_k, ring)
