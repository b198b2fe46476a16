"""Launchers under ``torch.compile``: one opaque node of the graph each, for any M, with what they write in place."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract
from parhelion.ops.custom_op import custom_op
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.registry import op
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.scaled_mm import ScaledMm

CPU = torch.device("cpu")
CONTRACTS = (FusedAddRmsNorm(64), RmsNormDynamicPerTokenQuant(64), ScaledMm(64, 48, torch.int8, torch.float32))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)
def test_a_compiled_function_over_it_gives_what_the_launcher_gives_at_every_m(contract: Contract) -> None:
    launch = op(contract.name).provider("reference").launcher(contract)
    wrapped = custom_op(contract, launch)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *inputs: wrapped(*inputs), fullgraph=True, dynamic=True, backend=counter)
    for num_tokens in (5, 9, 33):
        inputs = contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(num_tokens))
        ours, theirs = [x.clone() for x in inputs], [x.clone() for x in inputs]
        for got, want in zip(compiled(*ours), launch(*theirs), strict=True):
            assert torch.equal(got.float(), want.float())
        for got, want in zip(ours, theirs, strict=True):
            assert torch.equal(got.float(), want.float())
    assert counter.frame_count == 1
    nodes = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert sum(node.startswith(f"parhelion.{contract.name}_") for node in nodes) == 1


def test_a_contract_that_takes_a_record_is_refused() -> None:
    with pytest.raises(ConfigError, match="paged_attention takes a record"):
        custom_op(PagedAttention(4, 2, 64, 16, 0.125), lambda *inputs: inputs)
