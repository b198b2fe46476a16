"""Blocks compiled for one token compute what the ordinary programs do, wherever the row's blocks lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from parhelion.config import EngineConfig
from parhelion.engine.load import load_model
from parhelion.layers.one_token import can_compile, for_any_row
from parhelion.layers.step_batch import StepBatch
from parhelion.models.decoder import DecoderModel
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention
from parhelion.quantization import FP8_PER_TOKEN
from tests.e2e.tiny_models import TinyModel
from tests.layers.test_program import _feed_forward

BLOCK_SIZE, NUM_BLOCKS = 4, 12

QWEN3 = TinyModel("qwen3-one-block", "Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "num_hidden_layers": 1})
QWEN3_IN_TWO = replace(QWEN3, overrides=QWEN3.overrides | {"num_hidden_layers": 2})
"""The first block is compiled apart from the others, one of which is the second stage here."""
QWEN2 = TinyModel(
    "qwen2-windows",
    "Qwen2",
    {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
)


def _step(
    model: DecoderModel,
    cache: list[torch.Tensor],
    blocks: list[int],
    token: int,
    position: int,
    received: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden state of one decode row of ``position + 1`` tokens in these blocks; see ``DecoderModel.forward``."""
    table = np.array([blocks], np.int64)
    windows = frozenset(model.config.sliding_window(layer) for layer in range(model.config.num_layers))
    slot = blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
    batch = StepBatch(
        torch.tensor([token]),
        torch.tensor([position]),
        torch.tensor([slot]),
        AttentionBatch(
            torch.from_numpy(table).int(),
            torch.tensor([position + 1], dtype=torch.int32),
            torch.tensor([0, 1], dtype=torch.int32),
            1,
            position + 1,
            cpu=plan_cpu_attention(table, [position], [1], BLOCK_SIZE, windows, torch.float32),
        ),
    )
    return model.forward(batch, cache, received=received)


@pytest.mark.parametrize("tiny", [QWEN3, QWEN2], ids=lambda tiny: tiny.name)
def test_one_token_gives_the_hidden_state_and_the_cache_of_the_ordinary_blocks(tiny: TinyModel, tmp_path: Path):
    tiny.write(tmp_path)
    models = [
        load_model(
            EngineConfig(model=str(tmp_path), device="cpu", dtype="float32", compile=compiled, block_size=BLOCK_SIZE),
            tmp_path,
        ).model
        for compiled in (False, True)
    ]
    config = models[0].config
    shape = (NUM_BLOCKS, BLOCK_SIZE, 2 * config.num_kv_heads, config.head_dim)
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for _ in range(config.num_layers)]
    caches = [[tensor.clone() for tensor in start] for _ in models]
    adjacent = [([3, 4, 5], 10), ([3, 4, 5, 6], 13), ([0, 1, 2, 3, 4], 18), ([6], 0)]
    scattered = [([7, 2, 9], 8), ([9, 1, 0, 5, 3, 2], 22)]
    compiled_before = counters["stats"]["unique_graphs"]
    with torch.inference_mode(), for_any_row():
        for blocks, position in adjacent + scattered:
            expected, got = (
                _step(model, cache, blocks, 7 + position, position) for model, cache in zip(models, caches, strict=True)
            )
            # float32 sums in another order, through three layers of weights of deviation 0.2.
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    # The first block and the others, each for rows of one token and of more, side by side and not: of any length.
    assert counters["stats"]["unique_graphs"] - compiled_before == min(2, config.num_layers) * 3
    for ordinary, compiled in zip(*caches, strict=True):
        torch.testing.assert_close(compiled, ordinary, rtol=1e-4, atol=1e-4)


def test_a_later_stage_takes_what_it_is_handed_into_its_compiled_blocks(tmp_path: Path):
    QWEN3_IN_TWO.write(tmp_path)
    config = EngineConfig(model=str(tmp_path), device="cpu", dtype="float32", block_size=BLOCK_SIZE, pp=2)
    models = [load_model(replace(config, compile=compiled), tmp_path, stage=1).model for compiled in (False, True)]
    dimensions = models[0].config
    shape = (NUM_BLOCKS, BLOCK_SIZE, 2 * dimensions.num_kv_heads, dimensions.head_dim)
    generator = torch.Generator().manual_seed(2)
    received = torch.randn((2, 1, dimensions.hidden_size), generator=generator)
    start = [torch.randn(shape, generator=generator) for _ in range(dimensions.num_layers)]
    with torch.inference_mode(), for_any_row():
        expected, got = (
            _step(model, [tensor.clone() for tensor in start], [3, 4, 5], 0, 10, received.clone()) for model in models
        )
    assert not torch.equal(got, expected), "sums in another order: other code"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_quantized_blocks_are_left_to_the_ordinary_programs():
    assert not can_compile(_feed_forward(FP8_PER_TOKEN, torch.Generator().manual_seed(0)))
