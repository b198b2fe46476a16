"""An EAGLE-3 head changes no token, guesses what it would guess from scratch, and is refused where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion import LLM, SamplingParams
from parhelion.config import EngineConfig
from parhelion.engine.host_drafter import HostDrafter
from parhelion.engine.load import load_model
from parhelion.engine.step_layout import StepRows
from parhelion.engine.step_result import Drafted
from parhelion.errors import ConfigError
from parhelion.layers.fusions import plans
from parhelion.layers.step_batch import StepBatch
from parhelion.models.config import ModelConfig
from parhelion.models.decoder import BuildOptions, DecoderModel, HiddenStates
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import Eagle3Config, read_eagle3_config
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED
from tests.e2e.test_identical_output import PARAMS, PROMPTS, Tokens, tokens_of
from tests.models.eagle3_heads import CPU, HeldWeights, head_tensors, write_head

HIDDEN = 64
HEAD_JSON: dict[str, object] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "vocab_size": 512,
    "draft_vocab_size": 300,
    "hidden_size": 2 * HIDDEN,
    "target_hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 512,
    # Nothing like the default fits a model of three layers.
    "eagle_aux_hidden_state_layer_ids": [0, 2],
}
Steps = list[tuple[list[int], list[int]]]
"""Of each row that was guessed for: its known tokens, and the guesses."""


def whole(config: ModelConfig, token_ids: list[int]) -> StepBatch:
    """A sequence from its beginning, in one step and in one block after another."""
    n = len(token_ids)
    table = torch.arange(-(-n // 16))[None]
    windows = frozenset(config.sliding_window(layer) for layer in range(config.num_layers))
    attention = AttentionBatch(
        block_table=table.int(),
        seq_lens=torch.tensor([n], dtype=torch.int32),
        query_start_loc=torch.tensor([0, n], dtype=torch.int32),
        max_query_len=n,
        max_seq_len=n,
        cpu=plan_cpu_attention(table.numpy(), [0], [n], 16, windows, torch.float32),
    )
    return StepBatch(torch.tensor(token_ids), torch.arange(n), torch.arange(n), attention)


def cache(config: ModelConfig, num_tokens: int) -> list[torch.Tensor]:
    shape = (-(-num_tokens // 16), 16, 2 * config.num_kv_heads, config.head_dim)
    return [torch.zeros(shape) for _ in range(config.num_layers)]


class Scratch:
    """The target and its head, each over whole sequences."""

    def __init__(self, target: DecoderModel, config: Eagle3Config, tensors: dict[str, torch.Tensor]) -> None:
        options = BuildOptions(
            torch.float32,
            torch.float32,
            UNQUANTIZED,
            plans("plain", CPU),
            Resolver(CPU),
            16,
            target.config.max_position,
        )
        self.target, self.config = target, config
        self.head = Eagle3Head(config, HeldWeights(tensors), options)

    @torch.inference_mode()
    def states(self, token_ids: list[int]) -> torch.Tensor:
        states = HiddenStates(self.config.layers_read(self.target.config))
        self.target.forward(whole(self.target.config, token_ids), cache(self.target.config, len(token_ids)), states)
        return torch.cat(states.taken, dim=-1)

    @torch.inference_mode()
    def guesses(self, known: list[int], count: int) -> list[int]:
        """What the head says follows the known tokens."""
        features = self.head.features(self.states(known[:-1]))
        tokens, guesses = known[1:], []
        for _ in range(count):
            layer = self.config.layer
            normed, back = self.head.forward(whole(layer, tokens), features, cache(layer, len(tokens)))
            guesses.append(int(self.head.likeliest(normed[-1:])))
            tokens, features = [*tokens, guesses[-1]], torch.cat((features, back[-1:]))
        return guesses


@pytest.fixture(scope="module")
def target(tiny_path: Path) -> DecoderModel:
    return load_model(EngineConfig(model=str(tiny_path), dtype="float32", device="cpu", threads=1), tiny_path).model


@pytest.fixture(scope="module")
def random_head(target: DecoderModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scratch]:
    """One that is hardly ever right, but about everything that it reads."""
    folder = write_head(tmp_path_factory.mktemp("random-head"), HEAD_JSON)
    config = read_eagle3_config(folder)
    tensors = head_tensors(config)
    write_head(folder, HEAD_JSON, tensors)
    return folder, Scratch(target, config, tensors)


@pytest.fixture(scope="module")
def fitted_head(
    target: DecoderModel, random_head: tuple[Path, Scratch], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One that is often right about the texts below: a linear map of the hidden states that is fitted to them."""
    _, scratch = random_head
    config = scratch.config
    size = config.layer.hidden_size
    known = tiny_texts(scratch)
    states = torch.cat([scratch.states(text)[:-2] for text in known])
    wanted = torch.cat([torch.tensor(text[2:]) for text in known])
    drafted = torch.arange(config.draft_vocab_size)
    tensors = head_tensors(config)
    tensors["d2t"] = torch.zeros_like(drafted)
    tensors["fc.weight"] = torch.eye(size)
    tensors["norm.weight"] = torch.ones(size)
    for name in ("midlayer.self_attn.o_proj.weight", "midlayer.mlp.down_proj.weight"):
        tensors[name] = torch.zeros_like(tensors[name])
    normed = states / states.pow(2).mean(-1, keepdim=True).sqrt()
    inside = wanted < config.draft_vocab_size
    onehot = (wanted[inside, None] == drafted).float()
    gram = normed[inside].T @ normed[inside] + 1e-2 * torch.eye(size)
    tensors["lm_head.weight"] = torch.linalg.solve(gram, normed[inside].T @ onehot).T.contiguous()
    return write_head(tmp_path_factory.mktemp("fitted-head"), HEAD_JSON, tensors)


def tiny_texts(scratch: Scratch) -> list[list[int]]:
    """Greedy texts of the target."""
    texts = []
    for first in range(2, 12):
        text = [first, first + 1]
        while len(text) < 40:
            states = scratch.target.forward(whole(scratch.target.config, text), cache(scratch.target.config, len(text)))
            text.append(int(scratch.target.compute_logits(states[-1:]).argmax()))
        texts.append(text)
    return texts


@pytest.fixture
def alone(make_llm: Callable[..., LLM]) -> list[Tokens]:
    """Every request by itself and without guesses."""
    llm = make_llm(overlap=False, enable_prefix_caching=False)
    return tokens_of([llm.generate(prompt, params)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)])


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
    for _ in range(2):
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
    assert len(steps) > 100
    for known, guesses in steps[::7]:
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
