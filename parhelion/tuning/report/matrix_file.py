"""The compile matrix out of a file: the JSON of ``parhelion build --check``, or the list of what should build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from parhelion.errors import ConfigError
from parhelion.tuning.report.data import Matrix, MatrixCell
from parhelion.tuning.report.figures import op_of


class _Build(msgspec.Struct, frozen=True):
    """Those fields of ``parhelion.tuning.matrix.Build`` that are shown."""

    op: str
    target: str
    reason: str | None
    instead: str | None


def read_matrix(path: Path) -> Matrix:
    """The matrix of a file.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=list[_Build] | dict[str, list[str]])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"--matrix {path} is no compile matrix ({error}); write one with: parhelion build --check --json"
        ) from error
    return _of_builds(path.name, content) if isinstance(content, list) else _of_pairs(path.name, content)


def _of_builds(name: str, builds: Sequence[_Build]) -> Matrix:
    groups: dict[tuple[str, str], list[_Build]] = {}
    for build in builds:
        groups.setdefault((build.op, build.target), []).append(build)
    cells = [
        MatrixCell(
            op,
            target,
            built=sum(each.reason is None for each in members),
            total=len(members),
            instead=_unique(each.instead for each in members if each.instead),
            reasons=_unique(each.reason for each in members if each.reason),
        )
        for (op, target), members in groups.items()
    ]
    return Matrix(name, "programs", _unique(build.target for build in builds), tuple(cells))


def _of_pairs(name: str, pairs: Mapping[str, Sequence[str]]) -> Matrix:
    """The file lists what builds, and neither why the rest does not nor what serves instead."""
    # The longest list first: its order of targets is the order of columns.
    targets = _unique(target for found in sorted(pairs.values(), key=len, reverse=True) for target in found)
    by_op: dict[str, list[Sequence[str]]] = {}
    for contract, found in pairs.items():
        by_op.setdefault(op_of(contract), []).append(found)
    cells = [
        MatrixCell(op, target, built=sum(target in found for found in members), total=len(members))
        for op, members in by_op.items()
        for target in targets
    ]
    return Matrix(name, "contracts", targets, tuple(cells))


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))
