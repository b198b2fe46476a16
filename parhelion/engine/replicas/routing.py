"""Which replica a request goes to: where its prefix is cached and little waits before it. Ids and counts only."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from parhelion.config import EngineConfig
from parhelion.engine.messages import AddRequest, siblings_of
from parhelion.scheduler.prefix_cache import extend_hashes

REQUEST_TOKENS = 64
"""What an unfinished request weighs beside prompt tokens that are still to be computed: it lengthens every step."""


class GivenPrefixes:
    """The prefixes that a replica was given, by the hashes under which its prefix cache keeps their blocks.

    It may believe cached what the replica has overwritten since, and does not know what was generated there.

    Args:
        capacity: blocks to remember, the most recent ones: as many as the replica has.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._hashes)

    def num_known(self, hashes: Sequence[bytes]) -> int:
        """How many of the leading blocks it was given."""
        for index, each in enumerate(hashes):
            if each not in self._hashes:
                return index
        return len(hashes)

    def note(self, hashes: Sequence[bytes]) -> None:
        """It is given these blocks, in order of position."""
        # From the last to the first, so that a prefix outlives what follows it.
        for each in reversed(hashes):
            self._hashes[each] = None
            self._hashes.move_to_end(each)
        while len(self._hashes) > self._capacity:
            self._hashes.popitem(last=False)


@dataclass(slots=True)
class _Place:
    """Where a request is.

    Attributes:
        num_pending: prompt tokens to be computed, as far as is known; 0 once a token has come.
    """

    replica: int
    num_pending: int


@dataclass(slots=True)
class _Queue:
    """What a replica has to do, and what it has done."""

    prefixes: GivenPrefixes
    num_pending: int = 0
    last_given: int = -1
    requests: dict[str, None] = field(default_factory=dict)

    @property
    def load(self) -> int:
        """In tokens."""
        return self.num_pending + REQUEST_TOKENS * len(self.requests)


class Router:
    """Places requests and remembers where they are.

    The score of a replica is the length of the longest prefix that it was given, in tokens, less its load: the prompt
    tokens that it still has to compute, and 64 for each of its unfinished requests. The highest score wins, and of
    equal ones the replica that was given a request the longest ago. But no score makes a request wait for others to
    end, or be refused, where another replica has room.

    Args:
        config: block_size and enable_prefix_caching say what may be found cached, max_num_seqs and max_queue_len how
            many requests of a replica run, and wait.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._block_size = config.block_size
        self._caching = config.enable_prefix_caching
        self._most_running = config.max_num_seqs
        self._most_unfinished = config.max_num_seqs + config.max_queue_len
        self._queues: dict[int, _Queue] = {}
        self._places: dict[str, _Place] = {}
        self._siblings: dict[str, list[int]] = {}
        self._num_given = 0

    @property
    def replicas(self) -> list[int]:
        """Those that requests may go to."""
        return list(self._queues)

    def join(self, replica: int, num_blocks: int) -> None:
        """A replica serves from now on; its prefix cache, of so many blocks, is empty."""
        self._queues[replica] = _Queue(GivenPrefixes(num_blocks))

    def leave(self, replica: int) -> list[str]:
        """A replica serves no more. Returns the requests that it had."""
        queue = self._queues.pop(replica, None)
        lost = list(queue.requests) if queue is not None else []
        for request_id in lost:
            self._forget(request_id)
        return lost

    def place(self, request: AddRequest) -> int | None:
        """Choose the replica of a new request; None if there is none. Completions of one request stay together."""
        if not self._queues:
            return None
        hashes = self._hashes(request)
        siblings = self._siblings.get(siblings_of(request.request_id))
        replica = siblings[0] if siblings else self._best(hashes)
        queue = self._queues[replica]
        pending = len(request.prompt_token_ids) - self._cached_tokens(queue, hashes)
        queue.prefixes.note(hashes)
        queue.num_pending += pending
        queue.requests[request.request_id] = None
        queue.last_given = self._num_given
        self._num_given += 1
        self._places[request.request_id] = _Place(replica, pending)
        self._siblings.setdefault(siblings_of(request.request_id), []).append(replica)
        return replica

    def replica_of(self, request_id: str) -> int | None:
        """Where an unfinished request is."""
        place = self._places.get(request_id)
        return None if place is None else place.replica

    def began(self, request_id: str) -> None:
        """A token of it has come: its prompt is computed."""
        place = self._places.get(request_id)
        if place is not None and place.num_pending:
            self._queues[place.replica].num_pending -= place.num_pending
            place.num_pending = 0

    def ended(self, request_id: str) -> None:
        """It runs no more."""
        place = self._places.get(request_id)
        if place is not None:
            self.began(request_id)
            del self._queues[place.replica].requests[request_id]
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        del self._places[request_id]
        name = siblings_of(request_id)
        self._siblings[name].pop()
        if not self._siblings[name]:
            del self._siblings[name]

    def _hashes(self, request: AddRequest) -> list[bytes]:
        """Of the blocks that may be found cached: at least one token of a prompt is computed."""
        hashes: list[bytes] = []
        if self._caching and request.params.prompt_logprobs is None:
            tokens = request.prompt_token_ids
            extend_hashes(hashes, tokens, self._block_size, (len(tokens) - 1) // self._block_size)
        return hashes

    def _best(self, hashes: Sequence[bytes]) -> int:
        def rank(replica: int) -> tuple[int, int, int]:
            queue = self._queues[replica]
            num_unfinished = len(queue.requests)
            room = (num_unfinished < self._most_running) + (num_unfinished < self._most_unfinished)
            return room, self._cached_tokens(queue, hashes) - queue.load, -queue.last_given

        return max(self._queues, key=rank)

    def _cached_tokens(self, queue: _Queue, hashes: Sequence[bytes]) -> int:
        return queue.prefixes.num_known(hashes) * self._block_size
