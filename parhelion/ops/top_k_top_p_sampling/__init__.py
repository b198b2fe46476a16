"""``top_k_top_p_sampling``: a token drawn for each row."""

from parhelion.ops.helion_provider import HelionProvider
from parhelion.ops.provider import InductorProvider, ReferenceProvider
from parhelion.ops.registry import Op
from parhelion.ops.top_k_top_p_sampling.contract import TopKTopPSampling
from parhelion.ops.top_k_top_p_sampling.providers import TorchSampling

OP = Op(
    TopKTopPSampling,
    (ReferenceProvider(), InductorProvider(), HelionProvider(), TorchSampling()),
    examples=(TopKTopPSampling(1000), TopKTopPSampling(49152), TopKTopPSampling(151936)),
)

__all__ = ["OP", "TopKTopPSampling"]
