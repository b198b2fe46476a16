"""A rank of two is killed, stopped or left hanging in the middle of steps: what the engine says, and what is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from fault_kinds import HANG
from fault_leftovers import HANGING, RANK, SharedMemory, is_alive, running, until
from tp_parity import TWO_LAYERS, engine_limits, random_prompts
from tp_speed import used_bytes

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import FP8_PER_TOKEN_CONFIG, TINY, write_config
from parhelion.errors import EngineDeadError

AFTER_S = 1.0
"""When it strikes: in the middle of steps that are replayed from graphs, none of which is captured any more."""

GONE_S = 10.0
"""How long it may take until nothing of the rank is left."""

FREED_BYTES = 64 << 20
"""What a GPU may have more in use than before."""

LETS_GO_S = 5.0
"""What it takes to be sure, and to let a device go of what it waits for."""


@dataclass(frozen=True)
class Strike:
    """What happens to the rank.

    Attributes:
        signal: that it gets.
        says: what the error says of it, beside its number, host and process.
        limit: option of the engine after whose seconds it is noticed; None: as it happens.
    """

    signal: signal.Signals
    says: str
    limit: str | None = None


STRIKES: Mapping[str, Strike] = MappingProxyType(
    {
        "killed": Strike(signal.SIGKILL, "SIGKILL"),
        "stopped": Strike(signal.SIGSTOP, "no sign of life for {limit_s:g} s", "heartbeat_timeout_s"),
        "hung": Strike(HANG, "no step has ended for {limit_s:g} s", "step_timeout_s"),
    }
)


def struck(folder: Path, device: str, name: str) -> Iterator[dict[str, Any]]:
    """How long until the engine says so and has ended, and what of the rank and of its GPU's memory is left then.

    Args:
        folder: gets the model's config.
        name: of a strike.
    """
    strike, on_cpu = STRIKES[name], device == "cpu"
    limit_s = 3.0 if on_cpu else 8.0
    within_s = LETS_GO_S + (0.0 if strike.limit is None else limit_s)
    shape = TINY if on_cpu else TWO_LAYERS
    where = write_config(shape, folder / name, FP8_PER_TOKEN_CONFIG)
    longest = 4096 if on_cpu else 16384
    params = SamplingParams(temperature=0.0, max_tokens=longest - 200, ignore_eos=True)
    limits = engine_limits(device) | {"max_model_len": longest}
    if strike.limit is not None:
        limits[strike.limit] = limit_s
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HANGING), os.environ.get("PYTHONPATH"))))
    shared, used_before = SharedMemory.now(), used_bytes()
    with LLM(str(where), device=device, load_format="dummy", tp=2, **limits) as llm:
        llm.generate(random_prompts(), replace(params, max_tokens=8))
        graphs = llm.stats().num_graphs
        [rank] = running(RANK, psutil.Process().children())
        at: list[float] = []

        def strike_it() -> None:
            at.append(time.monotonic())
            rank.send_signal(strike.signal)

        timer = threading.Timer(AFTER_S, strike_it)
        timer.start()
        said = "nothing: all tokens came before"
        try:
            llm.generate(random_prompts(), params)
        except EngineDeadError as error:
            said = str(error)
        ended = time.monotonic()
        timer.cancel()
    shutdown_s = time.monotonic() - ended
    gone_s = until(lambda: not is_alive(rank), GONE_S)
    left, grown = shared.leaked(), _grown(used_before)
    noticed_s = ended - at[0] if at else None
    named = f"rank 1 on {os.uname().nodename} (process {rank.pid})"
    yield {
        "what": name,
        "said": said,
        "noticed_s": noticed_s,
        "within_s": within_s,
        "shutdown_s": shutdown_s,
        "graphs_captured": graphs,
        "rank_gone_s": gone_s,
        "left": left,
        "bytes_more_than_before": grown,
        "passed": named in said
        and strike.says.format(limit_s=limit_s) in said
        and noticed_s is not None
        and noticed_s <= within_s
        and gone_s is not None
        and not left
        # Of the first GPU this process itself has some.
        and all(each <= FREED_BYTES for each in grown[1:]),
    }


def _grown(used_before: list[int] | None) -> list[int]:
    """By how much the memory in use has grown on each GPU, once what is freed late has been; nothing without GPUs."""
    grown: list[int] = []

    def is_freed() -> bool:
        now = used_bytes()
        grown[:] = [] if now is None or used_before is None else [b - a for a, b in zip(used_before, now, strict=True)]
        return all(each <= FREED_BYTES for each in grown[1:])

    until(is_freed, GONE_S)
    return grown
