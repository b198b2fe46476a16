"""What to compare, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from parhelion.bench.load_clients import default_clients
from parhelion.errors import ConfigError

BLOCK = 16
"""Tokens of a KV block in both engines' defaults; memory is reckoned in whole blocks."""


@dataclass(frozen=True)
class OfflineSettings:
    """Every engine is told the same.

    Attributes:
        batches: prompts handed over at once.
        input_length, output_length: tokens of each prompt, and tokens generated for each.
        rounds: measured rounds of a batch size; one more comes first and is not counted.
        sequential: one engine after the other. Otherwise all are alive at once with bounded KV memory, and idle while
            another is measured.
        device: ``auto``, ``cpu`` or ``cuda``; ``CUDA_VISIBLE_DEVICES`` picks one of several GPUs, for all engines.
        max_num_batched_tokens: the token budget of a step.
        timeout_s: how long an engine may take to load, or to answer once.
        seed: of the prompts.
        pack, graphs: options of Parhelion's own. Graphs are captured at the start, because the peers do so.
        peer_weights: vLLM's dummy weights are drawn as Parhelion's are; else they are its own, nearly all zeros.
    """

    batches: tuple[int, ...] = (1, 16, 64, 256)
    input_length: int = 512
    output_length: int = 128
    rounds: int = 3
    sequential: bool = False
    device: str = "auto"
    max_num_batched_tokens: int = 8192
    timeout_s: float = 900.0
    seed: int = 0
    pack: str = "auto"
    graphs: str = "startup"
    peer_weights: bool = True

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise ConfigError(f"batches is {self.batches}; it must hold numbers of prompts, each at least 1")
        for name, least in (("input_length", 1), ("output_length", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"device is {self.device!r}; it must be auto, cpu or cuda (CUDA_VISIBLE_DEVICES picks one of several)"
            )
        if self.max_num_batched_tokens < max(self.batches):
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below the largest batch "
                f"({max(self.batches)}): a step must have room for one token of every sequence"
            )
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s is {self.timeout_s}; it must be above 0")

    @property
    def max_model_len(self) -> int:
        """Tokens of a sequence, in whole blocks, with room for one more."""
        return ((self.input_length + self.output_length) // BLOCK + 1) * BLOCK

    @property
    def mean_context(self) -> int:
        """Tokens that a sequence holds halfway through its output."""
        return self.input_length + self.output_length // 2

    def kv_tokens(self, sequences: int) -> int:
        """Tokens of KV cache for so many sequences: a spare block each, and 2% over, so that none is preempted."""
        return int(sequences * (self.max_model_len + BLOCK) * 1.02)


@dataclass(frozen=True)
class OnlineSettings:
    """Load over HTTP, the same for every server.

    Attributes:
        num_requests: of each run.
        concurrency: requests in flight in the closed loop.
        rates: Poisson arrivals a second of the open loop; empty takes 0.3, 0.7 and 1.1 of what the slowest server
            reaches in the closed loop.
        ttft_limit_ms, tpot_limit_ms: a request is good if it kept both (goodput).
        stricter_tpot_limits_ms: of each it is said as well how many requests kept it, beside the limit of TTFT. Where
            load is low, all servers keep a wide limit, and what differs is how strict a limit they keep.
        clients: processes that send the requests.
    """

    num_requests: int = 200
    concurrency: int = 64
    rates: tuple[float, ...] = ()
    ttft_limit_ms: float = 1000.0
    tpot_limit_ms: float = 50.0
    stricter_tpot_limits_ms: tuple[float, ...] = (10.0, 5.0, 3.0, 2.0)
    clients: int = field(default_factory=default_clients)

    def __post_init__(self) -> None:
        for name in ("num_requests", "concurrency", "clients", "ttft_limit_ms", "tpot_limit_ms"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if any(not limit > 0 for limit in self.stricter_tpot_limits_ms):
            raise ConfigError(f"stricter_tpot_limits_ms are {self.stricter_tpot_limits_ms}; each must be above 0")
        if any(not rate > 0 for rate in self.rates):
            raise ConfigError(f"rates are {self.rates}; each must be above 0 requests a second")
