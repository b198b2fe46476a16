"""An EAGLE-3 head changes no token, guesses what it would guess from scratch, and is refused where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parhelion import LLM, SamplingParams
from parhelion.config import EngineConfig
from parhelion.engine.host.drafter import HostDrafter
from parhelion.engine.load import load_model
from parhelion.engine.step_layout import StepRows
from parhelion.engine.step_result import Drafted
from parhelion.errors import ConfigError
from parhelion.models.decoder import DecoderModel
from tests.e2e.eagle3_scratch import HEAD_JSON, Scratch, write_fitted_head, write_random_head
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of
from tests.models.eagle3_heads import write_head

Steps = list[tuple[list[int], list[int]]]
"""Of each row that was guessed for: its known tokens, and the guesses."""


@pytest.fixture(scope="module")
def target(tiny_path: Path) -> DecoderModel:
    return load_model(EngineConfig(model=str(tiny_path), dtype="float32", device="cpu", threads=1), tiny_path).model


@pytest.fixture(scope="module")
def random_head(target: DecoderModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scratch]:
    folder = tmp_path_factory.mktemp("random-head")
    return folder, write_random_head(target, folder)


@pytest.fixture(scope="module")
def fitted_head(
    target: DecoderModel, random_head: tuple[Path, Scratch], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_fitted_head(random_head[1], tmp_path_factory.mktemp("fitted-head"))


OPTIONS = [
    pytest.param({}, id="one batch"),
    pytest.param({"block_size": 1, "num_speculative_tokens": 9}, id="blocks of one token"),
    pytest.param({"max_num_batched_tokens": 13, "max_num_seqs": 6}, id="beside chunks of prompts"),
    pytest.param({"block_size": 4, "kv_cache_memory": 120 * 4 * 4 * 2 * 2 * 16 * 4}, id="preempted"),
    pytest.param({"speculate": "auto"}, id="as far as they pay"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_head_changes_no_token(
    options: dict[str, Any], alone: list[Tokens], fitted_head: Path, make_llm: Callable[..., LLM]
) -> None:
    llm = make_llm(**{"speculate": "eagle3", "draft_model": str(fitted_head)} | options)
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    if not options:
        # Once more, from what is cached.
        assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    if "speculate" not in options:
        assert 0 < stats.accepted_tokens_total < stats.guessed_tokens_total
    assert (stats.preemptions_total > 0) == ("kv_cache_memory" in options)


@pytest.mark.parametrize("options", [option for option in OPTIONS if option.id != "as far as they pay"])
def test_its_guesses_are_those_from_scratch(
    options: dict[str, Any],
    random_head: tuple[Path, Scratch],
    make_llm: Callable[..., LLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, scratch = random_head
    steps: Steps = []
    original = HostDrafter.draft

    def draft(self: HostDrafter, rows: StepRows) -> Drafted:
        tokens = self._sampler.tokens.copy()
        drafted = original(self, rows)
        ids = iter(drafted.token_ids)
        for slot, start, samples in zip(rows.slots, rows.starts, rows.samples, strict=True):
            if samples > 1:
                steps.append((tokens[slot, : start + 1].tolist(), [next(ids) for _ in range(samples - 1)]))
        return drafted

    monkeypatch.setattr(HostDrafter, "draft", draft)
    # Of a cached prefix's last token the head knows what followed it elsewhere.
    llm = make_llm(speculate="eagle3", draft_model=str(folder), enable_prefix_caching=False, **options)
    llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    assert len(steps) > 40
    for known, guesses in steps[::5]:
        assert guesses == scratch.guesses(known, len(guesses))


def test_what_does_not_fit_is_refused_with_the_reason(
    tiny_path: Path, fitted_head: Path, tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    with pytest.raises(ConfigError, match="is an EAGLE-3 head and no model of its own: choose eagle3 or auto"):
        make_llm(speculate="draft", draft_model=str(fitted_head))
    with pytest.raises(ConfigError, match="is no EAGLE-3 head: name one"):
        make_llm(speculate="eagle3", draft_model=str(tiny_path))
    with pytest.raises(ConfigError, match="speculate is 'eagle3' and there is no draft_model"):
        make_llm(speculate="eagle3")
    other = write_head(tmp_path, HEAD_JSON | {"target_hidden_size": 96})
    with pytest.raises(ConfigError, match="reads hidden states of 96 elements, but the model's have 64"):
        make_llm(speculate="auto", draft_model=str(other))
