"""What changed between two packs."""

from __future__ import annotations

from parhelion.packs.diff import diff
from tests.packs.sample import GEMM, RMS_NORM, candidate, pack, row


def test_each_bucket_is_compared_once() -> None:
    a = pack(rows=(row(1), row(16), row(64), row(128), row(1, GEMM, best=candidate(time_us=0.0))))
    b = pack(
        rows=(
            row(16, best=candidate("torch", 2.0)),
            row(64, best=candidate(config={"num_warps": 8}, time_us=8.0)),
            row(128),
            row(256),
            row(1, GEMM),
        )
    )
    assert [(each.contract, each.num_tokens, each.change, each.time_ratio) for each in diff(a, b)] == [
        (GEMM, 1, "same", None),
        (RMS_NORM, 1, "only_a", None),
        (RMS_NORM, 16, "provider", 0.5),
        (RMS_NORM, 64, "config", 2.0),
        (RMS_NORM, 128, "same", 1.0),
        (RMS_NORM, 256, "only_b", None),
    ]


def test_a_pack_does_not_differ_from_itself() -> None:
    assert {each.change for each in diff(pack(), pack())} == {"same"}
