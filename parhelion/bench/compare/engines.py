"""The engines that can be compared: how each one's runner and server are started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import parhelion
from parhelion.errors import ConfigError

Kind = Literal["parhelion", "vllm", "url", "other"]

RUNNER = Path(__file__).parent / "runners" / "engine_runner.py"

OURS = "parhelion"
"""The name of the engine that the others are compared with."""

ONLY_ONLINE = ("sglang", "tensorrt-llm")
"""Peers without a runner here."""


@dataclass(frozen=True)
class Engine:
    """An engine.

    Attributes:
        name: in the results; no two are equal.
        kind: which server it starts; ``other`` has none.
        runner: the command of its offline runner; empty if it has none.
        python: that runs its server.
        environment: variables of its processes.
        url: of a server that runs already.
    """

    name: str
    kind: Kind
    runner: tuple[str, ...] = ()
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None


def ours(name: str = OURS) -> Engine:
    """This installation, which its own processes find where this one did."""
    paths = [*(path for path in sys.path if path), str(Path(parhelion.__file__).parents[1])]
    environment = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    return Engine(name, "parhelion", (sys.executable, str(RUNNER), "parhelion"), sys.executable, environment)


def peer(name: str, python: str | None = None, path: str | None = None) -> Engine:
    """A peer by name.

    Args:
        python: the interpreter that has it; None is this one.
        path: folders for its ``PYTHONPATH``, instead of this process's.

    Raises:
        ConfigError: no such peer, or one that can only be compared through its server.
    """
    if name == OURS:
        return ours("parhelion-peer")
    if name in ONLY_ONLINE:
        raise ConfigError(
            f"{name} has no offline runner here: start its server and compare with --url http://HOST:PORT --mode online"
        )
    if name != "vllm":
        raise ConfigError(f"{name!r} is no peer; there are vllm and parhelion (itself), and any server through --url")
    interpreter = python or sys.executable
    # Absolute, because a process may start others elsewhere.
    environment = {} if path is None else {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, path.split(os.pathsep)))}
    return Engine(name, "vllm", (interpreter, str(RUNNER), name), interpreter, environment)


def running_peer(url: str) -> Engine:
    """An OpenAI-compatible server that runs already, called by its address."""
    address = url.rstrip("/").removesuffix("/v1")
    return Engine(address.split("://")[-1], "url", url=address)
