"""The packs that come with the package are whole, small, and hold what their models call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from parhelion.engine.step_layout import Bucket
from parhelion.ops.all_reduce_rms_norm.providers import HelionAllReduceRmsNorm
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import BUCKETS
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.preferences import COMPILING, preferred
from parhelion.ops.registry import op
from parhelion.ops.source_hash import source_hash
from parhelion.packs.format import TILE_PROGRAMS, ModelEntry
from parhelion.packs.location import SHIPPED
from parhelion.packs.lookup import rows_by_contract
from parhelion.packs.match import Chosen, match
from parhelion.packs.store import StoredPack, read_pack
from parhelion.packs.verify import verify
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.head_calls import HEADS, head_contracts, tuned_head
from parhelion.tuning.model_calls import edge_contracts, layer_contracts, tuned_model

CPU = torch.device("cpu")

MOST_BYTES = 6 << 20

MEASURED = {"h100": {"qwen3-8b"}, "h200": {"qwen3-8b", "qwen3-1.7b", "qwen3-32b"}}
"""Models that were tuned on the pack's device; of others there are binaries, so that nothing compiles."""

NEWER = frozenset(
    {"fused_rope_attention", "top_k_top_p_sampling", "step_inputs", "weight_only_mv", "all_reduce_rms_norm"}
)
"""Ops that came, or changed, after the H100's pack had been measured."""

PACKS = sorted(SHIPPED.glob("*.zip"))


