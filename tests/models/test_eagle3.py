"""An EAGLE-3 head against the paper's formulas in plain PyTorch, over whole sequences and without a cache."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from parhelion.errors import CheckpointError
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import Eagle3Config
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.embedding import Embedding
from parhelion.ops.resolve import Resolver
from tests.models.eagle3_heads import CPU, HEAD, LAYER, HeldWeights, head_tensors, new_cache, options, step_batch

# Both compute in float32, in another order; values are of order 1 and pass some ten operations.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}

HEADS = {
    "plain": HEAD,
    "norm before residual": replace(HEAD, norm_before_residual=True),
    "whole vocabulary": replace(HEAD, draft_vocab_size=LAYER.vocab_size),
    "two layers": replace(HEAD, layer=replace(LAYER, num_layers=2), norm_before_residual=True),
    "norm before fc": replace(HEAD, norm_before_fc=True, norm_output=True),
    "norm of each": replace(HEAD, fc_norm=True, feature_layers=(1, 2, 5, 7), norm_before_residual=True),
    "head norms": replace(HEAD, layer=replace(LAYER, qk_norm=True)),
    "window": replace(HEAD, layer=replace(LAYER, sliding_windows=(5,))),
    "every head its own keys": replace(HEAD, layer=replace(LAYER, num_kv_heads=4)),
}


class PaperHead:
    """Li et al., 2025, section 3 and figure 5; the norms as in the authors' code."""

    def __init__(self, config: Eagle3Config, tensors: dict[str, torch.Tensor], first: str) -> None:
        self.config, self.tensors, self.first = config, tensors, first

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        scale = x.pow(2).mean(-1, keepdim=True).add(self.config.layer.rms_norm_eps).sqrt()
        return x / scale * self.tensors[f"{name}.weight"]

    def product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.tensors[f"{name}.weight"].T

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.config.norm_before_fc:
            hidden = self.norm(hidden, "input_norm")
        if self.config.fc_norm:
            parts = hidden.split(self.config.target_hidden_size, -1)
            hidden = torch.cat([self.norm(part, f"fc_norm.{i}") for i, part in enumerate(parts)], -1)
        return self.product(hidden, "fc")

    def attention(self, x: torch.Tensor, name: str, window: int | None) -> torch.Tensor:
        c, n = self.config.layer, len(x)
        q, k, v = (self.product(x, f"{name}.self_attn.{which}_proj").view(n, -1, c.head_dim) for which in "qkv")
        if c.qk_norm:
            q, k = self.norm(q, f"{name}.self_attn.q_norm"), self.norm(k, f"{name}.self_attn.k_norm")
        q, k = self.rotated(q), self.rotated(k)
        attended = torch.empty_like(q)
        for head in range(c.num_heads):
            of = head * c.num_kv_heads // c.num_heads
            for i in range(n):
                seen = slice(0 if window is None else max(0, i + 1 - window), i + 1)
                weights = (k[seen, of] @ q[i, head] / math.sqrt(c.head_dim)).softmax(0)
                attended[i, head] = weights @ v[seen, of]
        return self.product(attended.reshape(n, -1), f"{name}.self_attn.o_proj")

    def rotated(self, x: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        angles = torch.arange(len(x))[:, None] * self.config.layer.rope.theta ** (-torch.arange(half) / half)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def forward(self, token_ids: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All positions of a sequence from 0 on: normed, and what is fed back."""
        embedded = self.tensors["embed_tokens.weight"][token_ids]
        normed = self.norm(features, f"{self.first}.hidden_norm")
        hidden = normed if self.config.norm_before_residual else features
        for index in range(self.config.layer.num_layers):
            name = self.first if index == 0 else f"layers.{index}"
            attention_in = self.norm(embedded if index == 0 else hidden, f"{name}.input_layernorm")
            if index == 0:
                attention_in = torch.cat((attention_in, normed), -1)
            hidden = hidden + self.attention(attention_in, name, self.config.layer.sliding_window(index))
            x = self.norm(hidden, f"{name}.post_attention_layernorm")
            gated = silu(self.product(x, f"{name}.mlp.gate_proj")) * self.product(x, f"{name}.mlp.up_proj")
            hidden = hidden + self.product(gated, f"{name}.mlp.down_proj")
        out = self.norm(hidden, "norm")
        return out, out if self.config.norm_output else hidden

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        logits = self.product(normed, "lm_head")
        if "d2t" not in self.tensors:
            return logits
        everywhere = torch.full((len(logits), self.config.layer.vocab_size), -torch.inf)
        for draft_id, difference in enumerate(self.tensors["d2t"].tolist()):
            everywhere[:, draft_id + difference] = logits[:, draft_id]
        return everywhere


def heads(config: Eagle3Config, fusion: str = "plain") -> tuple[Eagle3Head, PaperHead]:
    first = "midlayer" if config.layer.num_layers == 1 else "layers.0"
    tensors = head_tensors(config, first)
    return Eagle3Head(config, HeldWeights(tensors), options(fusion=fusion)), PaperHead(config, tensors, first)


def some_hidden(config: Eagle3Config, n: int, seed: int = 3) -> torch.Tensor:
    width = config.num_features * config.target_hidden_size
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def some_ids(n: int, seed: int = 4) -> torch.Tensor:
    return torch.randint(LAYER.vocab_size, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("chunks", [(11,), (5, 6), (1, 1, 3, 4, 2)], ids=str)
def test_prompts_in_chunks_and_guesses_fed_back_are_the_papers(name: str, chunks: tuple[int, ...]) -> None:
    config = HEADS[name]
    ours, paper = heads(config)
    ids, hidden = some_ids(sum(chunks)), some_hidden(config, sum(chunks))
    torch.testing.assert_close(ours.features(hidden), paper.features(hidden), **CLOSE)
    features = paper.features(hidden)
    cache, start = new_cache(config.layer), 0
    normed = fed_back = torch.empty(0)
    for count in chunks:
        batch = step_batch(config.layer, ids[start : start + count], [start], [count])
        normed, fed_back = ours.forward(batch, ours.features(hidden[start : start + count]), cache)
        start += count
    for _ in range(4):
        expected, expected_back = paper.forward(ids, features)
        torch.testing.assert_close(normed[-1], expected[-1], **CLOSE)
        torch.testing.assert_close(fed_back[-1], expected_back[-1], **CLOSE)
        logits = ours.compute_logits(normed[-1:])
        torch.testing.assert_close(logits, paper.logits(expected[-1:]), **CLOSE)
        guess = ours.likeliest(normed[-1:])
        assert guess.tolist() == logits.argmax(-1).tolist()
        ids, features = torch.cat((ids, guess)), torch.cat((features, expected_back[-1:]))
        batch = step_batch(config.layer, guess, [start], [1])
        normed, fed_back = ours.forward(batch, fed_back[-1:], cache)
        start += 1


@pytest.mark.parametrize("norm_before_residual", [False, True])
@pytest.mark.parametrize("fusion", ["plain", "fused"])
def test_rows_of_a_step_do_not_see_each_other(norm_before_residual: bool, fusion: str) -> None:
    config = replace(HEAD, norm_before_residual=norm_before_residual)
    ours, paper = heads(config, fusion)
    lengths = [7, 3, 9]
    ids = [some_ids(n + 1, seed=n) for n in lengths]
    features = [paper.features(some_hidden(config, n + 1, seed=n)) for n in lengths]
    cache = new_cache(config.layer)
    steps = [([0, 0, 0], lengths), (lengths, [1, 1, 1])]
    for starts, counts in steps:
        spans = [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]
        batch = step_batch(config.layer, torch.cat([x[s] for x, s in zip(ids, spans, strict=True)]), starts, counts)
        normed, fed_back = ours.forward(batch, torch.cat([x[s] for x, s in zip(features, spans, strict=True)]), cache)
        for row, span in enumerate(spans):
            expected, expected_back = paper.forward(ids[row], features[row])
            taken = slice(sum(counts[:row]), sum(counts[: row + 1]))
            torch.testing.assert_close(normed[taken], expected[span], **CLOSE)
            torch.testing.assert_close(fed_back[taken], expected_back[span], **CLOSE)


def test_bfloat16_is_float32_up_to_its_rounding() -> None:
    config = replace(HEAD, norm_before_residual=True)
    _, paper = heads(config)
    ours = Eagle3Head(config, HeldWeights(paper.tensors), options(dtype=torch.bfloat16))
    ids, hidden = some_ids(9), some_hidden(config, 9)
    batch = step_batch(LAYER, ids, [0], [9], torch.bfloat16)
    found = ours.forward(batch, ours.features(hidden.bfloat16()), new_cache(LAYER, torch.bfloat16))
    for each, expected in zip(found, paper.forward(ids, paper.features(hidden)), strict=True):
        assert each.dtype == torch.bfloat16
        # A rounding is off by 2^-9 at most; some ten of them one after the other stay below a few times that.
        assert (each.float() - expected).norm() < 0.02 * expected.norm()
    logits = ours.compute_logits(found[0])
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits.isfinite(), paper.tensors["t2d"].expand(9, -1))


@pytest.mark.parametrize("norm_before_residual", [False, True])
def test_features_given_are_left_as_they_are(norm_before_residual: bool) -> None:
    ours, paper = heads(replace(HEAD, norm_before_residual=norm_before_residual))
    features = paper.features(some_hidden(HEAD, 5))
    given = features.clone()
    ours.forward(step_batch(LAYER, some_ids(5), [0], [5]), given, new_cache(LAYER))
    assert torch.equal(given, features)


def test_tokens_outside_the_draft_vocabulary_are_never_guessed() -> None:
    ours, paper = heads(HEAD)
    logits = ours.compute_logits(torch.randn(6, LAYER.hidden_size))
    assert logits.shape == (6, LAYER.vocab_size)
    assert torch.equal(logits.isfinite(), paper.tensors["t2d"].expand(6, -1))
    assert ours.token_ids is not None
    assert ours.token_ids.tolist() == paper.tensors["t2d"].nonzero().flatten().tolist()


def test_a_whole_vocabulary_in_another_order_is_put_in_the_targets() -> None:
    config = replace(HEAD, draft_vocab_size=LAYER.vocab_size)
    tensors = head_tensors(config)
    order = torch.randperm(LAYER.vocab_size, generator=torch.Generator().manual_seed(1))
    in_order = Eagle3Head(config, HeldWeights(tensors), options())
    moved = {"lm_head.weight": tensors["lm_head.weight"][order], "d2t": order - torch.arange(len(order))}
    shuffled = Eagle3Head(config, HeldWeights(tensors | moved), options())
    hidden = torch.randn(3, LAYER.hidden_size)
    torch.testing.assert_close(shuffled.compute_logits(hidden), in_order.compute_logits(hidden), **CLOSE)
    assert shuffled.likeliest(hidden).tolist() == in_order.likeliest(hidden).tolist()


def test_a_head_without_an_embedding_or_a_projection_takes_the_targets() -> None:
    config = replace(HEAD, draft_vocab_size=LAYER.vocab_size)
    tensors = head_tensors(config)
    without = dict(tensors)
    table, projection = without.pop("embed_tokens.weight"), without.pop("lm_head.weight")
    theirs = Eagle3Head(config, HeldWeights(without), options(), table, projection)
    own = Eagle3Head(config, HeldWeights(tensors), options(), torch.zeros_like(table), torch.zeros_like(projection))
    batch, features = step_batch(LAYER, some_ids(5), [0], [5]), torch.randn(5, LAYER.hidden_size)
    ours = [head.forward(batch, features, new_cache(LAYER))[0] for head in (theirs, own)]
    assert torch.equal(*ours)
    assert torch.equal(theirs.compute_logits(ours[0]), own.compute_logits(ours[0]))


@pytest.mark.parametrize("is_equal", [False, True])
def test_a_table_equal_to_the_targets_is_held_once(is_equal: bool) -> None:
    tensors = head_tensors(HEAD)
    target = tensors["embed_tokens.weight"] + (0 if is_equal else 1)
    bound: list[torch.Tensor] = []

    class Noting(Resolver):
        def bind(self, contract: Contract, *weights: Any) -> Launcher:
            bound.extend(weights if isinstance(contract, Embedding) else ())
            return super().bind(contract, *weights)

    Eagle3Head(HEAD, HeldWeights(tensors), replace(options(), resolver=Noting(CPU)), target)
    assert [table is target for table in bound] == [is_equal]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d2t": torch.full((20,), 29)}, "d2t leads to tokens 29 to 48, but the model has 0 to 47"),
        ({"d2t": torch.full((20,), -1)}, "d2t leads to tokens -1 to 18"),
        ({"embed_tokens.weight": None}, r"no tensor embed_tokens\.weight.* is not given"),
    ],
)
def test_tensors_that_cannot_be_are_refused(changes: dict[str, torch.Tensor | None], named: str) -> None:
    tensors = {n: t for n, t in (head_tensors(HEAD) | changes).items() if t is not None}
    with pytest.raises(CheckpointError, match=named):
        Eagle3Head(HEAD, HeldWeights(tensors), options())


def test_a_shared_tensor_of_another_shape_is_refused() -> None:
    weights = HeldWeights(head_tensors(HEAD, with_embedding=False))
    with pytest.raises(CheckpointError, match=r"shape \(48, 32\), is of shape \(48, 24\)"):
        Eagle3Head(HEAD, weights, options(), torch.zeros(48, 24))


def test_a_draft_vocabulary_larger_than_the_targets_is_refused() -> None:
    config = replace(HEAD, draft_vocab_size=50)
    with pytest.raises(CheckpointError, match="draft_vocab_size 50, which is more than the 48 tokens"):
        Eagle3Head(config, HeldWeights(head_tensors(HEAD)), options())


def test_a_single_layer_under_a_configuration_of_several_is_refused() -> None:
    config = replace(HEAD, layer=replace(LAYER, num_layers=2))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers 2.* single layer \(midlayer\)"):
        Eagle3Head(config, HeldWeights(head_tensors(HEAD)), options())
