"""What a tuned pack takes over of the pack that it replaces."""

from __future__ import annotations

import msgspec
import pytest

from parhelion.packs.format import BlockTime, Candidate, Pack
from parhelion.tuning.tuned_pack import TunedPack, held_back, with_rows_of
from tests.packs.sample import CODE, GEMM, HASHES, RMS_NORM, binary, candidate, pack, row

BLOCK = (RMS_NORM, GEMM)
HERE = HASHES | {"rms_norm.gluon": "c" * 64}


@pytest.fixture(autouse=True)
def _known_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tuned_pack", "build_pack"):
        monkeypatch.setattr(f"parhelion.tuning.{module}.source_hashes", lambda: HERE)


def before(**changes) -> Pack:
    """Two rows at M = 16 with a block of theirs, and one without at M = 64."""
    rows = (row(16), row(16, GEMM, op="linear", best=candidate("torch")), row(64))
    return pack(rows=rows, blocks=(BlockTime(BLOCK, 16, 9.0),), **changes)


def after(*num_tokens: int, blocks: tuple[BlockTime, ...] = ()) -> TunedPack:
    """New rows of the norm, whose program is another."""
    quick = msgspec.structs.replace(candidate(time_us=2.0), binaries=("quick.cubin",))
    rows = tuple(row(each, best=quick) for each in num_tokens)
    code = CODE[::-1]
    made = pack(rows=rows, blocks=blocks, binaries=(binary(code, file="quick.cubin"),), source_hashes=HASHES)
    return TunedPack(made, {"quick.cubin": code})


def times(of: Pack) -> dict[tuple[str, int], float]:
    return {(each.contract, each.num_tokens): each.best.time_us for each in of.rows}


def test_a_row_that_no_block_was_measured_with_leaves_the_row_that_one_was_measured_with():
    new = after(16, 64)
    assert held_back(new.pack, before()) == {(RMS_NORM, 16)}
    whole = with_rows_of(new, TunedPack(before(), {"rms_norm.cubin": CODE}))
    assert times(whole.pack) == {(RMS_NORM, 16): 4.0, (GEMM, 16): 4.0, (RMS_NORM, 64): 2.0}
    assert whole.pack.blocks == (BlockTime(BLOCK, 16, 9.0),)
    assert set(whole.binaries) == {each.file for each in whole.pack.binaries} == {"rms_norm.cubin", "quick.cubin"}


def test_binaries_of_rows_that_are_held_back_are_left_out():
    whole = with_rows_of(after(16), TunedPack(before(), {"rms_norm.cubin": CODE}))
    assert set(whole.binaries) == {each.file for each in whole.pack.binaries} == {"rms_norm.cubin"}


def test_a_row_with_a_block_of_its_own_replaces_the_older_ones():
    new = after(16, blocks=(BlockTime(BLOCK, 16, 8.0),))
    assert held_back(new.pack, before()) == set()
    whole = with_rows_of(new, TunedPack(before(), {"rms_norm.cubin": CODE}))
    assert times(whole.pack)[RMS_NORM, 16] == 2.0
    assert whole.pack.blocks == (BlockTime(BLOCK, 16, 8.0),)


def test_stale_rows_hold_nothing_back():
    stale = before(source_hashes={**HASHES, "rms_norm": "f" * 64})
    assert held_back(after(16).pack, stale) == set()
    assert held_back(after(16).pack, None) == set()


@pytest.mark.parametrize("there", ["c", "d"])
def test_an_older_row_is_kept_without_a_second_program_whose_sources_have_changed(there: str):
    hashes = HASHES | {"rms_norm.gluon": there * 64}
    quicker = Candidate("gluon", {}, 3.0, 3.0, 3.0, ("gluon.cubin",))
    rows = (row(16, best=quicker, runners_up=(candidate(),)), *before().rows[1:])
    built = binary(b"gluon", file="gluon.cubin", kernel="norms.norms")
    old = before(source_hashes=hashes)
    old = msgspec.structs.replace(old, rows=rows, binaries=(binary(), built))
    files = {"rms_norm.cubin": CODE, "gluon.cubin": b"gluon"}
    is_current = hashes == HERE
    # Nothing of a block is known any more that was measured with what is stale.
    assert held_back(after(16).pack, old) == ({(RMS_NORM, 16)} if is_current else set())
    whole = with_rows_of(after(64), TunedPack(old, files))
    assert times(whole.pack) == {(RMS_NORM, 16): 3.0 if is_current else 4.0, (GEMM, 16): 4.0, (RMS_NORM, 64): 2.0}
    assert ("gluon.cubin" in whole.binaries) == is_current
    assert whole.pack.source_hashes == (HERE if is_current else HASHES)
    assert whole.pack.blocks == ((BlockTime(BLOCK, 16, 9.0),) if is_current else ())
