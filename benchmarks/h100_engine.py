"""The engine on a GPU: parity with transformers, with the dequantized model, with its own eager steps; then its speed.

Each part stands alone: one that fails is reported with its message and the others go on.

    python benchmarks/h100_engine.py [--only parity,fp8,graphs,among,guesses,pack,smollm2,speed,serve] [--output FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from gpu_texts import among_others, graphs_against_eager, guesses_against_plain, ids_of

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import (
    FP8_PER_TOKEN_CONFIG,
    QWEN3_0_6B,
    QWEN3_1_7B,
    QWEN3_8B,
    TINY,
    Shape,
    step_bytes,
    write_config,
)
from parhelion.bench.machine import describe_circumstances
from parhelion.bench.report import write_json
from parhelion.config import EngineConfig
from parhelion.engine.load import load_model
from parhelion.engine.score import prompt_logits
from parhelion.ops.registry import op_names
from parhelion.platform.ceilings import measure_ceilings
from parhelion.platform.device import device_name
from parhelion.types import RequestOutput, TokensPrompt

SHAPES = {"qwen3-1.7b": QWEN3_1_7B, "qwen3-8b": QWEN3_8B}
RESULT = Path(__file__).parent / "results" / "h100_engine.json"


def parity_with_transformers(folder: Path, device: str) -> list[dict[str, Any]]:
    """Logits of random Qwen3 checkpoints beside transformers' in float32; transformers' own bfloat16 sets the bar."""
    import transformers

    rows = []
    for name, shape in (("tiny", TINY), ("qwen3-0.6b", QWEN3_0_6B)):
        config = transformers.Qwen3Config(
            **shape.__dict__, max_position_embeddings=4096, rope_theta=1000000.0, initializer_range=0.05
        )
        torch.manual_seed(1)
        where = folder / f"parity-{name}"
        transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
        ids = torch.randint(2, shape.vocab_size, (1, 300), generator=torch.Generator().manual_seed(2))
        # Read anew: converting a model in place would round its rotary frequencies as well.
        rounded, exact = (transformers_logits(where, ids, dtype, device) for dtype in (torch.bfloat16, torch.float32))
        loaded = load_model(EngineConfig(model=str(where), device=device, dtype="bfloat16"), where)
        ours = prompt_logits(loaded.model, ids[0].tolist(), 16).double().cpu()
        del loaded
        error, bar = relative(ours, exact), relative(rounded, exact)
        rows.append(
            {
                "model": name,
                "relative_error": error,
                "transformers_bfloat16_error": bar,
                "same_argmax": float((ours.argmax(-1) == exact.argmax(-1)).double().mean()),
                "passed": error <= 1.5 * bar,
            }
        )
    return rows


def transformers_logits(where: Path, ids: torch.Tensor, dtype: torch.dtype, device: str) -> torch.Tensor:
    """transformers' logits of one prompt, [num_tokens, vocab_size] float64 on the CPU."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=dtype).to(device).eval()
    with torch.inference_mode():
        logits: torch.Tensor = model(ids.to(device)).logits[0].double().cpu()
    return logits


def fp8_against_dequantized(folder: Path, device: str) -> list[dict[str, Any]]:
    """KL divergence of quantized models from the unquantized one that they were made of, on a random 0.6B shape."""
    import transformers

    config = transformers.Qwen3Config(
        **QWEN3_0_6B.__dict__, max_position_embeddings=4096, rope_theta=1000000.0, initializer_range=0.02
    )
    torch.manual_seed(3)
    where = folder / "kl"
    transformers.Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(where)
    ids = torch.randint(2, 151936, (300,), generator=torch.Generator().manual_seed(4)).tolist()
    base = EngineConfig(model=str(where), device=device, dtype="bfloat16")
    logits = {
        (quantization, plan): prompt_logits(
            load_model(replace(base, quantization=quantization, fusion=plan), where).model, ids, 16
        ).log_softmax(-1)
        for quantization, plan in ((None, "auto"), ("fp8", "fused"), ("fp8", "plain"), ("int8", "fused"))
    }
    reference = logits[None, "auto"]
    rows = []
    for (quantization, plan), other in logits.items():
        kl = (reference.exp() * (reference - other)).sum(-1)
        rows.append(
            {
                "quantization": quantization or "none",
                "plan": plan,
                "kl_mean": float(kl.mean()),
                "kl_max": float(kl.max()),
                "passed": float(kl.mean()) < 0.05,
            }
        )
    return rows


