"""How long a rank's kernels take: as a pack measured them, scaled from what it measured, or from floors.

A kernel's time is taken to be ``a + b * floor``: what it takes with next to nothing to do, and how far from the
device's limit it works. Both are fitted to the rows that a pack has of an op. A shape, context or device that nobody
measured is scaled: the line at its own floor, times how far the op's measured rows at that M lie off the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from parhelion.distributed.devices import DevicePreset
from parhelion.ops.block_times import BlockTimes, key_of_programs
from parhelion.ops.contract import Contract, Traffic
from parhelion.ops.decoder_block import DecoderBlock
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.paged_attention.batch import MOST_DECODES
from parhelion.ops.paged_attention.contract import rows_traffic
from parhelion.ops.paged_attention.sample import sampled_lens
from parhelion.ops.ways import Way
from parhelion.packs.format import BlockTime, Row
from parhelion.packs.lookup import BucketTable, rows_by_contract

Known = Literal["measured", "scaled", "floor"]

LEAST_US = 1.5
"""Of a launch that has next to nothing to do (an H100 takes 1.3 to 3)."""

REACHED = 0.8
"""Of the device's limits, what a kernel is assumed to reach that nothing is known of."""

_LEAST_SPREAD = 4.0
"""Between the smallest and largest floor of rows that a line is fitted to; closer ones only say how steep it is."""


@dataclass(frozen=True)
class StepRows:
    """The rows of one step.

    Attributes:
        query_lens: tokens of each row.
        seq_lens: tokens in its cache afterwards.
    """

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """M."""
        return sum(self.query_lens)

    @property
    def is_sampled(self) -> bool:
        """Whether attention is measured with just these rows."""
        return (list(self.query_lens), list(self.seq_lens)) == sampled_lens(self.num_tokens)


@dataclass(frozen=True)
class KernelTime:
    """Microseconds, and how they are known."""

    us: float
    known: Known


@dataclass(frozen=True)
class Line:
    """A kernel's time by its floor, both in microseconds: ``a + b * floor``."""

    a: float
    b: float

    def at(self, floor_us: float) -> float:
        """Microseconds."""
        return self.a + self.b * floor_us


