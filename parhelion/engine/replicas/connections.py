"""Several engines as one: a ``Connection`` behind which each request goes to one of the replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from parhelion.config import EngineConfig
from parhelion.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineFailed,
    EngineInfo,
    FromEngine,
    GetStats,
    LoadProgress,
    Outputs,
    ReplicaStates,
    RequestRejected,
    RequestsLost,
    StatsReply,
    ToEngine,
)
from parhelion.engine.replicas.replica import Replica, ReplicaProcess, RestartPolicy
from parhelion.engine.replicas.routing import Router
from parhelion.engine.replicas.stats import of_all

logger = logging.getLogger("parhelion.engine")


@dataclass
class _Start:
    """What the replicas have said while none of them serves yet."""

    infos: dict[int, EngineInfo]
    progress: dict[int, LoadProgress]


class ReplicaConnections:
    """Starts ``config.dp`` engines, hands each request to one, and starts again what ends.

    It tells ``EngineInfo`` once all of them serve, and ``EngineFailed`` if one does not start at all or none is left
    that will be started again. Requests of a replica that ends are told as ``RequestsLost``: who asked for them knows
    whether they can be sent again.

    Args:
        config: all options.
        open_engine: starts the engine of a replica, by the options and its number.
        policy: when replicas are started again.
    """

    def __init__(
        self, config: EngineConfig, open_engine: Callable[[EngineConfig, int], ReplicaProcess], policy: RestartPolicy
    ) -> None:
        self._config = config
        self._open_engine = open_engine
        self._outputs: asyncio.Queue[FromEngine] = asyncio.Queue()
        self._router = Router(config)
        self._start: _Start | None = _Start({}, {})
        self._stats: dict[int, set[int]] = {}
        self._replicas = [Replica(number, self._open, self._hear, policy) for number in range(config.dp)]

    def send(self, message: ToEngine) -> None:
        match message:
            case AddRequest():
                self._add(message)
            case AbortRequests():
                self._abort(message.request_ids)
            case GetStats():
                self._ask_for_stats(message)

    async def receive(self) -> FromEngine:
        return await self._outputs.get()

    async def close(self) -> None:
        await asyncio.gather(*(replica.close() for replica in self._replicas))

    def _open(self, number: int) -> ReplicaProcess:
        return self._open_engine(self._config, number)

    def _add(self, request: AddRequest) -> None:
        number = self._router.place(request)
        if number is None:
            self._tell(RequestsLost([request.request_id], f"no replica serves: {self._why_none()}", others_serve=False))
        else:
            self._replicas[number].send(request)

    def _abort(self, request_ids: Sequence[str]) -> None:
        of_replica: dict[int, list[str]] = {}
        for request_id in request_ids:
            if (number := self._router.replica_of(request_id)) is not None:
                of_replica.setdefault(number, []).append(request_id)
                self._router.ended(request_id)
        for number, theirs in of_replica.items():
            self._replicas[number].send(AbortRequests(theirs))

    def _ask_for_stats(self, message: GetStats) -> None:
        self._stats[message.number] = set(self._router.replicas)
        for number in self._router.replicas:
            self._replicas[number].send(message)
        self._answer_stats()

    def _answer_stats(self) -> None:
        """Answer those questions that no replica has still to answer."""
        for number in [number for number, missing in self._stats.items() if not missing]:
            del self._stats[number]
            self._tell(StatsReply(number, of_all([replica.stats for replica in self._replicas])))

    def _tell(self, message: FromEngine) -> None:
        self._outputs.put_nowait(message)

    def _hear(self, replica: Replica, message: FromEngine) -> None:
        match message:
            case Outputs():
                for token in message.tokens:
                    if token.finish_reason is None:
                        self._router.began(token.request_id)
                    else:
                        self._router.ended(token.request_id)
                self._tell(message)
            case RequestRejected():
                self._router.ended(message.request_id)
                self._tell(message)
            case StatsReply():
                self._stats.get(message.number, set()).discard(replica.number)
                self._answer_stats()
            case LoadProgress():
                self._add_progress(replica, message)
            case ReplicaStates():
                self._tell_states()
            case EngineInfo():
                self._join(replica, message)
            case EngineFailed():
                self._leave(replica, message)

    def _add_progress(self, replica: Replica, message: LoadProgress) -> None:
        """All replicas read the same tensors; only the first start is waited for."""
        if self._start is not None:
            self._start.progress[replica.number] = message
            done = sum(each.done for each in self._start.progress.values())
            self._tell(LoadProgress(done, message.total * len(self._replicas)))

    def _join(self, replica: Replica, info: EngineInfo) -> None:
        self._router.join(replica.number, info.num_blocks)
        if self._start is None:
            logger.info("%s serves again", _name(replica))
        else:
            self._start.infos[replica.number] = info
            if len(self._start.infos) < len(self._replicas):
                return
            infos, self._start = self._start.infos, None
            max_model_len = min(each.max_model_len for each in infos.values())
            # Requests are taken up to this length, so one that is started again with less room must not serve.
            self._config = replace(self._config, max_model_len=max_model_len)
            self._tell(msgspec.structs.replace(infos[0], max_model_len=max_model_len))
        self._tell_states()

    def _leave(self, replica: Replica, failure: EngineFailed) -> None:
        number, state = replica.number, replica.state
        why = f"replica {number}: {failure.message}"
        if self._start is not None:
            self._tell(EngineFailed(failure.kind, why))
            return
        lost = self._router.leave(number)
        left = len(self._router.replicas)
        then = "is given up" if state.retry_s is None else f"starts again in {state.retry_s:g} s"
        logger.warning("%s; it %s; %d of %d replicas serve", why, then, left, len(self._replicas))
        if lost:
            self._tell(RequestsLost(lost, why, others_serve=left > 0))
        for missing in self._stats.values():
            missing.discard(number)
        self._answer_stats()
        self._tell_states()
        if all(each.state.status == "given_up" for each in self._replicas):
            self._tell(EngineFailed("EngineDeadError", f"all replicas are given up: {self._why_none()}"))

    def _tell_states(self) -> None:
        if self._start is None:
            self._tell(ReplicaStates([replica.state for replica in self._replicas]))

    def _why_none(self) -> str:
        """What became of each replica."""
        return "; ".join(
            f"replica {state.replica} is {state.status.replace('_', ' ')}"
            + (f" ({state.error})" if state.error else "")
            for state in (replica.state for replica in self._replicas)
        )


def _name(replica: Replica) -> str:
    return f"replica {replica.number} (process {replica.state.process})"