def pack_against_references(folder: Path, device: str, pack: str, shapes: dict[str, Shape]) -> Iterator[dict[str, Any]]:
    """Greedy steps of a quantized model as a pack serves it, beside the ops' references, each launched by itself.

    A deep model of random weights doubles every rounding: two ways of launching the references, which differ in a
    rounding here and there, set the bar. Compared are the log-probabilities of tokens, as far as both chose the same.
    """
    references = tuple(f"{name}=reference" for name in op_names())
    ways: dict[str, dict[str, Any]] = {
        plan: {"pack": "off", "kernels": references, "fusion": plan, "graphs": "off"} for plan in ("plain", "fused")
    }
    ways["pack"] = {"pack": pack}
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=0)
    for name, shape in shapes.items():
        where = write_config(shape, folder / f"pack-{name}", FP8_PER_TOKEN_CONFIG)
        generator = torch.Generator().manual_seed(9)
        lengths = (300, 1, 7, 33, 130, 64, 200, 16) * 6
        prompts = [
            TokensPrompt(prompt_token_ids=torch.randint(2, 1000, (length,), generator=generator).tolist())
            for length in lengths
        ]
        found: dict[str, list[RequestOutput]] = {}
        served: tuple[str, ...] = ()
        for way, options in ways.items():
            limits: dict[str, Any] = {"kv_cache_memory": 1 << 30, "max_model_len": 512, "max_num_seqs": 64}
            with LLM(str(where), device=device, load_format="dummy", **options, **limits) as llm:
                found[way] = [*llm.generate(prompts[:1], params), *llm.generate(prompts, params)]
                served = tuple(llm.info.kernels)
        (same, error), (bar_same, bar_error) = (agreement(found[way], found["plain"]) for way in ("pack", "fused"))
        yield {
            "model": name,
            "pack": pack,
            "tokens": sum(len(output.outputs[0].token_ids) for output in found["plain"]),
            "same": same,
            "logprob_error": error,
            "same_of_references": bar_same,
            "logprob_error_of_references": bar_error,
            "kernels": served,
            "passed": same >= bar_same / 2 and error <= 2 * bar_error,
        }


def agreement(outputs: list[RequestOutput], others: list[RequestOutput]) -> tuple[int, float]:
    """Tokens before the first one that differs, and the median difference of their log-probabilities."""
    differences = []
    for output, other in zip(outputs, others, strict=True):
        ours, theirs = output.outputs[0], other.outputs[0]
        assert ours.logprobs is not None
        assert theirs.logprobs is not None
        common = common_prefix(ours.token_ids, theirs.token_ids)
        for token, one, another in zip(ours.token_ids[:common], ours.logprobs, theirs.logprobs, strict=False):
            differences.append(abs(one[token].logprob - another[token].logprob))
    return len(differences), statistics.median(differences) if differences else float("inf")


def smollm2_text(path: Path, device: str) -> list[dict[str, Any]]:
    """SmolLM2's greedy text here beside a CPU's in float32."""
    questions = (
        "Why is the sky blue?",
        "Write a short story about a lighthouse keeper who finds a letter.",
        "Explain how a binary search works, then write it in Python.",
    )
    params = SamplingParams(temperature=0.0, max_tokens=64)
    texts: dict[tuple[str, str], list[list[int]]] = {}
    for where, dtype in (("cpu", "float32"), (device, "float32"), (device, "bfloat16")):
        with LLM(str(path), device=where, dtype=dtype, kv_cache_memory=256 << 20, max_model_len=2048) as llm:
            messages = [[{"role": "user", "content": question}] for question in questions]
            texts[where, dtype] = ids_of(llm.chat(messages, params))
    oracle = texts["cpu", "float32"]
    rows = []
    for dtype in ("float32", "bfloat16"):
        ours = texts[device, dtype]
        same = [a == b for a, b in zip(ours, oracle, strict=True)]
        common = [common_prefix(a, b) for a, b in zip(ours, oracle, strict=True)]
        passed = all(same) if dtype == "float32" else min(common) > 0
        rows.append(
            {"dtype": dtype, "same_text": sum(same), "of": len(same), "common_prefix": common, "passed": passed}
        )
    return rows


