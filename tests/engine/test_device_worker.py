"""The worker of GPUs, run on a CPU without graphs, hands out the same tokens as the worker of CPUs, and the same with
guesses as without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parhelion.engine.device import worker as device_worker
from parhelion.engine.device.sampling import uniform
from parhelion.engine.device.step import Mode
from parhelion.engine.device.step_queue import DeviceQueue
from parhelion.engine.messages import AddRequest
from parhelion.engine.sampler import uniform as host_uniform
from parhelion.engine.step_layout import Bucket, StepRows, buckets_up_to, num_ints, pack, pad_to, view_ints
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.scheduler import Row, StepPlan
from tests.e2e.draft_models import leave_out_layers
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.device_cores import Recorder, core_of, greedy_and_drawn_requests, greedy_requests, prompt_of, run
from tests.engine.requests import add_request


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama-for-workers")
    TINY_MODELS[0].write(folder)
    return folder


@pytest.mark.parametrize("num_blocks", [1000, 30], ids=["room for all", "preemptions"])
@pytest.mark.parametrize("overlap", [True, False])
def test_greedy_tokens_are_those_of_the_cpu_worker(tiny_llama: Path, overlap: bool, num_blocks: int):
    expected = run(core_of(tiny_llama, False, False, 1000), greedy_requests())
    assert run(core_of(tiny_llama, True, overlap, num_blocks), greedy_requests()) == expected


def test_prompts_that_are_padded_to_as_many_tokens_as_rows_are_no_decoding_step(tiny_llama: Path):
    """Five rows with eight tokens between them: both are padded to eight."""
    lengths = (1, 1, 2, 2, 2)
    requests = [
        add_request(f"r{index}", prompt_of(length, index), max_tokens=6, temperature=0.0)
        for index, length in enumerate(lengths)
    ]
    expected = run(core_of(tiny_llama, False, False, 1000, max_num_seqs=8), requests)
    assert run(core_of(tiny_llama, True, True, 1000, max_num_seqs=8), requests) == expected


def test_penalties_biases_and_logprobs_go_by_the_host_and_agree(tiny_llama: Path):
    requests = greedy_requests()
    requests[1] = add_request(
        "r1", prompt_of(20, 6), max_tokens=12, temperature=0.0, repetition_penalty=1.3, logprobs=2
    )
    requests[2] = add_request("r2", prompt_of(40, 3), max_tokens=12, temperature=0.0, logit_bias={5: 2.0})
    requests[4] = add_request("r4", prompt_of(30, 7), max_tokens=6, temperature=0.0, prompt_logprobs=1)
    expected = run(core_of(tiny_llama, False, False, 1000), requests)
    got = run(core_of(tiny_llama, True, True, 1000), requests)
    for name, tokens in expected.items():
        assert [token for token, _, _ in got[name]] == [token for token, _, _ in tokens], name
    for (_, a, b), (_, c, d) in zip(got["r1"] + got["r4"], expected["r1"] + expected["r4"], strict=True):
        assert (a is None, b is None) == (c is None, d is None)
        if a is not None:
            assert a.top_ids == c.top_ids
            # float32 sums in another order
            assert a.logprob == pytest.approx(c.logprob, abs=1e-4)


def test_only_steps_that_compute_a_prompt_are_waited_for_to_tell_its_logprobs(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    waited: list[bool] = []

    def recorded(worker: device_worker.DeviceWorker, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        waited.append(isinstance(pending := execute(worker, plan, admitted), StepResult))
        return pending

    execute = device_worker.DeviceWorker.execute
    monkeypatch.setattr(device_worker.DeviceWorker, "execute", recorded)
    request = add_request("r", prompt_of(30, 7), max_tokens=6, temperature=0.0, prompt_logprobs=1)
    [(_, _, told), *others] = run(core_of(tiny_llama, True, True, 1000), [request])["r"]
    assert len(told) == 29
    assert [each for _, _, each in others] == [None] * 5
    assert waited == [True, True] + [False] * 5


def test_drawn_tokens_depend_on_the_seed_alone(tiny_llama: Path):
    params: dict[str, Any] = {"max_tokens": 15, "temperature": 0.9, "top_p": 0.95, "top_k": 40}

    def draws() -> list[AddRequest]:
        return [add_request(f"d{index}", prompt_of(5 + index, 8), seed=index, **params) for index in range(4)]

    together = run(core_of(tiny_llama, True, True, 1000), draws())
    assert len({str(tokens) for tokens in together.values()}) == 4
    for request in draws():
        assert (
            run(core_of(tiny_llama, True, False, 1000), [request])[request.request_id] == together[request.request_id]
        )


def test_drawn_tokens_do_not_depend_on_neighbours_that_need_the_host(tiny_llama: Path):
    params: dict[str, Any] = {"max_tokens": 15, "temperature": 0.9, "top_p": 0.95, "top_k": 40}
    drawn = [add_request(f"d{index}", prompt_of(5 + index, 8), seed=index, **params) for index in range(3)]
    alone = run(core_of(tiny_llama, True, True, 1000), drawn)
    neighbours = [
        add_request("penalized", prompt_of(9, 1), max_tokens=8, temperature=0.9, frequency_penalty=1.5),
        add_request("told", prompt_of(7, 2), max_tokens=12, temperature=0.0, logprobs=1),
    ]
    beside = run(core_of(tiny_llama, True, True, 1000), [*drawn, *neighbours])
    assert {name: beside[name] for name in alone} == alone
    assert all(logprob is not None for _, logprob, _ in beside["told"])


def test_to_be_told_log_probabilities_changes_no_drawn_token(tiny_llama: Path):
    params: dict[str, Any] = {"max_tokens": 15, "temperature": 0.9, "top_p": 0.95, "top_k": 40}
    tokens = []
    for logprobs in (None, 3):
        requests = [
            add_request(f"d{index}", prompt_of(5 + index, 8), seed=index, logprobs=logprobs, **params)
            for index in range(3)
        ]
        outputs = run(core_of(tiny_llama, True, True, 1000), requests)
        tokens.append({name: [token for token, _, _ in each] for name, each in outputs.items()})
        for token, logprob, _ in (output for each in outputs.values() for output in each):
            assert (logprob is None) == (logprobs is None)
            assert logprob is None or (logprob.token_id, len(logprob.top_ids)) == (token, 3)
    assert tokens[0] == tokens[1]


class Prophet:
    """Knows what each request will say, and is wrong at some places.

    Args:
        texts: by request, prompts included.
        is_wrong: of a request's index and a position in its text.
    """

    def __init__(self, texts: Mapping[str, list[int]], is_wrong: Callable[[int, int], bool]) -> None:
        self._texts = texts
        self._is_wrong = is_wrong
        self._known: dict[str, int] = {}

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._known[request_id] = len(token_ids)

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._known[request_id] += len(token_ids)

    def propose(self, request_id: str, count: int) -> list[int]:
        first, index = self._known[request_id], list(self._texts).index(request_id)
        guesses = self._texts[request_id][first : first + count]
        return [
            (token + 1) % 500 if self._is_wrong(index, first + place) else token for place, token in enumerate(guesses)
        ]

    def forget(self, request_id: str) -> None:
        self._known.pop(request_id, None)


QUALITIES: dict[str, Callable[[int, int], bool]] = {
    "right": lambda index, position: False,
    "wrong": lambda index, position: True,
    "one in three wrong": lambda index, position: position % 3 == 0,
    "some requests' right, some wrong, some mixed": lambda index, position: (
        index % 3 == 1 or position % (2 + index) == 1
    ),
}


def texts_of(requests: Sequence[AddRequest], outputs: Mapping[str, list[Any]]) -> dict[str, list[int]]:
    return {
        request.request_id: [*request.prompt_token_ids, *(token for token, _, _ in outputs[request.request_id])]
        for request in requests
    }


@pytest.mark.parametrize("num_blocks", [1000, 34], ids=["room for all", "preemptions"])
@pytest.mark.parametrize("quality", QUALITIES)
def test_guesses_change_no_token(tiny_llama: Path, quality: str, num_blocks: int):
    """Prompts of up to 49 tokens come in chunks beside rows with guesses: a step has 24."""
    requests = greedy_and_drawn_requests()
    expected = run(core_of(tiny_llama, True, True, 1000), requests)
    core = core_of(
        tiny_llama, True, True, num_blocks, proposer=Prophet(texts_of(requests, expected), QUALITIES[quality])
    )
    assert run(core, requests) == expected
    stats = core.stats()
    assert stats.guessed_tokens_total > 100
    assert (stats.accepted_tokens_total > 0) == (quality != "wrong")
    assert (stats.accepted_tokens_total == stats.guessed_tokens_total) == (quality == "right")
    assert (stats.preemptions_total > 0) == (num_blocks == 34)


@pytest.mark.parametrize("quality", QUALITIES)
def test_what_the_host_samples_is_the_same_with_guesses(tiny_llama: Path, quality: str):
    """Penalties of a row's later samples count the guesses before them."""
    drawn = {"temperature": 0.9, "seed": 3, "max_tokens": 16}
    groups = [
        [
            add_request("r5", prompt_of(12, 4), **drawn),
            add_request("r0", prompt_of(20, 6), max_tokens=22, temperature=0.0, repetition_penalty=1.3, logprobs=2),
            add_request("r1", prompt_of(40, 3), max_tokens=12, temperature=0.0, logit_bias={5: 2.0}),
            add_request("r2", prompt_of(30, 7), max_tokens=16, temperature=0.0, prompt_logprobs=1),
            add_request("r3", prompt_of(5, 8), max_tokens=20, temperature=0.0, min_tokens=9, stop_token_ids=range(250)),
            add_request("r4", prompt_of(5, 9), max_tokens=20, temperature=0.0),
        ],
        [
            add_request("d0", prompt_of(7, 1), frequency_penalty=1.5, **drawn),
            add_request("d1", prompt_of(30, 2), presence_penalty=1.0, top_p=0.9, **drawn),
            add_request("d2", prompt_of(9, 3), repetition_penalty=1.2, top_k=30, logprobs=0, **drawn),
        ],
    ]
    for requests in groups:
        expected = run(core_of(tiny_llama, True, True, 1000), requests)
        core = core_of(tiny_llama, True, True, 1000, proposer=Prophet(texts_of(requests, expected), QUALITIES[quality]))
        got = run(core, requests)
        assert core.stats().guessed_tokens_total > 20
        for name, outputs in expected.items():
            assert [token for token, _, _ in got[name]] == [token for token, _, _ in outputs], name
            for (_, a, b), (_, c, d) in zip(got[name], outputs, strict=True):
                assert (a is None, b is None) == (c is None, d is None)
                if a is not None:
                    assert a.top_ids == c.top_ids
                    # float32 sums in another order
                    assert a.logprob == pytest.approx(c.logprob, abs=1e-4)


