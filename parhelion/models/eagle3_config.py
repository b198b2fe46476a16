"""What the config.json of an EAGLE-3 draft head says, in both published formats.

The original one (github.com/SafeAILab/EAGLE, and SpecForge's, which is the same) is a model's config.json with a few
fields more. That of speculators (github.com/vllm-project/speculators) has the head's layer under
``transformer_layer_config`` and names the model that the head was made for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from parhelion.errors import CheckpointError, ConfigError
from parhelion.models.config import ModelConfig
from parhelion.models.hf_config import ConfigJson, config_path, decode_json, model_config, windows_by_layer

ARCHITECTURE = "Eagle3LlamaForCausalLM"
"""What a head's own ``ModelConfig`` names; no model of the registry."""

NUM_FEATURE_LAYERS = 3
"""Hidden states of the target that a head reads unless it says which."""

_SPECULATORS_TYPE = "eagle3"
# The original format: what the head's layer is like, by the architecture that is named.
_LAYER_OF = {
    "LlamaForCausalLMEagle3": "LlamaForCausalLM",
    "Eagle3LlamaForCausalLM": "LlamaForCausalLM",
    "LlamaForCausalLM": "LlamaForCausalLM",
    "Qwen3ForCausalLMEagle3": "Qwen3ForCausalLM",
    "Eagle3Qwen3ForCausalLM": "Qwen3ForCausalLM",
}
# The same in the format of speculators, by the type of the layer.
_LAYER_OF_TYPE = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True, kw_only=True)
class Eagle3Config:
    """An EAGLE-3 draft head (Li et al., 2025, arXiv:2503.01840).

    Attributes:
        layer: dimensions of the head's own layers; its vocab_size is the target's.
        target_hidden_size: of the model that the head guesses for.
        draft_vocab_size: tokens that the head can guess.
        feature_layers: indices of the target's layers before which its hidden state is taken, ascending; None where the
            head leaves it to the default, see ``layers_read``.
        norm_before_residual: the layer's residual is the normalized feature, not the feature.
        norm_before_fc: the target's hidden states are normalized together, as one row, before they are fused.
        fc_norm: each of them is normalized by itself before that.
        norm_output: the feature for the next guess is taken behind the final norm, not before it.
        verifier: the target's name if the config names one.
    """

    layer: ModelConfig
    target_hidden_size: int
    draft_vocab_size: int
    feature_layers: tuple[int, ...] | None
    norm_before_residual: bool
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    verifier: str | None = None

    @property
    def num_features(self) -> int:
        """Hidden states of the target that are fused into a feature."""
        return NUM_FEATURE_LAYERS if self.feature_layers is None else len(self.feature_layers)

    def layers_read(self, target: ModelConfig) -> tuple[int, ...]:
        """``feature_layers``, or the default for a target: near the start, in the middle and near the end."""
        return self.feature_layers or (2, target.num_layers // 2, target.num_layers - 3)


class _EagleJson(msgspec.Struct):
    """The field of ``eagle_config``, in which some heads of the original format keep what is their own."""

    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    use_aux_hidden_state: bool = True
    norm_before_fc: bool = False


class _VerifierJson(msgspec.Struct):
    name_or_path: str | None = None


class _SpeculatorsJson(msgspec.Struct):
    verifier: _VerifierJson | None = None


class _KindJson(msgspec.Struct):
    """The fields that tell a head from a model."""

    architectures: list[str] | None = None
    speculators_model_type: str | None = None
    draft_vocab_size: int | None = None


class _HeadJson(_KindJson):
    """The fields of a head's config.json that are not those of a model's; all others are ignored."""

    target_hidden_size: int | None = None
    eagle_aux_hidden_state_layer_ids: list[int] | None = None
    eagle_config: _EagleJson | None = None
    norm_before_residual: bool | None = None
    norm_before_fc: bool | None = None
    fc_norm: bool | None = None
    norm_output: bool | None = None
    transformer_layer_config: ConfigJson | None = None
    speculators_config: _SpeculatorsJson | None = None
    quantization_config: dict[str, object] | None = None


def is_eagle3(path: Path) -> bool:
    """Whether a folder's config.json is of an EAGLE-3 draft head. False where there is none.

    Raises:
        CheckpointError: it is no valid JSON.
    """
    if not (path / "config.json").is_file():
        return False
    kind = decode_json(config_path(path), _KindJson)
    if kind.speculators_model_type is not None:
        return kind.speculators_model_type == _SPECULATORS_TYPE
    named = _named(kind)
    return "eagle3" in named.lower() or (kind.draft_vocab_size is not None and named in _LAYER_OF)


def read_eagle3_config(path: Path) -> Eagle3Config:
    """The configuration of a draft head's folder, in either format.

    Raises:
        CheckpointError: no config.json, not that of an EAGLE-3 head, or something in it that is not supported.
    """
    file = config_path(path)
    if not is_eagle3(path):
        raise CheckpointError(
            f"{file} is not of an EAGLE-3 draft head: it has neither speculators_model_type {_SPECULATORS_TYPE!r} nor "
            f"one of the architectures {', '.join(_LAYER_OF)} with draft_vocab_size; give the folder of such a head"
        )
    head = decode_json(file, _HeadJson)
    if head.quantization_config is not None:
        raise CheckpointError(f"{file}: the draft head is quantized, which is not supported: take the unquantized head")
    if head.eagle_config is not None and not head.eagle_config.use_aux_hidden_state:
        raise CheckpointError(
            f"{file}: use_aux_hidden_state is false, so the head reads no hidden states of inner layers, which is not "
            "supported: take a head that does"
        )
    is_original = head.transformer_layer_config is None
    layer = head.transformer_layer_config or decode_json(file, ConfigJson)
    architecture = _original_layer(file, head) if is_original else _speculators_layer(file, layer)
    config = model_config(file, layer, architecture)
    eagle = head.eagle_config or _EagleJson()
    speculators = head.speculators_config or _SpeculatorsJson()
    return Eagle3Config(
        layer=replace(
            config, architecture=ARCHITECTURE, tie_word_embeddings=False, sliding_windows=windows_by_layer(layer)
        ),
        target_hidden_size=head.target_hidden_size or config.hidden_size,
        draft_vocab_size=head.draft_vocab_size or config.vocab_size,
        feature_layers=_feature_layers(head.eagle_aux_hidden_state_layer_ids or eagle.eagle_aux_hidden_state_layer_ids),
        norm_before_residual=_norm_before_residual(file, head, is_original),
        norm_before_fc=head.norm_before_fc or eagle.norm_before_fc,
        fc_norm=bool(head.fc_norm),
        norm_output=bool(head.norm_output),
        verifier=speculators.verifier.name_or_path if speculators.verifier is not None else None,
    )


def check_fits(config: Eagle3Config, target: ModelConfig) -> None:
    """Refuse a head that was made for a model of other sizes than the target's.

    Raises:
        ConfigError: the hidden sizes or the vocabularies differ, or the target has no such layers.
    """
    made_for = f", which was made for {config.verifier}," if config.verifier is not None else ""
    advice = "give the head of this very model"
    if config.target_hidden_size != target.hidden_size:
        raise ConfigError(
            f"the draft head{made_for} reads hidden states of {config.target_hidden_size} elements, but the model's "
            f"have {target.hidden_size}: {advice}"
        )
    if config.layer.vocab_size != target.vocab_size:
        raise ConfigError(
            f"the draft head{made_for} knows {config.layer.vocab_size} tokens, but the model {target.vocab_size}: "
            f"{advice}"
        )
    layers = config.layers_read(target)
    if list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < target.num_layers:
        which = "by default" if config.feature_layers is None else "by its config.json"
        raise ConfigError(
            f"the draft head{made_for} reads the hidden states before the layers {_listed(layers)} {which}, but the "
            f"model has the layers 0 to {target.num_layers - 1}, each of which may be named once, in ascending order: "
            f"{advice}"
        )


def _named(kind: _KindJson) -> str:
    return kind.architectures[0] if kind.architectures else ""


def _original_layer(file: Path, head: _HeadJson) -> str:
    named = _named(head)
    if named not in _LAYER_OF:
        raise CheckpointError(
            f"{file} names the draft head's architecture {named!r}; supported are {', '.join(_LAYER_OF)}"
        )
    return _LAYER_OF[named]


def _speculators_layer(file: Path, layer: ConfigJson) -> str:
    kind = layer.model_type or "llama"
    if kind not in _LAYER_OF_TYPE:
        raise CheckpointError(
            f"{file}: the draft head's layer is of model_type {kind!r}; supported are {', '.join(_LAYER_OF_TYPE)}"
        )
    return _LAYER_OF_TYPE[kind]


def _feature_layers(listed: list[int] | None) -> tuple[int, ...] | None:
    """Layers before which hidden states are taken.

    Two conventions are published: a layer's number stands for its input, or for its output, which is the next one's
    input. Nobody reads the input of layer 1 where the default reads that of layer 2, so a list that begins with 1 is of
    outputs (github.com/sgl-project/sglang tells them apart in the same way).
    """
    if not listed:
        return None
    return tuple(number + 1 for number in listed) if listed[0] == 1 else tuple(listed)


def _norm_before_residual(file: Path, head: _HeadJson, is_original: bool) -> bool:
    if head.norm_before_residual is not None:
        return head.norm_before_residual
    if is_original:
        return False
    raise CheckpointError(
        f"{file} does not say norm_before_residual, and those who write this format and those who read it do not agree "
        "on a default: add what the head was trained with, true or false"
    )


def _listed(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers))
