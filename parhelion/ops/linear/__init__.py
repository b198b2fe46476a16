"""``linear``: activations [M, K] by a weight [N, K], packed once at load, to [M, N]."""

from parhelion.ops.linear.providers import Launcher, Provider, choose, choose_auto, provider_report

__all__ = ["Launcher", "Provider", "choose", "choose_auto", "provider_report"]
