"""Configs of ``decoder_block`` that are worth trying."""

from __future__ import annotations

from dataclasses import replace

from parhelion.ops.decoder_block.config import DecoderBlockConfig


def worth_trying(usual: DecoderBlockConfig, num_processors: int) -> list[DecoderBlockConfig]:
    """The usual config, and those that have more or less in flight, or give a head's keys to fewer programs."""
    varied = [replace(usual, in_flight=asked, keys_a_program=keys) for keys in (128, 192) for asked in (2, 1, 3)]
    return list(dict.fromkeys([usual, *varied, *(replace(each, num_programs=num_processors) for each in varied[:5:4])]))
