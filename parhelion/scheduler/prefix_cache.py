"""Which block holds which tokens: full blocks, found by the hash of their tokens and of all before them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from types import MappingProxyType

HASH_BYTES = 32
"""Long enough that nobody finds two prefixes with one hash, even on purpose."""

_NO_PARENT = bytes(HASH_BYTES)


def extend_hashes(hashes: list[bytes], token_ids: Sequence[int], block_size: int, num_blocks: int) -> None:
    """Append hashes until there is one for each of the first ``num_blocks`` blocks of ``token_ids``.

    A block's hash covers its parent's hash and its own ids as int32, so equal hashes mean equal prefixes.
    """
    first = len(hashes)
    if first >= num_blocks:
        return
    packed = array("i", token_ids[first * block_size : num_blocks * block_size]).tobytes()
    stride = 4 * block_size
    parent = hashes[-1] if hashes else _NO_PARENT
    for offset in range(0, len(packed), stride):
        parent = blake2b(parent + packed[offset : offset + stride], digest_size=HASH_BYTES).digest()
        hashes.append(parent)


class PrefixCache:
    """A one-to-one table of block hashes and blocks. It owns no block: the pool says when content is lost."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._hash_of

    def __len__(self) -> int:
        return len(self._hash_of)

    @property
    def block_of(self) -> Mapping[bytes, int]:
        """Hash to block, to read."""
        return MappingProxyType(self._block_of)

    @property
    def hash_of(self) -> Mapping[int, bytes]:
        """Block to hash, to read."""
        return MappingProxyType(self._hash_of)

    def longest_prefix(self, hashes: Sequence[bytes], num_blocks: int) -> list[int]:
        """The blocks that hold the longest cached prefix of the first ``num_blocks`` hashes."""
        found: list[int] = []
        for index in range(num_blocks):
            block_id = self._block_of.get(hashes[index])
            if block_id is None:
                break
            found.append(block_id)
        return found

    def register(self, block_hash: bytes, block_id: int) -> None:
        """Say what a block holds. The first block with a content stays; a second one remains private."""
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block_id
            self._hash_of[block_id] = block_hash

    def forget(self, block_id: int) -> None:
        """The block's content is about to be overwritten."""
        del self._block_of[self._hash_of.pop(block_id)]
