"""What a GEMM reads of its weight ahead of its predecessor's end is part of the sum like the rest."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.helion_provider import tile_program
from parhelion.ops.launching import launch_module
from parhelion.ops.registry import op
from parhelion.ops.scaled_mm import ScaledMm

CONFIGS = {
    "swapped, split": GemmConfig(16, 64, 32, swap_ab=True, split_k=2, programmatic=True, ahead=2),
    "standard": GemmConfig(16, 32, 64, programmatic=True, ahead=1),
    "all of it": GemmConfig(16, 32, 128, programmatic=True, ahead=4),
}


def interpret_alone(kernel: str, config: Any, *arguments: Any) -> None:
    """The interpreter knows no launches, so none is programmatic; what is read ahead is read ahead all the same."""
    program = tile_program(kernel)
    names = list(inspect.signature(program.fn).parameters)
    given = dict(zip(names, arguments, strict=True))
    assert given["programmatic"] is True
    assert kernel != "gemm.gemm" or given["head"] > 0
    program(*(given | {"programmatic": False}).values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_head_is_part_of_the_sum(config: GemmConfig) -> None:
    contract = ScaledMm(512, 96, torch.int8, torch.float32)
    inputs = contract.sample_inputs(5, torch.device("cpu"), torch.Generator().manual_seed(1))
    y = launch_module("scaled_mm").launch(contract, interpret_alone, config, *inputs)
    torch.testing.assert_close(y, op("scaled_mm").provider("reference").launcher(contract)(*inputs))


@pytest.mark.parametrize("in_features", [500, 96])
def test_what_is_no_whole_number_of_steps_is_not_read_ahead(in_features: int) -> None:
    contract = ScaledMm(in_features, 96, torch.int8, torch.float32)
    inputs = contract.sample_inputs(5, torch.device("cpu"), torch.Generator().manual_seed(1))
    heads: list[int] = []

    def note(kernel: str, config: Any, *arguments: Any) -> None:
        heads.append(arguments[-1])

    launch_module("scaled_mm").launch(contract, note, CONFIGS["all of it"], *inputs)
    assert heads == [0]
