"""Replicas of which a test decides what they say and when they end: who gets what, and when they start again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from parhelion.config import EngineConfig
from parhelion.engine.messages import (
    AbortRequests,
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
    TokenOutput,
)
from parhelion.engine.replicas.connections import ReplicaConnections
from parhelion.engine.replicas.replica import RestartPolicy
from parhelion.types import EngineStats, ReplicaState, ReplicaStatus

from .requests import add_request, engine_info

PATIENCE_S = 5.0
QUICK = RestartPolicy(first_s=0.001, most_s=0.004, most_failed_starts=4)
KILLED = EngineFailed("EngineDeadError", "the engine's process 7 was killed by SIGKILL")


class Engine:
    """One start of one replica."""

    def __init__(self, config: EngineConfig, number: int) -> None:
        self.config = config
        self.number = number
        self.pid = 100 + number
        self.sent: list[ToEngine] = []
        self.is_closed = False
        self._said: asyncio.Queue[FromEngine] = asyncio.Queue()

    def says(self, *messages: FromEngine) -> None:
        for message in messages:
            self._said.put_nowait(message)

    def send(self, message: ToEngine) -> None:
        assert not self.is_closed
        self.sent.append(message)

    async def receive(self) -> FromEngine:
        return await self._said.get()

    async def close(self) -> None:
        self.is_closed = True


class Scene:
    """``dp`` replicas behind one connection.

    Attributes:
        started: every start, in order.
    """

    def __init__(self, policy: RestartPolicy = QUICK, dp: int = 2, refuse: Exception | None = None) -> None:
        self.started: list[Engine] = []
        self.refuse = refuse
        config = EngineConfig(model="any", device="cpu", dp=dp, block_size=4)
        self.connection = ReplicaConnections(config, self._open, policy)

    def _open(self, config: EngineConfig, number: int) -> Engine:
        if self.refuse is not None:
            raise self.refuse
        self.started.append(Engine(config, number))
        return self.started[-1]

    async def engine(self, index: int) -> Engine:
        """The start of that index, once it has come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.started) <= index:
                await asyncio.sleep(0.001)
        return self.started[index]

    async def hear(self, kind: type[Any]) -> Any:
        """The next message of a kind; those before it are passed over."""
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(message := await self.connection.receive(), kind):
                pass
        return message

    async def hear_states(self, replica: int, status: ReplicaStatus) -> list[ReplicaState]:
        """Those of all replicas, once one of them has this status."""
        while (states := (await self.hear(ReplicaStates)).replicas)[replica].status != status:
            pass
        return states

    async def serve(self) -> list[Engine]:
        """All replicas, once they serve."""
        engines = [await self.engine(index) for index in range(2)]
        for engine in engines:
            engine.says(info())
        await self.hear(ReplicaStates)
        return engines


def info(max_model_len: int = 64, num_blocks: int = 100) -> EngineInfo:
    return msgspec.structs.replace(engine_info(max_model_len=max_model_len), num_blocks=num_blocks)


def token(name: str, finish: bool = False) -> Outputs:
    return Outputs([TokenOutput(name, 5, "length" if finish else None)])


def play(act: Callable[[Scene], Awaitable[None]], scene: Callable[[], Scene] = Scene) -> None:
    """Run a scene; at its end every engine that was started has been ended."""

    async def run() -> None:
        made = scene()
        try:
            await act(made)
        finally:
            await made.connection.close()
        assert all(engine.is_closed for engine in made.started)

    asyncio.run(run())


def test_ready_is_when_all_are_and_the_shortest_length_counts() -> None:
    async def act(scene: Scene) -> None:
        one, other = await scene.engine(0), await scene.engine(1)
        one.says(LoadProgress(3, 10), info(64))
        assert await scene.hear(LoadProgress) == LoadProgress(3, 20)
        other.says(LoadProgress(5, 10), info(48))
        assert await scene.hear(LoadProgress) == LoadProgress(8, 20)
        assert (await scene.hear(EngineInfo)).max_model_len == 48
        states = (await scene.hear(ReplicaStates)).replicas
        assert [(each.replica, each.serves, each.process) for each in states] == [(0, True, 100), (1, True, 101)]

    play(act)


def test_one_that_does_not_start_is_named_and_not_started_again() -> None:
    async def act(scene: Scene) -> None:
        (await scene.engine(0)).says(info())
        (await scene.engine(1)).says(EngineFailed("ConfigError", "no such device"))
        assert await scene.hear(EngineFailed) == EngineFailed("ConfigError", "replica 1: no such device")
        await asyncio.sleep(0.02)
        assert len(scene.started) == 2

    play(act)


def test_a_process_that_cannot_be_made_is_a_failed_start() -> None:
    async def act(scene: Scene) -> None:
        failed = await scene.hear(EngineFailed)
        assert failed.message.startswith("replica 0: ")
        assert "OSError: too many open files" in failed.message

    play(act, lambda: Scene(refuse=OSError("too many open files")))


def test_requests_and_their_ends_go_to_the_replica_that_has_them() -> None:
    async def act(scene: Scene) -> None:
        one, other = await scene.serve()
        requests = [add_request(f"{name}/0", [first] * 9) for name, first in (("a", 1), ("b", 2), ("c", 3))]
        for request in requests:
            scene.connection.send(request)
        assert (one.sent, other.sent) == ([requests[0], requests[2]], [requests[1]])
        other.says(token("b/0", finish=True))
        assert await scene.hear(Outputs) == token("b/0", finish=True)
        one.says(RequestRejected("c/0", True, "full", None))
        assert (await scene.hear(RequestRejected)).request_id == "c/0"
        scene.connection.send(AbortRequests(["a/0", "b/0", "c/0", "d/0"]))
        assert one.sent[-1] == AbortRequests(["a/0"])
        assert other.sent == [requests[1]]

    play(act)


