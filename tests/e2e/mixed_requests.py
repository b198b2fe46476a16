"""Requests of all kinds, each with its own sampling settings, for engines to answer alone and together."""

from __future__ import annotations

from parhelion import RequestOutput, SamplingParams
from parhelion.types import Prompt

PREFIX = "The quick brown fox jumps over the lazy dog, again and again. "
PROMPTS: list[Prompt] = [
    "x",
    "def add(a, b):\n    return",
    PREFIX + "Then it rests.",
    PREFIX + "Then it runs on, and nobody knows where it will be by the evening. " * 2,
    "日本語と emoji 🦊🐶",
    {"prompt_token_ids": list(range(2, 90))},
]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=11, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, seed=12, max_tokens=33),
    SamplingParams(temperature=1.3, top_k=20, min_p=0.02, seed=13, max_tokens=40, repetition_penalty=1.2),
    SamplingParams(temperature=0.7, seed=14, max_tokens=25, presence_penalty=0.5, frequency_penalty=0.5, n=3),
    SamplingParams(temperature=0, max_tokens=40, min_tokens=20, logit_bias={5: 3.0}, repetition_penalty=1.1),
]

Tokens = list[list[int]]


def tokens_of(results: list[RequestOutput]) -> list[Tokens]:
    return [[output.token_ids for output in result.outputs] for result in results]