@pytest.fixture(params=PACKS, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> StoredPack:
    return read_pack(request.param)


def test_there_are_some() -> None:
    assert PACKS


def test_nothing_is_wrong_with_it(stored: StoredPack) -> None:
    assert verify(stored) == []
    assert stored.path.stat().st_size <= MOST_BYTES


def test_none_of_its_rows_is_stale(stored: StoredPack) -> None:
    """Whoever changes an op's sources builds its rows anew, or shows that they are the same, before it ships."""
    assert stored.pack.source_hashes == {name: source_hash(name) for name in stored.pack.source_hashes}


def contracts_of(stored: StoredPack, entry: ModelEntry) -> list[Contract]:
    """What a step of the model calls, or a pass of the draft head."""
    if entry.name in HEADS:
        return list(head_contracts(tuned_head(entry.name, entry.tp)))
    model = tuned_model(entry.name, entry.quantization, entry.tp, entry.lm_head_quantization)
    of_tokens, of_requests = edge_contracts(model)
    return [*of_tokens, *layer_contracts(model, gemm_target(stored.pack.fingerprint.target)), *of_requests]


def test_its_models_call_what_it_says_that_they_do(stored: StoredPack) -> None:
    rows = {row.contract for row in stored.pack.rows}
    for entry in stored.pack.models:
        assert {contract.key() for contract in contracts_of(stored, entry)} & rows <= set(entry.contracts) <= rows
        assert [contract_of_key(key).key() for key in entry.contracts] == list(entry.contracts)


def test_every_tile_program_has_its_binaries(stored: StoredPack) -> None:
    for row in stored.pack.rows:
        assert bool(row.best.binaries) == (row.best.provider in TILE_PROGRAMS)
        # Of what nobody measured there is nothing to say but that it is built.
        assert row.best.time_us > 0 or (row.chosen_by == "untuned" and row.best.binaries and not row.floor_us)


def test_what_its_models_call_was_measured_where_they_were_tuned(stored: StoredPack) -> None:
    name = stored.path.stem
    times = {key: [row.best.time_us for row in rows] for key, rows in rows_by_contract(stored.pack.rows).items()}
    assert MEASURED[name] <= {entry.name for entry in stored.pack.models}
    for entry in stored.pack.models:
        as_it_comes = entry.tp == 1 and entry.lm_head_quantization is None
        if entry.name in MEASURED[name] and (as_it_comes or name == "h200"):
            old = NEWER if name == "h100" else frozenset()
            called = [each for each in contracts_of(stored, entry) if each.name not in old]
            assert all(all(times[contract.key()]) for contract in called)


def test_it_covers_the_models_that_it_names(stored: StoredPack) -> None:
    rows = {row.contract for row in stored.pack.rows}
    assert {entry.name for entry in stored.pack.models} == {"qwen3-1.7b", "qwen3-8b", "qwen3-32b", *HEADS}
    for entry in stored.pack.models:
        missing = {contract for contract in contracts_of(stored, entry) if contract.key() not in rows}
        # Torch serves the output head of a rank on the H200, so that there is nothing to build for the H100; and of a
        # draft head, which nobody has measured, all that it serves without a pack.
        assert {contract.name for contract in missing} <= {"linear", *(["argmax"] if entry.name in HEADS else [])}
        assert all(preferred(contract.name, torch.device("cuda"))[0] not in COMPILING for contract in missing)


def test_it_has_its_draft_heads_tile_programs_for_every_size_with_the_sources_here(stored: StoredPack) -> None:
    rows = rows_by_contract(stored.pack.rows)
    for name in HEADS:
        for contract in head_contracts(tuned_head(name)):
            if preferred(contract.name, torch.device("cuda"))[0] == "helion":
                assert [row.num_tokens for row in rows[contract.key()]] == list(BUCKETS)
                assert stored.pack.source_hashes[contract.name] == source_hash(contract.name)


def test_it_tells_no_folder_of_where_it_was_made(stored: StoredPack) -> None:
    assert "/" not in stored.pack.command.replace("benchmarks/h100_tune.py", "")


class Loaded:
    """A binary that nobody launches."""

    def launcher(self, parameters: Any, num_warps: int, programmatic: bool) -> Callable[..., None]:
        return lambda *grid: None


class Missed:
    """Who serves without a pack: nobody should be asked."""

    name = "helion"

    def launcher(self, contract: Contract) -> Callable[..., None]:
        return lambda *inputs: None


def verifying(value: Any, siblings: int) -> Any:
    """An input of a pass in which every token has a row of its own."""
    if not isinstance(value, AttentionBatch):
        return value
    rows = int(value.query_start_loc[-1])
    return AttentionBatch(
        torch.zeros((rows, value.block_table.shape[1]), dtype=torch.int32),
        torch.ones(rows, dtype=torch.int32),
        torch.arange(rows + 1, dtype=torch.int32),
        Bucket.verifying(rows, siblings).max_query_len,
        value.max_seq_len,
        siblings,
        torch.zeros(rows, dtype=torch.int32),
    )


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 9, 16, 40, 260])
def test_passes_of_a_draft_head_find_their_tile_programs(stored: StoredPack, num_tokens: int) -> None:
    """Prompts, single tokens, and rows beside their guesses: nothing that is launched is missing."""
    fingerprint = stored.pack.fingerprint
    chosen = Chosen(stored, match(fingerprint, fingerprint))
    hashes = stored.pack.source_hashes
    kernels = PackKernels(chosen, CPU, hashes, fingerprint.num_processors, load=lambda *_: Loaded())  # type: ignore[arg-type,return-value]
    served = set()
    for contract in head_contracts(tuned_head("qwen3-8b-eagle3")):
        if preferred(contract.name, torch.device("cuda"))[0] != "helion":
            continue
        tuned = kernels.launcher(contract, Missed())  # type: ignore[arg-type]
        assert tuned is not None
        assert tuned.providers == ("helion",)
        inputs = contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(1))
        tuned(*inputs)
        for siblings in (1, 2, 4, 8):
            tuned(*(verifying(value, siblings) for value in inputs))
        served.add(contract.name)
    assert served == {"fused_add_rms_norm", "fused_rope_attention", "rms_norm", "silu_and_mul"}
    assert kernels.all_notes() == []


def test_every_tile_program_of_its_rows_can_serve(stored: StoredPack, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sources that it was made with, on a device that loads its binaries and, of what ranks do together, by as
    many ranks, none is passed over.
    """
    monkeypatch.setattr(HelionAllReduceRmsNorm, "refuses", lambda self, contract: None)
    fingerprint = stored.pack.fingerprint
    chosen = Chosen(stored, match(fingerprint, fingerprint))
    hashes = stored.pack.source_hashes
    kernels = PackKernels(chosen, CPU, hashes, fingerprint.num_processors, load=lambda *_: Loaded())  # type: ignore[arg-type,return-value]
    rows = rows_by_contract(stored.pack.rows)
    for key, own in rows.items():
        if hashes[own[0].op] != source_hash(own[0].op):
            # Its configs may be of other fields by now.
            continue
        contract = contract_of_key(key)
        was_measured = any(row.best.time_us for row in own)
        tuned = kernels.launcher(contract, op(contract.name).provider("reference" if was_measured else "helion"))
        assert tuned is not None
        assert ("helion" in tuned.providers) == any(row.best.provider == "helion" for row in own)
    # Where others serve on a GPU, they do not here, and nobody has binaries of the runners-up.
    passed_over = [note for note in kernels.all_notes() if "helion cannot serve" in note]
    assert not [note for note in passed_over if "it holds no binaries" not in note]
