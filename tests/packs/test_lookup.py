"""M finds its row without a search, and stale rows are never among them."""

from __future__ import annotations

import random
import re
import time

import pytest

from parhelion.errors import PackError
from parhelion.packs import lookup
from parhelion.packs.format import Candidate, Pack
from parhelion.packs.lookup import (
    MAX_TABLE,
    BucketTable,
    names_of,
    rows_by_contract,
    served_as_in,
    stale_sources,
    usable_rows,
)
from tests.packs.sample import GEMM, HASHES, RMS_NORM, candidate, pack, row


def test_each_m_is_served_by_the_smallest_bucket_that_holds_it() -> None:
    buckets = [1, 2, 16, 100, 1024]
    table = BucketTable([row(m) for m in reversed(buckets)])
    assert [each.num_tokens for each in table.rows] == buckets
    for num_tokens in range(1, 1025):
        expected = next(index for index, bucket in enumerate(buckets) if num_tokens <= bucket)
        assert table.index(num_tokens) == expected, num_tokens
    assert table.index(0) == 0
    assert table.row(17).num_tokens == 100


@pytest.mark.parametrize("largest", [1, 64, MAX_TABLE - 1, MAX_TABLE, MAX_TABLE + 1, 4 * MAX_TABLE])
def test_the_last_row_serves_all_larger_m(largest: int) -> None:
    table = BucketTable([row(largest)])
    assert {table.index(m) for m in (1, largest, largest + 1, MAX_TABLE, MAX_TABLE + 1, 1 << 40)} == {0}


def test_the_table_has_no_more_entries_than_the_largest_m_looked_up() -> None:
    table = BucketTable([row(MAX_TABLE), row(1 << 20)])
    assert table.index(MAX_TABLE) == 0
    assert table.index(MAX_TABLE + 1) == 1
    assert len(table._table) == MAX_TABLE + 1


def test_a_lookup_searches_nothing_and_takes_less_than_a_microsecond(monkeypatch: pytest.MonkeyPatch) -> None:
    table = BucketTable([row(1 << power) for power in range(14)])
    monkeypatch.setattr(lookup, "bisect_left", None)
    sizes = random.Random(0).choices(range(1, 10_000), k=10_000)
    times = []
    for _ in range(15):
        start = time.perf_counter()
        for num_tokens in sizes:
            table.index(num_tokens)
        times.append((time.perf_counter() - start) / len(sizes))
    # About 0.1 us is usual. The least of many counts, on a machine that does other things too.
    assert min(times) < 1e-6


@pytest.mark.parametrize(
    "rows", [[], [row(16), row(16)], [row(0), row(16)], [row(16), row(32, GEMM)]], ids=["none", "twice", "zero", "two"]
)
def test_rows_that_make_no_table_are_refused(rows: list) -> None:
    with pytest.raises(PackError, match="make no table"):
        BucketTable(rows)


def test_rows_are_grouped_by_contract_and_sorted() -> None:
    grouped = rows_by_contract([row(64), row(16, GEMM), row(1)])
    assert {contract: [each.num_tokens for each in rows] for contract, rows in grouped.items()} == {
        RMS_NORM: [1, 64],
        GEMM: [16],
    }


def test_rows_of_unchanged_sources_are_all_usable() -> None:
    assert usable_rows(pack(), HASHES | {"another": "c"}) == (pack().rows, ())


@pytest.mark.parametrize(
    ("packed", "here", "why"),
    [
        (HASHES, HASHES | {"rms_norm": "f" * 64}, r"with other sources \(aaaaaaaaaaaa; here: ffffffffffff\)"),
        (HASHES, {"linear": HASHES["linear"]}, "there is no such op here"),
        ({"linear": HASHES["linear"]}, HASHES, "does not say which sources"),
    ],
)
def test_stale_rows_are_left_out_with_one_note_an_op(packed: dict, here: dict, why: str) -> None:
    rows, notes = usable_rows(pack(source_hashes=packed), here)
    assert {each.op for each in rows} == {"linear"}
    [note] = notes
    assert note.startswith("rms_norm: its 3 rows in pack h100-sxm are not used: ")
    assert re.search(why, note)


GLUON = Candidate("gluon", {}, 3.0, 3.0, 3.0, ("gluon.cubin",))
SECOND = HASHES | {"rms_norm.gluon": "c" * 64}
"""Sources of an op that has a second program, from another folder."""


def with_a_second_program(hashes: dict = SECOND) -> Pack:
    both = row(1, best=GLUON, runners_up=(candidate(), candidate("torch", 8.0)))
    behind = row(16, runners_up=(GLUON, candidate("torch", 8.0)))
    alone = row(64, best=GLUON, runners_up=(candidate("inductor", 9.0),))
    return pack(rows=(both, behind, alone, row(16, GEMM)), source_hashes=hashes)


def test_an_ops_second_program_has_a_hash_of_its_own() -> None:
    packed = with_a_second_program()
    assert usable_rows(packed, SECOND) == (packed.rows, ())
    assert [names_of(each, SECOND) for each in packed.rows] == [["rms_norm", "rms_norm.gluon"]] * 3 + [["linear"]]
    # What was never measured with it has no need of the hash.
    assert usable_rows(pack(), SECOND) == (pack().rows, ())


@pytest.mark.parametrize(
    ("packed", "here", "why"),
    [
        (SECOND, SECOND | {"rms_norm.gluon": "f" * 64}, r"with other sources \(cccccccccccc; here: ffffffffffff\)"),
        (SECOND, HASHES, "from a folder that is not here"),
        (HASHES, SECOND, "does not say which sources"),
    ],
)
def test_a_stale_second_program_leaves_the_row_to_the_others(packed: dict, here: dict, why: str) -> None:
    old = with_a_second_program(packed)
    rows, notes = usable_rows(old, here)
    [note] = notes
    assert note.startswith("rms_norm.gluon: its programs in 3 rows of pack h100-sxm are not used: ")
    assert re.search(why, note)
    # Nobody is left for M up to 64 who may serve.
    assert [(each.op, each.num_tokens) for each in rows] == [("rms_norm", 1), ("rms_norm", 16), ("linear", 16)]
    assert [each.best for each in rows[:2]] == [candidate()] * 2
    assert [each.runners_up for each in rows[:2]] == [(candidate("torch", 8.0),)] * 2
    # Of the first the pack's times of whole blocks say nothing any more.
    assert served_as_in(old, rows) == {(RMS_NORM, 16), (GEMM, 16)}


def test_a_stale_op_is_named_without_its_second_program() -> None:
    here = SECOND | {"rms_norm": "f" * 64, "rms_norm.gluon": "f" * 64}
    assert list(stale_sources(with_a_second_program(), here)) == ["rms_norm"]


def test_an_op_without_rows_is_not_called_stale() -> None:
    assert stale_sources(pack(rows=(row(1),)), HASHES | {"linear": "f"}) == {}
