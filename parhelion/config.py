"""Every option, as frozen dataclasses; the one reader of environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from parhelion.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "dummy"]
Speculate = Literal["off", "auto", "ngram", "draft", "eagle3"]
SchedulingPolicy = Literal["fcfs", "priority"]
Quantization = Literal["fp8", "int8"]
FusionPlan = Literal["auto", "plain", "fused"]
GraphCapture = Literal["lazy", "startup", "off"]
Executor = Literal["auto", "inproc", "multiproc", "ray"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine is told. Each field is a CLI option and a keyword of ``LLM`` under the same name.

    Attributes:
        model: an alias (``parhelion pull --list``), a Hugging Face style folder, a ``.gguf`` file or a hub id.
        tokenizer: where the tokenizer lies, if not with the model.
        device: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``. Where ranks and replicas take
            several GPUs, it is the first of them.
        dtype: ``auto`` picks the fastest that keeps greedy text intact on the device; on a GPU that is bfloat16. On a
            CPU ``float16`` is the storage of the weights, and arithmetic stays in float32 where that is faster.
        load_format: ``dummy`` fills the weights with small random numbers and reads none; a folder with nothing but a
            config.json will do then.
        quantization: quantize the linear layers of an unquantized checkpoint while loading it, weights by channel and
            activations by token: ``fp8`` or ``int8``. None takes the checkpoint as it is.
        lm_head_quantization: quantize the output head (lm_head) while loading it, whatever the other layers are in:
            ``fp8`` or ``int8`` codes with a scale for each entry of the vocabulary. An embedding that is the same table
            stays as it is, beside them. None leaves the head unquantized, as checkpoints have it.
        kernels: providers to use, by hand, as ``op=provider``; ``parhelion doctor`` lists them.
        pack: what was tuned and built ahead of time, on a GPU: ``auto`` takes the known pack that fits the device best,
            ``off`` none; else a pack's name or path (``parhelion pack ls``).
        fusion: ``fused`` lets norms and activations quantize what they produce, ``plain`` launches every op by itself;
            ``auto`` is fused on a GPU and plain on a CPU.
        graphs: when CUDA graphs are captured: ``lazy`` at the first step of a size, ``startup`` for all decoding sizes
            before the engine is ready, ``off`` never.
        max_model_len: most tokens of a request, prompt and output together; None takes the model's own limit.
        block_size: tokens a KV-cache block holds.
        kv_cache_memory: bytes for the KV cache, of each rank; None takes ``kv_cache_fraction`` of what is free once the
            weights are loaded.
        kv_cache_fraction: share of the free memory, used when kv_cache_memory is None; None is 0.25 on a CPU and 0.9
            on a GPU.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: the token budget of one step; None is 1024 on a CPU and 4096 on a GPU.
        max_queue_len: most requests that may wait, in each replica; one more is refused.
        enable_prefix_caching: reuse the KV blocks of equal prefixes.
        scheduling_policy: ``fcfs``, or ``priority`` (lower value first, then arrival).
        overlap: plan step N + 1 while the device runs step N; with stages, which have a step each, one more than these,
            on GPUs.
        speculate: guess tokens ahead and check several in one step; the text stays the same. ``ngram`` guesses what
            followed the last time that the same few tokens stood in the request's own text; ``draft`` and ``eagle3``
            let ``draft_model`` guess; ``auto`` does the one or the other as far as it pays, by what was measured.
        draft_model: who guesses, named as ``model`` is: a smaller model with the same vocabulary, or an EAGLE-3 head
            that was made for ``model``.
        num_speculative_tokens: most tokens that are guessed for a request at once.
        threads: intra-op CPU threads of a rank; None takes the cores this process may use, divided among all ranks.
        tp: tensor parallelism: so many ranks, each on a device of its own, share every layer. Heads, feed-forward and
            vocabulary are divided; heads, KV heads and the feed-forward must divide evenly. On CPUs as well.
        pp: pipeline parallelism: so many stages, each of ``tp`` ranks, hold consecutive layers and their KV cache. As
            many steps are under way as there are stages; the running requests take turns.
        dp: data parallelism: so many replicas of the engine, each in a process of its own with ranks of its own, share
            the requests. A request goes where its prefix is cached and little waits. On GPUs each replica takes the
            GPUs behind those of the one before it; on a CPU all share cores and memory.
        executor: where the ranks run: ``multiproc`` is rank 0 in the engine's process and a process for each other one,
            ``inproc`` nothing but the engine's process, which makes one rank; ``ray`` is rank 0 in the engine's process
            and the others wherever a Ray cluster has room for them; ``auto`` is what ``tp`` and ``pp`` need on this
            machine.
        ray_address: of the Ray cluster, ``HOST:PORT``; None takes RAY_ADDRESS, or the cluster that this machine is in.
        interface: network interface through which ranks on several machines talk, under the same name on all of them,
            such as ``eth0``; None takes on each the one with the address that Ray knows the machine by.
        heartbeat_timeout_s: a process of the engine that gives no sign of life for so many seconds, because it is
            stopped or its machine is cut off, is ended; 0: never. Computing, compiling and waiting are no silence.
        step_timeout_s: an engine whose step does not end for so many seconds, because a process runs and does not
            proceed, is ended; 0: never. None is 120 on GPUs where nothing compiles, else 600.
        compile: let TorchInductor make each block of the model one function for steps of a single token (needs a C++
            compiler; costs seconds at the first start, less later, and a copy of the weights). CPUs only.
        seed: base of the seeds drawn for requests that bring none, and of dummy weights.
    """

    model: str
    tokenizer: str | None = None
    device: str = "auto"
    dtype: DType = "auto"
    load_format: LoadFormat = "auto"
    quantization: Quantization | None = None
    lm_head_quantization: Quantization | None = None
    kernels: tuple[str, ...] = ()
    pack: str = "auto"
    fusion: FusionPlan = "auto"
    graphs: GraphCapture = "lazy"
    max_model_len: int | None = None
    block_size: int = 16
    kv_cache_memory: int | None = None
    kv_cache_fraction: float | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    max_queue_len: int = 4096
    enable_prefix_caching: bool = True
    scheduling_policy: SchedulingPolicy = "fcfs"
    overlap: bool = True
    speculate: Speculate = "off"
    draft_model: str | None = None
    num_speculative_tokens: int = 5
    threads: int | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    executor: Executor = "auto"
    ray_address: str | None = None
    interface: str | None = None
    heartbeat_timeout_s: float = 8.0
    step_timeout_s: float | None = None
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("block_size", "max_num_seqs", "max_queue_len", "num_speculative_tokens", "tp", "pp", "dp"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("max_model_len", "max_num_batched_tokens", "kv_cache_memory", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1, or left out")
        if self.kv_cache_fraction is not None and not 0.0 < self.kv_cache_fraction <= 0.95:
            raise ConfigError(f"kv_cache_fraction is {self.kv_cache_fraction}; it must lie in (0, 0.95]")
        head = self.lm_head_quantization
        if head is not None and head not in get_args(Quantization):
            known = " or ".join(get_args(Quantization))
            raise ConfigError(f"lm_head_quantization is {head!r}; it must be {known}, or left out")
        if self.speculate not in get_args(Speculate):
            raise ConfigError(f"speculate is {self.speculate!r}; it must be one of {', '.join(get_args(Speculate))}")
        if self.speculate in ("draft", "eagle3") and self.draft_model is None:
            raise ConfigError(f"speculate is {self.speculate!r} and there is no draft_model: name one, or choose ngram")
        if self.speculate == "ngram" and self.draft_model is not None:
            raise ConfigError(
                f"speculate is 'ngram', which needs no draft_model, and that is {self.draft_model!r}: "
                "leave it out, or choose draft, eagle3 or auto"
            )
        if self.speculate == "off" and self.draft_model is not None:
            raise ConfigError(
                f"draft_model is {self.draft_model!r}, and with speculate 'off' nobody guesses: choose draft, eagle3 "
                "or auto, or leave draft_model out"
            )
        if self.heartbeat_timeout_s != 0 and not self.heartbeat_timeout_s >= 1:
            raise ConfigError(
                f"heartbeat_timeout_s is {self.heartbeat_timeout_s:g}; it must be at least 1, or 0 to wait for ever"
            )
        if self.step_timeout_s is not None and self.step_timeout_s != 0 and not self.step_timeout_s >= 1:
            raise ConfigError(
                f"step_timeout_s is {self.step_timeout_s:g}; it must be at least 1, 0 to wait for ever, or left out"
            )
        self._check_ranks()
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is {self.device!r}; it must be auto, cpu, cuda or cuda:N")
        budget = self.max_num_batched_tokens
        if budget is not None and budget < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({budget}) is below max_num_seqs ({self.max_num_seqs}): "
                "a step must have room for one token of every running request"
            )

    def _check_ranks(self) -> None:
        if self.executor not in get_args(Executor):
            raise ConfigError(f"executor is {self.executor!r}; it must be one of {', '.join(get_args(Executor))}")
        if self.dp > 1 and self.executor == "inproc":
            raise ConfigError(
                f"executor is inproc, which runs one engine, and dp is {self.dp}: choose auto or multiproc"
            )
        if self.executor == "ray":
            self._check_ray()
        elif self.ray_address is not None or self.interface is not None:
            raise ConfigError(
                f"ray_address and interface are for ranks on several machines, and executor is {self.executor}: choose "
                "ray, or leave them out"
            )
        several = {name: size for name, size in (("tp", self.tp), ("pp", self.pp)) if size > 1}
        if not several:
            return
        asked = " and ".join(f"{name} is {size}" for name, size in several.items())
        if self.executor == "inproc":
            raise ConfigError(f"executor is inproc, which runs one rank, and {asked}: choose auto or multiproc")

    @property
    def num_ranks(self) -> int:
        """Ranks of each replica: those of all stages."""
        return self.tp * self.pp

    def _check_ray(self) -> None:
        if self.num_ranks == 1:
            raise ConfigError(
                "executor is ray, which runs ranks on several machines, and tp and pp are 1: choose auto, or more"
            )
        if ":" in self.device:
            raise ConfigError(f"device is {self.device}, but Ray chooses among the GPUs: pass device cuda")
        if self.ray_address is not None and not re.fullmatch(r"[^:/]+:\d+", self.ray_address):
            raise ConfigError(f"ray_address is {self.ray_address!r}; it must be HOST:PORT of the cluster's head")

    @property
    def is_supervised(self) -> bool:
        """Engines are started again when they end, in processes of their own."""
        return self.dp > 1 or self.executor == "ray"

    def token_budget(self, on_gpu: bool) -> int:
        """``max_num_batched_tokens``, or its default for the device."""
        return self.max_num_batched_tokens or max(self.max_num_seqs, 4096 if on_gpu else 1024)

    def cache_fraction(self, on_gpu: bool) -> float:
        """``kv_cache_fraction``, or its default for the device."""
        return self.kv_cache_fraction or (0.9 if on_gpu else 0.25)


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
    ``PARHELION_API_KEY`` is a comma-separated list of accepted API keys; ``PARHELION_LOG`` is the log level;
    ``RAY_ADDRESS`` is of the Ray cluster, for ranks on several machines.
    """

    home: Path
    api_keys: tuple[str, ...]
    log_level: str
    ray_address: str | None


def read_environment() -> Environment:
    """The one place that reads environment variables."""
    home = os.environ.get("PARHELION_HOME")
    return Environment(
        home=Path(home).expanduser() if home else Path.home() / ".cache" / "parhelion",
        api_keys=tuple(k.strip() for k in os.environ.get("PARHELION_API_KEY", "").split(",") if k.strip()),
        log_level=os.environ.get("PARHELION_LOG", "INFO").upper(),
        ray_address=os.environ.get("RAY_ADDRESS") or None,
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


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for libraries that are told in no other way; as they were afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def child_environment(overrides: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with some variables replaced, to be handed to a child process."""
    return {**os.environ, **overrides}
