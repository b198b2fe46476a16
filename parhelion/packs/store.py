"""Reading and writing packs."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from parhelion.errors import PackError
from parhelion.packs.files import BINARIES, RECORD, PackFiles, damaged, is_plain_name, open_files, read_file
from parhelion.packs.format import FORMAT_VERSION, Binary, Pack

_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE = 0o100644 << 16
_UNIX = 3


class StoredPack:
    """A pack on disk: its record, and its binaries when they are asked for.

    A zip stays open for as long as this object lives, so that a pack that is replaced meanwhile stays whole.

    Attributes:
        path: the folder or the zip.
        pack: what its ``pack.json`` says.
    """

    def __init__(self, path: Path, pack: Pack, files: PackFiles) -> None:
        self.path = path
        self.pack = pack
        self._files = files

    def binary(self, binary: Binary) -> bytes:
        """A binary's code object, read now and found to be what was packed.

        Raises:
            PackError: the file is missing, or its size or hash is not what ``pack.json`` says.
        """
        _check_name(binary, self.path)
        name = f"{BINARIES}{binary.file}"
        data = read_file(self._files, name, self.path)
        if len(data) != binary.num_bytes:
            raise damaged(self.path, name, f"has {len(data)} bytes, and {RECORD} says num_bytes {binary.num_bytes}")
        found = hashlib.sha256(data).hexdigest()
        if found != binary.sha256:
            raise damaged(self.path, name, f"has sha256 {found[:16]}..., and {RECORD} says {binary.sha256[:16]!r}...")
        return data

    def unnamed_files(self) -> list[str]:
        """Files of the pack that its ``pack.json`` does not mention."""
        named = {RECORD, *(f"{BINARIES}{binary.file}" for binary in self.pack.binaries)}
        return sorted(set(self._files.names()) - named)


def read_pack(path: Path) -> StoredPack:
    """A pack from a folder, or from a zip of its contents. Binaries are read and checked when they are asked for.

    Raises:
        PackError: there is none, it is damaged, or it is of another version of the format.
    """
    files = open_files(path)
    pack = decode(read_file(files, RECORD, path), path)
    for binary in pack.binaries:
        _check_name(binary, path)
    return StoredPack(path, pack, files)


def decode(record: bytes, path: Path) -> Pack:
    """What the ``pack.json`` of the pack at ``path`` says.

    Raises:
        PackError: it is no JSON, of another version, or has a field missing, unknown or of the wrong type.
    """
    try:
        # Read by itself, so that a later version is called that and not a file with unknown fields.
        version = msgspec.json.decode(record, type=_Version).format_version
        if version == FORMAT_VERSION:
            return msgspec.json.decode(record, type=Pack)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, RECORD, f"cannot be used ({error})") from None
    way_out = "install a newer Parhelion" if version > FORMAT_VERSION else "build the pack again"
    raise PackError(
        f"{path}: {RECORD} has format_version {version}, and this Parhelion reads {FORMAT_VERSION}: {way_out}"
    )


def encode(pack: Pack) -> bytes:
    """``pack.json`` of a pack: the same bytes for the same pack."""
    return msgspec.json.format(msgspec.json.encode(pack, order="deterministic"), indent=1) + b"\n"


def write_pack(pack: Pack, binaries: Mapping[str, bytes], path: Path) -> None:
    """Write a pack: a zip if the path ends in ``.zip``, else a folder; all of it or nothing, in place of an older one.

    The same pack becomes the same bytes, wherever and whenever it is written.

    Args:
        binaries: file name to code object, for every file that the pack's binaries name.

    Raises:
        PackError: a binary is missing, superfluous or not what the pack says, or the path is taken by something else.
    """
    for binary in pack.binaries:
        _check_given(binary, binaries, path)
    if superfluous := sorted(set(binaries) - {binary.file for binary in pack.binaries}):
        raise PackError(f"{path}: no binary of the pack names the file {superfluous[0]!r}; leave it out")
    files = {RECORD: encode(pack), **{f"{BINARIES}{name}": binaries[name] for name in sorted(binaries)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        if path.suffix == ".zip":
            _write_zip(files, unfinished)
            _check_replaceable(path, path.is_dir())
            os.replace(unfinished, path)
        else:
            _write_folder(files, unfinished)
            _check_replaceable(path, path.exists() and not (path / RECORD).is_file())
            _replace_folder(unfinished, path)
    finally:
        _remove(unfinished)


class _Version(msgspec.Struct):
    format_version: int


def _check_name(binary: Binary, path: Path) -> None:
    if not is_plain_name(binary.file):
        raise PackError(
            f"{path}: {RECORD} names the file {binary.file[:80]!r}; names are letters, digits and . _ + - and have no "
            "separators: do not use this pack, and build it again or get it again from where it came from"
        )


def _check_given(binary: Binary, binaries: Mapping[str, bytes], path: Path) -> None:
    _check_name(binary, path)
    data = binaries.get(binary.file)
    if data is None:
        raise PackError(f"{path}: the binary {binary.file} of {binary.kernel} was not given; build it first")
    if len(data) != binary.num_bytes or hashlib.sha256(data).hexdigest() != binary.sha256:
        raise PackError(f"{path}: the binary {binary.file} of {binary.kernel} is not what its num_bytes and sha256 say")


def _check_replaceable(path: Path, taken: bool) -> None:
    if taken:
        raise PackError(f"{path} exists and is no such pack, so it is not replaced; name another path")


def _write_zip(files: Mapping[str, bytes], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.create_system = _UNIX
            entry.external_attr = _REGULAR_FILE
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data, compresslevel=9)


def _write_folder(files: Mapping[str, bytes], path: Path) -> None:
    (path / BINARIES).mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)


def _replace_folder(fresh: Path, path: Path) -> None:
    if not path.exists():
        fresh.rename(path)
        return
    # A folder cannot be replaced in one step: for an instant there is none.
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
