"""Merged packs serve what their parts served, the later one first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from parhelion.errors import PackError
from parhelion.packs.format import Binary, BlockTime, Candidate, Ledger, ModelEntry, Pack, Row
from parhelion.packs.merge import merge
from parhelion.packs.store import StoredPack, read_pack, write_pack
from parhelion.packs.verify import verify
from tests.packs.sample import CODE, GEMM, H100, H200, HASHES, RMS_NORM, binary, candidate, pack, recipe, row

Stored = Callable[..., StoredPack]


def tiles(*files: str, time_us: float = 4.0) -> Candidate:
    return msgspec.structs.replace(candidate(time_us=time_us), binaries=files)


def buckets(merged: Pack) -> dict[tuple[str, int], Row]:
    return {(each.contract, each.num_tokens): each for each in merged.rows}


def code_of(each: Row, merged: Pack, data: dict[str, bytes]) -> set[bytes]:
    """The code objects that a row's best candidate names."""
    assert set(each.best.binaries) <= {binary.file for binary in merged.binaries}
    return {data[file] for file in each.best.binaries}


def saved(merged: Pack, data: dict[str, bytes], path: Path) -> StoredPack:
    write_pack(merged, data, path)
    return read_pack(path)


def test_a_pack_merged_with_itself_or_nothing_is_itself_but_for_its_name_and_cost(stored: Stored) -> None:
    one = stored(rows=tuple(sorted(pack().rows, key=lambda each: (each.contract, each.num_tokens))))
    for packs in ([one], [one, one]):
        merged, data = merge(packs, "new")
        assert data == {"rms_norm.cubin": CODE}
        changes: dict[str, Any] = {"name": "new", "command": merged.command, "ledger": merged.ledger}
        assert merged == msgspec.structs.replace(one.pack, **changes)
    assert merged.command == "merge of h100-sxm, h100-sxm"


def test_the_later_packs_row_is_taken_for_the_same_bucket_and_all_others_are_kept(
    stored: Stored, tmp_path: Path
) -> None:
    slow, quick = tiles("rms_norm.cubin", time_us=4.0), tiles("rms_norm.cubin", time_us=2.0)
    a = stored("a.zip", rows=(row(1, best=slow), row(16, best=slow), row(1, GEMM)))
    b = stored("b.zip", rows=(row(16, best=quick), row(64, best=quick)))
    merged, data = merge([a, b], "both")
    assert [(each.contract, each.num_tokens, each.best.time_us) for each in merged.rows] == [
        (GEMM, 1, 4.0),
        (RMS_NORM, 1, 4.0),
        (RMS_NORM, 16, 2.0),
        (RMS_NORM, 64, 2.0),
    ]
    assert verify(saved(merged, data, tmp_path / "both.zip"), HASHES) == []


def test_equal_code_is_kept_once_and_rows_name_it_by_its_new_name(stored: Stored, tmp_path: Path) -> None:
    wide = binary(file="wide.cubin", config={"num_warps": 8})
    a = stored("a.zip", rows=(row(1),))
    b = stored("b.zip", files={"wide.cubin": CODE}, binaries=(wide,), rows=(row(16, best=tiles("wide.cubin")),))
    merged, data = merge([a, b], "both")
    assert data == {"rms_norm.cubin": CODE}
    assert len(merged.binaries) == 2
    assert [each.best.binaries for each in merged.rows] == [("rms_norm.cubin",), ("rms_norm.cubin",)]
    assert verify(saved(merged, data, tmp_path / "both.zip")) == []


@pytest.mark.parametrize("file", ["wide.cubin", "rms_norm.cubin"])
def test_equal_code_that_is_launched_otherwise_has_a_file_of_its_own(stored: Stored, tmp_path: Path, file: str) -> None:
    """Nothing but the file tells its rows' binary from the other one."""
    wide = binary(file=file, recipe=recipe(equal=(("x.size(1)", 128),)))
    a = stored("a.zip", rows=(row(1),))
    b = stored("b.zip", files={file: CODE}, binaries=(wide,), rows=(row(16, best=tiles(file)),))
    merged, data = merge([a, b], "both")
    (first,), (second,) = (each.best.binaries for each in merged.rows)
    assert first == "rms_norm.cubin"
    assert second != first
    assert data == {first: CODE, second: CODE}
    recipes = {each.file: each.recipe for each in merged.binaries}
    assert recipes == {first: binary().recipe, second: wide.recipe}
    assert verify(saved(merged, data, tmp_path / "both.zip")) == []


