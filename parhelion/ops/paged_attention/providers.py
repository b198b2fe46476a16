"""What others offer for ``paged_attention``."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.contract import PagedAttention
from parhelion.ops.paged_attention.cpu import CpuPagedAttention
from parhelion.ops.provider import BaseProvider, InductorProvider, missing_package, needs_cuda

HALVES = (torch.float16, torch.bfloat16)


class InductorPagedAttention(InductorProvider):
    """Serves nowhere: the reference goes from row to row."""

    def why_not(self, device: torch.device) -> str | None:
        return (
            super().why_not(device)
            or "the reference reads the rows' lengths on the host, so it cannot be compiled as one graph"
        )


class TorchPagedAttention(BaseProvider):
    """ATen's attention: on a CPU ``CpuPagedAttention``, on a GPU ``varlen_attn`` (FlashAttention 2).

    ``varlen_attn`` follows block tables only through blocks of a multiple of 256 tokens; smaller ones are first copied
    side by side, up to ``max_seq_len`` of every row. That reads and writes the batch's cache once more, and takes
    num_rows * max_seq_len tokens of memory, but needs nothing of the host: a CUDA graph may capture it.
    """

    name = "torch"

    def why_not(self, device: torch.device) -> str | None:
        if device.type == "cpu":
            return None
        if (why_not := needs_cuda(device, (8, 0))) is not None:
            return why_not
        return None if "seqused_k" in _varlen_options() else "this torch's varlen_attn does not take seqused_k"

    def refuses(self, contract: Contract) -> str | None:
        assert isinstance(contract, PagedAttention)
        return None if contract.soft_cap is None else "torch's fused attention has no soft cap"

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, PagedAttention)
        on_cpu = CpuPagedAttention().launcher(contract)
        on_gpu = varlen_launcher(contract)

        def launch(query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
            out: torch.Tensor = (on_gpu if query.is_cuda else on_cpu)(query, kv_cache, batch)
            return out

        return launch


def varlen_launcher(contract: PagedAttention) -> Launcher:
    """``torch.nn.attention.varlen.varlen_attn`` over the rows' blocks, copied side by side."""
    c = contract

    def launch(query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
        # Imported where it is launched: it brings torch's compiler with it, a second that a CPU need not wait.
        from torch.nn.attention.varlen import varlen_attn

        options = {"enable_gqa": True} if "enable_gqa" in _parameters(varlen_attn) else {}
        blocks = batch.block_table[:, : -(-batch.max_seq_len // c.block_size)]
        num_rows, width = blocks.shape[0], blocks.shape[1] * c.block_size
        gathered = kv_cache.index_select(0, blocks.flatten()).view(num_rows * width, 2 * c.num_kv_heads, c.head_dim)
        keys, values = gathered.split(c.num_kv_heads, 1)
        starts = torch.arange(0, (num_rows + 1) * width, width, dtype=torch.int32, device=query.device)
        out: torch.Tensor = varlen_attn(
            query.reshape(-1, c.num_heads, c.head_dim),
            keys,
            values,
            batch.query_start_loc,
            starts,
            batch.max_query_len,
            width,
            scale=c.scale,
            window_size=window(c),
            seqused_k=batch.seq_lens,
            **options,
        )
        return out.flatten(1)

    return launch


class FlashAttention3(BaseProvider):
    """FlashAttention 3 (the package ``flash_attn_interface``): pages of any size, varlen, captured by CUDA graphs.

    FlashAttention 2 (``flash_attn``) is no rival here: it takes only blocks of a multiple of 256 tokens.
    """

    name = "flash_attn"

    def why_not(self, device: torch.device) -> str | None:
        return missing_package("flash_attn_interface") or needs_cuda(device, (9, 0))

    def refuses(self, contract: Contract) -> str | None:
        return refuses_wide(contract)

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, PagedAttention)
        c, flash_attn = contract, importlib.import_module("flash_attn_interface")

        def launch(query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
            keys, values = kv_cache.split(c.num_kv_heads, 2)
            out: torch.Tensor = flash_attn.flash_attn_with_kvcache(
                query.reshape(-1, c.num_heads, c.head_dim),
                keys,
                values,
                cache_seqlens=batch.seq_lens,
                page_table=batch.block_table,
                cu_seqlens_q=batch.query_start_loc,
                max_seqlen_q=batch.max_query_len,
                softmax_scale=c.scale,
                causal=True,
                window_size=window(c),
                softcap=c.soft_cap or 0.0,
            )
            return out.flatten(1)

        return launch


class VllmFlashAttention(BaseProvider):
    """vLLM's build of FlashAttention, as its own backend calls it: version 3 on Hopper, else 2."""

    name = "vllm"

    def why_not(self, device: torch.device) -> str | None:
        return missing_package("vllm") or needs_cuda(device, (8, 0))

    def refuses(self, contract: Contract) -> str | None:
        return refuses_wide(contract)

    def launcher(self, contract: Contract) -> Launcher:
        assert isinstance(contract, PagedAttention)
        c, flash_attn = contract, importlib.import_module("vllm.vllm_flash_attn")

        def launch(query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
            keys, values = kv_cache.split(c.num_kv_heads, 2)
            major, _ = torch.cuda.get_device_capability(query.device)
            out = torch.empty_like(query, memory_format=torch.contiguous_format)
            flash_attn.flash_attn_varlen_func(
                q=query.reshape(-1, c.num_heads, c.head_dim),
                k=keys,
                v=values,
                out=out.view(-1, c.num_heads, c.head_dim),
                cu_seqlens_q=batch.query_start_loc,
                max_seqlen_q=batch.max_query_len,
                seqused_k=batch.seq_lens,
                max_seqlen_k=batch.max_seq_len,
                softmax_scale=c.scale,
                causal=True,
                window_size=list(window(c)),
                softcap=c.soft_cap or 0.0,
                block_table=batch.block_table,
                fa_version=3 if major == 9 else 2,
            )
            return out

        return launch


class FlashInferPagedAttention(BaseProvider):
    """Refuses: FlashInfer's wrappers divide the work on the host, in a ``plan`` before every step."""

    name = "flashinfer"

    def why_not(self, device: torch.device) -> str | None:
        return missing_package("flashinfer") or needs_cuda(device, (8, 0))

    def refuses(self, contract: Contract) -> str | None:
        return "its wrappers must plan every step on the host with the rows' lengths, which a launcher is not given"


def window(c: PagedAttention) -> tuple[int, int]:
    """Tokens to the left and right of its own that a query sees, as FlashAttention counts them; -1 is all."""
    return (-1 if c.sliding_window is None else c.sliding_window - 1, 0)


def refuses_wide(contract: Contract) -> str | None:
    """FlashAttention's own limits."""
    assert isinstance(contract, PagedAttention)
    if contract.dtype not in HALVES:
        return f"it takes float16 and bfloat16, not {str(contract.dtype).removeprefix('torch.')}"
    return None if contract.head_dim <= 256 else f"it takes heads of up to 256 elements, not {contract.head_dim}"


def _varlen_options() -> frozenset[str]:
    """The options of this torch's ``varlen_attn``; none if it has no such function."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return _parameters(varlen_attn)


@functools.cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