def test_an_end_loses_its_own_requests_only_and_the_next_start_asks_for_the_length_that_was_promised() -> None:
    async def act(scene: Scene) -> None:
        one, other = await scene.serve()
        for name in "abc":
            scene.connection.send(add_request(f"{name}/0", [ord(name)] * 9))
        assert len(one.sent) == 2
        one.says(token("a/0"), token("c/0", finish=True), KILLED)
        lost = await scene.hear(RequestsLost)
        assert lost == RequestsLost(["a/0"], f"replica 0: {KILLED.message}", others_serve=True)
        (waiting, serving) = await scene.hear_states(0, "waiting")
        assert (waiting.status, waiting.process, waiting.error) == ("waiting", None, KILLED.message)
        assert serving.serves
        scene.connection.send(add_request("d/0", [4] * 9))
        assert len(other.sent) == 2
        again = await scene.engine(2)
        assert one.is_closed
        (starting, _) = await scene.hear_states(0, "starting")
        assert (starting.process, starting.retry_s) == (100, None)
        assert (again.number, one.config.max_model_len, again.config.max_model_len) == (0, None, 64)
        again.says(info())
        (back, _) = await scene.hear_states(0, "serving")
        assert (back.serves, back.restarts, back.error) == (True, 1, KILLED.message)
        scene.connection.send(add_request("e/0", [5] * 9))
        assert len(again.sent) == 1

    play(act)


def test_without_any_a_request_is_lost_at_once_with_all_the_reasons() -> None:
    async def act(scene: Scene) -> None:
        for engine in await scene.serve():
            engine.says(KILLED)
        await scene.hear_states(1, "waiting")
        scene.connection.send(add_request("a/0", [1] * 9))
        lost = await scene.hear(RequestsLost)
        assert (lost.request_ids, lost.others_serve) == (["a/0"], False)
        assert lost.message.count(f"({KILLED.message})") == 2

    play(act, lambda: Scene(RestartPolicy(first_s=60)))


def test_the_wait_doubles_up_to_its_limit_and_too_many_failed_starts_end_it_all() -> None:
    async def act(scene: Scene) -> None:
        engines = await scene.serve()
        waits: dict[int, list[float | None]] = {0: [], 1: []}
        for index in range(10):
            engine = engines[index] if index < 2 else await scene.engine(index)
            engine.says(EngineFailed("OutOfMemoryError", "no memory"))
            states = await scene.hear_states(engine.number, "waiting" if index < 8 else "given_up")
            waits[engine.number].append(states[engine.number].retry_s)
        assert waits[0] == waits[1] == [0.001, 0.002, 0.004, 0.004, None]
        failed = await scene.hear(EngineFailed)
        assert failed.message == (
            "all replicas are given up: replica 0 is given up (no memory); replica 1 is given up (no memory)"
        )
        assert len(scene.started) == 10

    play(act)


def test_the_wait_is_short_again_after_it_has_served_long_enough() -> None:
    async def act(scene: Scene) -> None:
        (one, _) = await scene.serve()
        one.says(KILLED)
        for index in range(2, 5):
            again = await scene.engine(index)
            again.says(info())
            assert (await scene.hear_states(0, "waiting"))[0].retry_s == 0.001
            await scene.hear_states(0, "serving")
            again.says(KILLED)

    play(act, lambda: Scene(RestartPolicy(first_s=0.001, most_s=60, steady_s=0)))


def test_totals_go_on_where_a_replica_is_started_again() -> None:
    async def act(scene: Scene) -> None:
        one, other = await scene.serve()

        async def stats(*each: tuple[Engine, int]) -> EngineStats:
            scene.connection.send(GetStats(1))
            for engine, count in each:
                assert engine.sent[-1] == GetStats(1)
                engine.says(StatsReply(1, EngineStats(num_running=count, steps_total=count, speculation_gain=count)))
            reply: StatsReply = await scene.hear(StatsReply)
            assert reply.number == 1
            return reply.stats

        both = await stats((one, 3), (other, 5))
        assert (both.num_running, both.steps_total, both.speculation_gain) == (8, 8, 4.0)
        one.says(KILLED)
        await scene.hear_states(0, "waiting")
        left = await stats((other, 6))
        assert (left.num_running, left.steps_total, left.speculation_gain) == (6, 9, 6.0)
        again = await scene.engine(2)
        again.says(info())
        await scene.hear_states(0, "serving")
        back = await stats((again, 1), (other, 6))
        assert (back.num_running, back.steps_total) == (7, 10)
        assert [(each.state.replica, each.stats.steps_total) for each in back.replicas] == [(0, 4), (1, 6)]

    play(act)


def test_a_question_is_answered_though_one_of_those_asked_has_ended() -> None:
    async def act(scene: Scene) -> None:
        one, other = await scene.serve()
        scene.connection.send(GetStats(9))
        other.says(StatsReply(9, EngineStats(num_waiting=2)))
        one.says(KILLED)
        assert (await scene.hear(StatsReply)).stats.num_waiting == 2

    play(act)
