"""A Hugging Face config.json as a ModelConfig, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec

from parhelion.errors import CheckpointError
from parhelion.models.config import ModelConfig, RopeConfig

if TYPE_CHECKING:
    from parhelion.quantization.scheme import QuantScheme

_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
# Mistral is a Llama whose layers may all have a sliding window.
_ARCHITECTURES = {
    "LlamaForCausalLM": "LlamaForCausalLM",
    "MistralForCausalLM": "LlamaForCausalLM",
    "Qwen2ForCausalLM": "Qwen2ForCausalLM",
    "Qwen3ForCausalLM": "Qwen3ForCausalLM",
}
_BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_DEFAULT_THETA = 10000.0

_Size = Annotated[int, msgspec.Meta(ge=1)]
TokenIds = int | list[int] | None
_Json = TypeVar("_Json", bound=msgspec.Struct)


class _RopeJson(msgspec.Struct):
    """``rope_scaling`` (transformers 4) or ``rope_parameters`` (transformers 5)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    partial_rotary_factor: float | None = None
    full_attention: object = None
    sliding_attention: object = None


class ConfigJson(msgspec.Struct):
    """The fields of a model's config.json that are read; all others are ignored."""

    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _Size
    num_attention_heads: _Size
    architectures: list[str] | None = None
    model_type: str | None = None
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    rope_theta: float | None = None
    rope_scaling: _RopeJson | None = None
    rope_parameters: _RopeJson | None = None
    partial_rotary_factor: float | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    sliding_window: int | None = None
    use_sliding_window: bool | None = None
    max_window_layers: int | None = None
    layer_types: list[str] | None = None
    hidden_act: str = "silu"
    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None
    quantization_config: dict[str, object] | None = None


class _VocabJson(msgspec.Struct):
    """The field of config.json that says how many ids there are."""

    vocab_size: _Size


class _GenerationJson(msgspec.Struct):
    """The field of generation_config.json that is read."""

    eos_token_id: TokenIds = None


def read_hf_config(folder: Path) -> ModelConfig:
    """The model configuration of a Hugging Face style folder; of an EAGLE-3 draft head, that of its own layers.

    Raises:
        CheckpointError: no config.json, bad JSON, or something in it that is not supported.
    """
    # The format of draft heads builds on this module, so it is imported when a folder is read.
    from parhelion.models.eagle3_config import is_eagle3, read_eagle3_config

    path = config_path(folder)
    if is_eagle3(folder):
        return read_eagle3_config(folder).layer
    config = decode_json(path, ConfigJson)
    return model_config(path, config, _architecture(path, config))


def model_config(path: Path, config: ConfigJson, architecture: str) -> ModelConfig:
    """What the fields mean under an architecture.

    Args:
        path: of the config.json; its folder may hold a generation_config.json.
        config: the fields.
        architecture: one of those supported.

    Raises:
        CheckpointError: something that is not supported.
    """
    _check_supported(path, config)
    is_qwen = architecture.startswith("Qwen")
    bias = bool(config.attention_bias)
    return ModelConfig(
        architecture=_ARCHITECTURES[architecture],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
        rms_norm_eps=config.rms_norm_eps,
        rope=_rope(path, config),
        max_position=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_bias=True if architecture == "Qwen2ForCausalLM" else bias,
        attention_output_bias=False if architecture == "Qwen2ForCausalLM" else bias,
        mlp_bias=bool(config.mlp_bias),
        qk_norm=architecture == "Qwen3ForCausalLM",
        sliding_windows=windows_by_layer(config) if is_qwen else _uniform_windows(architecture, config),
        eos_token_ids=_eos_token_ids(path.parent, config.eos_token_id),
        bos_token_id=_first(config.bos_token_id),
        hidden_act=config.hidden_act,
        quantization=_quantization(path, config),
    )


def hf_eos_token_ids(folder: Path) -> tuple[int, ...]:
    """Ids that end a text, from config.json and generation_config.json, as far as these exist."""
    path = folder / _CONFIG
    return _eos_token_ids(folder, decode_json(path, _GenerationJson).eos_token_id if path.is_file() else None)


def hf_vocab_size(folder: Path) -> int:
    """How many ids the model of a folder has.

    Raises:
        CheckpointError: no config.json, or a bad one.
    """
    return decode_json(config_path(folder), _VocabJson).vocab_size


def config_path(folder: Path) -> Path:
    """The config.json of a folder.

    Raises:
        CheckpointError: there is none.
    """
    path = folder / _CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {_CONFIG}: fetch the model's whole folder, or give another path")
    return path