def speed(
    folder: Path, device: str, batches: tuple[int, ...], pack: str, names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """Prefill and TPOT of Qwen3 with dummy FP8 weights: 512 tokens in, 128 out, greedy; and what graphs take."""
    bandwidth = measure_ceilings(torch.device(device)).bandwidth
    for name in names:
        shape = SHAPES[name]
        where = write_config(shape, folder / name, FP8_PER_TOKEN_CONFIG)
        started = time.monotonic()
        options: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 256, "enable_prefix_caching": False}
        with LLM(str(where), device=device, load_format="dummy", pack=pack, **options) as llm:
            cold_start_s = time.monotonic() - started
            for batch in batches:
                floor_ms = step_bytes(shape, batch, 512 + 64) / bandwidth * 1e3
                about = {"floor_ms": floor_ms, "cold_start_s": cold_start_s, "pack": llm.info.pack}
                yield measure_batch(llm, name, batch) | about
            info, stats = llm.info, llm.stats()
            yield {
                "model": name,
                "pack": info.pack,
                "phases": {phase.name: phase.seconds for phase in info.phases},
                "load_s": info.load_s,
                "compile_s": info.compile_s,
                "peak_host_bytes": info.peak_host_bytes,
                "kernels": info.kernels,
                "notes": info.kernel_notes,
                "launches_per_layer": info.launches_per_layer,
                "peak_device_bytes": torch.cuda.max_memory_allocated(),
                "kv_cache_bytes": info.kv_cache_bytes,
                "graphs_captured": stats.num_graphs,
                "graph_bytes": stats.graph_bytes,
                "passed": info.launches_per_layer <= 10,
            }


def serve(folder: Path, device: str, shape: Shape, pack: str, port: int = 8123) -> Iterator[dict[str, Any]]:
    """The server with dummy FP8 weights, asked for a completion twice, for a stream, for its metrics, and to end."""
    import httpx

    where = write_config(shape, folder / "serve", FP8_PER_TOKEN_CONFIG)
    memory = "4GiB" if device.startswith("cuda") else "64MiB"
    options = [
        "--load-format",
        "dummy",
        "--device",
        device,
        "--port",
        str(port),
        "--max-model-len",
        "1024",
        "--pack",
        pack,
    ]
    command = ["-m", "parhelion.cli", "serve", str(where), *options, "--kv-cache-memory", memory]
    started = time.monotonic()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                while not _is_healthy(client):
                    if server.poll() is not None or time.monotonic() - started > 240:
                        raise RuntimeError(f"the server is not ready; its status is {server.poll()}")
                    time.sleep(0.1)
                ready_s = time.monotonic() - started
                body = {"model": "serve", "prompt": list(range(5, 205)), "max_tokens": 32, "temperature": 0.0}
                seconds = []
                for _ in range(2):
                    asked = time.monotonic()
                    answer = client.post("/v1/completions", json=body | {"ignore_eos": True}).raise_for_status().json()
                    seconds.append(time.monotonic() - asked)
                with client.stream(
                    "POST", "/v1/completions", json=body | {"stream": True, "ignore_eos": True}
                ) as lines:
                    chunks = sum(line.startswith("data:") for line in lines.iter_lines())
                metrics = client.get("/metrics").text
        finally:
            server.terminate()
    tokens = answer["usage"]["completion_tokens"]
    yield {
        "ready_s": ready_s,
        "first_completion_s": seconds[0],
        "completion_s": seconds[1],
        "completion_tokens": tokens,
        "stream_chunks": chunks,
        "exit_status": server.returncode,
        "passed": tokens == 32 and chunks >= 32 and "parhelion" in metrics and server.returncode == 0,
    }


