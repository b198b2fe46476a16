"""Objects that a process keeps for good, and the processes that do so."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from parhelion.config import EngineConfig
from parhelion.engine.messages import ProcessOptions
from parhelion.platform.garbage import keep_for_good

SERVER = """
import gc, os, signal, sys
from parhelion.config import EngineConfig, ServerConfig
from parhelion.server.run import run

def ready(info):
    print("kept", gc.get_freeze_count(), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

run(EngineConfig(model=sys.argv[1], device="cpu"), ServerConfig(port=0), ready)
"""

ENGINE = """
import gc
from parhelion.engine import process

def serve(core, channel):
    print("kept", gc.get_freeze_count(), flush=True)
    core.close()

process.run_loop = serve
process.main()
"""


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
def test_garbage_of_before_goes_first_and_garbage_of_later_is_collected_as_ever() -> None:
    before, alive = weakref.ref(Cycle()), Cycle()
    keep_for_good()
    assert before() is None
    assert not any(each is alive for each in gc.get_objects())
    later = weakref.ref(Cycle())
    gc.collect()
    assert later() is None


def kept(script: str, *arguments: str, given: bytes = b"") -> int:
    """How many objects a process leaves out of its collections when it begins to serve."""
    command = [sys.executable, "-c", script, *arguments]
    ended = subprocess.run(command, input=given, stdout=subprocess.PIPE, timeout=120, check=True)
    said = [line.split() for line in ended.stdout.decode().splitlines() if line.startswith("kept ")]
    return int(said[0][1])


def test_a_server_keeps_what_it_has_made_while_starting(tiny_path: Path) -> None:
    assert kept(SERVER, str(tiny_path)) > 100_000


def test_an_engine_keeps_what_it_has_made_while_starting(tiny_path: Path, tmp_path: Path) -> None:
    config = EngineConfig(model=str(tiny_path), device="cpu")
    addresses = [f"ipc://{tmp_path}/{name}" for name in ("requests", "outputs", "life")]
    options = ProcessOptions(config, str(tiny_path), "tiny", *addresses, os.getpid(), 0)
    assert kept(ENGINE, given=msgspec.json.encode(options)) > 100_000
