"""Kernel times: measured where a pack has them, scaled where it has the op, else floors."""

from __future__ import annotations

import pytest

from parhelion.distributed.devices import preset
from parhelion.distributed.kernel_times import LEAST_US, REACHED, KernelTimes, StepRows, fitted, rows_work
from parhelion.ops.decoder_block import DecoderBlock
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.linear import Linear
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.paged_attention.contract import rows_traffic
from parhelion.ops.paged_attention.sample import sampled_lens
from parhelion.ops.rms_norm import RmsNorm
from tests.distributed.sample import H100, row

SMALL, LARGE = Linear(1024, 1024), Linear(8192, 8192)
ATTENTION = PagedAttention(32, 8, 128, 16, 128**-0.5)


def decodes(batch: int, context: int = 576) -> StepRows:
    return StepRows((1,) * batch, (context,) * batch)


def line_us(contract: Linear, num_tokens: int) -> float:
    """A made-up kernel: 2 us and a quarter beyond its floor."""
    return 2 + 1.25 * row(contract, num_tokens, 1.0).floor_us


def lines() -> KernelTimes:
    return KernelTimes(H100, [row(each, m, line_us(each, m)) for each in (SMALL, LARGE) for m in (1, 16)])


def test_a_row_at_its_own_m_is_measured() -> None:
    time = lines().of(LARGE, decodes(16))
    assert (time.us, time.known) == (pytest.approx(line_us(LARGE, 16)), "measured")


@pytest.mark.parametrize("contract", [Linear(4096, 4096), Linear(16384, 8192)])
def test_other_sizes_are_scaled_along_the_line(contract: Linear) -> None:
    time = lines().of(contract, decodes(16))
    assert (time.us, time.known) == (pytest.approx(line_us(contract, 16), rel=1e-6), "scaled")


def test_an_m_between_rows_is_scaled_from_the_row_that_serves_it() -> None:
    time = lines().of(LARGE, decodes(9))
    assert (time.us, time.known) == (pytest.approx(line_us(LARGE, 9), rel=1e-6), "scaled")


def test_another_devices_times_are_scaled_by_its_limits() -> None:
    rows = [row(each, m, line_us(each, m)) for each in (SMALL, LARGE) for m in (1, 16)]
    there = preset("h200")
    time = KernelTimes(there, rows, same_device=False).of(LARGE, decodes(16))
    assert time.known == "scaled"
    assert time.us == pytest.approx(2 + 1.25 * row(LARGE, 16, 1.0, there).floor_us, rel=1e-6)


def test_an_op_that_the_pack_does_not_have_is_a_fraction_of_its_floor() -> None:
    norm = RmsNorm(4096, 1e-6)
    time = lines().of(norm, decodes(16))
    assert time.known == "floor"
    assert time.us == pytest.approx(LEAST_US + lines().floor_us(norm, decodes(16)) / REACHED)


def test_rows_that_nobody_measured_say_nothing() -> None:
    assert KernelTimes(H100, [row(LARGE, 16, 0.0)]).of(LARGE, decodes(16)).known == "floor"


def test_attention_is_measured_for_the_sampled_rows_alone_and_grows_with_context() -> None:
    times = KernelTimes(H100, [row(ATTENTION, m, 10 + 1.1 * row(ATTENTION, m, 1.0).floor_us) for m in (1, 16, 256)])
    sampled = StepRows(*map(tuple, sampled_lens(16)))
    assert times.of(ATTENTION, sampled).known == "measured"
    own = [times.of(ATTENTION, decodes(16, context)) for context in (576, 4096, 32768)]
    assert {each.known for each in own} == {"scaled"}
    assert own[0].us < own[1].us < own[2].us
    assert own[0].us == pytest.approx(times.of(ATTENTION, sampled).us, rel=0.02)


def test_attentions_work_is_that_of_the_steps_own_rows() -> None:
    assert rows_work(ATTENTION, decodes(4, 1000)) == rows_traffic(ATTENTION, [1] * 4, [1000] * 4)
    fused = FusedRopeAttention(32, 8, 128, 16, 4096, 128**-0.5, 1e-6)
    sampled = StepRows(*map(tuple, sampled_lens(4)))
    assert rows_work(fused, sampled) == fused.traffic(4)
    assert rows_work(fused, decodes(4, 5000)).bytes > fused.traffic(4).bytes


def test_a_whole_block_grows_with_context_as_its_attention_does() -> None:
    block = DecoderBlock(4096, 12288, 32, 8, 128, 16, 40960, 128**-0.5, 1e-6, 1e-6)
    times = KernelTimes(H100, [row(block, 1, 60.0)])
    assert times.of(block, StepRows(*map(tuple, sampled_lens(1)))).known == "measured"
    short, long = decodes(1), decodes(1, 32768)
    assert times.of(block, short).known == times.of(block, long).known == "scaled"
    more = rows_work(block, long).bytes - rows_work(block, short).bytes
    attention = block.parts[1]
    assert more == rows_work(attention, long).bytes - rows_work(attention, short).bytes > 0
    assert times.of(block, long).us > times.of(block, short).us


def test_covers_tells_how_large_an_m_was_measured() -> None:
    assert lines().covers(Linear(64, 64), 16)
    assert not lines().covers(Linear(64, 64), 17)
    assert not lines().covers(RmsNorm(4096, 1e-6), 1)


def test_a_line_has_no_negative_part() -> None:
    falling = fitted([(1.0, 10.0), (100.0, 5.0)])
    through_zero = fitted([(1.0, 1.0), (100.0, 200.0)])
    assert min(falling.a, falling.b, through_zero.a, through_zero.b) >= 0


def test_floors_that_are_close_leave_the_least_time_of_a_launch() -> None:
    line = fitted([(100.0, 111.5), (110.0, 122.5)])
    assert line.a == LEAST_US
    assert line.at(100.0) == pytest.approx(111.5, rel=0.01)
