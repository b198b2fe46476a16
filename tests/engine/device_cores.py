"""Engine cores around either worker, and requests for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from parhelion.config import EngineConfig, LoadFormat
from parhelion.distributed.group import ALONE, Group
from parhelion.engine.core import EngineCore
from parhelion.engine.device.step import Mode, Step, StepOutputs
from parhelion.engine.device.worker import DeviceWorker, DeviceWorkerOptions
from parhelion.engine.drafts.choice import read_draft
from parhelion.engine.host.worker import Worker
from parhelion.engine.kv_storage import plan_kv_cache
from parhelion.engine.load import load_draft, load_model, needs_tables, states_passed_on
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_layout import Bucket
from parhelion.scheduler import SchedulerConfig
from parhelion.speculative import Drafting, DraftingAhead, Proposer, Speculation, Speculator
from tests.engine.requests import add_request
from tests.engine.stages import Stages, roads_between

BLOCK_SIZE, MAX_SEQS, MAX_LEN, BUDGET = 4, 5, 96, 24
MOST_GUESSES = 4
# On a CPU these have no provider for padded steps but the reference.
KERNELS = ("paged_attention=reference", "rope_and_cache=reference")


def core_of(
    folder: Path,
    on_device: bool,
    overlap: bool,
    num_blocks: int,
    max_num_seqs: int = MAX_SEQS,
    proposer: Proposer | None = None,
    use_graphs: bool = False,
    draft: Path | None = None,
    speculation: Speculator | None = None,
    enable_prefix_caching: bool = True,
    group: Group = ALONE,
    pp: int = 1,
    load_format: LoadFormat = "auto",
) -> EngineCore:
    """A core in float32 on the CPU.

    Args:
        folder: the model's.
        on_device: with the worker of GPUs.
        overlap: plan a step ahead.
        num_blocks: at most.
        max_num_seqs: slots.
        proposer: guesses on behalf of the scheduler.
        use_graphs: capture what may be captured ahead, with a stand-in for ``GraphCache``.
        draft: folder of a draft model or head.
        speculation: decides how many guesses are made in place of one that always wants the most.
        enable_prefix_caching: share blocks.
        group: ranks that share the model, each with a core that is told the same.
        pp: stages, all of them in this process.
        load_format: where the weights come from.
    """
    config = EngineConfig(
        model=str(folder),
        device="cpu",
        dtype="float32",
        block_size=BLOCK_SIZE,
        max_model_len=MAX_LEN,
        max_num_seqs=max_num_seqs,
        kernels=KERNELS if on_device else (),
        kv_cache_memory=1 << 22,
        tp=group.size,
        pp=pp,
        load_format=load_format,
    )
    chosen = read_draft(draft) if draft is not None else None
    workers: list[Any] = []
    for stage, links in enumerate(roads_between(pp) if pp > 1 else [None]):
        own = chosen if stage == pp - 1 else None
        loaded = load_model(config, folder, group=group, keep_tables=needs_tables(own), stage=stage)
        draft_model, _ = load_draft(config, own, loaded)
        passed_on = states_passed_on(chosen, loaded.model)
        size = plan_kv_cache(config, loaded.model.config, loaded.model.dtype, 1 << 30)
        if on_device:
            options = DeviceWorkerOptions(
                BLOCK_SIZE,
                max_num_seqs,
                BUDGET,
                use_graphs,
                MOST_GUESSES if proposer is not None or draft is not None else 0,
            )
            worker: Any = DeviceWorker(loaded.model, size, options, loaded.resolver, draft_model, links, passed_on)
        else:
            worker = Worker(loaded.model, size, BLOCK_SIZE, max_num_seqs, draft_model, BUDGET, links, passed_on)
        worker.warm_up()
        if use_graphs:
            worker.capture_all()
        workers.append(worker)
    limits = SchedulerConfig(
        num_blocks=min(num_blocks, size.num_blocks),
        block_size=BLOCK_SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=BUDGET,
        max_model_len=MAX_LEN,
        max_queue_len=100,
        enable_prefix_caching=enable_prefix_caching,
        policy="fcfs",
        num_groups=pp,
    )
    if proposer is not None:
        speculation = Speculation(proposer, MOST_GUESSES)
    elif chosen is not None and speculation is None:
        needs_states = chosen.head is not None
        speculation = (
            Drafting(MOST_GUESSES, 0.5, needs_states=needs_states, on_device=on_device)
            if pp == 1
            else DraftingAhead(MOST_GUESSES, 0.5, needs_states=needs_states)
        )
    worker = workers[0] if pp == 1 else Stages(workers, late=group.is_alone).worker()
    return EngineCore(limits, worker, overlap=overlap, speculation=speculation)


def run(core: EngineCore, requests: Sequence[AddRequest]) -> dict[str, list[Any]]:
    """Every request's (token, log-probability, those of the prompt) when all are over; the core is closed."""
    outputs: dict[str, list[Any]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while core.has_work:
        for output in core.step():
            outputs[output.request_id].append((output.token_id, output.logprob, output.prompt_logprobs))
    core.check_integrity()
    core.close()
    return outputs


def prompt_of(length: int, seed: int) -> list[int]:
    return torch.randint(2, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy_requests(**params: Any) -> list[AddRequest]:
    shared = prompt_of(17, 99)
    longer = [shared + prompt_of(3, 2), shared + prompt_of(30, 5)]
    prompts = [prompt_of(1, 1), longer[0], prompt_of(40, 3), shared, prompt_of(9, 4), longer[1], [7]]
    return [
        add_request(f"r{index}", prompt, max_tokens=20 + index, temperature=0.0, **params)
        for index, prompt in enumerate(prompts)
    ]


def greedy_and_drawn_requests() -> list[AddRequest]:
    """With everything that the device does without the host."""
    drawn: list[dict[str, Any]] = [
        {"temperature": 0.8},
        {"temperature": 1.0, "top_k": 20},
        {"temperature": 1.2, "top_p": 0.9},
        {"temperature": 0.9, "min_p": 0.05, "top_k": 50, "top_p": 0.95},
    ]
    return [
        *greedy_requests(),
        *(
            add_request(f"d{index}", prompt_of(6 + 9 * index, index), seed=index, max_tokens=18 + index, **params)
            for index, params in enumerate(drawn)
        ),
    ]


class Recorder:
    """Stands in for ``GraphCache``: runs steps as they are, and remembers what would have been captured."""

    def __init__(self, ints: torch.Tensor, *unused: Any) -> None:
        self.memory_bytes = 0
        self.graphs: set[tuple[Step, Bucket, Mode]] = set()
        self._ints = ints

    @property
    def num_graphs(self) -> int:
        return len(self.graphs)

    def captured(self, step: Step) -> set[tuple[Bucket, Mode]]:
        """Graphs of a step."""
        return {(bucket, mode) for whose, bucket, mode in self.graphs if whose is step}

    def run(self, step: Step, bucket: Bucket, mode: Mode) -> StepOutputs:
        self.graphs.add((step, bucket, mode))
        return replace(step.run(self._ints, bucket, mode), hidden=None)
