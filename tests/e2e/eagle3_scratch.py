"""EAGLE-3 heads for a tiny target, and what such a head says from scratch."""

from __future__ import annotations

from pathlib import Path

import torch

from parhelion.layers.fusions import plans
from parhelion.layers.step_batch import StepBatch
from parhelion.models.config import ModelConfig
from parhelion.models.decoder import BuildOptions, DecoderModel, HiddenStates
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import Eagle3Config, read_eagle3_config
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.cpu_batch import plan_cpu_attention
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED
from tests.models.eagle3_heads import CPU, HeldWeights, head_tensors, write_head

HIDDEN = 64
HEAD_JSON: dict[str, object] = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "vocab_size": 512,
    "draft_vocab_size": 300,
    "hidden_size": 2 * HIDDEN,
    "target_hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 512,
    # Nothing like the default fits a model of three layers.
    "eagle_aux_hidden_state_layer_ids": [0, 2],
}


def whole(config: ModelConfig, token_ids: list[int]) -> StepBatch:
    """A sequence from its beginning, in one step and in one block after another."""
    n = len(token_ids)
    table = torch.arange(-(-n // 16))[None]
    windows = frozenset(config.sliding_window(layer) for layer in range(config.num_layers))
    attention = AttentionBatch(
        block_table=table.int(),
        seq_lens=torch.tensor([n], dtype=torch.int32),
        query_start_loc=torch.tensor([0, n], dtype=torch.int32),
        max_query_len=n,
        max_seq_len=n,
        cpu=plan_cpu_attention(table.numpy(), [0], [n], 16, windows, torch.float32),
    )
    return StepBatch(torch.tensor(token_ids), torch.arange(n), torch.arange(n), attention)


def cache(config: ModelConfig, num_tokens: int) -> list[torch.Tensor]:
    shape = (-(-num_tokens // 16), 16, 2 * config.num_kv_heads, config.head_dim)
    return [torch.zeros(shape) for _ in range(config.num_layers)]


class Scratch:
    """The target and its head, each over whole sequences."""

    def __init__(self, target: DecoderModel, config: Eagle3Config, tensors: dict[str, torch.Tensor]) -> None:
        options = BuildOptions(
            torch.float32,
            torch.float32,
            UNQUANTIZED,
            plans("plain", CPU),
            Resolver(CPU),
            16,
            target.config.max_position,
        )
        self.target, self.config = target, config
        self.head = Eagle3Head(config, HeldWeights(tensors), options)

    @torch.inference_mode()
    def states(self, token_ids: list[int]) -> torch.Tensor:
        states = HiddenStates(self.config.layers_read(self.target.config))
        self.target.forward(whole(self.target.config, token_ids), cache(self.target.config, len(token_ids)), states)
        return torch.cat(states.taken, dim=-1)

    @torch.inference_mode()
    def guesses(self, known: list[int], count: int) -> list[int]:
        """What the head says follows the known tokens."""
        features = self.head.features(self.states(known[:-1]))
        tokens, guesses = known[1:], []
        for _ in range(count):
            layer = self.config.layer
            normed, back = self.head.forward(whole(layer, tokens), features, cache(layer, len(tokens)))
            guesses.append(int(self.head.likeliest(normed[-1:])))
            tokens, features = [*tokens, guesses[-1]], torch.cat((features, back[-1:]))
        return guesses


def write_random_head(target: DecoderModel, folder: Path) -> Scratch:
    """One that is hardly ever right, but about everything that it reads."""
    write_head(folder, HEAD_JSON)
    config = read_eagle3_config(folder)
    tensors = head_tensors(config)
    write_head(folder, HEAD_JSON, tensors)
    return Scratch(target, config, tensors)


def write_fitted_head(scratch: Scratch, folder: Path) -> Path:
    """One that is often right about the texts below: a linear map of the hidden states that is fitted to them."""
    config = scratch.config
    size = config.layer.hidden_size
    known = tiny_texts(scratch)
    states = torch.cat([scratch.states(text)[:-2] for text in known])
    wanted = torch.cat([torch.tensor(text[2:]) for text in known])
    drafted = torch.arange(config.draft_vocab_size)
    tensors = head_tensors(config)
    tensors["d2t"] = torch.zeros_like(drafted)
    tensors["fc.weight"] = torch.eye(size)
    tensors["norm.weight"] = torch.ones(size)
    for name in ("midlayer.self_attn.o_proj.weight", "midlayer.mlp.down_proj.weight"):
        tensors[name] = torch.zeros_like(tensors[name])
    normed = states / states.pow(2).mean(-1, keepdim=True).sqrt()
    inside = wanted < config.draft_vocab_size
    onehot = (wanted[inside, None] == drafted).float()
    gram = normed[inside].T @ normed[inside] + 1e-2 * torch.eye(size)
    tensors["lm_head.weight"] = torch.linalg.solve(gram, normed[inside].T @ onehot).T.contiguous()
    return write_head(folder, HEAD_JSON, tensors)


def tiny_texts(scratch: Scratch) -> list[list[int]]:
    """Greedy texts of the target."""
    texts = []
    for first in range(2, 12):
        text = [first, first + 1]
        while len(text) < 40:
            states = scratch.target.forward(whole(scratch.target.config, text), cache(scratch.target.config, len(text)))
            text.append(int(scratch.target.compute_logits(states[-1:]).argmax()))
        texts.append(text)
    return texts
