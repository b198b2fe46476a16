"""Serving from a pack: who computes a contract at each size of M, with binaries that are there before the first step.

Neither Helion nor Triton is imported, and nothing compiles. A candidate of a row whose binaries are missing or damaged,
or whose provider is not here, is passed over in words, and the next one that was measured serves.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import torch

from parhelion.errors import PackError
from parhelion.ops.block_times import BlockTimes, key_of_programs
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.packed_launch import PackedAssumptionError, PackedKernel, PackedRunner, PackMissError
from parhelion.ops.provider import Provider, fixed
from parhelion.ops.registry import op
from parhelion.ops.tile_programs import programs_module
from parhelion.ops.ways import Way
from parhelion.packs.blocks import with_rows
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS, Binary, Candidate, Row
from parhelion.packs.lookup import BucketTable, rows_by_contract, served_as_in, usable_rows
from parhelion.packs.match import Chosen
from parhelion.packs.store import StoredPack
from parhelion.platform.driver import Function, load_function

Load = Callable[[bytes, str, int], Function]
"""``load_function``: a function from a binary, its symbol and its shared memory."""


class PackKernels:
    """A pack, opened on a device.

    Args:
        chosen: the pack, and how it matches the device.
        device: where models run.
        source_hashes: op to the hash of its sources here.
        num_processors: of the device.
        load: brings a binary onto the device.
        behind: another pack, which serves what this one has no usable rows for; None: whoever would without a pack.

    Attributes:
        name: the pack's.
        match: how it matches the device.
        notes: what was passed over and why, a sentence each.
    """

    def __init__(
        self,
        chosen: Chosen,
        device: torch.device,
        source_hashes: Mapping[str, str],
        num_processors: int,
        load: Load = load_function,
        behind: PackKernels | None = None,
    ) -> None:
        pack = chosen.stored.pack
        rows, stale = usable_rows(pack, source_hashes)
        reasons = [_why_not_whole(row, chosen.stored, num_processors) for row in rows]
        rows = tuple(row for row, reason in zip(rows, reasons, strict=True) if reason is None)
        self.name = pack.name
        self.notes = list(stale)
        self.notes += [
            f"pack {pack.name}: {reason}: it is computed in other launches" for reason in reasons if reason is not None
        ]
        if chosen.match.level != "exact":
            self.notes.insert(0, f"pack {pack.name}: {chosen.match.reason}")
        self._stored = chosen.stored
        self._device = device
        self._num_processors = num_processors
        self._load = load
        self._behind = behind
        self.match = chosen.match
        self._rows = {key_of_programs(key): group for key, group in rows_by_contract(rows).items()}
        self._tables: dict[Contract, BucketTable | None] = {}
        self._blocks = BlockTimes(with_rows(pack.blocks, served_as_in(pack, rows)), self._table)
        self._binaries: dict[str, list[Binary]] = {}
        for binary in pack.binaries:
            self._binaries.setdefault(binary.file, []).append(binary)
        self._loaded: dict[str, tuple[PackedKernel, ...]] = {}
        self._target = pack.fingerprint.target
        self._num_first_notes = len(self.notes)

    @property
    def num_loaded(self) -> int:
        """Files of binaries that are on the device."""
        return len(self._loaded) + (self._behind.num_loaded if self._behind is not None else 0)

    def all_notes(self) -> list[str]:
        """This pack's, and what came up while those behind it were asked."""
        behind = self._behind
        return [*self.notes, *(() if behind is None else behind.all_notes()[behind._num_first_notes :])]

    def holds(self, contract: Contract) -> bool:
        """Whether the pack, or one behind it, has rows for a contract."""
        return self._holder(contract) is not None

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        """Microseconds of one launch of whom the pack names for M = ``num_tokens``; None if nobody measured it, as
        where M is larger than that of all rows."""
        if (holder := self._holder(contract)) is not self:
            return None if holder is None else holder.time_us(contract, num_tokens)
        table = self._table(contract)
        row = None if table is None else table.row(num_tokens)
        return None if row is None or num_tokens > row.num_tokens else row.best.time_us or None

    def block_us(self, way: Way, num_tokens: int) -> float | None:
        """Microseconds of a whole block at M = ``num_tokens``; None unless all that it calls is served by one pack,
        which measured it.
        """
        holders = {self._holder(contract) for contract in way}
        holder = holders.pop()
        return None if holders or holder is None else holder._blocks.time_us(way, num_tokens)

    def launcher(self, contract: Contract, otherwise: Provider) -> TunedLaunch | None:
        """What computes a contract, all its inputs given; None if the pack, and any behind it, has no rows for it.

        Args:
            otherwise: who serves where none of a row's candidates can.
        """
        holder = self._holder(contract)
        if holder is not None and holder is not self:
            self._note(f"pack {holder.name} serves what pack {self.name} has no rows for: {holder.match.reason}")
            return holder.launcher(contract, otherwise)
        table = self._table(contract)
        if table is None:
            return None
        served = [self._served(contract, row, otherwise) for row in table.rows]
        return TunedLaunch(table, [launch for _, launch in served], [name for name, _ in served])

    def _holder(self, contract: Contract) -> PackKernels | None:
        """The first of this pack and those behind it that has rows for a contract."""
        if key_of_programs(contract.key()) in self._rows:
            return self
        return None if self._behind is None else self._behind._holder(contract)

    def _table(self, contract: Contract) -> BucketTable | None:
        """A contract's rows by M, made once; None if there are none."""
        if contract not in self._tables:
            rows = self._rows.get(key_of_programs(contract.key()))
            self._tables[contract] = None if rows is None else BucketTable(rows)
        return self._tables[contract]

    def _served(self, contract: Contract, row: Row, otherwise: Provider) -> tuple[str, Launcher]:
        """The first of a row's candidates that can serve, by name, and its launcher.

        A row that nobody measured saves compiling and says nothing of who is fastest.
        """
        is_measured = row.best.time_us > 0
        if not is_measured and otherwise.name != row.best.provider:
            return otherwise.name, otherwise.launcher(contract)
        for candidate in servable(row):
            try:
                return candidate.provider, self._candidate(contract, row, candidate, otherwise)
            except PackError as error:
                self._note(f"{row.op}: {candidate.provider} cannot serve from pack {self.name}: {error}")
        return otherwise.name, otherwise.launcher(contract)

    def _candidate(self, contract: Contract, row: Row, candidate: Candidate, otherwise: Provider) -> Launcher:
        provider = op(contract.name).provider(candidate.provider)
        # A pack's tile programs need nothing that the device lacks, but they may be of no use to these ranks.
        needs_nothing = candidate.provider in TILE_PROGRAMS
        why_not = (None if needs_nothing else provider.why_not(self._device)) or provider.refuses(contract)
        if why_not is not None:
            raise PackError(why_not)
        if not needs_nothing:
            return provider.launcher(contract)
        programs = self._tile_programs(contract, row, candidate)
        return functools.partial(self._launch, programs, functools.cache(lambda: otherwise.launcher(contract)))

    def _launch(self, programs: Launcher, otherwise: Callable[[], Launcher], *inputs: Any) -> Any:
        """With the pack's programs; should one be missing, as where a pack leaves sizes of M out and another size's row
        serves there, as without a pack.

        What is missing is missed before anything is launched, or before what was launched is read.
        """
        try:
            return programs(*inputs)
        except (PackMissError, PackedAssumptionError) as error:
            self._note(str(error))
        return otherwise()(*inputs)

    def _tile_programs(self, contract: Contract, row: Row, candidate: Candidate) -> Launcher:
        module = programs_module(contract.name, candidate.provider)
        try:
            config = msgspec.convert(candidate.config, module.Config)
        except msgspec.ValidationError as error:
            raise PackError(f"its config {candidate.config} is none of {contract.name}'s ({error})") from None
        if not candidate.binaries:
            raise PackError(f"it holds no binaries for {contract.key()} with M up to {row.num_tokens}")
        kernels = [kernel for file in candidate.binaries for kernel in self._bring(file)]
        return functools.partial(module.launch, contract, RowRunner(kernels, self._target), config)

    def _bring(self, file: str) -> tuple[PackedKernel, ...]:
        """Load a binary, once; it may serve several kinds of arguments.

        Raises:
            PackError: the pack does not list it, or it is damaged or not for this device.
        """
        if file not in self._binaries:
            raise PackError(f"it does not list the binary {file}")
        if file not in self._loaded:
            self._loaded[file] = tuple(map(self._kernel, self._binaries[file]))
        return self._loaded[file]

    def _kernel(self, binary: Binary) -> PackedKernel:
        function = self._load(self._stored.binary(binary), binary.symbol, binary.shared_bytes)
        return PackedKernel(binary, function, self._num_processors)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