def _is_healthy(client: Any) -> bool:
    import httpx

    try:
        return bool(client.get("/health").status_code == 200)
    except httpx.HTTPError:
        return False


def measure_batch(
    llm: LLM, name: str, batch: int, input_len: int = 512, output_len: int = 128, rounds: int = 3
) -> dict[str, Any]:
    """Medians of the rounds, after one that captures the graphs."""
    vocab_size = min(100000, llm.info.vocab_size)
    generator = torch.Generator().manual_seed(8)

    def run(output_length: int) -> float:
        prompts = [
            TokensPrompt(prompt_token_ids=torch.randint(2, vocab_size, (input_len,), generator=generator).tolist())
            for _ in range(batch)
        ]
        started = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=output_length, ignore_eos=True))
        return time.perf_counter() - started

    run(min(16, output_len))
    prefill = [run(1) for _ in range(rounds)]
    whole = [run(output_len) for _ in range(rounds)]
    tpot = [(w - p) / (output_len - 1) * 1e3 for w, p in zip(whole, prefill, strict=True)]
    return {
        "model": name,
        "batch": batch,
        "prefill_ms": statistics.median(prefill) * 1e3,
        "prefill_ms_all": [1e3 * seconds for seconds in prefill],
        "tpot_ms": statistics.median(tpot),
        "tpot_ms_all": tpot,
        "whole_ms_all": [1e3 * seconds for seconds in whole],
        "output_tokens_per_s": batch * output_len / statistics.median(whole),
        "passed": True,
    }


def relative(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def common_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="parity,fp8,graphs,among,guesses,pack,smollm2,speed,serve")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", default="1,16,64,256")
    parser.add_argument("--models", default=",".join(SHAPES), help="of the speed, separated by commas")
    parser.add_argument("--pack", default="off", help="of the speed and the server; a name, a path, auto or off")
    parser.add_argument("--smollm2", type=Path, help="the GGUF file; the part is left out without it")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    batches = tuple(int(batch) for batch in args.batches.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shapes = {name: SHAPES[name] for name in args.models.split(",")} if args.device != "cpu" else {"tiny": TINY}
        served = QWEN3_8B if args.device.startswith("cuda") else TINY
        parts: dict[str, Callable[[], Iterable[dict[str, Any]]]] = {
            "parity": lambda: parity_with_transformers(folder, args.device),
            "fp8": lambda: fp8_against_dequantized(folder, args.device),
            "graphs": lambda: graphs_against_eager(folder, args.device),
            "among": lambda: among_others(folder, args.device),
            "guesses": lambda: guesses_against_plain(folder, args.device),
            "pack": lambda: pack_against_references(folder, args.device, args.pack, shapes),
            "speed": lambda: speed(folder, args.device, batches, args.pack, tuple(args.models.split(","))),
            "serve": lambda: serve(folder, args.device, served, args.pack),
        }
        if args.smollm2 is not None:
            parts["smollm2"] = lambda: smollm2_text(args.smollm2, args.device)
        results: dict[str, Any] = {
            "benchmark": "h100_engine",
            "device": device_name(torch.device(args.device)),
            "circumstances": describe_circumstances(),
        }
        for name in args.only.split(","):
            if name not in parts:
                continue
            started = time.monotonic()
            results[name] = []
            try:
                # The run may be cut short: each row is shown and written as soon as it is known.
                for row in parts[name]():
                    results[name].append(row)
                    print(name, row, flush=True)
                    write_json(Results(results), args.output)
            except Exception as error:
                traceback.print_exc()
                results[name].append({"passed": False, "error": f"{type(error).__name__}: {error}"[:500]})
                write_json(Results(results), args.output)
            print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)


@dataclass(frozen=True)
class Results:
    """The file: a list of rows for each part, and the circumstances."""

    parts: dict[str, Any]


if __name__ == "__main__":
    main()
