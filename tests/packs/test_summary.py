"""Figures of packs and rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from parhelion.packs.format import BlockTime
from parhelion.packs.store import StoredPack
from parhelion.packs.summary import summarize, summarize_block, summarize_row
from tests.packs.sample import CODE, GEMM, RMS_NORM, binary, candidate, pack, row


def test_a_row_stands_beside_its_floor_and_its_fastest_rival() -> None:
    found = summarize_row(row(16))
    assert (found.provider, found.time_us, found.floor_us, found.of_floor) == ("helion", 4.0, 3.0, 0.75)
    assert (found.runner_up, found.runner_up_us, found.runner_up_ratio) == ("torch", 8.0, 2.0)


@pytest.mark.parametrize(
    "bare",
    [
        row(16, floor_us=0.0, runners_up=()),
        row(16, best=candidate(time_us=0.0), runners_up=(candidate("torch", 0.0),)),
    ],
    ids=["no floor, no rivals", "nothing measured"],
)
def test_what_was_not_measured_gives_no_ratios(bare) -> None:
    found = summarize_row(bare)
    assert (found.of_floor, found.runner_up, found.runner_up_us, found.runner_up_ratio) == (None, None, None, None)


def test_a_pack_counts_each_code_object_once(stored: Callable[..., StoredPack]) -> None:
    twins = (binary(), binary(config={"num_warps": 8}))
    found = summarize(stored(binaries=twins, rows=(row(1, workspace_bytes=5), row(2, workspace_bytes=3))))
    assert (found.num_rows, found.num_binaries, found.binary_bytes, found.workspace_bytes) == (2, 2, len(CODE), 5)
    assert found.models == ("qwen3-8b none",)
    assert found.ops == ("rms_norm",)


def test_a_zip_and_a_folder_take_what_they_take(stored: Callable[..., StoredPack]) -> None:
    zipped, folder = summarize(stored("pack.zip")), summarize(stored("pack"))
    assert 0 < zipped.disk_bytes < folder.disk_bytes
    assert folder.disk_bytes > len(CODE)


def test_a_block_stands_beside_the_sum_of_its_launches() -> None:
    found = summarize_block(BlockTime((RMS_NORM, GEMM, RMS_NORM), 16, 9.0), pack())
    assert found.ops == ("rms_norm", "linear", "rms_norm")
    assert (found.sum_us, found.of_sum) == (12.0, 0.75)
    unknown = summarize_block(BlockTime((RMS_NORM, GEMM), 1, 9.0), pack())
    assert (unknown.sum_us, unknown.of_sum) == (None, None)


def test_a_pack_counts_its_blocks(stored: Callable[..., StoredPack]) -> None:
    assert summarize(stored(blocks=(BlockTime((RMS_NORM,), 16, 9.0),))).num_blocks == 1
    assert summarize(stored()).num_blocks == 0
