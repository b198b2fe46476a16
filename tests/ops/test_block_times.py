"""Times of whole blocks are found by what a block calls and the rows that serve it."""

from __future__ import annotations

from parhelion.ops.block_times import BlockTimes, key_of_programs
from parhelion.ops.contract import Contract
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.rms_norm import RmsNorm
from parhelion.packs.format import BlockTime
from parhelion.packs.lookup import BucketTable
from tests.packs import sample


def test_dimensions_that_no_program_depends_on_do_not_count() -> None:
    tuned, here, wider = (
        (RmsNorm(64), FusedQkNormRope(4, 2, dim, 1e-6, 16, max_position))
        for dim, max_position in ((64, 4096), (64, 128), (128, 4096))
    )
    tables = {key_of_programs(each.key()): BucketTable([sample.row(8, each.key())]) for each in (*tuned, *wider)}

    def table(contract: Contract) -> BucketTable | None:
        return tables.get(key_of_programs(contract.key()))

    times = BlockTimes([BlockTime(tuple(each.key() for each in tuned), 8, 5.0)], table)
    assert times.time_us(tuned, 8) == times.time_us(here, 8) == 5.0
    assert times.time_us(wider, 8) is None
    assert times.time_us(here, 9) is None


def test_an_op_that_is_not_known_here_keeps_its_key() -> None:
    assert key_of_programs("of_the_future(x=1)") == "of_the_future(x=1)"