def test_other_code_of_the_same_name_gets_another_name(stored: Stored, tmp_path: Path) -> None:
    other = binary(b"other", kernel="linear.linear")
    a = stored("a.zip", rows=(row(1),))
    b = stored("b.zip", files={"rms_norm.cubin": b"other"}, binaries=(other,), rows=(row(1, GEMM),))
    merged, data = merge([a, b], "both")
    found = buckets(merged)
    assert code_of(found[RMS_NORM, 1], merged, data) == {CODE}
    assert code_of(found[GEMM, 1], merged, data) == {b"other"}
    assert verify(saved(merged, data, tmp_path / "both.zip")) == []


def test_binaries_that_differ_in_code_alone_keep_serving_their_own_rows(stored: Stored, tmp_path: Path) -> None:
    """Static dimensions are in the code, and may be in no config, kind or recipe."""
    narrow = binary(b"for 128 elements")
    contract = "rms_norm(hidden_size=128, dtype=bfloat16)"
    a = stored("a.zip", rows=(row(1),))
    b = stored("b.zip", files={"rms_norm.cubin": b"for 128 elements"}, binaries=(narrow,), rows=(row(1, contract),))
    for packs in ([a, b], [b, a]):
        merged, data = merge(packs, "both")
        found = buckets(merged)
        assert code_of(found[RMS_NORM, 1], merged, data) == {CODE}
        assert code_of(found[contract, 1], merged, data) == {b"for 128 elements"}
        assert verify(saved(merged, data, tmp_path / "both.zip")) == []


def test_a_file_may_serve_several_launches(stored: Stored, tmp_path: Path) -> None:
    twins: tuple[Binary, ...] = (binary(), binary(config={"num_warps": 8}))
    a = stored("a.zip", binaries=twins, rows=(row(1),))
    b = stored("b.zip", rows=(row(16),))
    merged, data = merge([b, a], "both")
    assert (merged.binaries, data) == (twins, {"rms_norm.cubin": CODE})
    assert verify(saved(merged, data, tmp_path / "both.zip")) == []


def test_rows_and_binaries_of_older_sources_are_left_out(stored: Stored, tmp_path: Path) -> None:
    old = stored("old.zip", rows=(row(1), row(16), row(1, GEMM, best=candidate("torch"))))
    changed = binary(b"new", file="new.cubin", recipe=recipe(equal=()))
    hashes = {"rms_norm": "f" * 64}
    new = stored(
        "new.zip",
        files={"new.cubin": b"new"},
        binaries=(changed,),
        rows=(row(1, best=tiles("new.cubin")),),
        source_hashes=hashes,
    )
    merged, data = merge([old, new], "both")
    assert list(buckets(merged)) == [(GEMM, 1), (RMS_NORM, 1)]
    assert data == {"new.cubin": b"new"}
    assert merged.source_hashes == HASHES | hashes
    assert verify(saved(merged, data, tmp_path / "both.zip"), HASHES | hashes) == []


def test_times_of_blocks_go_where_all_their_rows_go(stored: Stored, tmp_path: Path) -> None:
    both, alone = (RMS_NORM, GEMM), (RMS_NORM,)
    rows = tuple(row(size, key) for key in both for size in (1, 16))
    a = stored("a.zip", rows=rows, blocks=tuple(BlockTime(key, m, 9.0) for key in (both, alone) for m in (1, 16)))
    # Of M = 1 it has one row of its own, and of another size a block.
    b = stored("b.zip", rows=(row(1), row(64)), blocks=(BlockTime(alone, 64, 5.0), BlockTime(alone, 1, 4.0)))
    merged, data = merge([a, b], "both")
    assert merged.blocks == (
        BlockTime(alone, 1, 4.0),
        BlockTime(alone, 16, 9.0),
        BlockTime(alone, 64, 5.0),
        BlockTime(both, 16, 9.0),
    )
    assert verify(saved(merged, data, tmp_path / "both.zip"), HASHES) == []
    # The other way round all of the first one's rows win, and of the second one's M = 64 is left.
    assert merge([b, a], "both")[0].blocks == (
        *(BlockTime(alone, m, 9.0) for m in (1, 16)),
        BlockTime(alone, 64, 5.0),
        *(BlockTime(both, m, 9.0) for m in (1, 16)),
    )


def test_times_of_blocks_with_rows_of_older_sources_are_left_out(stored: Stored) -> None:
    old = stored("old.zip", blocks=(BlockTime((RMS_NORM, GEMM), 16, 9.0), BlockTime((GEMM,), 16, 3.0)))
    new = stored("new.zip", rows=(row(1),), source_hashes={"rms_norm": "f" * 64})
    assert merge([old, new], "both")[0].blocks == (BlockTime((GEMM,), 16, 3.0),)