def test_rows_with_guesses_may_end_within_them_and_others_take_their_slots(tiny_llama: Path):
    requests = greedy_and_drawn_requests()
    whole = run(core_of(tiny_llama, True, False, 1000), requests)
    stops = {name: [tokens[5 + index % 3][0]] for index, (name, tokens) in enumerate(whole.items())}
    stopping = [
        add_request(
            each.request_id,
            each.prompt_token_ids,
            seed=each.seed,
            stop_token_ids=stops[each.request_id],
            max_tokens=each.max_tokens,
            temperature=each.params.temperature,
            top_p=each.params.top_p,
            top_k=each.params.top_k,
            min_p=each.params.min_p,
        )
        for each in requests
    ]
    expected = run(core_of(tiny_llama, True, False, 1000), stopping)
    assert all(len(expected[name]) < len(tokens) for name, tokens in whole.items())
    # Guesses go on behind the stop.
    core = core_of(tiny_llama, True, True, 1000, proposer=Prophet(texts_of(requests, whole), QUALITIES["right"]))
    for request in stopping:
        core.add(request)
    outputs: dict[str, list[Any]] = {request.request_id: [] for request in stopping}
    while core.has_work:
        for output in core.step():
            outputs[output.request_id].append(output.token_id)
        if len(outputs["r2"]) == 1:
            core.abort("r2")
    core.check_integrity()
    core.close()
    for name, tokens in outputs.items():
        told = [token for token, _, _ in expected[name]]
        assert tokens == (told[: len(tokens)] if name == "r2" else told), name
    assert len(outputs["r2"]) < len(expected["r2"])


