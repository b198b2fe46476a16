"""Packs on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parhelion.packs.store import StoredPack, read_pack, write_pack
from tests.packs.sample import FILES, pack


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., StoredPack]:
    """Writes the sample pack, with some fields changed, and reads it again."""

    def write(name: str = "pack.zip", files: dict[str, bytes] = FILES, **changes: Any) -> StoredPack:
        write_pack(pack(**changes), files, tmp_path / name)
        return read_pack(tmp_path / name)

    return write
