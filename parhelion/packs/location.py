"""Where packs lie: those that come with Parhelion, and those of the user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from parhelion.config import read_environment
from parhelion.errors import PackError
from parhelion.packs.files import RECORD
from parhelion.packs.store import StoredPack, read_pack

SHIPPED = Path(__file__).parent / "shipped"


def user_packs() -> Path:
    """Where the user's own packs are looked for: ``packs`` in ``PARHELION_HOME``."""
    return read_environment().home / "packs"


def find_packs() -> list[Path]:
    """All packs, zips and folders: the user's by name, then those that were shipped, without names that were had."""
    found: dict[str, Path] = {}
    for folder in (user_packs(), SHIPPED):
        for path in _packs_in(folder):
            found.setdefault(pack_name(path), path)
    return list(found.values())


def pack_name(path: Path) -> str:
    """What the pack at a path is called on the command line."""
    return path.stem if path.suffix == ".zip" else path.name


def open_pack(name_or_path: str) -> StoredPack:
    """A pack by its path, or by the name of one that ``find_packs`` finds.

    Raises:
        PackError: there is none, or it cannot be read.
    """
    path = Path(name_or_path)
    if path.is_file() or (path / RECORD).is_file():
        return read_pack(path)
    known = {pack_name(found): found for found in find_packs()}
    if name_or_path not in known:
        raise PackError(
            f"no pack is called {name_or_path!r}, and none is at that path; known are "
            f"{', '.join(sorted(known)) or 'none'} (in {user_packs()} and {SHIPPED})"
        )
    return read_pack(known[name_or_path])


def _packs_in(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path.suffix == ".zip" or (path / RECORD).is_file()):
            yield path
