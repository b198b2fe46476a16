"""The Gluon program of ``decoder_block`` for several tokens, launched on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.check import compare
from parhelion.ops.decoder_block import OP, DecoderBlock
from parhelion.ops.decoder_block.launch import NUM_ROW_COUNTERS, candidates
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.launching import bucket_of
from parhelion.tuning.jobs import Trial
from parhelion.tuning.programs import programs_of
from parhelion.tuning.record import GeneratedCode
from parhelion.tuning.target import target
from parhelion.tuning.timing_jobs import launcher_of

_, NORMED, LARGE = OP.examples
assert isinstance(NORMED, DecoderBlock)
CONTRACTS = (NORMED, replace(NORMED, head_epsilon=None), LARGE)

LENGTHS = (1, 700, 15, 16, 17, 33, 64, 65, 129, 128, 1024, 4096, 2, 577, 48, 300)
"""Of rows, those at the bounds of blocks and of shares of keys among them."""

PADDING = {2: (), 5: (3,), 16: (0, 9, 15)}
"""Which rows of so many are padding."""


@pytest.fixture(autouse=True)
def _as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")
@pytest.mark.parametrize("num_tokens", PADDING)
@pytest.mark.parametrize("contract", CONTRACTS, ids=["head norms", "plain", "8B"])
def test_on_a_gpu_it_computes_what_the_contract_says_for_rows_of_any_lengths(
    contract: DecoderBlock, num_tokens: int, monkeypatch: pytest.MonkeyPatch
):
    device = torch.device("cuda", torch.cuda.current_device())
    here, bucket = target_of_device(device), bucket_of(num_tokens)
    configs = candidates(contract, bucket, here)
    assert configs, f"it is not built for {here.name}"
    lens = "parhelion.ops.fused_rope_attention.contract.sampled_lens"
    monkeypatch.setattr(lens, lambda count: ([1] * count, list(LENGTHS[:count])))
    hidden, residual, positions, slots, cache, batch, *weights = contract.sample_inputs(
        num_tokens, device, torch.Generator().manual_seed(num_tokens)
    )
    padding, seq_lens = list(PADDING[num_tokens]), batch.seq_lens.clone()
    seq_lens[padding], slots[padding], positions[padding] = 0, -1, 0
    rows = replace(batch, seq_lens=seq_lens)
    expected = contract.reference(hidden, residual, positions, slots, cache, rows, *weights)
    for config in configs:
        programs = tuple(programs_of(contract, bucket, config, target(here.name), GeneratedCode()))
        launch = launcher_of(contract, Trial("gluon", config, programs), device)
        runs = [launch(hidden, residual, positions, slots, cache.clone(), rows, *weights) for _ in range(2)]
        for new_hidden, new_residual, _ in runs:
            # What is left for padding rows nobody reads.
            new_hidden[padding], new_residual[padding] = (each[padding] for each in expected[:2])
        found, again = runs
        problems = [each.problem for each in compare(contract, found, expected)]
        assert problems == [None] * 3, config
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, again, strict=True)), config
        assert not arrival_counters(device, NUM_ROW_COUNTERS).any()
