"""``serve`` as a process: its ready line, its example lines, the load generator against it, and its end."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from parhelion.bench.server_process import running_server
from parhelion.bench.serving import ServingSettings, generate_load
from parhelion.cli.serve import Banner, curl_line, print_banner, python_line
from parhelion.engine.messages import Phase

BANNER = Banner(
    url="http://127.0.0.1:8000",
    model="tiny",
    dtype="float16",
    compute_dtype="float32",
    linear_provider="torch",
    device="a small GPU",
    quantization="fp8_per_token",
    lm_head_quantization="int8_per_token",
    kernels=["linear=torch", "rms_norm=helion"],
    kernel_notes=["rms_norm(...) is not in pack h100-sxm: helion serves it"],
    pack="h100-sxm",
    phases=[Phase("imports", 3.5), Phase("pack", 0.25), Phase("graphs", 0.0)],
    threads=2,
    tp=1,
    pp=1,
    dp=1,
    max_model_len=8192,
    kv_cache_blocks=10,
    kv_cache_block_size=16,
    kv_cache_tokens=160,
    kv_cache_bytes=7 << 20,
    weight_bytes=92 << 20,
    resident_bytes=1 << 30,
    load_s=1.0,
    peak_host_bytes=3 << 30,
    compile_s=0.0,
    num_graphs=7,
    graph_bytes=5 << 20,
    graph_s=2.5,
)


def test_the_banner_shows_what_an_operator_asks_for(capsys) -> None:
    print_banner(BANNER, has_keys=False, local=False)
    out = capsys.readouterr().out
    for shown in (
        "http://127.0.0.1:8000",
        "tiny",
        "float16",
        "a small GPU, 2 threads",
        "fp8_per_token, output head int8_per_token",
        "rms_norm=helion",
        "7 captured in 2.5 s, 5.0 MiB",
        "3.00 GiB of host memory",
        "10 blocks",
        "160 tokens",
        "7.0 MiB",
        "1.00 GiB",
        "pack       h100-sxm",
        "note       rms_norm(...) is not in pack",
        "imports 3.5 s, pack 0.2 s\n",
    ):
        assert shown in out
    assert curl_line(BANNER, False) in out
    assert python_line(BANNER, False) in out


@pytest.mark.parametrize(
    ("dp", "pp", "tp", "said", "whose"),
    [
        (2, 1, 1, "2 replicas, each a small GPU, 2 threads", "7.0 MiB of each replica\n"),
        (3, 1, 2, "3 replicas, each 2 ranks, each a small GPU", "7.0 MiB of each rank of each replica\n"),
        (1, 1, 2, " 2 ranks, each a small GPU", "7.0 MiB of each rank\n"),
        (1, 2, 2, " 2 stages, each 2 ranks, each a small GPU", "7.0 MiB of the first rank\n"),
    ],
)
def test_the_banner_counts_replicas_stages_and_ranks(capsys, dp: int, pp: int, tp: int, said: str, whose: str) -> None:
    print_banner(replace(BANNER, dp=dp, pp=pp, tp=tp), has_keys=False, local=False)
    out = capsys.readouterr().out
    assert said in out
    assert whose in out


@pytest.mark.parametrize("local", [False, True])
def test_the_banner_says_how_others_reach_a_server_that_only_this_machine_does(capsys, local: bool) -> None:
    print_banner(BANNER, has_keys=False, local=local)
    assert ("--host 0.0.0.0" in capsys.readouterr().out) == local


def test_the_example_lines_are_whole_commands_and_show_where_a_key_goes() -> None:
    assert shlex.split(curl_line(BANNER, False))[0] == "curl"
    _, flag, code = shlex.split(python_line(BANNER, False))
    assert flag == "-c"
    compile(code, "banner", "exec")
    assert "PARHELION_API_KEY" in curl_line(BANNER, True)
    assert "YOUR_KEY" in python_line(BANNER, True)


def test_a_server_process_is_ready_serves_a_load_and_ends(smollm2_path: Path) -> None:
    settings = ServingSettings(num_requests=3, prompt_length=8, output_length=4, concurrency=3)
    with running_server(str(smollm2_path), ["--kv-cache-memory", "64MiB", "--threads", "2"]) as server:
        assert server.peak_resident_bytes() > 64 << 20
        records = asyncio.run(generate_load(server.url, server.model, settings))
    assert [(record.error, record.output_tokens) for record in records] == [("", 4)] * 3
    assert server.exit_status() == 0
