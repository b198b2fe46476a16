"""The packs that come with the package are whole, small, and hold what their models call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.preferences import COMPILING, preferred
from parhelion.ops.registry import op
from parhelion.ops.source_hash import source_hash
from parhelion.packs.location import SHIPPED
from parhelion.packs.lookup import rows_by_contract
from parhelion.packs.match import Chosen, match
from parhelion.packs.store import StoredPack, read_pack
from parhelion.packs.verify import verify
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.model_calls import edge_contracts, layer_contracts, tuned_model

CPU = torch.device("cpu")

MOST_BYTES = 4 << 20

NEWER = frozenset({"step_inputs"})
"""Ops that came when the packs had been measured: the table of preferences says who serves them, and that compiles
nothing.
"""

PACKS = sorted(SHIPPED.glob("*.zip"))


@pytest.fixture(params=PACKS, ids=lambda path: path.stem)
def stored(request: pytest.FixtureRequest) -> StoredPack:
    return read_pack(request.param)


def test_there_are_some() -> None:
    assert PACKS


def test_nothing_is_wrong_with_it(stored: StoredPack) -> None:
    assert verify(stored) == []
    assert stored.path.stat().st_size <= MOST_BYTES


def test_every_row_was_measured_and_a_tile_program_has_its_binaries(stored: StoredPack) -> None:
    for row in stored.pack.rows:
        assert row.best.time_us > 0
        assert bool(row.best.binaries) == (row.best.provider == "helion")


def test_it_covers_the_models_that_it_names(stored: StoredPack) -> None:
    rows = {row.contract for row in stored.pack.rows}
    assert stored.pack.models
    for entry in stored.pack.models:
        model = tuned_model(entry.name, entry.quantization, entry.tp)
        of_tokens, of_requests = edge_contracts(model)
        called = [*of_tokens, *layer_contracts(model, gemm_target(stored.pack.fingerprint.target)), *of_requests]
        missing = {contract for contract in called if contract.key() not in rows}
        assert {contract.name for contract in missing} <= NEWER
        assert all(preferred(contract.name, torch.device("cuda"))[0] not in COMPILING for contract in missing)


def test_it_tells_no_folder_of_where_it_was_made(stored: StoredPack) -> None:
    assert "/" not in stored.pack.command.replace("benchmarks/h100_tune.py", "")


class Loaded:
    """A binary that nobody launches."""

    def launcher(self, parameters: Any, num_warps: int, programmatic: bool) -> Callable[..., None]:
        return lambda *grid: None


def test_every_tile_program_of_its_rows_can_serve(stored: StoredPack) -> None:
    """With the sources that it was made with, and on a device that loads its binaries, none is passed over."""
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
        tuned = kernels.launcher(contract, op(contract.name).provider("reference"))
        assert tuned is not None
        assert ("helion" in tuned.providers) == any(row.best.provider == "helion" for row in own)
    # Where others serve on a GPU, they do not here, and nobody has binaries of the runners-up.
    passed_over = [note for note in kernels.all_notes() if "helion cannot serve" in note]
    assert not [note for note in passed_over if "it holds no binaries" not in note]
