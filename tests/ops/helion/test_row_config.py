"""The untuned configs of row kernels."""

from __future__ import annotations

import pytest

from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import launch_module
from parhelion.ops.registry import has_programs, op, op_names
from parhelion.ops.row_config import chunk_config, row_config


@pytest.mark.parametrize("row_elements", [64, 576, 2048, 4096, 5120, 25600, 51200])
@pytest.mark.parametrize("num_rows", [1, 128, 129, 8192])
def test_a_program_holds_one_row_and_at_most_as_many_warps_as_every_target_has(row_elements: int, num_rows: int):
    config = row_config(row_elements, num_rows)
    assert config.block_sizes == (1,)
    assert config.num_warps in (1, 2, 4, 8, 16)


def test_few_rows_are_spread_over_twice_the_threads():
    assert (row_config(2048, 1).num_warps, row_config(2048, 4096).num_warps) == (8, 4)


@pytest.mark.parametrize("row_chunks", [1, 3, 32, 40, 200])
@pytest.mark.parametrize("num_rows", [1, 64, 8192])
def test_a_program_takes_no_more_than_the_chunks_of_a_row(row_chunks: int, num_rows: int):
    config = chunk_config(num_rows, row_chunks, 128)
    rows, chunks = config.block_sizes
    assert rows == 1
    assert chunks <= min(16, 2 * row_chunks - 1 if row_chunks > 1 else 1)
    assert config.num_warps * 32 * 16 >= chunks * 128 or config.num_warps == 1


def test_configs_of_equal_shape_are_equal_so_that_runners_compile_once():
    assert row_config(4096, 256) == row_config(4096, 8192)
    assert chunk_config(1, 32, 128) == chunk_config(2, 32, 128)


@pytest.mark.parametrize("op_name", op_names())
@pytest.mark.parametrize("bucket", [1, 16, 256, 8192])
def test_the_untuned_config_is_the_first_candidate_and_none_is_listed_twice(op_name: str, bucket: int):
    launch, target = launch_module(op_name), gemm_target("sm_90")
    for contract in op(op_name).examples:
        found = launch.candidates(contract, bucket, target)
        if not has_programs(contract, bucket, "sm_90"):
            assert found == []
            continue
        assert found[0] == launch.default_config(contract, bucket, target)
        assert len(found) == len(set(found))
