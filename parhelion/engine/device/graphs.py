"""Captured CUDA graphs, one for each step, bucket and way of sampling, made when first needed or ahead of it."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from parhelion.engine.device.step import Mode, Step, StepOutputs
from parhelion.engine.step_layout import Bucket
from parhelion.platform.streams import WorkStream


class EagerSteps:
    """Runs steps kernel by kernel.

    Args:
        ints: the buffer that a step's integers are read from.
    """

    def __init__(self, ints: torch.Tensor) -> None:
        self._ints = ints

    def run(self, step: Step, bucket: Bucket, mode: Mode) -> StepOutputs:
        """Compute a step."""
        return step.run(self._ints, bucket, mode)


class GraphCache:
    """Graphs of all that runs on a device; they share one memory pool, since only one of them runs at a time. What runs
    eagerly before a capture takes its memory from there too, so that steps never need room for twice what they compute.

    A graph keeps no hidden states: those of its tokens would take their memory for good.

    Args:
        ints: the buffer that every graph reads a step's integers from.
        stream: the worker's.
        device: where.

    Attributes:
        memory_bytes: device memory that the graphs' pool took.
        capture_s: seconds that capturing took.
    """

    def __init__(self, ints: torch.Tensor, stream: WorkStream, device: torch.device) -> None:
        self.memory_bytes = 0
        self.capture_s = 0.0
        self._ints = ints
        self._stream = stream
        self._device = device
        self._pool = torch.cuda.MemPool()
        self._graphs: dict[tuple[Step, Bucket, Mode], tuple[torch.cuda.CUDAGraph, StepOutputs]] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def run(self, step: Step, bucket: Bucket, mode: Mode) -> StepOutputs:
        """Replay the graph of a step's bucket; the first time it is run eagerly and then captured. The outputs are
        overwritten by what runs next.
        """
        found = self._graphs.get((step, bucket, mode))
        if found is not None:
            found[0].replay()
            return found[1]
        before = torch.cuda.memory_reserved(self._device)
        # Whatever compiles or allocates at first use must have done so before the capture.
        with torch.cuda.use_mem_pool(self._pool, self._device):
            outputs = replace(step.run(self._ints, bucket, mode), hidden=None)
        self._graphs[step, bucket, mode] = self._capture(step, bucket, mode)
        self.memory_bytes += torch.cuda.memory_reserved(self._device) - before
        return outputs

    def clear(self) -> None:
        """Let go of all graphs. NCCL cannot leave its group as long as one has captured a collective."""
        self._graphs.clear()

    def _capture(self, step: Step, bucket: Bucket, mode: Mode) -> tuple[torch.cuda.CUDAGraph, StepOutputs]:
        started = time.monotonic()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool.id, capture_error_mode="thread_local")
        try:
            outputs = replace(step.run(self._ints, bucket, mode), hidden=None)
        finally:
            graph.capture_end()
        self.capture_s += time.monotonic() - started
        return graph, outputs
