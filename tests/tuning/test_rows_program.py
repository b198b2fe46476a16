"""The Gluon program of ``decoder_block`` for several tokens, launched on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.check import compare
from parhelion.ops.decoder_block import OP, DecoderBlock
from parhelion.ops.decoder_block.launch import NUM_ROW_COUNTERS, candidates
from parhelion.ops.gemm.target import target_of_device
from parhelion.ops.launching import bucket_of
from parhelion.ops.paged_attention.apart import siblings_apart
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

SINGLE_ROWS = [
    [(0 if row in padding else LENGTHS[row], 1) for row in range(count)]
    for count, padding in ((2, ()), (5, (3,)), (16, (0, 9, 15)))
]
"""Tokens of each sequence, and how many of them, the last, a step computes; with one of none, padding."""

WITH_GUESSES = (
    [(700, 2)],
    [(3, 3)],
    [(1024, 4)],
    [(17, 3), (2, 2)],
    [(130, 8)],
    [(65, 3), (0, 1), (129, 3), (1, 1)],
    [(577, 4)] * 4,
    [(300, 8), (16, 8)],
)
"""The same where several are of one sequence."""


@pytest.fixture(autouse=True)
def _as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs a GPU")
@pytest.mark.parametrize("sequences", [*SINGLE_ROWS, *WITH_GUESSES], ids=str)
@pytest.mark.parametrize("contract", CONTRACTS, ids=["head norms", "plain", "8B"])
def test_on_a_gpu_it_computes_what_the_contract_says_for_rows_of_any_lengths(
    contract: DecoderBlock, sequences: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
):
    inputs = step(contract, sequences, monkeypatch)
    device = inputs[0].device
    here, bucket = target_of_device(device), bucket_of(len(inputs[0]))
    configs = candidates(contract, bucket, here)
    given = inputs
    if sequences in WITH_GUESSES:
        given = (*inputs[:5], siblings_apart(inputs[5]), *inputs[6:])
        # What else differs of them has nothing to do with attention.
        configs = list({config.keys_a_program: config for config in configs}.values())
    assert configs, f"it is not built for {here.name}"
    expected = contract.reference(*inputs)
    padding = (inputs[3] < 0).nonzero().flatten().tolist()
    for config in configs:
        programs = tuple(programs_of(contract, bucket, config, target(here.name), GeneratedCode()))
        launch = launcher_of(contract, Trial("gluon", config, programs), device)
        runs = [launch(*given[:4], given[4].clone(), *given[5:]) for _ in range(2)]
        for new_hidden, new_residual, _ in runs:
            # What is left for padding rows nobody reads.
            new_hidden[padding], new_residual[padding] = (each[padding] for each in expected[:2])
        found, again = runs
        problems = [each.problem for each in compare(contract, found, expected)]
        assert problems == [None] * 3, config
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, again, strict=True)), config
        assert not arrival_counters(device, NUM_ROW_COUNTERS).any()


def step(contract: DecoderBlock, sequences: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """The inputs of a step of these tokens, a row a sequence."""
    device = torch.device("cuda", torch.cuda.current_device())
    lens = [count for _, count in sequences], [max(1, length) for length, _ in sequences]
    num_tokens = sum(lens[0])
    generator = torch.Generator().manual_seed(num_tokens)
    with monkeypatch.context() as patch:
        patch.setattr("parhelion.ops.fused_rope_attention.contract.sampled_lens", lambda count: lens)
        hidden, residual, positions, slots, cache, batch, *weights = contract.sample_inputs(
            num_tokens, device, generator
        )
    padding = [int(batch.query_start_loc[row]) for row, (length, _) in enumerate(sequences) if length == 0]
    slots[padding], positions[padding] = -1, 0
    seq_lens = torch.tensor([length for length, _ in sequences], dtype=torch.int32, device=device)
    return hidden, residual, positions, slots, cache, replace(batch, seq_lens=seq_lens), *weights