def decode_json(path: Path, kind: type[_Json]) -> _Json:
    """The fields of a JSON file that ``kind`` has.

    Raises:
        CheckpointError: bad JSON, or a field that is missing or of another type.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be used ({error}): fetch it again or correct it") from error


def _architecture(path: Path, config: ConfigJson) -> str:
    named = config.architectures[0] if config.architectures else _BY_MODEL_TYPE.get(config.model_type or "")
    if named not in _ARCHITECTURES:
        raise CheckpointError(
            f"{path} names the architecture {named or config.model_type!r}; supported are {', '.join(_ARCHITECTURES)}"
        )
    return named


def _check_supported(path: Path, config: ConfigJson) -> None:
    if config.hidden_act != "silu":
        raise CheckpointError(f"{path}: hidden_act is {config.hidden_act!r}; only 'silu' is supported")


def _quantization(path: Path, config: ConfigJson) -> QuantScheme | None:
    if config.quantization_config is None:
        return None
    # Imported here: it brings torch, which a process that only reads the ends of a text does without.
    from parhelion.quantization.hf_quantization import read_quantization_config

    scheme = read_quantization_config(path, config.quantization_config)
    if scheme.applies_to("lm_head") and not config.tie_word_embeddings:
        raise CheckpointError(
            f"{path}: lm_head is quantized as well ({scheme.name}), which is not supported: quantize the model with "
            "lm_head in the ignore list"
        )
    return scheme


def _rope(path: Path, config: ConfigJson) -> RopeConfig:
    parameters = config.rope_parameters or config.rope_scaling or _RopeJson()
    if parameters.full_attention is not None or parameters.sliding_attention is not None:
        raise CheckpointError(f"{path}: rope parameters that differ by kind of layer are not supported")
    rotated = parameters.partial_rotary_factor or config.partial_rotary_factor or 1.0
    if rotated != 1.0:
        raise CheckpointError(f"{path}: partial_rotary_factor is {rotated}; only 1.0 is supported")
    scaling = _scaling(path, parameters)
    defaults = RopeConfig()
    return RopeConfig(
        theta=parameters.rope_theta or config.rope_theta or _DEFAULT_THETA,
        scaling=scaling,
        factor=parameters.factor or 1.0 if scaling else 1.0,
        low_freq_factor=parameters.low_freq_factor or defaults.low_freq_factor,
        high_freq_factor=parameters.high_freq_factor or defaults.high_freq_factor,
        original_max_position=parameters.original_max_position_embeddings or config.max_position_embeddings,
    )


def _scaling(path: Path, parameters: _RopeJson) -> Literal["linear", "llama3"] | None:
    kind = parameters.rope_type or parameters.type or "default"
    if kind == "default":
        return None
    if kind == "linear" or kind == "llama3":
        if not parameters.factor:
            raise CheckpointError(f"{path}: rope scaling {kind!r} has no factor")
        return "linear" if kind == "linear" else "llama3"
    raise CheckpointError(f"{path}: rope scaling {kind!r} is not supported; supported are default, linear and llama3")


def _uniform_windows(architecture: str, config: ConfigJson) -> tuple[int | None, ...]:
    if architecture != "MistralForCausalLM" or not config.sliding_window:
        return ()
    return (config.sliding_window,) * config.num_hidden_layers


def windows_by_layer(config: ConfigJson) -> tuple[int | None, ...]:
    """Qwen's sliding windows: per layer by ``layer_types``, else from layer ``max_window_layers`` on."""
    if not config.use_sliding_window or not config.sliding_window:
        return ()
    if config.layer_types is not None:
        slides = [kind == "sliding_attention" for kind in config.layer_types]
    else:
        first = config.max_window_layers if config.max_window_layers is not None else config.num_hidden_layers
        slides = [layer >= first for layer in range(config.num_hidden_layers)]
    return tuple(config.sliding_window if slide else None for slide in slides) if any(slides) else ()


def _eos_token_ids(folder: Path, from_config: TokenIds) -> tuple[int, ...]:
    generation = folder / _GENERATION_CONFIG
    from_generation = decode_json(generation, _GenerationJson).eos_token_id if generation.is_file() else None
    return tuple(dict.fromkeys([*_listed(from_config), *_listed(from_generation)]))


def _listed(token_ids: TokenIds) -> list[int]:
    if token_ids is None:
        return []
    return token_ids if isinstance(token_ids, list) else [token_ids]


def _first(token_ids: TokenIds) -> int | None:
    return next(iter(_listed(token_ids)), None)
