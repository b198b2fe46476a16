"""Which pairs of contract and target build, kept in a file, so that one that stops building is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from parhelion.errors import ConfigError
from parhelion.tuning.matrix import Build

Pairs = Mapping[str, Sequence[str]]
"""A contract's key to the targets for which all of its programs are built."""


def pairs_built(builds: Sequence[Build]) -> dict[str, list[str]]:
    """The pairs whose programs are all built."""
    pairs: dict[str, list[str]] = {}
    broken = {(build.contract, build.target) for build in builds if not build.built}
    for build in builds:
        targets = pairs.setdefault(build.contract, [])
        if (build.contract, build.target) not in broken and build.target not in targets:
            targets.append(build.target)
    return pairs


def regressions(expected: Pairs, builds: Sequence[Build], targets: Sequence[str]) -> list[str]:
    """A sentence for every pair that was built once and is not now.

    Args:
        expected: what was built.
        targets: those that were asked for now.
    """
    lines = []
    now = pairs_built(builds)
    reasons = {(build.contract, build.target): build.reason for build in builds if not build.built}
    for contract, once in expected.items():
        for target in once:
            if target not in targets or target in now.get(contract, ()):
                continue
            reason = reasons.get((contract, target), "nothing asks for this contract any more")
            lines.append(f"{contract} was built for {target} and is not now: {reason}")
    return lines


def read_expected(path: Path) -> dict[str, list[str]]:
    """The pairs of a file.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{path} does not list what builds ({error}); write it with --write-expected") from error


def write_expected(path: Path, builds: Sequence[Build]) -> None:
    """Write the pairs that build now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(pairs_built(builds)), indent=2) + b"\n")
