"""The files of a pack, in a folder or in a zip, read one at a time and never unpacked to disk."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

from parhelion.errors import PackError

RECORD = "pack.json"
BINARIES = "bin/"
MAX_FILE_BYTES = 64 << 20
"""Bytes that a file may have, unpacked: a small zip cannot fill the memory."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,199}")
_DAMAGED = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)
"""What reading files raises, and ``zipfile`` for damaged, encrypted or unusually compressed entries."""


class PackFiles(Protocol):
    """Where a pack's files come from, by their names within the pack."""

    def names(self) -> list[str]:
        """All files."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file; KeyError if there is none of that name."""
        ...

    def read(self, name: str) -> bytes:
        """What is in a file."""
        ...


def open_files(path: Path) -> PackFiles:
    """The files of the pack at a path.

    Raises:
        PackError: nothing is there, or a zip is damaged or holds what no pack does.
    """
    return _Folder(path) if path.is_dir() else _open_zip(path)


def read_file(files: PackFiles, name: str, path: Path) -> bytes:
    """A file of the pack at ``path``.

    Raises:
        PackError: it is missing, too large or damaged.
    """
    try:
        size = files.size(name)
        if size > MAX_FILE_BYTES:
            raise damaged(path, name, f"has {size} bytes, and at most {MAX_FILE_BYTES} are read")
        return files.read(name)
    except KeyError:
        raise damaged(path, name, "is missing") from None
    except _DAMAGED as error:
        raise damaged(path, name, f"cannot be read ({error})") from None


def is_plain_name(name: str) -> bool:
    """Whether a file in ``bin/`` may be called that: no separators, nothing like ``..``, nothing hidden."""
    return _PLAIN_NAME.fullmatch(name) is not None


def damaged(path: Path, name: str, what: str) -> PackError:
    """The error of a pack with something wrong in the file ``name``."""
    return PackError(f"{path}: {name} {what}; build the pack again or get it from where it came from")


def disk_bytes(path: Path) -> int:
    """Bytes that a pack takes on disk."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        return [file.relative_to(self._path).as_posix() for file in self._path.rglob("*") if file.is_file()]

    def size(self, name: str) -> int:
        if not (self._path / name).is_file():
            raise KeyError(name)
        return (self._path / name).stat().st_size

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return [name for name in self._archive.namelist() if name != BINARIES]

    def size(self, name: str) -> int:
        return self._archive.getinfo(name).file_size

    def read(self, name: str) -> bytes:
        return self._archive.read(name)


def _open_zip(path: Path) -> _Zip:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError:
        raise PackError(f"there is no pack at {path}; parhelion pack ls lists those there are") from None
    except _DAMAGED as error:
        raise PackError(f"{path} is no readable zip ({error}); build the pack again or get it again") from None
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in archive.infolist()):
        raise PackError(f"{path} is compressed with something else than deflate; zip it again")
    files = _Zip(archive)
    names = files.names()
    for name in names:
        if name != RECORD and not (name.startswith(BINARIES) and is_plain_name(name.removeprefix(BINARIES))):
            raise PackError(
                f"{path} holds {name[:80]!r}; a pack's zip holds {RECORD} and files in {BINARIES}, at its top, "
                "and nothing else: do not use it, and get it again from where it came from"
            )
    if len(set(names)) < len(names):
        raise PackError(f"{path} holds two files of one name; build the pack again")
    return files
