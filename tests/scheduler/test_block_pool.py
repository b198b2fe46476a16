"""Blocks are given out once, come back once, and cached ones go in the order of their release."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.scheduler.block_pool import BlockPool
from parhelion.scheduler.prefix_cache import PrefixCache


def test_every_block_is_given_out_once():
    pool = BlockPool(5, PrefixCache())
    assert sorted(pool.allocate(2) + pool.allocate(3)) == [0, 1, 2, 3, 4]
    assert pool.num_free == 0


def test_allocating_more_than_is_free_raises_and_changes_nothing():
    pool = BlockPool(2, PrefixCache())
    with pytest.raises(IndexError, match="3 blocks were asked for and 2 are free"):
        pool.allocate(3)
    assert pool.num_free == 2


def test_releasing_a_free_block_raises():
    pool = BlockPool(2, PrefixCache())
    with pytest.raises(IndexError, match="released more often"):
        pool.release([0])


def test_a_shared_block_is_free_only_after_its_last_holder():
    cache = PrefixCache()
    pool = BlockPool(1, cache)
    [block] = pool.allocate(1)
    cache.register(b"a", block)
    pool.retain([block])
    pool.release([block])
    assert pool.num_free == 0
    pool.release([block])
    assert (pool.num_free, pool.num_cached) == (1, 1)


def test_blank_blocks_go_before_cached_ones_and_tails_before_heads():
    cache = PrefixCache()
    pool = BlockPool(4, cache)
    first, second = pool.allocate(2), pool.allocate(2)
    for block in (*first, second[0]):
        cache.register(bytes([block]), block)
    pool.release(first)
    pool.release(second)
    assert pool.allocate(4) == [second[1], first[1], first[0], second[0]]
    assert len(cache) == 0


def test_a_cached_block_that_is_retained_keeps_its_content():
    cache = PrefixCache()
    pool = BlockPool(2, cache)
    blocks = pool.allocate(2)
    cache.register(b"a", blocks[0])
    pool.release(blocks)
    pool.retain([blocks[0]])
    assert pool.allocate(1) == [blocks[1]]
    assert cache.longest_prefix([b"a"], 1) == [blocks[0]]


@given(st.integers(1, 8), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=80))
def test_counts_agree_with_a_plain_model(num_blocks: int, moves: list[tuple[int, int]]):
    cache = PrefixCache()
    pool = BlockPool(num_blocks, cache)
    held: list[int] = []
    contents = 0
    for move, number in moves:
        if move == 0 and number <= pool.num_free:
            given_out = pool.allocate(number)
            assert not set(given_out) & set(held)
            held += given_out
        elif move == 1 and held:
            pool.release([held.pop(number % len(held))])
        elif move == 2 and held and (block := held[number % len(held)]) not in cache:
            cache.register(contents.to_bytes(4, "big"), block)
            contents += 1
        elif move == 3 and cache.hash_of:
            block = sorted(cache.hash_of)[number % len(cache)]
            pool.retain([block])
            held.append(block)
        counts = Counter(held)
        assert all(pool.num_holders(block) == counts[block] for block in range(num_blocks))
        assert pool.num_free == num_blocks - len(counts)
        assert set(pool.blank_blocks).isdisjoint(pool.cached_blocks)
        assert set(pool.cached_blocks) == set(cache.hash_of) - set(counts)
