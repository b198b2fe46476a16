"""Whether two ranks compute what one does: logits beside float32, and greedy text with graphs and without.

Sums over ranks are rounded in another order than one rank's, and with activations quantized by token each rank scales
its part by itself: so two ranks must be no further from float32 than one rank is, but for luck, and in float32 their
texts must be the same.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from h100_engine import common_prefix, ids_of, relative
from safetensors.torch import save_file

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import (
    FP8_PER_TOKEN_CONFIG,
    QWEN3_8B,
    TINY,
    Shape,
    write_config,
    write_tokenizer,
)
from parhelion.config import EngineConfig
from parhelion.distributed.group import ALONE, Group
from parhelion.engine.load import load_model
from parhelion.engine.score import prompt_logits
from parhelion.errors import ConfigError
from parhelion.types import TokensPrompt

LUCK = 1.5
FLOAT32_ERROR = 1e-4

PLAIN = ("rms_norm=torch", "fused_add_rms_norm=torch", "silu_and_mul=torch")
"""Who serves where no pack has anything for shapes so small: without compiling what is compiled in seconds each."""


@dataclass(frozen=True)
class Kind:
    """Arithmetic that is compared.

    Attributes:
        kernels: as of the engine.
    """

    dtype: str
    quantization: str | None = None
    kernels: tuple[str, ...] = PLAIN

    @property
    def told(self) -> dict[str, str]:
        """For the result."""
        return {"dtype": self.dtype, "quantization": self.quantization or "none"}


FLOAT32 = Kind("float32", kernels=(*PLAIN, "all_reduce_rms_norm=torch"))
KINDS = (FLOAT32, Kind("bfloat16"), Kind("bfloat16", "fp8"))

TWO_LAYERS = replace(QWEN3_8B, num_hidden_layers=2)
"""Shapes that packs have."""


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
    for kind in KINDS:
        one, all_ranks = (_logits(folder, device, kind, ids, ranks) for ranks in (ALONE, group))
        exact = one if exact is None else exact
        apart = relative(all_ranks, one)
        ours, bar = relative(all_ranks, exact), relative(one, exact)
        yield {
            "what": "logits",
            **kind.told,
            "error_of_one_rank": bar,
            "error_of_ranks": ours,
            "between": apart,
            "same_argmax": float((all_ranks.argmax(-1) == one.argmax(-1)).double().mean()),
            "passed": apart <= FLOAT32_ERROR if kind is FLOAT32 else ours <= LUCK * bar,
        }


def _logits(folder: str, device: torch.device, kind: Kind, ids: list[int], group: Group) -> torch.Tensor:
    """[num_tokens, vocab_size] float64 on the CPU."""
    # Where the ranks' devices begin; one alone is given its own.
    first = str(device) if device.type == "cpu" or group.is_alone else "cuda:0"
    options: dict[str, Any] = {"dtype": kind.dtype, "quantization": kind.quantization, "kernels": kind.kernels}
    config = EngineConfig(model=folder, device=first, max_model_len=1024, tp=group.size, **options)
    loaded = load_model(config, Path(folder), group=group)
    return prompt_logits(loaded.model, ids, config.block_size).double().cpu()


def float32_texts(folder: Path, device: str, several: dict[str, int], output_len: int) -> Iterator[dict[str, Any]]:
    """Greedy tokens of random weights in float32, of one rank with graphs, and of several with graphs and without.

    Args:
        folder: gets the checkpoint.
        several: ranks, as of the engine: ``{"pp": 2}``.
    """
    random = write_random(folder / "random")
    write_tokenizer(random, TINY.vocab_size)
    yield _guarded(Generated(random, device, FLOAT32, output_len, several=several))


def texts(folder: Path, device: str, real: Path | None, output_len: int) -> Iterator[dict[str, Any]]:
    """Greedy tokens of one rank with graphs, and of two with graphs and without: of dummies with shapes that packs
    have, and of a model of the caller's.

    Args:
        folder: gets the dummies' config.
    """
    shape = TINY if device == "cpu" else TWO_LAYERS
    dummies = write_config(shape, folder / "dummies", FP8_PER_TOKEN_CONFIG)
    yield _guarded(Generated(dummies, device, Kind("auto", kernels=()), output_len, "dummy"))
    if real is not None:
        told = ("The capital of France is", "def fibonacci(n):", "Once upon a time there was a lighthouse keeper")
        for kind in (FLOAT32, Kind("bfloat16")):
            yield _guarded(Generated(real, device, kind, output_len, prompts=told))


def replicas(folder: Path, device: str, output_len: int) -> Iterator[dict[str, Any]]:
    """Greedy tokens of dummies, request by request, by one engine and by two that take turns.

    Args:
        folder: gets the dummies' config.
    """
    shape = TINY if device == "cpu" else TWO_LAYERS
    dummies = write_config(shape, folder / "dummies", FP8_PER_TOKEN_CONFIG)
    params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
    found: list[list[list[int]]] = []
    served: list[int] = []
    for number in (1, 2):
        options: dict[str, Any] = {"dp": number, "load_format": "dummy", **engine_limits(device)}
        with LLM(str(dummies), device=device, **options) as llm:
            # One at a time: with others beside it a request is rounded otherwise, and nobody knows whom it is beside.
            found.append([ids_of(llm.generate([prompt], params))[0] for prompt in random_prompts()])
            served = [each.stats.generation_tokens_total for each in llm.stats().replicas]
    pairs = list(zip(*found, strict=True))
    yield {
        "what": "replicas",
        "same_texts": sum(a == b for a, b in pairs),
        "of": len(pairs),
        "tokens_of_each": served,
        "passed": all(a == b for a, b in pairs) and len(served) == 2 and all(served),
    }


def random_prompts() -> list[Any]:
    """Of several lengths."""
    generator = torch.Generator().manual_seed(6)
    lengths = (1, 33, 130, 18)
    return [
        TokensPrompt(prompt_token_ids=torch.randint(2, TINY.vocab_size, (length,), generator=generator).tolist())
        for length in lengths
    ]


def engine_limits(device: str) -> dict[str, Any]:
    """Of engines that compare texts."""
    return {"max_num_seqs": 8, "max_model_len": 512, "kv_cache_memory": (1 << 30) if device != "cpu" else (16 << 20)}


@dataclass(frozen=True)
class Generated:
    """A comparison of texts.

    Attributes:
        path: of the model.
        output_len: tokens of each text.
        load_format: as of the engine.
        prompts: texts; None: of random ids.
        several: ranks that are compared with one, as of the engine.
    """

    path: Path
    device: str
    kind: Kind
    output_len: int
    load_format: str = "auto"
    prompts: tuple[str, ...] | None = None
    several: Mapping[str, int] = field(default_factory=lambda: {"tp": 2})


def _guarded(case: Generated) -> dict[str, Any]:
    about = {"what": "texts", "model": case.path.name, **case.kind.told}
    try:
        return about | _texts(case)
    except ConfigError as error:
        # Two ranks cannot share every model, which is no fault.
        return about | {"refused": str(error), "passed": True}
    except Exception as error:
        traceback.print_exc()
        return about | {"error": f"{type(error).__name__}: {str(error)[:500]}", "passed": False}


def _texts(case: Generated) -> dict[str, Any]:
    several = case.several
    ways: tuple[tuple[Mapping[str, int], str], ...] = (({}, "lazy"), (several, "lazy"), (several, "off"))
    # Each in a process of its own: only the first engine of several ranks in a process exchanges rows inside kernels.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        one, two, eager = pool.map(
            _generated, *zip(*((case, dict(ranks), graphs) for ranks, graphs in ways), strict=True)
        )
    same_as_eager = two.token_ids == eager.token_ids
    pairs = list(zip(two.token_ids, one.token_ids, strict=True))
    return {
        "same_texts": sum(a == b for a, b in pairs),
        "of": len(pairs),
        "common_prefix": [common_prefix(a, b) for a, b in pairs],
        "output_len": case.output_len,
        "graphs_captured": two.num_graphs,
        "graphs_as_eager": same_as_eager,
        **two.about,
        "kernels_as_eager": two.about == eager.about,
        "passed": same_as_eager and (two.token_ids == one.token_ids or case.kind is not FLOAT32),
    }


@dataclass(frozen=True)
class Texts:
    """What an engine said, and what it was.

    Attributes:
        token_ids: of each prompt.
        num_graphs: captured by then.
        about: for the result.
    """

    token_ids: list[list[int]]
    num_graphs: int
    about: dict[str, Any]


def _generated(case: Generated, ranks: dict[str, int], graphs: str) -> Texts:
    started = time.monotonic()
    kind = case.kind
    prompts = random_prompts() if case.prompts is None else list(case.prompts)
    params = SamplingParams(temperature=0.0, max_tokens=case.output_len, ignore_eos=True)
    options: dict[str, Any] = {"dtype": kind.dtype, "quantization": kind.quantization, "kernels": kind.kernels}
    options |= {"load_format": case.load_format, "graphs": graphs, **ranks, **engine_limits(case.device)}
    with LLM(str(case.path), device=case.device, **options) as llm:
        token_ids = ids_of(llm.generate(prompts, params))
        info = llm.info
        about = {"quantization": info.quantization, "pack": info.pack, "kernels": info.kernels}
        about["notes"] = info.kernel_notes
        found = Texts(token_ids, llm.stats().num_graphs, about)
    print(f"{case.path.name}, {ranks or 'one rank'}, graphs {graphs}: {time.monotonic() - started:.1f} s", flush=True)
    return found
