"""What an EAGLE-3 head calls beside its target, and how often: the head itself is built, with parameters that have
shapes and no values, and a resolver that writes down what it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from parhelion.distributed.group import Group
from parhelion.distributed.layouts import why_not_tp
from parhelion.engine.ranks.pipeline_parallel import size_of
from parhelion.errors import ConfigError
from parhelion.layers.fusions import FUSED, ON_GPU
from parhelion.layers.program import PLAIN, Plan
from parhelion.layers.vocabulary import rows_per_rank
from parhelion.models.config import ModelConfig, RopeConfig
from parhelion.models.decoder import BuildOptions
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import ARCHITECTURE, Eagle3Config, is_eagle3, read_eagle3_config
from parhelion.ops.argmax import Argmax
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.linear import Linear
from parhelion.ops.registry import needs_other_ranks, own_parts
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED, QuantScheme, RequestedQuantization, Section
from parhelion.tuning.model_calls import TunedModel, tuned_model
from parhelion.tuning.model_contracts import BLOCK_SIZE, MAX_POSITION
from parhelion.tuning.model_shapes import ModelShape, model_shape

META = torch.device("meta")


@dataclass(frozen=True)
class TunedHead:
    """A head as far as the tuner cares.

    Attributes:
        name: its folder's, or as the commands take it.
        config: dimensions, whole.
        tp: ranks that share it; 1 too where it is whole on each of several.
    """

    name: str
    config: Eagle3Config
    tp: int = 1

    @property
    def quantization(self) -> QuantScheme:
        """No head is quantized."""
        return UNQUANTIZED

    @property
    def lm_head_quantization(self) -> None:
        """Nor is its projection to the vocabulary."""
        return


def _like_its_target(shape: ModelShape, draft_vocab_size: int) -> Eagle3Config:
    """A head of one layer that is as wide as its target's, without norms of heads; where it reads does not matter."""
    layer = ModelConfig(
        architecture=ARCHITECTURE,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_layers=1,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        rope=RopeConfig(),
        max_position=MAX_POSITION,
        tie_word_embeddings=False,
    )
    return Eagle3Config(
        layer=layer,
        target_hidden_size=shape.hidden_size,
        draft_vocab_size=draft_vocab_size,
        feature_layers=None,
        norm_before_residual=False,
    )


HEADS: Mapping[str, Eagle3Config] = MappingProxyType(
    {"qwen3-8b-eagle3": _like_its_target(model_shape("qwen3-8b"), 32000)}
)
"""Heads that are known by name, of the sizes in which they are published."""


def is_head(name: str) -> bool:
    """Whether it is a listed head, or the folder of one.

    Raises:
        CheckpointError: the folder's config.json is no valid JSON.
    """
    return name in HEADS or is_eagle3(Path(name))


def tuned_head(name: str, tp: int = 1) -> TunedHead:
    """A listed head by name, or one by its folder, of which only the config is read.

    Args:
        tp: ranks that share it, if its sizes divide; if not, each has all of it.

    Raises:
        CheckpointError: the folder is not one of a head, or of one that is not supported.
    """
    if name in HEADS:
        found = TunedHead(name, HEADS[name])
    else:
        found = TunedHead(Path(name).resolve().name, read_eagle3_config(Path(name)))
    is_shared = why_not_tp(size_of(found.config.layer, UNQUANTIZED), tp) is None
    return TunedHead(found.name, found.config, tp if is_shared else 1)


def tuned(
    name: str,
    quantization: str | None = None,
    tp: int = 1,
    lm_head_quantization: RequestedQuantization | None = None,
) -> TunedModel | TunedHead:
    """A model, or a head, by its name or its path; see ``tuned_model`` and ``tuned_head``.

    Raises:
        ConfigError: see ``tuned_model``; or a head is asked for that is quantized.
        CheckpointError: the config cannot be read.
    """
    if not is_head(name):
        return tuned_model(name, quantization, tp, lm_head_quantization)
    if quantization not in (None, UNQUANTIZED.name):
        raise ConfigError(f"{name} is a draft head, and those are never quantized: leave --quantization out")
    if lm_head_quantization is not None:
        raise ConfigError(f"{name} is a draft head, and those are never quantized: leave --lm-head-quantization out")
    return tuned_head(name, tp)


def head_contracts(head: TunedHead, dtype: torch.dtype = torch.bfloat16, plan: Plan = ON_GPU[0]) -> Counter[Contract]:
    """What the head calls to make a feature and a guess, of several ranks what each calls by itself.

    What chooses tokens from logits of the target's vocabulary, and looks up a step's inputs, it shares with the target.
    Whether the product that fuses hidden states has a bias a config does not say: it is taken to have none.
    """
    return Counter(own_parts(_asked(head, dtype, plan)))


def served_head_contracts(head: TunedHead, dtype: torch.dtype = torch.bfloat16) -> list[Contract]:
    """All that the head may call, under any plan, each once; of several ranks what each of them calls by itself."""
    found: dict[Contract, None] = {}
    for plan in (PLAIN, FUSED, *ON_GPU):
        found.update(dict.fromkeys(head_contracts(head, dtype, plan)))
    return list(found)


def shared_head_contracts(head: TunedHead, dtype: torch.dtype = torch.bfloat16) -> Counter[Contract]:
    """What ranks call together for a feature and a guess, and how often: the most of any plan."""
    found: Counter[Contract] = Counter()
    for plan in ON_GPU:
        found |= Counter(each for each in _asked(head, dtype, plan) if needs_other_ranks(each))
    return found


def sees_requests(head: TunedHead, contract: Contract) -> bool:
    """Whether it is of the projection to the vocabulary and the choice behind that, which see one token a request."""
    rows = rows_per_rank(head.config.draft_vocab_size, Group(size=head.tp))
    return isinstance(contract, Argmax) or (isinstance(contract, Linear) and contract.out_features == rows)


class _Recorder(Resolver):
    """Finds nobody, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(META)
        self.asked: list[Contract] = []

    def launcher(self, contract: Contract) -> Launcher:
        self.asked.append(contract)
        return _never

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        return self.launcher(contract)


class _Shapes:
    """Tensors of a head that has tables of its own: shapes alone, but for the ids of its vocabulary, which are read."""

    num_bytes = 0

    def get(self, name: str, *shape: int) -> torch.Tensor:
        if name == "d2t":
            return torch.zeros(shape, dtype=torch.int64)
        return torch.empty(shape, dtype=torch.bfloat16, device=META)

    def get_section(self, name: str, section: Section, *shape: int) -> torch.Tensor:
        return section.of(self.get(name, *shape))

    def has(self, name: str) -> bool:
        return name in ("embed_tokens.weight", "lm_head.weight")


def _asked(head: TunedHead, dtype: torch.dtype, plan: Plan) -> list[Contract]:
    """What the head looks for as it is built: each as often as it is called for one token."""
    recorder = _Recorder()
    options = BuildOptions(
        dtype=dtype,
        storage_dtype=dtype,
        scheme=UNQUANTIZED,
        plans=(plan,),
        resolver=recorder,
        block_size=BLOCK_SIZE,
        max_model_len=head.config.layer.max_position,
        group=Group(size=head.tp),
    )
    Eagle3Head(head.config, _Shapes(), options)
    return recorder.asked


def _never(*inputs: Any) -> Any:
    raise AssertionError("what has shapes and no values is not computed with")
