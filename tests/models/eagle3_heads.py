"""Small EAGLE-3 draft heads: random tensors under the published names, and steps to run them on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from parhelion.layers.fusions import plans
from parhelion.layers.step_batch import StepBatch
from parhelion.models.config import ModelConfig, RopeConfig
from parhelion.models.decoder import BuildOptions
from parhelion.models.eagle3_config import ARCHITECTURE, Eagle3Config
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention
from parhelion.ops.resolve import Resolver
from parhelion.quantization import FP8_PER_TOKEN

CPU = torch.device("cpu")
BLOCK_SIZE = 4
MAX_MODEL_LEN = 64

LAYER = ModelConfig(
    architecture=ARCHITECTURE,
    vocab_size=48,
    hidden_size=32,
    intermediate_size=40,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=RopeConfig(theta=5e3),
    max_position=MAX_MODEL_LEN,
    tie_word_embeddings=False,
)
HEAD = Eagle3Config(
    layer=LAYER, target_hidden_size=24, draft_vocab_size=20, feature_layers=None, norm_before_residual=False
)

LAYER_JSON: dict[str, object] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e3,
    "rope_scaling": None,
    "max_position_embeddings": MAX_MODEL_LEN,
    "model_type": "llama",
}
ORIGINAL_JSON: dict[str, object] = {
    **LAYER_JSON,
    "architectures": ["LlamaForCausalLMEagle3"],
    "draft_vocab_size": 20,
    "target_hidden_size": 24,
}
SPECULATORS_JSON: dict[str, object] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": 20,
    "target_hidden_size": 24,
    "norm_before_residual": True,
    "transformer_layer_config": LAYER_JSON,
    "speculators_config": {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
        "verifier": {"name_or_path": "some/model", "architectures": ["Qwen3ForCausalLM"]},
    },
}


def options(fusion: str = "plain", dtype: torch.dtype = torch.float32) -> BuildOptions:
    """As for a target on a CPU; its scheme is none of the head's concern."""
    return BuildOptions(dtype, dtype, FP8_PER_TOKEN, plans(fusion, CPU), Resolver(CPU), BLOCK_SIZE, MAX_MODEL_LEN)


def head_tensors(
    config: Eagle3Config, first: str = "midlayer", with_embedding: bool = True, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random tensors of a head, float32: what a file of either format holds."""
    c, random = config.layer, torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) / columns**0.5

    def vector(size: int) -> torch.Tensor:
        return 1 + 0.3 * torch.randn(size, generator=random)

    width = config.num_features * config.target_hidden_size
    tensors = {
        "fc.weight": matrix(c.hidden_size, width),
        "norm.weight": vector(c.hidden_size),
        "lm_head.weight": matrix(config.draft_vocab_size, c.hidden_size),
        f"{first}.hidden_norm.weight": vector(c.hidden_size),
    }
    for index in range(c.num_layers):
        name = first if index == 0 else f"layers.{index}"
        attention_in = 2 * c.hidden_size if index == 0 else c.hidden_size
        tensors |= {
            f"{name}.input_layernorm.weight": vector(c.hidden_size),
            f"{name}.post_attention_layernorm.weight": vector(c.hidden_size),
            f"{name}.self_attn.q_proj.weight": matrix(c.num_heads * c.head_dim, attention_in),
            f"{name}.self_attn.k_proj.weight": matrix(c.num_kv_heads * c.head_dim, attention_in),
            f"{name}.self_attn.v_proj.weight": matrix(c.num_kv_heads * c.head_dim, attention_in),
            f"{name}.self_attn.o_proj.weight": matrix(c.hidden_size, c.num_heads * c.head_dim),
            f"{name}.mlp.gate_proj.weight": matrix(c.intermediate_size, c.hidden_size),
            f"{name}.mlp.up_proj.weight": matrix(c.intermediate_size, c.hidden_size),
            f"{name}.mlp.down_proj.weight": matrix(c.hidden_size, c.intermediate_size),
        }
        if c.qk_norm:
            tensors |= {f"{name}.self_attn.{which}_norm.weight": vector(c.head_dim) for which in "qk"}
    if with_embedding:
        tensors["embed_tokens.weight"] = torch.randn(c.vocab_size, c.hidden_size, generator=random)
    if config.norm_before_fc:
        tensors["input_norm.weight"] = vector(width)
    if config.fc_norm:
        tensors |= {f"fc_norm.{i}.weight": vector(config.target_hidden_size) for i in range(config.num_features)}
    if config.draft_vocab_size != c.vocab_size:
        known = torch.randperm(c.vocab_size, generator=random)[: config.draft_vocab_size].sort().values
        tensors["d2t"] = known - torch.arange(config.draft_vocab_size)
        tensors["t2d"] = torch.zeros(c.vocab_size, dtype=torch.bool).index_fill_(0, known, True)
    return tensors


class HeldWeights:
    """Tensors in memory, as weights."""

    num_bytes = 0

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def get(self, name: str, *shape: int) -> torch.Tensor:
        tensor = self._tensors[name]
        assert tuple(tensor.shape) == shape, f"{name}: {tuple(tensor.shape)} instead of {shape}"
        return tensor

    def has(self, name: str) -> bool:
        return name in self._tensors


def write_head(folder: Path, config: Mapping[str, object], tensors: Mapping[str, torch.Tensor] | None = None) -> Path:
    """A folder with config.json and, if there are tensors, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(dict(tensors), folder / "model.safetensors")
    return folder


def new_cache(layer: ModelConfig, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """A KV cache, empty."""
    shape = (32, BLOCK_SIZE, 2 * layer.num_kv_heads, layer.head_dim)
    return [torch.zeros(shape, dtype=dtype) for _ in range(layer.num_layers)]


def step_batch(
    layer: ModelConfig,
    token_ids: torch.Tensor,
    starts: Sequence[int],
    counts: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> StepBatch:
    """A step of rows whose blocks are scattered: row r has blocks r, r + rows, r + 2 * rows and so on, from the end."""
    rows = len(starts)
    blocks_per_row = MAX_MODEL_LEN // BLOCK_SIZE // 2
    table = np.arange(rows * blocks_per_row).reshape(blocks_per_row, rows).T[:, ::-1].copy()
    positions = np.concatenate([np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)])
    row_of = np.repeat(np.arange(rows), counts)
    slots = table[row_of, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    seq_lens = np.add(starts, counts)
    windows = frozenset(layer.sliding_window(index) for index in range(layer.num_layers))
    attention = AttentionBatch(
        block_table=torch.from_numpy(table).int(),
        seq_lens=torch.from_numpy(seq_lens).int(),
        query_start_loc=torch.from_numpy(np.concatenate(([0], np.cumsum(counts)))).int(),
        max_query_len=max(counts),
        max_seq_len=int(seq_lens.max()),
        cpu=plan_cpu_attention(table, list(starts), list(counts), BLOCK_SIZE, windows, dtype),
    )
    return StepBatch(token_ids, torch.from_numpy(positions), torch.from_numpy(slots), attention)
