"""Runs one engine for a harness in another process: a JSON object a line on stdin, one a line back on stdout.

    python engine_runner.py parhelion|vllm

The script stands alone: it needs nothing but the standard library (Python 3.9 or newer) and the engine that it is told
to run, so that a peer may live in a Python of its own. ``{"do": "load", ...}``, ``{"do": "generate", ...}``,
``{"do": "decode", ...}`` and ``{"do": "info"}`` are answered in order; ``{"do": "quit"}`` and the end of the input end
it. A request that fails is answered ``{"error": ...}``. Whatever the engine prints goes to stderr, also what its own
processes print to stdout.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
import zlib
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TextIO

# The first ids of most vocabularies are special tokens.
FIRST_ID = 100


class ParhelionEngine:
    """``parhelion.LLM``."""

    packages = ("parhelion", "torch", "triton")

    def prepare(self) -> None:
        """Import what there is to import."""
        parhelion = import_module("parhelion")
        self._engine, self._params = parhelion.LLM, parhelion.SamplingParams

    def load(self, wanted: dict[str, Any]) -> None:
        """Make the engine."""
        options = ("load_format", "device", "max_model_len", "max_num_seqs", "max_num_batched_tokens")
        self._llm = self._engine(
            wanted["model"],
            enable_prefix_caching=False,
            **{name: wanted[name] for name in (*options, "kv_cache_memory", "seed", "pack", "graphs")},
        )

    def generate(self, prompts: list[list[int]], output_length: int) -> int:
        """Tokens generated for the prompts, greedily and to their full length."""
        params = self._params(temperature=0.0, max_tokens=output_length, ignore_eos=True)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def facts(self) -> dict[str, Any]:
        """What serves each op, and from where."""
        info = self._llm.info
        facts = {"device": info.device, "kv_cache_bytes": info.kv_cache_bytes, "kernels": info.kernels}
        return {**facts, "pack": info.pack, "notes": info.kernel_notes, "block_kernels": info.block_kernels}

    def close(self) -> None:
        """End the engine."""
        self._llm.shutdown()


class VllmEngine:
    """vLLM's offline ``LLM``, 0.11 or newer, with its own defaults for all that is not asked for."""

    packages = ("vllm", "torch", "triton", "flashinfer-python", "flash-attn")

    def prepare(self) -> None:
        """Import what there is to import."""
        vllm = import_module("vllm")
        self._engine, self._params = vllm.LLM, vllm.SamplingParams

    def load(self, wanted: dict[str, Any]) -> None:
        """Make the engine."""
        self._kv_cache_bytes = wanted["kv_cache_memory"]
        options: dict[str, Any] = {}
        if wanted.get("guessing") is not None:
            # The folder of this script is on the path of vLLM's own processes as well.
            extension = "vllm_speculation.ImposedAcceptance"
            options = {"speculative_config": wanted["guessing"], "worker_extension_cls": extension}
        # The share only has to be free at the start: the bytes of the KV cache are given.
        self._llm = self._engine(
            model=wanted["model"],
            load_format=wanted["load_format"],
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            gpu_memory_utilization=wanted["memory_share"],
            kv_cache_memory_bytes=wanted["kv_cache_memory"],
            **{name: wanted[name] for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "seed")},
            **options,
        )

    def generate(self, prompts: list[list[int]], output_length: int) -> int:
        """Tokens generated for the prompts, greedily and to their full length."""
        params = self._params(temperature=0.0, max_tokens=output_length, ignore_eos=True, detokenize=False)
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def impose(self, acceptance: float) -> None:
        """Let this share of guesses count from now on."""
        self._llm.collective_rpc("impose_acceptance", args=(acceptance,))

    def decode(self, prompts: list[list[int]], output_length: int) -> dict[str, Any]:
        """Generate greedily and to the full length; timed from when all prompts have a token until one has all."""
        params = self._params(temperature=0.0, max_tokens=output_length, ignore_eos=True, detokenize=False)
        engine = self._llm.llm_engine
        for number, ids in enumerate(prompts):
            engine.add_request(str(number), {"type": "token", "prompt_token_ids": ids}, params)
        known: dict[str, int] = {}
        tokens, rows, started, seconds = 0, 0, None, None
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter()
            for output in outputs:
                count = len(output.outputs[0].token_ids)
                if started is not None and seconds is None:
                    tokens += count - known[output.request_id]
                    rows += 1
                known[output.request_id] = count
            if started is not None and seconds is None and any(output.finished for output in outputs):
                seconds = now - started
            if started is None and len(known) == len(prompts):
                started = now
        if seconds is None:
            raise ValueError(f"no token was left to time behind the first ones; output_length is {output_length}")
        return {"seconds": seconds, "tokens": tokens, "rows": rows}

    def facts(self) -> dict[str, Any]:
        """The KV cache as it was asked for; vLLM keeps no list of who serves which op."""
        return {"kv_cache_bytes": self._kv_cache_bytes}

    def close(self) -> None:
        """Let the engine go; its processes end with this one."""
        del self._llm


ENGINES = {"parhelion": ParhelionEngine, "vllm": VllmEngine}


def draw_prompts(batch: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random ids, the same for the same arguments whatever the engine; no two prompts share a prefix."""
    lowest = FIRST_ID if vocab_size > 2 * FIRST_ID else 0
    generator = random.Random(seed)
    return [[generator.randrange(lowest, vocab_size) for _ in range(length)] for _ in range(batch)]


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those distributions that are there; one without metadata says its version itself."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            module = sys.modules.get(name)
            if hasattr(module, "__version__"):
                found[name] = str(module.__version__)  # type: ignore[union-attr]
    return {**found, "python": sys.version.split()[0]}


class Conversation:
    """Answers requests with one engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._vocab_size = 0

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; what the engine raises passes through."""
        do = {"load": self._load, "generate": self._generate, "decode": self._decode, "info": self._info}
        return do[request["do"]](request)

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        self._vocab_size = request["vocab_size"]
        started = time.perf_counter()
        self._engine.prepare()
        imported = time.perf_counter()
        self._engine.load(request)
        return {"import_s": imported - started, "load_s": time.perf_counter() - imported}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        prompts = self._prompts(request)
        checksum = zlib.crc32(json.dumps(prompts).encode())
        started = time.perf_counter()
        tokens = self._engine.generate(prompts, request["output_length"])
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": tokens, "prompt_checksum": checksum}

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["acceptance"] is not None:
            self._engine.impose(request["acceptance"])
        answer: dict[str, Any] = self._engine.decode(self._prompts(request), request["output_length"])
        return answer

    def _prompts(self, request: dict[str, Any]) -> list[list[int]]:
        return draw_prompts(request["batch"], request["input_length"], self._vocab_size, request["seed"])

    def _info(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {**self._engine.facts(), "versions": installed(self._engine.packages)}


def describe(error: Exception) -> str:
    """An error in words; one of importing also says where was looked."""
    said = f"{type(error).__name__}: {error}"[:500]
    if isinstance(error, ImportError):
        said += f" (in {sys.executable}; --peer-python and --peer-path choose another place)"
    return said


def converse(engine: Any, requests: TextIO, answers: TextIO) -> None:
    """Answer until told to quit, or until nobody asks any more."""
    conversation = Conversation(engine)
    for line in requests:
        request = json.loads(line)
        if request["do"] == "quit":
            engine.close()
            print("{}", file=answers, flush=True)
            return
        try:
            answer = conversation.answer(request)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": describe(error)}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    """Keep the real stdout for answers, and send all that is printed to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    converse(ENGINES[sys.argv[1]](), sys.stdin, answers)


if __name__ == "__main__":
    main()
