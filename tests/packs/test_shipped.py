"""The packs that come with the package are whole, small, and hold what their models call."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.preferences import COMPILING, preferred
from parhelion.packs.location import SHIPPED
from parhelion.packs.store import StoredPack, read_pack
from parhelion.packs.verify import verify
from parhelion.tuning.model_calls import edge_contracts, layer_contracts, tuned_model

MOST_BYTES = 4 << 20

NEWER = frozenset({"step_inputs"})
"""Ops that came when the packs had been measured: the table of preferences says who serves them, and that compiles
nothing.
"""

ONLY_BUILT = {"h200": frozenset({"fused_rope_attention"})}
"""By pack, ops whose configs came from other rows: their binaries are there, and nobody measured all of them."""

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
        assert row.best.time_us > 0 or row.op in ONLY_BUILT.get(stored.pack.name, ())
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
