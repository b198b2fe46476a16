"""Captured CUDA graphs, one for each bucket and way of sampling, made when first needed or ahead of it."""

from __future__ import annotations

import time

import torch

from parhelion.engine.device_step import DeviceStep, Mode, StepOutputs
from parhelion.engine.step_layout import Bucket
from parhelion.platform.streams import WorkStream


class GraphCache:
    """Graphs of a device step; they share one memory pool, since only one of them runs at a time.

    Args:
        step: what is captured.
        ints: the buffer that every graph reads a step's integers from.
        stream: the worker's.
        device: where.

    Attributes:
        memory_bytes: device memory that capturing took.
        capture_s: seconds that capturing took.
    """

    def __init__(self, step: DeviceStep, ints: torch.Tensor, stream: WorkStream, device: torch.device) -> None:
        self.memory_bytes = 0
        self.capture_s = 0.0
        self._step = step
        self._ints = ints
        self._stream = stream
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[Bucket, Mode], tuple[torch.cuda.CUDAGraph, StepOutputs]] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def run(self, bucket: Bucket, mode: Mode) -> StepOutputs:
        """Replay a bucket's graph; the first time it is run eagerly and then captured. The outputs are overwritten by
        the next step.
        """
        found = self._graphs.get((bucket, mode))
        if found is not None:
            found[0].replay()
            return found[1]
        # Whatever compiles or allocates at first use must have done so before the capture.
        outputs = self._step.run(self._ints, bucket, mode)
        self._graphs[bucket, mode] = self._capture(bucket, mode)
        return outputs

    def _capture(self, bucket: Bucket, mode: Mode) -> tuple[torch.cuda.CUDAGraph, StepOutputs]:
        started = time.monotonic()
        self._stream.synchronize()
        before = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            outputs = self._step.run(self._ints, bucket, mode)
        finally:
            graph.capture_end()
        self.memory_bytes += torch.cuda.memory_reserved(self._device) - before
        self.capture_s += time.monotonic() - started
        return graph, outputs
