"""A Ray cluster of one node, with room for two ranks, which nobody else may use."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from fault_leftovers import HANGING, RANK, is_alive, running

from parhelion.config import environment_variables

_STOP_SECONDS = 30.0

_NODE = """
import sys
import ray
options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 100 << 20}
print(ray.init(num_cpus=2, _node_ip_address="127.0.0.1", **options).address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
"""Runs until its standard input ends."""


class Cluster:
    """A cluster that runs.

    Attributes:
        address: of its head.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._pid = process.pid
        self.address = process.stdout.readline().strip()

    @property
    def ranks(self) -> list[psutil.Process]:
        """Processes of ranks that live in it."""
        found = running(RANK, psutil.Process(self._pid).children(recursive=True))
        return [process for process in found if is_alive(process)]


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster, whose address and key servers find in the environment, and end it with the block."""
    # The paths of its sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": f"{HANGING}{os.pathsep}{Path(__file__).parent.parent}",
        }
        with environment_variables(own):
            process = subprocess.Popen(
                [sys.executable, "-c", _NODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            try:
                yield Cluster(process)
            finally:
                process.communicate(timeout=_STOP_SECONDS)
