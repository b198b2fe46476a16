"""Whether two ranks compute what one does: logits beside float32, and greedy text with graphs and without.

Sums over ranks are rounded in another order than one rank's, and with activations quantized by token each rank scales
its part by itself: so two ranks must be no further from float32 than one rank is, but for luck, and in float32 their
texts must be the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from h100_engine import common_prefix, ids_of, relative
from safetensors.torch import save_file

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import TINY, Shape, write_config
from parhelion.config import EngineConfig
from parhelion.distributed.group import ALONE, Group
from parhelion.engine.load import load_model
from parhelion.engine.score import prompt_logits
from parhelion.errors import ConfigError
from parhelion.types import TokensPrompt

LUCK = 1.5
FLOAT32_ERROR = 1e-4
KINDS: tuple[tuple[str, str | None], ...] = (("float32", None), ("bfloat16", None), ("bfloat16", "fp8"))


def write_random(folder: Path, shape: Shape = TINY) -> Path:
    """A Qwen3 checkpoint of random numbers in bfloat16."""
    write_config(shape, folder, None)
    generator = torch.Generator().manual_seed(1)
    s = shape
    q, kv = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / math.sqrt(columns)).bfloat16()

    def norm(size: int) -> torch.Tensor:
        return (1 + torch.randn(size, generator=generator) / 8).bfloat16()

    tensors = {
        "model.embed_tokens.weight": matrix(s.vocab_size, s.hidden_size),
        "lm_head.weight": matrix(s.vocab_size, s.hidden_size),
        "model.norm.weight": norm(s.hidden_size),
    }
    for index in range(s.num_hidden_layers):
        layer = f"model.layers.{index}"
        tensors |= {
            f"{layer}.input_layernorm.weight": norm(s.hidden_size),
            f"{layer}.post_attention_layernorm.weight": norm(s.hidden_size),
            f"{layer}.self_attn.q_proj.weight": matrix(q, s.hidden_size),
            f"{layer}.self_attn.k_proj.weight": matrix(kv, s.hidden_size),
            f"{layer}.self_attn.v_proj.weight": matrix(kv, s.hidden_size),
            f"{layer}.self_attn.o_proj.weight": matrix(s.hidden_size, q),
            f"{layer}.self_attn.q_norm.weight": norm(s.head_dim),
            f"{layer}.self_attn.k_norm.weight": norm(s.head_dim),
            f"{layer}.mlp.gate_proj.weight": matrix(s.intermediate_size, s.hidden_size),
            f"{layer}.mlp.up_proj.weight": matrix(s.intermediate_size, s.hidden_size),
            f"{layer}.mlp.down_proj.weight": matrix(s.hidden_size, s.intermediate_size),
        }
    save_file(tensors, folder / "model.safetensors")
    return folder


def logits_of_ranks(group: Group, device: torch.device, folder: str, num_tokens: int) -> Iterator[dict[str, Any]]:
    """Logits of one prompt by one rank and by all of them, each beside one rank's in float32."""
    ids = torch.randint(2, TINY.vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(2)).tolist()
    exact: torch.Tensor | None = None
    for dtype, quantization in KINDS:
        one, all_ranks = (_logits(folder, device, dtype, quantization, ids, ranks) for ranks in (ALONE, group))
        exact = one if exact is None else exact
        apart = relative(all_ranks, one)
        ours, bar = relative(all_ranks, exact), relative(one, exact)
        yield {
            "what": "logits",
            "dtype": dtype,
            "quantization": quantization or "none",
            "error_of_one_rank": bar,
            "error_of_ranks": ours,
            "between": apart,
            "same_argmax": float((all_ranks.argmax(-1) == one.argmax(-1)).double().mean()),
            "passed": apart <= FLOAT32_ERROR if dtype == "float32" else ours <= LUCK * bar,
        }


def _logits(
    folder: str, device: torch.device, dtype: str, quantization: str | None, ids: list[int], group: Group
) -> torch.Tensor:
    """[num_tokens, vocab_size] float64 on the CPU."""
    # Where the ranks' devices begin; one alone is given its own.
    first = str(device) if device.type == "cpu" or group.is_alone else "cuda:0"
    options: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "tp": group.size}
    config = EngineConfig(model=folder, device=first, max_model_len=1024, pack="auto", **options)
    loaded = load_model(config, Path(folder), group=group)
    return prompt_logits(loaded.model, ids, config.block_size).double().cpu()


def texts(folder: Path, device: str, real: Path | None, output_len: int) -> Iterator[dict[str, Any]]:
    """Greedy tokens of one rank with graphs, and of two with graphs and without."""
    generator = torch.Generator().manual_seed(6)
    lengths = (1, 7, 33, 130, 18, 64, 200)
    prompts: list[Any] = [
        TokensPrompt(prompt_token_ids=torch.randint(2, TINY.vocab_size, (length,), generator=generator).tolist())
        for length in lengths
    ]
    for dtype, quantization in KINDS:
        yield _guarded(folder, device, dtype, quantization, prompts, output_len)
    if real is not None:
        told = ["The capital of France is", "def fibonacci(n):", "Once upon a time there was a lighthouse keeper"]
        for dtype in ("float32", "bfloat16"):
            yield _guarded(real, device, dtype, None, told, output_len)


def _guarded(
    path: Path, device: str, dtype: str, quantization: str | None, prompts: list[Any], output_len: int
) -> dict[str, Any]:
    try:
        return _texts(path, device, dtype, quantization, prompts, output_len)
    except ConfigError as error:
        # Two ranks cannot share every model, which is no fault.
        return {"what": "texts", "model": path.name, "dtype": dtype, "refused": str(error), "passed": True}
    except Exception as error:
        return {
            "what": "texts",
            "model": path.name,
            "dtype": dtype,
            "quantization": quantization or "none",
            "error": f"{type(error).__name__}: {str(error)[:500]}",
            "passed": False,
        }


def _texts(
    path: Path, device: str, dtype: str, quantization: str | None, prompts: list[Any], output_len: int
) -> dict[str, Any]:
    params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    memory = (1 << 30) if device != "cpu" else (16 << 20)
    found, captured = {}, {}
    for tp, graphs in ((1, "lazy"), (2, "lazy"), (2, "off")):
        options: dict[str, Any] = {"dtype": dtype, "quantization": quantization, "graphs": graphs, "tp": tp}
        limits = {"max_num_seqs": 16, "max_model_len": 512, "kv_cache_memory": memory}
        with LLM(str(path), device=device, **options, **limits) as llm:
            found[tp, graphs] = ids_of(llm.generate(prompts, params))
            captured[tp, graphs] = llm.stats().num_graphs
    one, two, eager = found[1, "lazy"], found[2, "lazy"], found[2, "off"]
    common = [common_prefix(a, b) for a, b in zip(two, one, strict=True)]
    is_same = two == one
    return {
        "what": "texts",
        "model": path.name,
        "dtype": dtype,
        "quantization": quantization or "none",
        "same_texts": sum(a == b for a, b in zip(two, one, strict=True)),
        "of": len(one),
        "common_prefix": common,
        "output_len": output_len,
        "graphs_captured": captured[2, "lazy"],
        "graphs_as_eager": two == eager,
        "passed": two == eager and (is_same or dtype != "float32"),
    }
