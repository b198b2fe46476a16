"""What a file holds of an earlier comparison: kept, but for what is measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from parhelion.bench.compare.results import Comparison
from parhelion.errors import ConfigError

_KEPT = "What was not measured again"


class Earlier:
    """A comparison that a new one goes on with, in the same file.

    Args:
        path: of the file.
        comparison: the new one, of which nothing has been measured yet. The earlier one's points become its own, until
            they are measured again, and its command, notes and versions stand beside the new one's.
        offline, online: which points will be measured; the settings of others are the earlier one's.

    Raises:
        ConfigError: the file is no comparison, or one of another device or with other settings, so that its points
            would not belong with the new ones.
    """

    def __init__(self, path: Path, comparison: Comparison, offline: bool, online: bool) -> None:
        self._found = _read(path)
        self._own_command = comparison.command
        if not offline:
            comparison.settings = self._found.settings
        if not online:
            comparison.online_settings = self._found.online_settings
        why_not = _why_apart(self._found, comparison)
        if why_not is not None:
            raise ConfigError(f"{path} has a comparison {why_not}: name another --output, or move it away")
        found = self._found
        points = [replace(row, measured_at=row.measured_at or found.measured_at) for row in found.rows]
        loads = [replace(row, measured_at=row.measured_at or found.measured_at) for row in found.online]
        self._kept = (*points, *loads)
        comparison.rows += points
        comparison.online += loads
        comparison.engines += found.engines
        comparison.versions |= found.versions
        comparison.command = f"{found.command}; then {comparison.command}"
        self._taken = [note for note in found.notes if note not in comparison.notes and not note.startswith(_KEPT)]
        self._taken.append(f"{_KEPT} is of {found.measured_at} or before.")
        comparison.notes += self._taken

    def finish(self, comparison: Comparison) -> None:
        """All is measured: if all of it was measured again, nothing is said of the earlier one."""
        if not any(each is other for each in (*comparison.rows, *comparison.online) for other in self._kept):
            comparison.notes = [note for note in comparison.notes if note not in self._taken]
            comparison.command = self._own_command


def _read(path: Path) -> Comparison:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Comparison)
    except (msgspec.DecodeError, OSError) as error:
        raise ConfigError(f"{path} exists and holds no comparison ({error}): name another --output") from error


def _why_apart(found: Comparison, comparison: Comparison) -> str | None:
    """Why points of both cannot stand in one file; None if they can."""
    if found.device != comparison.device:
        return f"of {found.device}, and this is {comparison.device}"
    # How long an engine may take changes no figure.
    if found.rows and replace(found.settings, timeout_s=comparison.settings.timeout_s) != comparison.settings:
        return f"with other settings ({_differences(found.settings, comparison.settings)})"
    if found.online and found.online_settings != comparison.online_settings:
        return f"with other settings of servers ({_differences(found.online_settings, comparison.online_settings)})"
    return None


def _differences(found: object, own: object) -> str:
    before, after = msgspec.to_builtins(found), msgspec.to_builtins(own)
    return ", ".join(f"{name} {before[name]}, not {after[name]}" for name in after if before[name] != after[name])
