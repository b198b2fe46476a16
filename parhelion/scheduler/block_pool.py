"""Who holds which KV block: reference counts, and which free block is given out next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from parhelion.scheduler.prefix_cache import PrefixCache


class BlockPool:
    """``num_blocks`` blocks, each held by any number of requests.

    A block that nobody holds is blank, or cached if the prefix cache knows its content. Blank ones are given out
    first, then cached ones, the least recently released first.
    """

    def __init__(self, num_blocks: int, cache: PrefixCache) -> None:
        self._cache = cache
        self._num_holders = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        return len(self._num_holders)

    @property
    def num_free(self) -> int:
        """Blocks that ``allocate`` can give out."""
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds but whose content may be reused."""
        return len(self._cached)

    @property
    def blank_blocks(self) -> tuple[int, ...]:
        """Free blocks without content, last to be given out first."""
        return tuple(self._blank)

    @property
    def cached_blocks(self) -> tuple[int, ...]:
        """Free blocks with content, first to be given out first."""
        return tuple(self._cached)

    def num_holders(self, block_id: int) -> int:
        """The block's reference count."""
        return self._num_holders[block_id]

    def count_free(self, block_ids: Sequence[int]) -> int:
        """How many of these blocks nobody holds."""
        return sum(1 for block_id in block_ids if not self._num_holders[block_id])

    def allocate(self, count: int) -> list[int]:
        """Give out blocks, each with one holder; content of cached ones is forgotten.

        Raises:
            IndexError: fewer blocks are free; the caller must look at ``num_free`` first.
        """
        if count > self.num_free:
            raise IndexError(f"{count} blocks were asked for and {self.num_free} are free")
        given: list[int] = []
        for _ in range(count):
            if self._blank:
                block_id = self._blank.pop()
            else:
                block_id, _none = self._cached.popitem(last=False)
                self._cache.forget(block_id)
            self._num_holders[block_id] = 1
            given.append(block_id)
        return given

    def retain(self, block_ids: Sequence[int]) -> None:
        """One more holder for each of these blocks, whose content the prefix cache knows."""
        for block_id in block_ids:
            if not self._num_holders[block_id]:
                del self._cached[block_id]
            self._num_holders[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One holder fewer for each of these blocks, given in order of position.

        They are let go from the last to the first, so that a prefix outlives what follows it.
        """
        for block_id in reversed(block_ids):
            holders = self._num_holders[block_id] - 1
            if holders < 0:
                raise IndexError(f"block {block_id} was released more often than it was given out")
            self._num_holders[block_id] = holders
            if holders:
                continue
            if block_id in self._cache:
                self._cached[block_id] = None
            else:
                self._blank.append(block_id)
