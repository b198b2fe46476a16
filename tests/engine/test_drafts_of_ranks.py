"""Draft models and heads beside either worker on two ranks: the tokens and the guesses are those of one rank."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from parhelion.config import EngineConfig
from parhelion.distributed.group import ALONE, Group
from parhelion.distributed.rendezvous import file_store, join, leave
from parhelion.engine.load import load_model
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.models.eagle3_config import read_eagle3_config
from parhelion.scheduler import StepPlan
from tests.e2e.draft_models import leave_out_layers
from tests.e2e.eagle3_scratch import HEAD_JSON, HIDDEN, write_fitted_head, write_random_head
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.device_cores import core_of, prompt_of, run
from tests.engine.requests import add_request
from tests.models.eagle3_heads import head_tensors, write_head

CPU = torch.device("cpu")
NUM_BLOCKS = 22
"""Few enough for preemptions."""

CASES = [
    *((False, draft) for draft in ("model", "whole-model", "head", "whole-head")),
    *((True, draft) for draft in ("whole-model", "head", "whole-head")),
]
"""Whether it is the worker of GPUs, and the folder of the draft: of one that two ranks share, or that each has whole.
"""

Told = tuple[dict[str, list[int]], list[list[int]], int]
"""Tokens by request, the guesses of every step, and how many were right."""


def requests() -> list[AddRequest]:
    """The first two say what the head was fitted to; a prompt comes in chunks, one draws, and one goes by the host."""
    fitted = [add_request(f"fitted{first}", [first, first + 1], max_tokens=16, temperature=0.0) for first in (2, 3)]
    return [
        *fitted,
        add_request("long", prompt_of(40, 3), max_tokens=14, temperature=0.0),
        add_request("drawn", prompt_of(12, 5), max_tokens=14, temperature=0.8, top_p=0.9, seed=5),
        add_request("host", prompt_of(20, 6), max_tokens=7, temperature=0.0, repetition_penalty=1.3, logprobs=2),
    ]


class Noting:
    """A worker whose guesses are noted."""

    def __init__(self, worker: Any) -> None:
        self.guesses: list[list[int]] = []
        self._worker = worker

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        return _NotingStep(self._worker.execute(plan, admitted), self.guesses)


class _NotingStep:
    def __init__(self, step: PendingStep, guesses: list[list[int]]) -> None:
        self._step, self._guesses = step, guesses

    def wait(self) -> StepResult:
        result = self._step.wait()
        if result.drafted is not None:
            self._guesses.append(result.drafted.token_ids)
        return result


def told(folder: Path, on_device: bool, draft: str, group: Group = ALONE) -> Told:
    core = core_of(folder / "target", on_device, True, NUM_BLOCKS, draft=folder / draft, group=group)
    noting = Noting(core._worker)
    core._worker = noting
    outputs = run(core, requests())
    stats = core.stats()
    assert stats.preemptions_total > 0
    tokens = {name: [token for token, *_ in each] for name, each in outputs.items()}
    return tokens, noting.guesses, stats.accepted_tokens_total


def all_told(folder: Path, group: Group) -> dict[tuple[bool, str], Told]:
    return {(on_device, draft): told(folder, on_device, draft, group) for on_device, draft in CASES}


def follow(folder: Path, store: str) -> None:
    """Rank 1: the same cores, told the same."""
    torch.set_num_threads(1)
    all_told(folder, join(file_store(store, 2), 1, 2, CPU))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a target and the drafts."""
    folder = tmp_path_factory.mktemp("drafts-of-ranks")
    target = folder / "target"
    TINY_MODELS[0].write(target)
    leave_out_layers(target, {1}, folder / "model")
    write_widened(leave_out_layers(target, (), folder / "same-model"), folder / "whole-model")
    model = load_model(EngineConfig(model=str(target), dtype="float32", device="cpu", threads=1), target).model
    write_fitted_head(write_random_head(model, folder / "random-head"), folder / "head")
    described = HEAD_JSON | {"hidden_size": HIDDEN, "draft_vocab_size": 512, "num_attention_heads": 3}
    whole = write_head(folder / "whole-head", described | {"num_key_value_heads": 1})
    tensors = head_tensors(read_eagle3_config(whole), with_embedding=False)
    del tensors["lm_head.weight"]
    save_file(tensors, whole / "model.safetensors")
    return folder


def write_widened(source: Path, folder: Path) -> None:
    """A checkpoint that computes the same with a feed-forward that two ranks cannot share."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if "gate_proj" in name or "up_proj" in name:
            tensors[name] = torch.cat((tensor, torch.zeros(1, tensor.shape[1])))
        elif "down_proj" in name:
            tensors[name] = torch.cat((tensor, torch.zeros(len(tensor), 1)), dim=1)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    config["intermediate_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def of_two(folder: Path) -> dict[tuple[bool, str], Told]:
    """What two ranks say."""
    store = str(folder / "store")
    other = multiprocessing.get_context("spawn").Process(target=follow, args=(folder, store))
    other.start()
    try:
        return all_told(folder, join(file_store(store, 2), 0, 2, CPU))
    finally:
        leave()
        other.join(20)
        other.kill()


@pytest.mark.parametrize(("on_device", "draft"), CASES)
def test_two_ranks_guess_and_choose_as_one(
    folder: Path, of_two: dict[tuple[bool, str], Told], on_device: bool, draft: str
) -> None:
    tokens, guesses, accepted = of_two[on_device, draft]
    assert (tokens, guesses, accepted) == told(folder, on_device, draft)
    plain = run(core_of(folder / "target", on_device, True, NUM_BLOCKS), requests())
    expected = {name: [token for token, *_ in each] for name, each in plain.items()}
    if on_device:
        # The host draws from numbers of more digits, in the steps that the request which needs it is in.
        tokens["drawn"] = expected["drawn"]
    assert tokens == expected
    num_guesses = sum(map(len, guesses))
    assert num_guesses > 40
    if draft == "whole-model":
        assert accepted > 0.7 * num_guesses
    elif draft == "head":
        assert 0 < accepted < num_guesses