def test_steps_with_guesses_and_no_prompts_change_tables_by_themselves(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    """Prompts are written before the step, also where what is not cached of one is a single token."""
    requests = greedy_and_drawn_requests()
    expected = run(core_of(tiny_llama, True, True, 1000), requests)
    written: list[Bucket] = []
    steps: list[tuple[bool, bool, bool]] = []
    execute, copy_and_write = device_worker.DeviceWorker.execute, DeviceQueue._copy_and_write

    def noted_write(queue: DeviceQueue, host: Any, bucket: Bucket, update: Any) -> None:
        written.append(bucket)
        copy_and_write(queue, host, bucket, update)

    def noted_step(worker: Any, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        written.clear()
        pending = execute(worker, plan, admitted)
        only_guesses = all(row.num_tokens == 1 + len(row.guesses) for row in plan.rows) and not plan.admissions
        if any(row.guesses for row in plan.rows):
            steps.append((only_guesses, bool(plan.new_blocks), bool(written)))
        return pending

    monkeypatch.setattr(DeviceQueue, "_copy_and_write", noted_write)
    monkeypatch.setattr(device_worker.DeviceWorker, "execute", noted_step)
    prophet = Prophet(texts_of(requests, expected), QUALITIES["one in three wrong"])
    assert run(core_of(tiny_llama, True, True, 1000, proposer=prophet), requests) == expected
    assert {was_written for only_guesses, _, was_written in steps if only_guesses} == {False}
    assert sum(only_guesses and has_blocks for only_guesses, has_blocks, _ in steps) > 5
    assert (False, True, True) in steps or (False, False, True) in steps


def test_graphs_are_captured_ahead_for_all_steps_that_only_decode(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(device_worker, "GraphCache", Recorder)
    requests = greedy_requests()
    plain = core_of(tiny_llama, True, True, 1000, use_graphs=True)
    worker: Any = plain._worker
    assert worker.graphs.captured(worker._step) == {(Bucket.decoding(size), Mode.GREEDY) for size in (1, 2, 4, 5)}
    expected = run(plain, requests)
    without = worker.graphs.captured(worker._step)
    core = core_of(
        tiny_llama,
        True,
        True,
        1000,
        proposer=Prophet(texts_of(requests, expected), QUALITIES["one in three wrong"]),
        use_graphs=True,
    )
    worker = core._worker
    # Five rows with four guesses each would be 25 tokens; a step has at most 24.
    ahead = {(Bucket.verifying(size, siblings=8, entries=2 * size), Mode.GREEDY) for size in (2, 4, 8, 16, 24)}
    assert (
        worker.graphs.captured(worker._step) == {(Bucket.decoding(size), Mode.GREEDY) for size in (1, 2, 4, 5)} | ahead
    )
    assert run(core, requests) == expected
    others = {bucket for bucket, _ in worker.graphs.captured(worker._step) - without - ahead}
    assert all(not bucket.decodes for bucket in others)
    # Beside chunks of prompts: to one size of rows more than without guesses.
    assert {bucket.num_rows for bucket, _ in worker.graphs.captured(worker._step) if not bucket.decodes} <= {
        1,
        4,
        5,
        24,
    }
    assert any(bucket.num_rows == 24 for bucket in others)


def test_more_guesses_than_the_worker_was_made_for_are_refused_in_words(tiny_llama: Path):
    core = core_of(tiny_llama, True, False, 1000)
    row = Row("r0", 0, 3, 3, True, 1, (7, 8))
    with pytest.raises(ValueError, match=r"a row has 2 guesses and the worker was made for num_guesses = 0"):
        core._worker.execute(StepPlan(0, (row,), (), ()), [])
    core.close()


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


@pytest.fixture(scope="module")
def shorter_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The target without one of its three layers."""
    return leave_out_layers(tiny_llama, {1}, tmp_path_factory.mktemp("shorter-llama"))


@pytest.mark.parametrize("num_blocks", [1000, 30], ids=["room for all", "preemptions"])
@pytest.mark.parametrize("itself", [True, False], ids=["the target drafts", "a shorter one drafts"])
def test_a_draft_model_changes_no_token(tiny_llama: Path, shorter_llama: Path, itself: bool, num_blocks: int):
    requests = greedy_and_drawn_requests()
    expected = run(core_of(tiny_llama, True, True, 1000), requests)
    core = core_of(tiny_llama, True, True, num_blocks, draft=tiny_llama if itself else shorter_llama)
    assert run(core, requests) == expected
    stats = core.stats()
    assert stats.guessed_tokens_total > 100
    assert (stats.preemptions_total > 0) == (num_blocks == 30)
    if itself:
        # The draft's draws are the target's, since they take the same numbers.
        assert stats.accepted_tokens_total >= 0.98 * stats.guessed_tokens_total
    else:
        assert 0 < stats.accepted_tokens_total < stats.guessed_tokens_total


def test_what_the_host_samples_is_the_same_with_a_draft_model(tiny_llama: Path, shorter_llama: Path):
    requests = [
        add_request("r0", prompt_of(20, 6), max_tokens=22, temperature=0.0, repetition_penalty=1.3, logprobs=2),
        add_request("r1", prompt_of(40, 3), max_tokens=12, temperature=0.0, logit_bias={5: 2.0}),
        add_request("r2", prompt_of(30, 7), max_tokens=16, temperature=0.0, prompt_logprobs=1),
    ]
    expected = run(core_of(tiny_llama, True, True, 1000), requests)
    core = core_of(tiny_llama, True, True, 1000, draft=shorter_llama)
    got = run(core, requests)
    assert core.stats().accepted_tokens_total > 0
    assert {name: [token for token, _, _ in outputs] for name, outputs in got.items()} == {
        name: [token for token, _, _ in outputs] for name, outputs in expected.items()
    }
