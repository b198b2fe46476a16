"""A draft model changes no token, however good it is, and is refused where it does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from parhelion import LLM, SamplingParams
from parhelion.errors import ConfigError, ModelNotFoundError, OutOfMemoryError
from tests.e2e.draft_models import leave_out_layers
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of

BLOCK_BYTES = 2 * 3 * 2 * 16 * 4 * 4
"""Of four tokens of the tiny model's keys and values."""


@pytest.fixture(scope="session")
def drafts(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Draft models by name: the target itself, one of its layers left out, all of them left out but the first."""
    folder = tmp_path_factory.mktemp("drafts")
    return {
        "itself": tiny_path,
        "two layers": leave_out_layers(tiny_path, {1}, folder / "two"),
        "one layer": leave_out_layers(tiny_path, {1, 2}, folder / "one"),
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "one batch": {},
    "blocks of one token": {"block_size": 1, "num_speculative_tokens": 9},
    "beside chunks of prompts": {"max_num_batched_tokens": 13, "max_num_seqs": 6},
    "one at a time, one guess": {"max_num_seqs": 1, "num_speculative_tokens": 1},
    "as far as they pay": {"speculate": "auto"},
}


@pytest.mark.parametrize(
    ("options", "draft"),
    [
        *((name, "itself") for name in OPTIONS),
        ("one batch", "two layers"),
        ("beside chunks of prompts", "two layers"),
        ("blocks of one token", "one layer"),
        ("one at a time, one guess", "one layer"),
        ("as far as they pay", "one layer"),
    ],
)
def test_a_draft_model_changes_no_token(
    options: str, draft: str, alone: list[Tokens], drafts: dict[str, Path], make_llm: Callable[..., LLM]
) -> None:
    llm = make_llm(**{"speculate": "draft", "draft_model": str(drafts[draft])} | OPTIONS[options])
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    if options == "as far as they pay":
        return
    accepted, guessed = stats.accepted_tokens_total, stats.guessed_tokens_total
    if draft == "itself":
        # In float32 a step of several tokens rounds otherwise than one of a single token: hardly ever another choice.
        assert accepted >= 0.99 * guessed > 0
        assert stats.steps_total < stats.generation_tokens_total
    else:
        assert 0 < accepted < guessed


@pytest.mark.parametrize("draft", ["itself", "two layers"])
def test_preemption_and_cached_prefixes_under_drafts_change_nothing(
    draft: str, alone: list[Tokens], drafts: dict[str, Path], make_llm: Callable[..., LLM]
) -> None:
    both = 2 * BLOCK_BYTES if draft == "itself" else BLOCK_BYTES + BLOCK_BYTES * 2 // 3
    llm = make_llm(speculate="draft", draft_model=str(drafts[draft]), block_size=4, kv_cache_memory=80 * both)
    for _ in range(2):
        assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    assert stats.preemptions_total > 0
    assert stats.prefix_cache_hit_tokens_total > 0
    if draft == "itself":
        # What was cached, preempted or given to others is followed again: every guess is as good as at first.
        assert stats.accepted_tokens_total >= 0.99 * stats.guessed_tokens_total > 0


def test_streams_and_stop_strings_are_the_same(drafts: dict[str, Path], make_llm: Callable[..., LLM]) -> None:
    plain = make_llm(overlap=False)
    guessing = make_llm(speculate="draft", draft_model=str(drafts["two layers"]))
    whole = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1)
    [theirs], [ours] = (llm.generate(PROMPTS[0], whole) for llm in (plain, guessing))
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    text = theirs.outputs[0].text
    for start in range(3, len(text) - 4, 9):
        stops = SamplingParams(temperature=0, max_tokens=40, stop=(text[start : start + 3],), ignore_eos=True)
        [theirs] = plain.generate(PROMPTS[0], stops)
        *_, last = guessing.stream(PROMPTS[0], stops)
        assert (last.outputs[0].text, last.outputs[0].stop_reason) == (
            theirs.outputs[0].text,
            theirs.outputs[0].stop_reason,
        )


def _changed(tiny_path: Path, folder: Path, **values: Any) -> Path:
    shutil.copytree(tiny_path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


def test_what_does_not_fit_is_refused_with_the_reason(
    tiny_path: Path, tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    with pytest.raises(ConfigError, match="speculate is 'draft' and there is no draft_model: name one"):
        make_llm(speculate="draft")
    with pytest.raises(ConfigError, match="speculate is 'ngram', which needs no draft_model"):
        make_llm(speculate="ngram", draft_model=str(tiny_path))
    with pytest.raises(ConfigError, match="with speculate 'off' nobody guesses: choose draft, eagle3 or auto"):
        make_llm(draft_model=str(tiny_path))
    with pytest.raises(ModelNotFoundError, match="there is no file or folder"):
        make_llm(speculate="draft", draft_model=str(tmp_path / "nothing"))
    larger = _changed(tiny_path, tmp_path / "larger", vocab_size=600)
    with pytest.raises(ConfigError, match=r"has 600 tokens and .* has 512: .* have the same vocabulary"):
        make_llm(speculate="draft", draft_model=str(larger))
    shorter = _changed(tiny_path, tmp_path / "shorter", max_position_embeddings=100)
    with pytest.raises(ConfigError, match="made for 100 tokens, and requests may have 512: pass max_model_len 100"):
        make_llm(speculate="draft", draft_model=str(shorter))
    make_llm(speculate="draft", draft_model=str(shorter), max_model_len=100)
    others = _changed(tiny_path, tmp_path / "others")
    tokenizer = json.loads((others / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (others / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"token \d+ is 'B' to the draft model .* and 'A' to"):
        make_llm(speculate="draft", draft_model=str(others))
    with pytest.raises(OutOfMemoryError, match="the draft model's included"):
        make_llm(speculate="draft", draft_model=str(tiny_path), kv_cache_memory=3 * 4 * BLOCK_BYTES, max_model_len=64)


def test_weights_that_are_missing_are_named(tiny_path: Path, tmp_path: Path, make_llm: Callable[..., LLM]) -> None:
    broken = _changed(tiny_path, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(Exception, match=r"broken.* has no tensor model.norm.weight"):
        make_llm(speculate="draft", draft_model=str(broken))
