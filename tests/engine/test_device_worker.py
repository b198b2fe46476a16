"""The worker of GPUs, run on a CPU without graphs, hands out the same tokens as the worker of CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.core import EngineCore
from parhelion.engine.device_sampling import uniform
from parhelion.engine.device_worker import DeviceWorker, DeviceWorkerOptions
from parhelion.engine.kv_storage import plan_kv_cache
from parhelion.engine.load import load_model
from parhelion.engine.messages import AddRequest
from parhelion.engine.sampler import uniform as host_uniform
from parhelion.engine.step_layout import Bucket, StepRows, buckets_up_to, num_ints, pack, pad_to, view_ints
from parhelion.engine.worker import Worker
from parhelion.scheduler import SchedulerConfig
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.requests import add_request

BLOCK_SIZE, MAX_SEQS, MAX_LEN, BUDGET = 4, 5, 96, 24
# On a CPU these have no provider for padded steps but the reference.
KERNELS = ("paged_attention=reference", "rope_and_cache=reference")


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama-for-workers")
    TINY_MODELS[0].write(folder)
    return folder


def _core(folder: Path, on_device: bool, overlap: bool, num_blocks: int, max_num_seqs: int = MAX_SEQS) -> EngineCore:
    config = EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        block_size=BLOCK_SIZE,
        max_model_len=MAX_LEN,
        max_num_seqs=max_num_seqs,
        kernels=KERNELS if on_device else (),
        kv_cache_memory=1 << 22,
    )
    loaded = load_model(config, folder)
    size = plan_kv_cache(config, loaded.model.config, loaded.model.dtype, 1 << 30)
    worker: Any
    if on_device:
        worker = DeviceWorker(
            loaded.model, size, DeviceWorkerOptions(BLOCK_SIZE, max_num_seqs, BUDGET, use_graphs=False), loaded.resolver
        )
    else:
        worker = Worker(loaded.model, size, BLOCK_SIZE, max_num_seqs)
    worker.warm_up()
    limits = SchedulerConfig(
        num_blocks=min(num_blocks, size.num_blocks),
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=BUDGET,
        max_model_len=MAX_LEN,
        max_queue_len=100,
        enable_prefix_caching=True,
        policy="fcfs",
    )
    return EngineCore(limits, worker, overlap=overlap)


def _run(core: EngineCore, requests: Sequence[AddRequest]) -> dict[str, list[Any]]:
    outputs: dict[str, list[Any]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while core.has_work:
        for output in core.step():
            outputs[output.request_id].append((output.token_id, output.logprob, output.prompt_logprobs))
    core.check_integrity()
    core.close()
    return outputs


def _prompt(length: int, seed: int) -> list[int]:
    return torch.randint(2, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _greedy_requests(**params: Any) -> list[AddRequest]:
    shared = _prompt(17, 99)
    longer = [shared + _prompt(3, 2), shared + _prompt(30, 5)]
    prompts = [_prompt(1, 1), longer[0], _prompt(40, 3), shared, _prompt(9, 4), longer[1], [7]]
    return [
        add_request(f"r{index}", prompt, max_tokens=20 + index, temperature=0.0, **params)
        for index, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("num_blocks", [1000, 30], ids=["room for all", "preemptions"])
@pytest.mark.parametrize("overlap", [True, False])
def test_greedy_tokens_are_those_of_the_cpu_worker(tiny_llama: Path, overlap: bool, num_blocks: int):
    expected = _run(_core(tiny_llama, False, False, 1000), _greedy_requests())
    assert _run(_core(tiny_llama, True, overlap, num_blocks), _greedy_requests()) == expected


def test_prompts_that_are_padded_to_as_many_tokens_as_rows_are_no_decoding_step(tiny_llama: Path):
    """Five rows with eight tokens between them: both are padded to eight."""
    lengths = (1, 1, 2, 2, 2)
    requests = [
        add_request(f"r{index}", _prompt(length, index), max_tokens=6, temperature=0.0)
        for index, length in enumerate(lengths)
    ]
    expected = _run(_core(tiny_llama, False, False, 1000, max_num_seqs=8), requests)
    assert _run(_core(tiny_llama, True, True, 1000, max_num_seqs=8), requests) == expected


def test_penalties_biases_and_logprobs_go_by_the_host_and_agree(tiny_llama: Path):
    requests = _greedy_requests()
    requests[1] = add_request("r1", _prompt(20, 6), max_tokens=12, temperature=0.0, repetition_penalty=1.3, logprobs=2)
    requests[2] = add_request("r2", _prompt(40, 3), max_tokens=12, temperature=0.0, logit_bias={5: 2.0})
    requests[4] = add_request("r4", _prompt(30, 7), max_tokens=6, temperature=0.0, prompt_logprobs=1)
    expected = _run(_core(tiny_llama, False, False, 1000), requests)
    got = _run(_core(tiny_llama, True, True, 1000), requests)
    for name, tokens in expected.items():
        assert [token for token, _, _ in got[name]] == [token for token, _, _ in tokens], name
    for (_, a, b), (_, c, d) in zip(got["r1"] + got["r4"], expected["r1"] + expected["r4"], strict=True):
        assert (a is None, b is None) == (c is None, d is None)
        if a is not None:
            assert a.top_ids == c.top_ids
            # float32 sums in another order
            assert a.logprob == pytest.approx(c.logprob, abs=1e-4)


def test_drawn_tokens_depend_on_the_seed_alone(tiny_llama: Path):
    params: dict[str, Any] = {"max_tokens": 15, "temperature": 0.9, "top_p": 0.95, "top_k": 40}

    def draws() -> list[AddRequest]:
        return [add_request(f"d{index}", _prompt(5 + index, 8), seed=index, **params) for index in range(4)]

    together = _run(_core(tiny_llama, True, True, 1000), draws())
    assert len({str(tokens) for tokens in together.values()}) == 4
    for request in draws():
        assert _run(_core(tiny_llama, True, False, 1000), [request])[request.request_id] == together[request.request_id]


def test_the_devices_random_numbers_are_the_hosts_to_float32s_last_bit():
    seeds = np.array([0, 1, 2**63 + 5, 2**64 - 1, 12345], np.uint64)
    counters = np.array([0, 1, 2, 1000, 7], np.int64)
    expected = torch.from_numpy(host_uniform(seeds, counters))
    got = uniform(torch.from_numpy(seeds.view(np.int64)), torch.from_numpy(counters))
    assert got.dtype == torch.float32
    assert bool(((got >= 0) & (got < 1)).all())
    # float32 keeps the 24 leading bits, cut off.
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=2.0**-24)


def test_a_packed_step_reads_back_as_it_was_and_padding_harms_nobody():
    rows = StepRows(
        slots=np.array([3, 0]),
        starts=np.array([9, 0]),
        counts=np.array([1, 4]),
        samples=np.array([1, 0]),
        output_indices=np.array([2, 0]),
    )
    bucket = Bucket(num_rows=4, num_tokens=8)
    buffer = np.full(100, 77, np.int32)
    assert pack(rows, bucket, buffer, spare_slot=5, spare_position=50) == num_ints(bucket)
    ints = view_ints(torch.from_numpy(buffer), bucket)
    assert ints.row_slot.tolist() == [3, 0, 5, 5]
    assert ints.seq_lens.tolist() == [10, 4, 0, 0]
    assert ints.query_start_loc.tolist() == [0, 1, 5, 5, 5]
    assert ints.sample_token.tolist() == [0, 4, 0, 0]
    assert ints.sample_position.tolist() == [10, 50, 50, 50]
    assert ints.token_row.tolist() == [0, 1, 1, 1, 1, -1, -1, -1]
    assert ints.token_position.tolist() == [9, 0, 1, 2, 3, 0, 0, 0]
    assert buffer[num_ints(bucket)] == 77


@pytest.mark.parametrize("limit", [1, 3, 8, 20, 256, 1000])
def test_buckets_reach_the_limit_and_waste_at_most_an_eighth_beyond_sixteen(limit: int):
    sizes = buckets_up_to(limit)
    assert sizes[-1] == limit
    assert list(sizes) == sorted(set(sizes))
    for count in range(1, limit + 1):
        size = pad_to(count, sizes)
        assert count <= size
        assert size - count < max(8, size // 4)
