"""Packs are found by name, the user's own before those that were shipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion.errors import PackError
from parhelion.packs import location
from parhelion.packs.location import find_packs, open_pack
from parhelion.packs.store import write_pack
from tests.packs.sample import FILES, pack


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where the user's packs and the shipped ones lie."""
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(location, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "packs", tmp_path / "shipped"


def test_without_any_packs_none_are_found_and_the_folders_are_named(folders: tuple[Path, Path]) -> None:
    assert find_packs() == []
    with pytest.raises(PackError, match=r"no pack is called 'h100'.*known are none") as raised:
        open_pack("h100")
    assert str(folders[0]) in str(raised.value)


def test_the_users_packs_come_first_and_hide_shipped_ones_of_their_name(folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    for path in (shipped / "a.zip", shipped / "b.zip", user / "b", user / "c.zip"):
        write_pack(pack(name=str(path)), FILES, path)
    (user / ".hidden.zip").write_bytes(b"")
    (user / "notes.txt").write_text("no pack")
    (user / "empty").mkdir()
    assert find_packs() == [user / "b", user / "c.zip", shipped / "a.zip"]
    assert open_pack("b").path == user / "b"
    assert open_pack("a").path == shipped / "a.zip"
    with pytest.raises(PackError, match="known are a, b, c"):
        open_pack("d")


@pytest.mark.parametrize("name", ["here.zip", "here"])
def test_a_path_is_opened_wherever_it_leads(tmp_path: Path, name: str) -> None:
    write_pack(pack(), FILES, tmp_path / name)
    assert open_pack(name).pack == pack()
    assert open_pack(str(tmp_path / name)).pack == pack()


def test_a_folder_by_the_name_of_a_pack_does_not_hide_it(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_pack(pack(), FILES, folders[0] / "mine.zip")
    assert open_pack("mine").path == folders[0] / "mine.zip"


def test_shipped_packs_lie_beside_the_code_and_are_packaged() -> None:
    shipped = Path(location.__file__).parent / "shipped"
    assert (shipped / "README.md").is_file()
    project = (shipped.parents[2] / "pyproject.toml").read_text()
    assert '"packs/shipped/*.zip"' in project
