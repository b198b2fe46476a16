"""Stages of a pipeline: which consecutive layers each of them holds, and how one hands over to the next."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from parhelion.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """A part of a model. The first also has the embedding, the last the final norm and the output head.

    Attributes:
        number: of ``count``, from 0.
        layers: indices of its layers.
    """

    number: int
    count: int
    layers: range

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def is_last(self) -> bool:
        return self.number == self.count - 1


def whole_model(num_layers: int) -> Stage:
    """The only stage of a model that is not divided."""
    return Stage(0, 1, range(num_layers))


def divide_layers(num_layers: int, num_stages: int, head_cost: float = 0.0) -> tuple[Stage, ...]:
    """Give each stage consecutive layers, such that the slowest stage has the least to do.

    Args:
        num_layers: of the model, all alike.
        num_stages: at most as many.
        head_cost: of the output head, in layers. Looking up embeddings costs nothing.

    Raises:
        ConfigError: there are more stages than layers.
    """
    if num_stages > num_layers:
        raise ConfigError(
            f"pp is {num_stages}, but the model has {num_layers} layers and every stage needs one; "
            f"pp may be 1 to {num_layers}"
        )
    if num_stages == 1:
        return (whole_model(num_layers),)
    before = num_stages - 1

    def slowest(last: int) -> float:
        return max(-(-(num_layers - last) // before), last + head_cost)

    # Of equal ones the most layers for the last: the first has the embedding's table in its memory.
    last = min(range(num_layers - before, 0, -1), key=slowest)
    # Where the others cannot have equally many, the first ones have fewer, for the same reason.
    bounds = [(num_layers - last) * stage // before for stage in range(num_stages)] + [num_layers]
    return tuple(Stage(stage, num_stages, range(*bounds[stage : stage + 2])) for stage in range(num_stages))


class Road(Protocol):
    """What ``StageLinks`` needs of one of torch's process groups, gloo's or NCCL's."""

    def rank(self) -> int: ...

    def size(self) -> int: ...

    def send(self, tensors: list[torch.Tensor], dst_rank: int, tag: int, /) -> dist.Work: ...

    def recv(self, tensors: list[torch.Tensor], src_rank: int, tag: int, /) -> dist.Work: ...

    def abort(self) -> None: ...


class StageLinks:
    """A rank's ends of the roads from the stage before its own, and to the one behind it. Tensors arrive in the order
    in which they were sent.

    On a GPU nothing here blocks the host. A transfer begins behind what the current stream was given before it, and the
    stream waits where the host would on a CPU.

    Args:
        group: of the ranks with the same place in every stage; the rank in it is the stage's number.
        device: of the tensors.
    """

    def __init__(self, group: Road, device: torch.device) -> None:
        self._group = group
        self._device = device
        self._sending: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._aborting: threading.Thread | None = None

    def meet(self) -> None:
        """Exchange a number with each neighbour, which sets up what the first transfer would."""
        if self._group.rank() > 0:
            self.receive((1,), torch.float32)
        if self._group.rank() < self._group.size() - 1:
            self.send(torch.zeros(1, device=self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next tensor from the stage before; waits for it."""
        received = torch.empty(shape, dtype=dtype, device=self._device)
        self._group.recv([received], self._group.rank() - 1, 0).wait()
        return received

    def send(self, tensor: torch.Tensor) -> None:
        """Hand a tensor, which nobody changes any more, to the stage behind. Waits only if as many as there are stages
        have not been taken yet: no more steps than that are under way.
        """
        self._sending.append((self._group.send([tensor], self._group.rank() + 1, 0), tensor))
        while len(self._sending) > self._group.size():
            self._sending.popleft()[0].wait()

    def abort(self, wait_s: float = 0.0) -> None:
        """End the transfers of NCCL that are under way here, with meaningless results; gloo's fail by themselves.

        Args:
            wait_s: how long to wait until they have ended; other work of the device may come before.
        """
        if self._device.type == "cpu":
            return
        if self._aborting is None:
            self._aborting = threading.Thread(target=self._group.abort, daemon=True)
            self._aborting.start()
        self._aborting.join(wait_s)
