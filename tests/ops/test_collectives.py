"""What ranks do together, in two processes, against the references."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.registry import COLLECTIVES, op, op_names
from parhelion.ops.resolve import Resolver

TOGETHER = """
import sys
import torch
from parhelion.distributed.rendezvous import file_store, join, leave
from parhelion.layers.vocabulary import VocabularyEmbedding, VocabularyHead
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.collectives.machines import tell_group, tell_machine, why_no_exchange
from parhelion.ops.registry import op
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED, choose_head_scheme, weights_of

CPU = torch.device("cpu")
group = join(file_store(sys.argv[1], 2), int(sys.argv[2]), 2, CPU)

resolver = Resolver(CPU)
for dtype in (torch.float32, torch.bfloat16):
    contract = AllReduce(64, 2, dtype)
    assert resolver.provider(contract).name == "torch"
    (part,) = contract.sample_inputs(5, CPU, torch.Generator().manual_seed(group.rank))
    expected = contract.reference(part)
    assert not torch.equal(expected, part)
    found = resolver.launcher(contract)(part)
    assert found.data_ptr() == part.data_ptr()
    torch.testing.assert_close(found, expected, rtol=8e-3, atol=1e-2)

# A vocabulary of 5: three rows here, two and a padded one there. Rows 1 and 4 are equal.
table = torch.tensor([[0.0, 1.0], [2.0, 2.0], [-1.0, 0.0], [0.5, 0.5], [2.0, 2.0], [0.0, 0.0]])
own = table[3 * group.rank : 3 * group.rank + 3].clone()
ids = torch.tensor([4, 0, 2, 3, 1])
assert torch.equal(VocabularyEmbedding(own, torch.float32, group, resolver)(ids), table[ids])
hidden = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-1.0, 1.0]])
# Of each of these rows codes stand for all there is.
for scheme in (UNQUANTIZED, choose_head_scheme("fp8"), choose_head_scheme("int8")):
    weights = weights_of("lm_head", own, scheme, torch.float32)
    head = VocabularyHead(weights, torch.float32, 5, group, resolver)
    torch.testing.assert_close(head(hidden), hidden @ table[:5].t())
    torch.testing.assert_close(head.own(hidden), hidden @ table[:5].t()[:, 3 * group.rank : 3 * group.rank + 3])
    # Of equal logits the first; and where all real ones are negative, not the padding's 0.
    assert head.likeliest(hidden).tolist() == [1, 2, 0]
    assert head.likeliest(torch.tensor([[-1.0, -1.0]])).tolist() == [2]
assert group.add_up(torch.tensor([[1, 2 + group.rank]])).tolist() == [[2, 5]]
values = torch.tensor([7 + group.rank])
assert group.from_first(values).item() == 7

# Memory is shared on one machine only; who was not told otherwise is on one.
norm = AllReduceRmsNorm(64, 2, 1e-6, torch.bfloat16, None)
kernel = op("all_reduce_rms_norm").provider("helion")
assert kernel.refuses(norm) is None
assert why_no_exchange(torch.device("cpu"), 2, 64) is None
torch.distributed.barrier()
# Nor with the peers of a second group.
if group.rank == 0:
    tell_group(0)
torch.distributed.barrier()
assert kernel.refuses(norm) is None
torch.distributed.barrier()
if group.rank == 0:
    tell_group(1)
torch.distributed.barrier()
assert "an engine of several ranks before" in kernel.refuses(norm)
assert why_no_exchange(torch.device("cpu"), 2, 64) == kernel.refuses(norm)
torch.distributed.barrier()
if group.rank == 0:
    tell_group(0)
torch.distributed.barrier()
tell_machine(group.rank, "10.0.0.1")
assert kernel.refuses(norm) is None
torch.distributed.barrier()
tell_machine(group.rank, f"10.0.0.{group.rank}")
torch.distributed.barrier()
assert kernel.refuses(norm) == "its ranks are on 2 machines, and share no memory"
assert why_no_exchange(torch.device("cpu"), 2, 64) == kernel.refuses(norm)
leave()
"""


def test_two_ranks_agree_with_the_references(tmp_path: Path) -> None:
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    command = [sys.executable, str(script), str(tmp_path / "store")]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [each.wait(60) for each in ranks] == [0, 0]


def test_a_process_that_is_alone_has_the_sum_already() -> None:
    contract = AllReduce(64, 1)
    (hidden,) = contract.sample_inputs(3, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert torch.equal(Resolver(torch.device("cpu")).launcher(contract)(hidden), contract.reference(hidden))
    refused = op("all_reduce").provider("torch").refuses(AllReduce(64, 2))
    assert refused == "it sums over 2 ranks, and this process is in a group of 1"


@pytest.mark.parametrize("name", COLLECTIVES)
def test_collectives_are_known_and_neither_tuned_nor_packed(name: str) -> None:
    assert op(name).name == name
    assert name not in op_names()
