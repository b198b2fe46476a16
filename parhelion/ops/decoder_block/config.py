"""How ``decoder_block`` is laid out over a device."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parhelion.ops.decoder_block.contract import HEAD_DIM, PARTS, ROW_PARTS, ROW_PROGRAMS, UNIT, DecoderBlock
from parhelion.ops.gemm.target import GemmTarget

MOST_SPLITS = 16
"""Programs that share the keys of a head, at most: each leaves what it has found, and a logarithm of its sum."""

_COLUMNS = 8
"""Of the matrix unit's right operand: of a single token two for each part of K, of several two for each token, and
for so many tokens at least.
"""

_RESERVED = 4 << 10
"""Bytes of shared memory beside the ring and the activations."""

_RESERVED_OF_ROWS = 2560
"""The same of the program of several tokens."""

_LONGEST_RING = 12

_MOST_ROUNDS = 3
"""Of gate and up: with more of them a program of the 8B would add up less than one unit in some."""

_WIDEST = 2048
"""Inputs of the last product that a program may have: with four parts of K of more the ring is too short."""


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
        parts: of K of all products but the last, each with programs of its own; 0: it is the program of one
            token, which has none.
        down_parts: of the last one.
        rounds: in which gate and up are made, so that what all but the last have made is multiplied while that is added
            up.
        warps: of a program, that compute: 4 of one token.
    """

    num_programs: int
    tile_k: int = 256
    ring: int = 8
    in_flight: int = 2
    keys_a_program: int = 128
    producer_warps: int = 4
    programmatic: bool = True
    parts: int = 0
    down_parts: int = 0
    rounds: int = 1
    warps: int = 4


def untuned(contract: DecoderBlock, target: GemmTarget) -> DecoderBlockConfig:
    """As many programs for each head's keys, with as long a ring as there is room for."""
    tile_k = 256 if all(depth % (PARTS * 256) == 0 for depth in contract.depths) else 128
    num_programs = max(1, target.num_processors // MOST_SPLITS * MOST_SPLITS) if target.num_processors else 1
    room = target.shared_bytes - _COLUMNS * max(contract.depths) // PARTS - _RESERVED
    return DecoderBlockConfig(num_programs, tile_k, _longest_ring(room, tile_k))


def untuned_rows(contract: DecoderBlock, num_tokens: int, target: GemmTarget) -> DecoderBlockConfig:
    """The same for several tokens, ``num_tokens`` at most."""
    down_parts = ROW_PARTS if contract.intermediate_size <= ROW_PARTS * _WIDEST else 2 * ROW_PARTS
    usual = DecoderBlockConfig(ROW_PROGRAMS, keys_a_program=64, parts=ROW_PARTS, warps=8)
    # A round in which a program adds up not one unit of 64 outputs is none.
    rounds = _MOST_ROUNDS if 2 * contract.intermediate_size >= _MOST_ROUNDS * ROW_PROGRAMS * UNIT else 1
    found = divided(usual, down_parts, rounds, contract, num_tokens, target)
    return found or _of_one_round(usual, down_parts, contract, num_tokens, target)


def _of_one_round(
    usual: DecoderBlockConfig, down_parts: int, contract: DecoderBlock, num_tokens: int, target: GemmTarget
) -> DecoderBlockConfig:
    found = divided(usual, down_parts, 1, contract, num_tokens, target)
    assert found is not None, f"a contract that takes rows can be divided: {contract}"
    return found


def divided(
    config: DecoderBlockConfig,
    down_parts: int,
    rounds: int,
    contract: DecoderBlock,
    num_tokens: int,
    target: GemmTarget,
) -> DecoderBlockConfig | None:
    """A config for several tokens with the last product's K in so many parts, gate and up in so many rounds, and as
    long a ring as there is room for beside what is longest of a product; None if these are not whole tiles.
    """
    *depths, last = contract.depths
    early = early_inputs(last, config.num_programs, rounds)
    if early >= last:
        return None
    parts = [*(depth // config.parts for depth in depths), early // down_parts, (last - early) // down_parts]
    tile_k = 256 if all(part % 256 == 0 for part in parts) else 128
    if any(each % (down_parts * tile_k) for each in (early, last - early)):
        return None
    columns = 2 * max(_COLUMNS, num_tokens)
    room = target.shared_bytes - max(columns * max(parts), _found_bytes(tile_k)) - _RESERVED_OF_ROWS
    return replace(config, down_parts=down_parts, rounds=rounds, tile_k=tile_k, ring=_longest_ring(room, tile_k))


def early_inputs(intermediate_size: int, num_programs: int, rounds: int) -> int:
    """Of the last product, that all rounds but the last make: a program adds up as many units of 64 in each."""
    units = 2 * intermediate_size // UNIT
    return (rounds - 1) * -(-units // (num_programs * rounds)) * num_programs * UNIT // 2


def _found_bytes(tile_k: int) -> int:
    """Of what a program's warps find for 8 heads with the keys of a tile, 16 each, before it is put together."""
    keys = UNIT * tile_k // (2 * HEAD_DIM)
    return keys // 16 * 8 * HEAD_DIM * 4


def _longest_ring(room: int, tile_k: int) -> int:
    return max(2, min(_LONGEST_RING * 256 // tile_k, room // (UNIT * tile_k)))