class KernelTimes:
    """Times of contracts on a device.

    Args:
        device: where.
        rows: what a pack measured; none: ``REACHED`` of the device's limits.
        same_device: the pack is of this device. Of another's all is scaled.
        time_of: a row's microseconds; 0 where nothing was measured.
        blocks: what the pack measured of whole blocks, with the same choices; of another device's nothing is used.
    """

    def __init__(
        self,
        device: DevicePreset,
        rows: Iterable[Row] = (),
        same_device: bool = True,
        time_of: Callable[[Row], float] = lambda row: row.best.time_us,
        blocks: Iterable[BlockTime] = (),
    ) -> None:
        self._device = device
        self._same_device = same_device
        self._time_of = time_of
        timed = [row for row in rows if time_of(row) > 0]
        known = [row for row in timed if row.floor_us > 0]
        # What several ranks do together has no floor of this device's.
        self._shared = {
            key: BucketTable(group) for key, group in rows_by_contract(timed).items() if not group[0].floor_us
        }
        self._tables = {key_of_programs(key): BucketTable(group) for key, group in rows_by_contract(known).items()}
        self._blocks = BlockTimes(blocks if same_device else (), self._table)
        self._by_op: dict[str, list[BucketTable]] = {}
        for key, table in self._tables.items():
            self._by_op.setdefault(key.partition("(")[0], []).append(table)
        self._lines: dict[tuple[str, bool], Line] = {}
        self._times: dict[tuple[Contract, StepRows], KernelTime] = {}

    def covers(self, contract: Contract, num_tokens: int) -> bool:
        """Whether the op was measured at so large an M, whatever its static dimensions."""
        return any(table.rows[-1].num_tokens >= num_tokens for table in self._by_op.get(contract.name, ()))

    def shared_us(self, contract: Contract, num_tokens: int) -> float | None:
        """Of what several ranks do together, measured by ranks of this device; None if it was not."""
        table = self._shared.get(contract.key()) if self._same_device else None
        if table is None or table.rows[-1].num_tokens < num_tokens:
            return None
        return self._time_of(table.row(num_tokens))

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        """Of a whole block, measured on this device; None if it was not."""
        return self._blocks.time_us(way, num_tokens)

    def beyond_launches_us(self, way: Way, num_tokens: int) -> float:
        """What a whole block was measured to take beyond the sum of its launches, each measured by itself with cold
        inputs: less than nothing where they overlap. 0 if the block was not measured on this device.
        """
        block_us = self.block_us(way, num_tokens)
        if block_us is None:
            return 0.0
        tables = [self._table(contract) for contract in way]
        return block_us - sum(self._time_of(table.row(num_tokens)) for table in tables if table is not None)

    def of(self, contract: Contract, rows: StepRows) -> KernelTime:
        """One launch for a step's rows."""
        if (contract, rows) not in self._times:
            self._times[contract, rows] = self._estimated(contract, rows)
        return self._times[contract, rows]

    def floor_us(self, contract: Contract, rows: StepRows) -> float:
        """Microseconds that the device needs at least."""
        traffic = rows_work(contract, rows)
        return 1e6 * self._device.ceilings.floor_s(traffic.bytes, traffic.flops, traffic.unit)

    def _estimated(self, contract: Contract, rows: StepRows) -> KernelTime:
        own = self._table(contract)
        num_tokens = rows.num_tokens
        if own is not None and self._same_device:
            row = own.row(num_tokens)
            if row.measured_at == num_tokens and (rows.is_sampled or _attention_of(contract) is None):
                return KernelTime(self._time_of(row), "measured")
        floor = self.floor_us(contract, rows)
        tables = [own] if own is not None else self._by_op.get(contract.name, [])
        if not tables:
            return KernelTime(LEAST_US + floor / REACHED, "floor")
        near = [table.row(num_tokens) for table in tables]
        line = self._line(contract.name, num_tokens > MOST_DECODES)
        off = [math.log(self._time_of(row) / line.at(row.floor_us)) for row in near]
        return KernelTime(line.at(floor) * math.exp(sum(off) / len(off)), "scaled")

    def _table(self, contract: Contract) -> BucketTable | None:
        return self._tables.get(key_of_programs(contract.key()))

    def _line(self, op_name: str, prompts: bool) -> Line:
        """Of an op's rows that decode or, apart from them, of those with prompts; of all if there are none."""
        if (op_name, prompts) not in self._lines:
            rows = [row for table in self._by_op[op_name] for row in table.rows]
            of_kind = [row for row in rows if (row.measured_at > MOST_DECODES) == prompts] or rows
            self._lines[op_name, prompts] = fitted([(row.floor_us, self._time_of(row)) for row in of_kind])
        return self._lines[op_name, prompts]


def rows_work(contract: Contract, rows: StepRows) -> Traffic:
    """Bytes and FLOPs of a contract for a step's own rows, which matter to attention alone."""
    work, attention = contract.traffic(rows.num_tokens), _attention_of(contract)
    if attention is None:
        return work
    sampled, own = attention.traffic(rows.num_tokens), _attention_work(attention, rows)
    return Traffic(work.bytes - sampled.bytes + own.bytes, work.flops - sampled.flops + own.flops, work.unit)


def _attention_of(contract: Contract) -> PagedAttention | None:
    """What of a contract depends on the rows; None if nothing does."""
    if isinstance(contract, DecoderBlock):
        return contract.parts[1].attention
    if isinstance(contract, FusedRopeAttention):
        return contract.attention
    return contract if isinstance(contract, PagedAttention) else None


def _attention_work(attention: PagedAttention, rows: StepRows) -> Traffic:
    return rows_traffic(attention, list(rows.query_lens), list(rows.seq_lens))


def fitted(points: Sequence[tuple[float, float]]) -> Line:
    """The line through (floor, time) of least squares of relative errors, neither part of it below 0.

    Args:
        points: at least one, in microseconds, above 0.
    """
    floors = [floor for floor, _ in points]
    u, v = [1 / time for _, time in points], [floor / time for floor, time in points]
    uu, uv, vv = (sum(x * y for x, y in zip(*pair, strict=True)) for pair in ((u, u), (u, v), (v, v)))
    determinant = uu * vv - uv * uv
    if max(floors) >= _LEAST_SPREAD * min(floors) and determinant > 0:
        a, b = (sum(u) * vv - sum(v) * uv) / determinant, (sum(v) * uu - sum(u) * uv) / determinant
    else:
        a, b = LEAST_US, -1.0
    if a < 0 or b < 0:
        a = 0.0 if a < 0 else min(LEAST_US, *(time for _, time in points))
        b = max(0.0, (sum(v) - a * uv) / vv)
    return Line(a, b)
