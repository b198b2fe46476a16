"""``make setup`` on machines that lack something: the error names the way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A PATH with the usual tools and no Python but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "df", "awk", "grep", "rm", "printf", "touch", "cat"):
        if found := shutil.which(tool):
            (folder / tool).symlink_to(found)
    return folder


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run_setup(bin_folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(bin_folder), "VENV": str(bin_folder.parent / "venv"), "HOME": os.environ["HOME"]}
    return subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "setup.sh")],
        cwd=ROOT,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_no_python_at_all(bin_folder: Path) -> None:
    result = run_setup(bin_folder)
    assert result.returncode == 1
    assert "no Python 3.11 or newer" in result.stderr
    assert "PYTHON=" in result.stderr


def test_a_python_that_is_too_old_is_named(bin_folder: Path) -> None:
    fake(bin_folder, "python3", 'case "$1" in --version) echo Python 3.9.2;; *) exit 1;; esac')
    result = run_setup(bin_folder)
    assert result.returncode == 1
    assert "python3 is Python 3.9.2" in result.stderr


def test_a_python_without_the_venv_module(bin_folder: Path) -> None:
    fake(bin_folder, "python3", f'case "$2" in *venv*) exit 1;; *) exec {sys.executable} "$@";; esac')
    result = run_setup(bin_folder)
    assert result.returncode == 1
    assert "has no venv module" in result.stderr
    assert "python3-venv" in result.stderr


def test_a_disk_without_room(bin_folder: Path) -> None:
    (bin_folder / "python3").symlink_to(sys.executable)
    result = run_setup(bin_folder, MIN_FREE_MB="999999999")
    assert result.returncode == 1
    assert "MB are free here" in result.stderr
    assert "VENV=" in result.stderr


@pytest.mark.parametrize(
    ("log", "way_out"),
    [
        ("OSError: [Errno 28] No space left on device", "TMPDIR="),
        ("NewConnectionError: Failed to establish a new connection", "PIP_INDEX_URL="),
        ("ERROR: No matching distribution found for torch==2.13.0", "constraints.txt"),
        ("something else", "its full log is"),
    ],
)
def test_a_failed_installation_is_explained_by_pips_log(bin_folder: Path, log: str, way_out: str) -> None:
    venv_bin = bin_folder.parent / "venv" / "bin"
    venv_bin.mkdir(parents=True)
    # Stands for the environment's Python: it is new enough, and its pip fails and leaves a log.
    fake(venv_bin, "python", f'[ "$1" = -c ] && exit 0\necho "{log}" > "{bin_folder.parent}/venv/setup.log"\nexit 1')
    result = run_setup(bin_folder)
    assert result.returncode == 1
    assert way_out in result.stderr
