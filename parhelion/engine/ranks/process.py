"""A rank's own process: ``python -m parhelion.engine.ranks.process``, started by ``start_rank``.

It reads its options as JSON from standard input, says hello to rank 0, loads its part of the model and runs the steps
that rank 0 hands it. It ends when it is told to, when anything fails, or when whoever started it, or rank 0, is gone.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec
import torch

from parhelion.distributed.rendezvous import file_store, reach_store, take_place
from parhelion.engine.build_worker import build_worker, get_ready, kv_cache_size
from parhelion.engine.core import StepExecutor
from parhelion.engine.drafts.choice import read_draft
from parhelion.engine.load import load_draft, load_model, needs_tables, states_passed_on
from parhelion.engine.loop import failure
from parhelion.engine.parent import end_with_parent, remove_what_is_left
from parhelion.engine.ranks.awaited_tokens import AwaitedTokens
from parhelion.engine.ranks.channel import RankChannel, Relay, Road
from parhelion.engine.ranks.messages import (
    ExecuteStep,
    Hello,
    Join,
    Leave,
    Loaded,
    RankOptions,
    Refused,
    Sampled,
    Serve,
    ToRank,
)
from parhelion.engine.ranks.placement import rank_device, rank_threads
from parhelion.engine.ranks.start import SHOW_STACKS
from parhelion.engine.step_result import PendingStep
from parhelion.errors import EngineDeadError, ModelNotFoundError, ParhelionError
from parhelion.models.resolve import resolve_model
from parhelion.platform.garbage import keep_for_good

ENDING_S = 1.0
"""How long a rank that has failed waits to see whether whoever started it has ended."""

_Message = TypeVar("_Message", Join, Serve, ExecuteStep)


class _Stopped(Exception):
    """Rank 0 has said that this is the end."""


def main() -> int:
    """Run the rank; returns the exit status."""
    # Rank 0 decides when to stop: a Ctrl-C in a terminal reaches all processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(SHOW_STACKS)
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=RankOptions)
    end_with_parent(options.parent, options.address)
    channel = RankChannel(options)
    ending_s = 0.0
    try:
        channel.send(Hello(options.rank, options.secret, os.uname().nodename))
        _serve(options, channel)
    except _Stopped:
        return 0
    except Exception as error:
        channel.send(failure(error))
        if not isinstance(error, ParhelionError) and os.getppid() == options.parent:
            traceback.print_exc()
        # It may have failed because rank 0 is ending.
        ending_s = ENDING_S
        return 1
    finally:
        # The group is not left: NCCL would wait for rank 0, which waits for this process to end.
        channel.close()
        remove_what_is_left(options.parent, options.address, ending_s)
    return 0


def _serve(options: RankOptions, channel: RankChannel) -> None:
    config = options.config
    torch.set_num_threads(rank_threads(config))
    model_path = path_here(options, options.model_path, config.model)
    chosen = None
    if options.draft_path is not None and config.draft_model is not None:
        chosen = read_draft(path_here(options, options.draft_path, config.draft_model))
    found = _next(channel, Join)
    device = rank_device(config, options.rank)
    there = found.store
    store = file_store(found.path, config.num_ranks) if there is None else reach_store(there, options.rank)
    place = take_place(store, options.rank, config.tp, config.pp, device, options.interface)
    # Draft models and heads are beside the last stage.
    own = chosen if place.stage == config.pp - 1 else None
    loaded = load_model(config, model_path, None, place.group, needs_tables(own), place.stage)
    draft, _ = load_draft(config, own, loaded)
    size = kv_cache_size(config, loaded.model, draft)
    channel.send(Loaded(size.num_blocks, size.max_model_len))
    serve = _next(channel, Serve)
    size = replace(size, num_blocks=serve.num_blocks, max_model_len=serve.max_model_len)
    passed_on = states_passed_on(chosen, loaded.model)
    worker = build_worker(config, loaded.model, size, loaded.resolver, draft, place.links, passed_on)
    worker.warm_up()
    get_ready(config, worker)
    answers = loaded.model.stage.is_last and place.stage > 0 and place.group.rank == 0
    awaited = AwaitedTokens(config.pp) if place.stage == 0 else None
    keep_for_good()
    if not answers or device.type == "cpu":
        run_steps(channel, worker, answers, awaited)
    with Relay(channel, device) as relay:
        run_steps(relay, worker, answers, awaited)


def run_steps(road: Road, worker: StepExecutor, answers: bool, awaited: AwaitedTokens | None = None) -> NoReturn:
    """Run the steps that rank 0 hands out, until it says that this is the end.

    Args:
        road: to rank 0.
        worker: this rank's.
        answers: rank 0 is told what the steps produced.
        awaited: tokens that steps wait for; None: those that this rank cannot do without are known to it.
    """
    before: PendingStep | None = None
    steps = _steps(road, awaited)
    while True:
        try:
            step = next(steps)
        except _Stopped:
            # Rank 0 still waits for this rank's part of it.
            if before is not None:
                before.wait()
            raise
        pending = worker.execute(step.plan, step.admitted)
        if answers:
            road.answer(step.plan.step, pending)
            continue
        # Where the device computes on its own, a step is waited for while the next one runs.
        if before is not None:
            before.wait()
        before = pending


def _steps(road: Road, awaited: AwaitedTokens | None) -> Iterator[ExecuteStep]:
    """Steps in their order, each as soon as it lacks nothing; what others have sampled comes between them."""
    told = deque[ExecuteStep]()
    while True:
        while told and (awaited is None or awaited.is_known(told[0].plan)):
            step = told.popleft()
            yield step if awaited is None else msgspec.structs.replace(step, plan=awaited.put_into(step.plan))
        message = road.receive()
        if isinstance(message, Sampled):
            if awaited is not None:
                awaited.take(message.step, message.token_ids)
            continue
        told.append(_expect(message, ExecuteStep))
        if awaited is not None:
            awaited.note(told[-1].plan)


def path_here(options: RankOptions, theirs: str, name: str) -> Path:
    """Where this host has a model: where rank 0 has it, or, on another host, where its name leads to there.

    Raises:
        ModelNotFoundError: it is not here, and cannot be fetched.
    """
    path = Path(theirs)
    if path.exists() or not options.server_key:
        return path
    try:
        return resolve_model(name)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"every machine needs the model, and {path} is not on this one: {error}") from None


def _next(road: Road, kind: type[_Message]) -> _Message:
    return _expect(road.receive(), kind)


def _expect(message: ToRank, kind: type[_Message]) -> _Message:
    if isinstance(message, kind):
        return message
    if isinstance(message, Leave):
        raise _Stopped
    if isinstance(message, Refused):
        raise EngineDeadError(f"rank 0 refused this rank: {message.message}")
    raise AssertionError(f"rank 0 sent {type(message).__name__} where {kind.__name__} belongs")


if __name__ == "__main__":
    result = main()
    # Nothing is left to do, and torch would take half a second to be torn down.
    sys.stderr.flush()
    os._exit(result)
