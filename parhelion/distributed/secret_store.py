"""A rank's end of the store at which ranks of several hosts meet, as torch asks for one.

Torch calls a store written in Python from whatever thread it needs it in, with Python's lock, and finds it only as long
as Python has it: whoever has joined a group through it keeps it until the group has been left.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec
import torch.distributed as dist
import zmq

from parhelion.distributed.store_messages import (
    Add,
    Answer,
    Asked,
    Check,
    CompareSet,
    Count,
    Delete,
    Failed,
    Get,
    Missing,
    Number,
    Request,
    Set,
    StorePlace,
    Values,
)

ANSWER_S = 30.0
"""How long an answer may take beyond what the store waits for keys."""

_CLOSED = "has let go of it"

_Kind = TypeVar("_Kind", Values, Number)


class SecretStore(dist.Store):  # type: ignore[misc]  # torch's types are not followed
    """Any thread may use it: a socket is one request's at a time.

    Args:
        place: of the store.
        rank: of this process.
        timeout: how long a key is waited for; torch may change it.
        answer_s: see ``ANSWER_S``.

    Its methods raise ``DistStoreError``: a key is not set in time, the store does not answer, or it does not want to.
    """

    def __init__(self, place: StorePlace, rank: int, timeout: timedelta, answer_s: float = ANSWER_S) -> None:
        super().__init__()
        self.set_timeout(timeout)
        self._place = place
        self._rank = rank
        self._host = os.uname().nodename
        self._answer_s = answer_s
        self._context = zmq.Context()
        self._lock = threading.Lock()
        self._free: list[zmq.Socket[bytes]] = []
        self._is_closed = False

    def set(self, key: str, value: bytes | str) -> None:
        """Let a key have a value."""
        self._ask(Set(key, _bytes(value)), Values)

    def get(self, key: str) -> bytes:
        """A key's value; waits for it."""
        return self._wait((key,), self.timeout)[0]

    def add(self, key: str, amount: int) -> int:
        """Add to a key's number, which is 0 at first; returns the sum."""
        return self._ask(Add(key, amount), Number).value

    def compare_set(self, key: str, expected: bytes | str, desired: bytes | str) -> bytes:
        """Let a key that has the expected value, or none where nothing is expected, have another; returns its own."""
        return self._ask(CompareSet(key, _bytes(expected), _bytes(desired)), Values).values[0]

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all keys are there."""
        return bool(self._ask(Check(tuple(keys)), Number).value)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are there.

        Args:
            timeout: instead of the store's own.
        """
        self._wait(tuple(keys), self.timeout if timeout is None else timeout)

    def clone(self) -> SecretStore:
        """Threads need no stores of their own."""
        return self

    # What torch calls ``num_keys`` and ``delete_key``, it looks for under these names.

    def getNumKeys(self) -> int:
        """How many keys there are."""
        return self._ask(Count(), Number).value

    def deleteKey(self, key: str) -> bool:
        """Forget a key; whether it was there."""
        return bool(self._ask(Delete(key), Number).value)

    def close(self) -> None:
        """Let go of the store; requests under way fail."""
        with self._lock:
            self._is_closed = True
            for each in self._free:
                each.close()
            self._free.clear()
        self._context.term()

    def _wait(self, keys: tuple[str, ...], timeout: timedelta) -> tuple[bytes, ...]:
        # To torch no time at all is no limit.
        limit_s = timeout.total_seconds() or None
        return self._ask(Get(keys, limit_s), Values, limit_s).values

    def _ask(self, request: Request, kind: type[_Kind], wait_s: float | None = 0.0) -> _Kind:
        """The answer to a request.

        Args:
            kind: that it is of.
            wait_s: how long the store may wait for keys; None: for ever.
        """
        answer = self._answer(request, None if wait_s is None else wait_s + self._answer_s)
        if isinstance(answer, kind):
            return answer
        if isinstance(answer, Missing):
            hosts = ", ".join(f"{rank} ({host})" for rank, host in sorted(answer.hosts.items()))
            raise self._error(f"has waited {wait_s:g} s for {', '.join(answer.keys)}; ranks seen there: {hosts}")
        raise self._error(f"is refused: {answer.message}" if isinstance(answer, Failed) else f"was told {answer}")

    def _answer(self, request: Request, limit_s: float | None) -> Answer:
        socket, answered = self._taken(), False
        try:
            socket.send(msgspec.msgpack.encode(Asked(self._place.secret, self._rank, self._host, request)))
            if not socket.poll(None if limit_s is None else int(1000 * limit_s)):
                raise self._error(f"has had no answer for {limit_s:g} s: it has ended, is cut off, or has another key")
            answer: Answer = msgspec.msgpack.decode(socket.recv(), type=Answer)
            answered = True
        except zmq.ContextTerminated:
            raise self._error(_CLOSED) from None
        finally:
            self._give_back(socket, answered)
        return answer

    def _taken(self) -> zmq.Socket[bytes]:
        """A connected socket that nobody else uses."""
        with self._lock:
            if self._is_closed:
                raise self._error(_CLOSED)
            if self._free:
                return self._free.pop()
            socket = self._context.socket(zmq.REQ)
            socket.setsockopt(zmq.LINGER, 0)
            socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
            socket.curve_serverkey = self._place.server_key.encode()
            socket.connect(self._place.address)
            return socket

    def _give_back(self, socket: zmq.Socket[bytes], answered: bool) -> None:
        with self._lock:
            # The answer to what was given up may still come.
            if answered and not self._is_closed:
                self._free.append(socket)
                return
        socket.close()

    def _error(self, what: str) -> Exception:
        place = f"the ranks' store on {self._place.host} ({self._place.address})"
        error: Exception = dist.DistStoreError(f"rank {self._rank} on {self._host}, at {place}, {what}")
        return error


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
