"""Texts that must not change: with captured graphs, beside others, with guesses; parts of ``h100_engine.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import FP8_PER_TOKEN_CONFIG, TINY, write_config, write_head_config
from parhelion.types import RequestOutput, TokensPrompt

GUESSES = ("ngram", "itself", "head", "another")
"""Who guesses: n-grams, and draft models as ``guesses_against_plain`` says."""


def graphs_against_eager(folder: Path, device: str) -> list[dict[str, Any]]:
    """Greedy tokens with captured graphs and without, in batches that meet several buckets; they must be identical."""
    where = write_config(TINY, folder / "graphs", FP8_PER_TOKEN_CONFIG)
    generator = torch.Generator().manual_seed(6)
    lengths = (1, 7, 33, 130, 18, 64, 200)
    prompts = [
        TokensPrompt(prompt_token_ids=torch.randint(2, 1024, (length,), generator=generator).tolist())
        for length in lengths
    ]
    sampled = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, seed=7, max_tokens=40, ignore_eos=True)
    greedy = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    texts: dict[str, Any] = {}
    captured: dict[str, int] = {}
    for graphs in ("off", "lazy", "startup"):
        options: dict[str, Any] = {"max_num_seqs": 16, "max_model_len": 512, "kv_cache_memory": 1 << 30}
        with LLM(str(where), device=device, load_format="dummy", graphs=graphs, **options) as llm:
            texts[graphs] = [ids_of(llm.generate(prompts, params)) for params in (greedy, sampled)]
            captured[graphs] = llm.stats().num_graphs
    return [
        {
            "graphs": graphs,
            "captured": captured[graphs],
            "identical_to_eager": texts[graphs] == texts["off"],
            "passed": texts[graphs] == texts["off"] and captured[graphs] > 0 == captured["off"],
        }
        for graphs in ("lazy", "startup")
    ]


def among_others(folder: Path, device: str) -> list[dict[str, Any]]:
    """Tokens of requests whose neighbours need penalties, biases and log-probabilities, beside plain neighbours.

    Also the log-probabilities of an answer beside those of a prompt that holds the answer.
    """
    where = write_config(TINY, folder / "among", FP8_PER_TOKEN_CONFIG)
    generator = torch.Generator().manual_seed(11)
    prompts = [
        TokensPrompt(prompt_token_ids=torch.randint(2, 1024, (length,), generator=generator).tolist())
        for length in (5, 40, 130, 9, 70, 16, 33, 8)
    ]
    greedy = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    seeded = replace(greedy, temperature=0.9, top_p=0.9, top_k=40, seed=13)
    watched = [greedy, greedy, seeded, replace(seeded, seed=14)]
    neighbours = {
        "plain": [greedy] * 4,
        "others": [
            replace(greedy, repetition_penalty=1.3, presence_penalty=0.5),
            replace(seeded, frequency_penalty=0.7, logprobs=3),
            replace(greedy, logit_bias={7: 4.0}, logprobs=5),
            replace(greedy, logprobs=5, prompt_logprobs=2),
        ],
    }
    options: dict[str, Any] = {"max_num_seqs": 8, "max_model_len": 512, "kv_cache_memory": 1 << 28}
    with LLM(str(where), device=device, load_format="dummy", **options) as llm:
        found = {name: llm.generate(prompts, [*watched, *theirs]) for name, theirs in neighbours.items()}
        answer = found["others"][-1]
        whole = [*answer.prompt_token_ids, *answer.outputs[0].token_ids]
        asked = replace(greedy, max_tokens=1, prompt_logprobs=0)
        read = llm.generate([TokensPrompt(prompt_token_ids=whole)], asked)[0]
    assert answer.outputs[0].logprobs is not None
    assert read.prompt_logprobs is not None
    behind = list(zip(answer.outputs[0].token_ids, answer.outputs[0].logprobs, strict=True))
    again = read.prompt_logprobs[-len(behind) :]
    errors = [
        abs(one[token].logprob - other[token].logprob)
        for (token, one), other in zip(behind, again, strict=True)
        if other is not None
    ]
    same = [a == b for a, b in zip(ids_of(found["plain"])[:4], ids_of(found["others"])[:4], strict=True)]
    changed = [a != b for a, b in zip(ids_of(found["plain"])[4:7], ids_of(found["others"])[4:7], strict=True)]
    return [
        {
            "same_beside_others": same,
            "changed_by_their_own": changed,
            "logprobs": len(errors),
            "logprob_error": max(errors),
            "passed": all(same) and all(changed) and len(errors) == 32 and max(errors) < 0.05,
        }
    ]


def guesses_against_plain(
    folder: Path, device: str, ranks: Mapping[str, int] = MappingProxyType({}), which: Sequence[str] = GUESSES
) -> Iterator[dict[str, Any]]:
    """Greedy tokens in float32 with guesses, most of them right or most of them wrong, beside those without.

    The prompts repeat themselves, and so do random models; the draft model is the model itself, a random head, or a
    model that was never told of it.

    Args:
        folder: gets the models' configs.
        ranks: as of the engine: ``{"tp": 2}``.
        which: of ``GUESSES``, in the order in which they are made.
    """
    # A head reads the states of three layers.
    deep = replace(TINY, num_hidden_layers=8)
    where = write_config(deep, folder / "guesses", None)
    other = write_config(replace(deep, num_hidden_layers=1), folder / "guesses-other", None)
    head = write_head_config(deep, folder / "guesses-head")
    generator = torch.Generator().manual_seed(12)
    prompts = []
    for length in (3, 20, 41, 7, 16, 33):
        ids = torch.randint(2, 1024, (length,), generator=generator).tolist()
        prompts.append(TokensPrompt(prompt_token_ids=ids + ids))
    greedy = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True)
    options: dict[str, Any] = {"max_num_seqs": 8, "max_model_len": 512, "kv_cache_memory": 1 << 28, "dtype": "float32"}
    options |= ranks
    ways: dict[str, dict[str, Any]] = {
        "off": {},
        "ngram": {"speculate": "ngram", "num_speculative_tokens": 3},
        "itself": {"speculate": "draft", "draft_model": str(where), "num_speculative_tokens": 2},
        "head": {"speculate": "eagle3", "draft_model": str(head), "num_speculative_tokens": 3},
        "another": {"speculate": "draft", "draft_model": str(other), "num_speculative_tokens": 7},
    }
    found: dict[str, list[list[int]]] = {}
    for way in ("off", *which):
        with LLM(str(where), device=device, load_format="dummy", **options, **ways[way]) as llm:
            found[way] = ids_of(llm.generate(prompts, greedy))
            stats = llm.stats()
        if way != "off":
            yield {
                "guesses": way,
                "guessed": stats.guessed_tokens_total,
                "accepted": stats.accepted_tokens_total,
                "same_text": sum(a == b for a, b in zip(found[way], found["off"], strict=True)),
                "of": len(prompts),
                "passed": found[way] == found["off"] and stats.guessed_tokens_total > 0,
            }


def ids_of(outputs: list[RequestOutput]) -> list[list[int]]:
    """The tokens of each."""
    return [output.outputs[0].token_ids for output in outputs]
