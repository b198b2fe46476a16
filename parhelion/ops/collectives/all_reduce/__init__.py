"""``all_reduce``: the sum over the ranks of what each of them has."""

from parhelion.ops.collectives.all_reduce.contract import AllReduce
from parhelion.ops.collectives.all_reduce.providers import TorchDistributed
from parhelion.ops.provider import ReferenceProvider
from parhelion.ops.registry import Op

OP = Op(AllReduce, (ReferenceProvider(), TorchDistributed()), examples=(AllReduce(64, 1),))

__all__ = ["OP", "AllReduce"]
