"""Configs of ``decoder_block`` that are worth trying."""

from __future__ import annotations

from dataclasses import replace

from parhelion.ops.decoder_block.config import DecoderBlockConfig, divided, untuned, untuned_rows
from parhelion.ops.decoder_block.contract import ROW_PARTS, DecoderBlock
from parhelion.ops.gemm.target import GemmTarget


def worth_trying(contract: DecoderBlock, target: GemmTarget) -> list[DecoderBlockConfig]:
    """Of one token: the usual config, and those that have more or less in flight, or give a head's keys to fewer
    programs.
    """
    usual = untuned(contract, target)
    varied = [replace(usual, in_flight=asked, keys_a_program=keys) for keys in (128, 192) for asked in (2, 1, 3)]
    wider = [replace(each, num_programs=target.num_processors) for each in varied[:5:4]]
    return list(dict.fromkeys([usual, *varied, *wider]))


def worth_trying_rows(contract: DecoderBlock, num_tokens: int, target: GemmTarget) -> list[DecoderBlockConfig]:
    """Of up to ``num_tokens`` tokens: the usual config, those that have more or less in flight, others that divide the
    last product or what is before it otherwise and, where programs share a head's keys, one with fewer of them. Nothing
    where not all programs would run at once.
    """
    usual = untuned_rows(contract, num_tokens, target)
    if usual.num_programs > target.num_processors:
        return []
    other = ROW_PARTS if usual.down_parts > ROW_PARTS else 2 * ROW_PARTS
    divisions = [(usual.down_parts, 1), (usual.down_parts, 2), (usual.down_parts, 3), (other, 1)]
    found = [divided(usual, *division, contract, num_tokens, target) for division in divisions]
    if usual.num_programs >= 2 * contract.num_kv_heads * num_tokens:
        found.append(replace(usual, keys_a_program=128))
    found += [replace(usual, in_flight=asked) for asked in (1, 3)]
    return list(dict.fromkeys([usual, *(each for each in found if each is not None)]))
