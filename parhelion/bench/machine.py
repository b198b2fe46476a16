"""What a figure was measured on: the machine, the versions, the command, the moment."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parhelion.platform.cpu import CpuFingerprint, fingerprint

_PACKAGES = ("parhelion", "torch", "triton", "helion", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class PackageVersion:
    """An installed distribution."""

    name: str
    version: str


@dataclass(frozen=True)
class Circumstances:
    """All that a reader needs to judge a figure or to measure it again."""

    command: str
    measured_at: str
    machine: CpuFingerprint
    python: str
    packages: tuple[PackageVersion, ...]


def describe_circumstances(command: str | None = None) -> Circumstances:
    """This machine, these versions, this command, now."""
    return Circumstances(
        command=command or command_line(sys.argv),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=fingerprint(),
        python=platform.python_version(),
        packages=package_versions(),
    )


def package_versions() -> tuple[PackageVersion, ...]:
    """The installed distributions on which speed depends."""
    return tuple(PackageVersion(name, found) for name in _PACKAGES if (found := installed_version(name)) is not None)


def command_line(argv: list[str]) -> str:
    """How a process was started, without what differs from machine to machine: where the result went, and the folders
    of files that are named by absolute paths."""
    program = Path(argv[0])
    is_script = program.suffix == ".py" and program.stem != "__main__"
    shown = f"python benchmarks/{program.name}" if is_script else "parhelion"
    options = argv[1:]
    if "--output" in options:
        at = options.index("--output")
        del options[at : at + 2]
    named = (Path(option).name if option.startswith("/") else option for option in options)
    return " ".join([shown, *map(shlex.quote, named)])


def installed_version(name: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
