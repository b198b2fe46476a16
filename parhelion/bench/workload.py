"""Prompts for benchmarks: random token ids from a seed, so that every run and every engine gets the same."""

from __future__ import annotations

import random

from parhelion.types import TokensPrompt

# The first ids of most vocabularies are special tokens; an end-of-sequence id in a prompt would be odd.
_FIRST_ID = 100


def random_prompts(*, count: int, length: int, vocab_size: int, seed: int) -> list[TokensPrompt]:
    """So many prompts of that many tokens, all different, so that no prefix cache helps.

    Raises:
        ValueError: a count or a length below one, or a vocabulary too small to draw from.
    """
    if count < 1 or length < 1 or vocab_size < 2:
        raise ValueError(f"cannot draw {count} prompts of {length} tokens from a vocabulary of {vocab_size}")
    lowest = _FIRST_ID if vocab_size > 2 * _FIRST_ID else 0
    generator = random.Random(seed)
    return [
        {"prompt_token_ids": [generator.randrange(lowest, vocab_size) for _ in range(length)]} for _ in range(count)
    ]
