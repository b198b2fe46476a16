"""What the result files of ``benchmarks/`` have to say in the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from parhelion.errors import ConfigError
from parhelion.tuning.report.data import Gap, Point, Source
from parhelion.tuning.report.figures import Sample, is_measured
from parhelion.tuning.report.html import number


class _Spread(msgspec.Struct, frozen=True):
    median: float
    p10: float
    p90: float


class _Timing(msgspec.Struct, frozen=True):
    contract: str
    num_tokens: int
    provider: str
    floor_us: float = 0.0
    time_us: _Spread | None = None
    problem: str | None = None


class _OpsResult(msgspec.Struct, frozen=True):
    """What ``benchmarks/h100_ops.py`` writes; ``timing`` has a record for each contract, M and provider."""

    command: str
    measured_at: str
    device: str
    timing: tuple[_Timing, ...]
    versions: dict[str, str] = {}
    capability: tuple[int, int] | None = None
    cuda: str | None = None
    ceilings: dict[str, Any] = {}


class _Package(msgspec.Struct, frozen=True):
    name: str
    version: str


class _Circumstances(msgspec.Struct, frozen=True):
    command: str
    measured_at: str
    python: str = ""
    packages: tuple[_Package, ...] = ()


class _EngineParts(msgspec.Struct, frozen=True):
    device: str
    circumstances: _Circumstances


@dataclass(frozen=True)
class Result:
    """One file: where it comes from, what it measured, and what it could not."""

    source: Source
    samples: tuple[Sample, ...] = ()
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True)
class Results:
    """A folder: what was read, and sentences about what was not."""

    results: tuple[Result, ...]
    skipped: tuple[str, ...]


def read_results(folder: Path) -> Results:
    """Read every ``*.json`` of a folder that holds times of kernels or what was checked on a GPU.

    Raises:
        ConfigError: there is no such folder, it holds no such file, or one of them is damaged.
    """
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise ConfigError(f"--results {folder} holds no result (*.json); pass the folder that benchmarks/ writes to")
    found = [(file.name, _read(file)) for file in files]
    skipped = [f"{name} {result}" for name, result in found if isinstance(result, str)]
    return Results(tuple(result for _, result in found if isinstance(result, Result)), tuple(skipped))


def _read(file: Path) -> Result | str:
    """What the file says; why it is not shown, if it is not."""
    nothing = "holds no times of kernels"
    try:
        content = msgspec.json.decode(file.read_bytes())
        if not isinstance(content, dict):
            return nothing
        if "tune_s" in content:
            return "is of a tuner, whose times are those of its pack"
        if "timing" in content:
            return _ops_result(file.name, msgspec.convert(content, _OpsResult))
        parts = content.get("parts")
        if isinstance(parts, dict) and "device" in parts:
            return Result(_engine_source(file.name, parts))
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{file} is no benchmark's result ({error}); measure it again or remove it") from error
    return nothing


def _ops_result(name: str, result: _OpsResult) -> Result:
    # Elsewhere than with CUDA these numbers mean something else.
    target = f"sm_{result.capability[0]}{result.capability[1]}" if result.capability and result.cuda else ""
    versions = result.versions | ({"cuda": result.cuda} if result.cuda else {})
    notes = tuple(_ceilings(result.ceilings))
    source = Source("benchmark", name, result.device, target, versions, result.command, result.measured_at, notes)
    return Result(source, tuple(_samples(result.timing)), _gaps(name, result.timing))


def _samples(timing: tuple[_Timing, ...]) -> Iterator[Sample]:
    for row in timing:
        time = row.time_us
        if time is not None and is_measured(row.num_tokens, time.median):
            point = Point(row.num_tokens, row.provider, time.median, time.p10, time.p90)
            yield Sample(row.contract, row.floor_us, point)


def _gaps(name: str, timing: tuple[_Timing, ...]) -> tuple[Gap, ...]:
    sizes: dict[tuple[str, str, str], list[int]] = {}
    for row in timing:
        if row.time_us is None:
            found = sizes.setdefault((row.contract, row.provider, row.problem or "not said why"), [])
            found.extend([row.num_tokens] if row.num_tokens else [])
    return tuple(
        Gap(name, contract, provider, tuple(found), reason) for (contract, provider, reason), found in sizes.items()
    )


def _ceilings(ceilings: Mapping[str, Any]) -> Iterator[str]:
    """The limits that floors are made of, in words."""
    for name, value in ceilings.items():
        if name == "bandwidth" and isinstance(value, (int, float)):
            yield f"copies at {value / 1e12:.3f} TB/s"
        elif isinstance(value, (int, float)):
            yield f"{name} at {number(value / 1e12)} T{'op' if name.startswith('int') else 'FLOP'}/s"


def _engine_source(name: str, parts: Mapping[str, Any]) -> Source:
    read = msgspec.convert(parts, _EngineParts)
    how = read.circumstances
    versions = ({"python": how.python} if how.python else {}) | {each.name: each.version for each in how.packages}
    notes = tuple(
        f"{part}: {sum(bool(check['passed']) for check in checks)} of {len(checks)} checks passed"
        for part, checks in parts.items()
        if isinstance(checks, list) and checks and all(isinstance(each, dict) and "passed" in each for each in checks)
    )
    return Source("benchmark", name, read.device, "", versions, how.command, how.measured_at, notes)
