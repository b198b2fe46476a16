"""Servers in processes of their own, each known to answer before it is measured."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec

from parhelion.bench.compare.checkpoint import ComparedModel
from parhelion.bench.compare.driver import Launch, RunnerError, log_tail, start, stop
from parhelion.bench.compare.engines import Engine
from parhelion.bench.compare.settings import OfflineSettings
from parhelion.bench.server_process import ServerProcess

_POLL_S = 0.2
_STOP_S = 30.0
_ANSWER_S = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """What every server is told.

    Attributes:
        max_num_seqs: requests that run at once.
        kv_cache_memory: bytes.
        memory_share: of the device, for a server that asks for a share.
        device: ``cpu`` or ``cuda``.
        logs: a folder for the servers' logs.
    """

    model: ComparedModel
    settings: OfflineSettings
    max_num_seqs: int
    kv_cache_memory: int
    memory_share: float
    device: str
    logs: Path


def server_command(engine: Engine, options: ServerOptions, port: int) -> list[str]:
    """The words that start an engine's server on a port of the loopback."""
    settings, model = options.settings, options.model
    budget = max(settings.max_num_batched_tokens, options.max_num_seqs)
    common = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.name]
    common += ["--load-format", model.load_format, "--no-enable-prefix-caching", "--seed", str(settings.seed)]
    common += ["--max-model-len", str(settings.max_model_len), "--max-num-seqs", str(options.max_num_seqs)]
    common += ["--max-num-batched-tokens", str(budget)]
    if engine.kind == "vllm":
        memory = ["--gpu-memory-utilization", str(options.memory_share)]
        memory += ["--kv-cache-memory-bytes", str(options.kv_cache_memory)]
        return [engine.python, "-m", "vllm.entrypoints.cli.main", "serve", str(model.folder), *common, *memory]
    own = ["--device", options.device, "--kv-cache-memory", str(options.kv_cache_memory), "--pack", settings.pack]
    own += ["--graphs", settings.graphs if options.device == "cuda" else "lazy"]
    return [engine.python, "-m", "parhelion.cli", "serve", str(model.folder), *common, *own]


@contextmanager
def running(engine: Engine, options: ServerOptions) -> Iterator[ServerProcess]:
    """The engine's server, answering; it ends with the block, unless it ran before.

    Raises:
        RunnerError: it ended before it answered, or did not answer in time.
    """
    if engine.url is not None:
        yield ServerProcess(engine.url, served_model(engine.name, engine.url))
        return
    port = free_port()
    log = options.logs / f"{options.model.name}-{engine.name}-server.log"
    launch = Launch(f"the server of {engine.name}", server_command(engine, options, port), log, engine.environment)
    process = start(launch, subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _await_health(launch, process, url, options.settings.timeout_s)
        yield ServerProcess(url, options.model.name, process)
    finally:
        stop(process, _STOP_S)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class _ModelCard(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_ModelCard]


def served_model(name: str, url: str) -> str:
    """The first model that a server lists.

    Raises:
        RunnerError: it cannot be reached, or lists none.
    """
    try:
        answer = httpx.get(f"{url}/v1/models", timeout=_ANSWER_S, trust_env=False).raise_for_status()
        return msgspec.json.decode(answer.content, type=_Models).data[0].id
    except (httpx.HTTPError, msgspec.DecodeError, IndexError) as error:
        raise RunnerError(f"{name} does not say which model it serves at {url}/v1/models: {error}") from None


def _await_health(launch: Launch, process: subprocess.Popen[bytes], url: str, timeout_s: float) -> None:
    limit = time.monotonic() + timeout_s
    with httpx.Client(base_url=url, timeout=_ANSWER_S, trust_env=False) as client:
        while not _is_healthy(client):
            if process.poll() is not None:
                raise RunnerError(
                    f"{launch.name} ended with status {process.returncode} before it answered; {log_tail(launch)}"
                )
            if time.monotonic() > limit:
                raise RunnerError(
                    f"{launch.name} did not answer within {timeout_s:g} s (--timeout); {log_tail(launch)}"
                )
            time.sleep(_POLL_S)


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
