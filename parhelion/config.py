"""Every option, as frozen dataclasses; the one reader of environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parhelion.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "dummy"]
SchedulingPolicy = Literal["fcfs", "priority"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine is told. Each field is a CLI option and a keyword of ``LLM`` under the same name.

    Attributes:
        model: an alias (``parhelion pull --list``), a Hugging Face style folder, a ``.gguf`` file or a hub id.
        tokenizer: where the tokenizer lies, if not with the model.
        device: ``auto`` or ``cpu``.
        dtype: ``auto`` picks the fastest that keeps greedy text intact on the device. On a CPU ``float16`` and
            ``bfloat16`` are the storage of the weights and arithmetic stays in float32 where that is faster.
        load_format: ``dummy`` fills the weights with small random numbers and reads none.
        max_model_len: most tokens of a request, prompt and output together; None takes the model's own limit.
        block_size: tokens a KV-cache block holds.
        kv_cache_memory: bytes for the KV cache; None takes ``kv_cache_fraction`` of what is free once the
            weights are loaded.
        kv_cache_fraction: share of the free memory, used when kv_cache_memory is None.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: the token budget of one step.
        max_queue_len: most requests that may wait; one more is refused.
        enable_prefix_caching: reuse the KV blocks of equal prefixes.
        scheduling_policy: ``fcfs``, or ``priority`` (lower value first, then arrival).
        overlap: plan step N + 1 while the device runs step N.
        threads: intra-op CPU threads; None takes the cores this process may use.
        compile: let TorchInductor fuse the work between the linear layers (needs a C++ compiler; costs seconds at the
            first start, and is cached from then on).
        seed: base of the seeds drawn for requests that bring none, and of dummy weights.
    """

    model: str
    tokenizer: str | None = None
    device: Literal["auto", "cpu"] = "auto"
    dtype: DType = "auto"
    load_format: LoadFormat = "auto"
    max_model_len: int | None = None
    block_size: int = 16
    kv_cache_memory: int | None = None
    kv_cache_fraction: float = 0.25
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 1024
    max_queue_len: int = 4096
    enable_prefix_caching: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    overlap: bool = True
    threads: int | None = None
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens", "max_queue_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_model_len", "kv_cache_memory", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1, or left out")
        if not 0.0 < self.kv_cache_fraction <= 0.95:
            raise ConfigError(f"kv_cache_fraction is {self.kv_cache_fraction}; it must lie in (0, 0.95]")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "a step must have room for one token of every running request"
            )


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the HTTP server is told.

    Attributes:
        host, port: where to listen.
        served_model_name: the name clients use; None takes the model's.
        api_keys: accepted bearer tokens; empty accepts everyone.
        max_body_bytes: largest request body (413 above it).
        max_n: largest ``n`` (400 above it).
        max_concurrent_requests: most requests in the server at once, streams included (429 above it).
        drain_timeout_s: seconds that running requests get to end after SIGTERM.
        root_path: prefix under which a proxy serves this application.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    max_n: int = 16
    max_concurrent_requests: int = 1024
    drain_timeout_s: float = 60.0
    root_path: str = ""


@dataclass(frozen=True)
class Environment:
    """What the environment says. Read once, by ``read_environment``.

    ``PARHELION_HOME`` (default ``~/.cache/parhelion``) holds pulled models and compiled code;
    ``PARHELION_API_KEY`` is a comma-separated list of accepted API keys; ``PARHELION_LOG`` is the log level.
    """

    home: Path
    api_keys: tuple[str, ...]
    log_level: str


def read_environment() -> Environment:
    """The one place that reads environment variables."""
    home = os.environ.get("PARHELION_HOME")
    return Environment(
        home=Path(home).expanduser() if home else Path.home() / ".cache" / "parhelion",
        api_keys=tuple(k.strip() for k in os.environ.get("PARHELION_API_KEY", "").split(",") if k.strip()),
        log_level=os.environ.get("PARHELION_LOG", "INFO").upper(),
    )


_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_bytes(text: str) -> int:
    """``"512MiB"``, ``"2G"``, ``"1048576"`` to bytes (units are powers of 1024).

    Raises:
        ConfigError: the text is no size.
    """
    stripped = text.strip().lower()
    number = stripped.rstrip("bikmgt")
    unit = stripped[len(number) :].removesuffix("ib").removesuffix("b")
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, KeyError):
        raise ConfigError(f"{text!r} is no size; write bytes or a number with a unit, such as 512MiB or 2GiB") from None


def child_environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with some variables replaced, to be handed to a child process."""
    return {**os.environ, **overrides}