class RowRunner:
    """A runner for one row: its config and static dimensions are given, so a program is mostly told by its name.

    Rows share none: programs for two hidden sizes may have the same name, config and kinds of arguments.

    Args:
        kernels: that the row launches.
        target: what they were built for.

    Raises:
        PackError: two of them serve the same arguments.
    """

    def __init__(self, kernels: Sequence[PackedKernel], target: str) -> None:
        self.target = target
        counts = Counter(kernel.binary.kernel for kernel in kernels)
        self._only = {each.binary.kernel: each.launch for each in kernels if counts[each.binary.kernel] == 1}
        # Looks up by all that tells programs apart, where the name is not enough.
        self._others = PackedRunner.of(kernels, target)

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        launch = self._only.get(kernel)
        if launch is None:
            self._others(kernel, config, *arguments)
        else:
            launch(*arguments)


class TunedLaunch:
    """Of one contract: at each size of M the launcher that a pack's row names.

    Attributes:
        providers: their names, each once.
    """

    def __init__(self, table: BucketTable, launchers: list[Launcher], names: list[str]) -> None:
        self.providers = tuple(dict.fromkeys(names))
        self._index = table.index
        self._launchers = launchers
        self._names = names

    def __call__(self, *inputs: Any) -> Any:
        return self._launchers[self._index(inputs[0].shape[0])](*inputs)

    def provider_at(self, num_tokens: int) -> str:
        """Whose launcher serves M = ``num_tokens``."""
        return self._names[self._index(num_tokens)]

    def bind(self, *weights: Any) -> Launcher:
        """The same with the contract's parameters given."""
        return fixed(self, weights)


def num_waiting(row: Row) -> int:
    """Programs of one launch that wait for one another (``num_programs`` of a config), and must all run at a time."""
    found: int = (row.best.config or {}).get("num_programs", 0) if row.best.provider in TILE_PROGRAMS else 0
    return found


def _why_not_whole(row: Row, stored: StoredPack, num_processors: int) -> str | None:
    """None unless a row has a program that does what several launches do, and cannot run here; else why not. Only a
    pack has such a program, so who asked for it must ask for the launches instead.
    """
    if not num_waiting(row):
        return None
    if num_waiting(row) > num_processors:
        return (
            f"{row.op} has {num_waiting(row)} programs that wait for one another, and this device runs "
            f"{num_processors} at a time"
        )
    try:
        for binary in stored.pack.binaries:
            if binary.file in row.best.binaries:
                stored.binary(binary)
    except PackError as error:
        return f"{row.op} cannot be launched ({error})"
    return None


def servable(row: Row) -> Iterator[Candidate]:
    """The candidates of a row that may serve, fastest first."""
    return (each for each in (row.best, *row.runners_up) if each.provider not in NEVER_SERVE)
