"""The KV blocks of requests: finding a cached prefix, growing, letting go, and making content known."""

from __future__ import annotations

from collections.abc import Sequence

from parhelion.scheduler.block_pool import BlockPool
from parhelion.scheduler.prefix_cache import PrefixCache, extend_hashes
from parhelion.scheduler.request import NEVER, Request


class KVBlocks:
    """Ties the block pool and the prefix cache to the requests that hold blocks."""

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.block_size = block_size
        self.cache = PrefixCache()
        self.pool = BlockPool(num_blocks, self.cache)
        self._caching = enable_prefix_caching

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-num_tokens // self.block_size)

    def looks_up(self, request: Request) -> bool:
        """Whether a cached prefix may serve this request."""
        return self._caching and request.use_prefix_cache_lookup

    def find_prefix(self, request: Request) -> list[int]:
        """Blocks with the longest cached prefix of its known tokens; at least one token is left to compute."""
        if not self.looks_up(request):
            return []
        num_blocks = (len(request.token_ids) - 1) // self.block_size
        extend_hashes(request.block_hashes, request.token_ids, self.block_size, num_blocks)
        return self.cache.longest_prefix(request.block_hashes, num_blocks)

    def num_free_beside(self, prefix: Sequence[int]) -> int:
        """Blocks that are free once the prefix is held."""
        return self.pool.num_free - self.pool.count_free(prefix)

    def start(self, request: Request, prefix: list[int]) -> None:
        """Let a request that holds nothing begin with a cached prefix."""
        self.pool.retain(prefix)
        request.blocks = prefix
        request.num_computed = len(prefix) * self.block_size
        request.num_registered = len(prefix)
        request.next_registration = (len(prefix) + 1) * self.block_size if self._caching else NEVER

    def grow(self, request: Request, num_tokens: int) -> tuple[int, ...]:
        """Add the blocks that it lacks to hold ``num_tokens`` and return them; that many must be free."""
        lacking = self.blocks_for(num_tokens) - len(request.blocks)
        if lacking <= 0:
            return ()
        added = self.pool.allocate(lacking)
        request.blocks += added
        return tuple(added)

    def room(self, request: Request, num_kept: int) -> int:
        """Tokens that it could hold if so many blocks had to stay free."""
        return (len(request.blocks) + max(0, self.pool.num_free - num_kept)) * self.block_size

    def release(self, request: Request) -> None:
        """Take all blocks from a request. Those with known content can be found until they are overwritten."""
        self.pool.release(request.blocks)
        request.blocks = []
        request.num_computed = 0
        request.num_registered = 0
        request.next_registration = NEVER

    def register_computed(self, request: Request, num_tokens: int) -> None:
        """Make its full blocks known, now that its first ``num_tokens`` tokens are known and their KV written."""
        full = num_tokens // self.block_size
        extend_hashes(request.block_hashes, request.token_ids, self.block_size, full)
        for index in range(request.num_registered, full):
            self.cache.register(request.block_hashes[index], request.blocks[index])
        request.num_registered = full
        request.next_registration = (full + 1) * self.block_size
