"""What a vLLM needs whose guesses count as often as it is told: see ``rejection_sample_method`` "synthetic" in its
``SpeculativeConfig``. It stands alone: it needs torch and nothing else. vLLM's processes find it by its name.
"""

from __future__ import annotations

from typing import Any

_FIRST_ID = 100


class AlwaysGuesses:
    """A proposer of the method "custom_class", which always has as many guesses as may be made, at no cost.

    Args:
        vllm_config: all options of vLLM.
    """

    def __init__(self, vllm_config: Any) -> None:
        count = vllm_config.speculative_config.num_speculative_tokens
        self._guesses = list(range(_FIRST_ID, _FIRST_ID + count))

    def propose(self, sampled_token_ids: list[list[int]], *_args: Any, **_more: Any) -> list[list[int]]:
        """Guesses for each request of a step; none for one whose prompt is not all known yet."""
        return [list(self._guesses) if ids else [] for ids in sampled_token_ids]


class ImposedAcceptance:
    """Mixed into vLLM's worker by its ``worker_extension_cls``: the share of guesses that count is set while it runs,
    since another one for each share would take minutes to start.
    """

    model_runner: Any

    def impose_acceptance(self, rate: float) -> None:
        """Of the guesses whose turn comes, so many count: a share from 0 to 1, the same for each place."""
        import torch

        # In it, tensors of either kind may be written.
        with torch.inference_mode():
            self.model_runner.rejection_sampler.synthetic_conditional_rates.fill_(rate)