def test_models_are_united_and_costs_added(stored: Stored) -> None:
    a = stored(
        "a.zip",
        created_at="2025-02-01T00:00:00Z",
        models=(ModelEntry("m", "none", ("x", "y")), ModelEntry("m", "fp8", ("z",))),
        ledger=Ledger(tune_s=1.0, num_timed=2, launch_us=3.0),
        versions={"torch": "2.12", "helion": "1.5"},
    )
    b = stored(
        "b.zip",
        models=(ModelEntry("m", "none", ("y", "w")), ModelEntry("m", "none", ("h",), 2, "fp8")),
        ledger=Ledger(tune_s=10.0, num_timed=20),
        versions={"torch": "2.13"},
    )
    merged, _ = merge([a, b], "both")
    assert [(each.title, each.contracts) for each in merged.models] == [
        ("m none", ("x", "y", "w")),
        ("m fp8", ("z",)),
        ("m none lm_head fp8 tp 2", ("h",)),
    ]
    assert merged.ledger == Ledger(tune_s=11.0, num_timed=22, launch_us=3.0)
    assert merged.versions == {"torch": "2.13", "helion": "1.5"}
    assert merged.created_at == "2025-02-01T00:00:00Z"


def test_a_pack_that_was_measured_nowhere_goes_with_one_that_was(stored: Stored) -> None:
    nowhere = msgspec.structs.replace(H100, device="", num_processors=0)
    packs = [stored("a.zip"), stored("b.zip", fingerprint=nowhere)]
    for order in (packs, packs[::-1]):
        assert merge(order, "both")[0].fingerprint == H100


@pytest.mark.parametrize(
    ("fingerprint", "message"),
    [
        (H200, "measured on NVIDIA H100 80GB HBM3 and pack other on NVIDIA H200"),
        (msgspec.structs.replace(H100, target="sm_100"), "for sm_90 and pack other for sm_100"),
    ],
)
def test_packs_of_several_devices_are_not_merged(stored: Stored, fingerprint, message: str) -> None:
    other = stored("b.zip", fingerprint=fingerprint)
    other.pack = msgspec.structs.replace(other.pack, name="other")
    with pytest.raises(PackError, match=message):
        merge([stored("a.zip"), other], "both")


def test_a_row_that_names_an_unknown_binary_or_a_damaged_one_stops_the_merge(stored: Stored, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"rms_norm.* needs gone\.cubin, which it does not list"):
        merge([stored(rows=(row(1, best=tiles("gone.cubin")),))], "one")
    damaged = stored("pack")
    (tmp_path / "pack" / "bin" / "rms_norm.cubin").write_bytes(b"")
    with pytest.raises(PackError, match="has 0 bytes"):
        merge([damaged], "one")
    with pytest.raises(PackError, match="no packs to merge"):
        merge([], "none")


def test_a_second_program_whose_sources_a_later_pack_has_otherwise_is_left_out(stored: Stored, tmp_path: Path) -> None:
    gluon = Candidate("gluon", {}, 2.0, 2.0, 2.0, ("gluon.cubin",))
    built = binary(b"of another program", file="gluon.cubin", kernel="norms.norms")
    files = {"rms_norm.cubin": CODE, "gluon.cubin": b"of another program"}
    rows = (row(1, best=gluon, runners_up=(candidate(),)), row(16))
    blocks = tuple(BlockTime((RMS_NORM,), num_tokens, 9.0) for num_tokens in (1, 16))
    name = "rms_norm.gluon"
    old, same, new = (HASHES | {name: hash_} for hash_ in ("c", "c", "d"))
    a = stored("a.zip", files=files, binaries=(binary(), built), rows=rows, blocks=blocks, source_hashes=old)
    for hashes in (same, new, HASHES):
        b = stored("b.zip", rows=(row(64),), source_hashes=hashes)
        merged, data = merge([a, b], "both")
        is_kept = hashes is not new
        assert buckets(merged)[RMS_NORM, 1].best.provider == ("gluon" if is_kept else "helion")
        assert buckets(merged)[RMS_NORM, 16].best.provider == "helion"
        assert ("gluon.cubin" in data) == is_kept
        assert [each.num_tokens for each in merged.blocks] == ([1, 16] if is_kept else [16])
        assert merged.source_hashes[name] == hashes.get(name, "c")
        assert verify(saved(merged, data, tmp_path / "both.zip"), merged.source_hashes) == []
