"""What several ranks compute together is timed in as many processes, and comes into the pack beside the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.all_reduce_rms_norm.launch import AllReduceConfig
from parhelion.ops.quantize import FP8
from parhelion.packs.format import ModelEntry
from parhelion.packs.store import read_pack
from parhelion.platform.measure import summarize
from parhelion.tuning import rank_timing
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.jobs import Outcome, Trial
from parhelion.tuning.model_calls import tuned_model
from parhelion.tuning.plan import make_plan, refuses
from parhelion.tuning.rank_timing import RankJob, time_on_ranks
from parhelion.tuning.target import target
from parhelion.tuning.tune import TuneOptions
from parhelion.tuning.tune_ranks import tune_ranks
from tests.packs.sample import H100
from tests.tuning.tuner_fakes import SM_90, FakeCompiler

CPU = torch.device("cpu")
NORM = AllReduceRmsNorm(4096, 2, quant_dtype=FP8)


def loads_nothing(data: bytes, symbol: str, shared_bytes: int) -> Any:
    raise RuntimeError("there is no GPU")


def test_two_ranks_time_and_check_a_provider_and_say_who_failed():
    contract = AllReduceRmsNorm(64, 2)
    jobs = [
        RankJob(contract, 3, (Trial("torch", None), Trial("inductor", None))),
        RankJob(AllReduceRmsNorm(64, 2, quant_dtype=torch.int8), 5, (Trial("torch", None),)),
    ]
    (served, absent), (quantized,) = time_on_ranks(jobs, [CPU, CPU], 60.0, loads_nothing)
    for outcome in (served, quantized):
        assert outcome.problem is None
        assert outcome.time_us is not None
        assert outcome.time_us.median > 0
        assert outcome.rel_err < 8e-3
    assert absent.time_us is None
    assert absent.problem is not None
    assert absent.problem.startswith("on rank 0: ConfigError: all_reduce_rms_norm has no provider")


def test_what_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rank_timing, "_PATIENCE_S", 0.0)
    jobs = [RankJob(AllReduceRmsNorm(64, 2), 3, (Trial("torch", None),))]
    assert time_on_ranks(jobs, [CPU, CPU], 0.0) == [[]]


def quickest_in_one_program(jobs: Sequence[RankJob], devices: Sequence[torch.device], limit_s: float) -> Any:
    """Few rows take least when they are exchanged inside a programmatic program; one size fails throughout."""
    assert len(devices) == 2

    def outcome(job: RankJob, trial: Trial) -> Outcome:
        if job.num_tokens == 32:
            return Outcome(trial.provider, trial.config, None, problem="it is too cold")
        config = trial.config or AllReduceConfig(False, 8)
        microseconds = 20.0 - 8.0 * config.one_shot - 2.0 * config.programmatic + (trial.provider == "torch")
        return Outcome(trial.provider, trial.config, summarize([microseconds]))

    return [[outcome(job, trial) for trial in job.trials] for job in jobs]


def test_the_pack_has_a_row_for_each_size_beside_what_it_had(tmp_path: Path):
    model = tuned_model("qwen3-8b", "fp8_per_token", 2)
    options = TuneOptions(tmp_path / "pack", 10.0, command="parhelion tune qwen3-8b --tp 2")
    compiler = FakeCompiler()
    where = [CPU, CPU]
    for sizes in ((16,), (1, 32, 64, 128)):
        pack, notes = tune_ranks(
            model, target("sm_90"), SM_90, H100, compiler, options, where, sizes=sizes,
            measure=quickest_in_one_program,
        )  # fmt: skip
    assert pack is not None
    assert pack == read_pack(options.output).pack
    rows = {row.num_tokens: row for row in pack.rows if row.contract == NORM.key()}
    assert sorted(rows) == [1, 16, 64, 128]
    assert all(note.endswith("is not in the pack: helion: it is too cold; torch: it is too cold") for note in notes)
    assert {note.partition(" is not")[0] for note in notes} >= {f"{NORM.key()} at M = 32"}
    for size, row in rows.items():
        assert row.best.config is not None
        assert (row.best.config["one_shot"], row.best.config["programmatic"]) == (size <= 64, True)
        assert row.best.binaries
        assert row.runners_up[-1].provider == "torch"
    assert contract_of_key(NORM.key()) == NORM
    (entry,) = pack.models
    assert isinstance(entry, ModelEntry)
    assert (entry.tp, NORM.key() in entry.contracts) == (2, True)


def test_one_rank_has_nothing_to_tune_with_others(tmp_path: Path):
    model = tuned_model("qwen3-8b", "fp8_per_token")
    options = TuneOptions(tmp_path / "pack", 10.0)
    assert tune_ranks(model, target("sm_90"), SM_90, H100, FakeCompiler(), options, [CPU]) == (None, [])
    plan = make_plan(replace(model, tp=2), SM_90, refuses)
    assert [note.partition(" ")[0] for note in plan.notes] == ["all_reduce", "all_reduce_rms_norm"]


@pytest.mark.parametrize("quant_dtype", [None, torch.int8, FP8])
def test_a_key_names_what_a_contract_quantizes_to(quant_dtype: torch.dtype | None):
    contract = AllReduceRmsNorm(64, 2, quant_dtype=quant_dtype)
    assert contract_of_key(contract.key()) == contract
