"""The twins that Helion searches compute what serves, and a search that fails is a reason and no end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.gemm.config import MAX_SPLIT_K, GemmConfig
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.linear import Linear
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.platform.measure import summarize
from parhelion.tuning import helion_gemm, helion_search
from parhelion.tuning.cross_compile import cross_compile
from parhelion.tuning.helion_search import (
    Attempt,
    FullEffort,
    HelionSearchError,
    Variant,
    best_variant,
    full_effort_search,
)
from parhelion.tuning.record import GeneratedCode, Launch
from parhelion.tuning.target import target

CPU = torch.device("cpu")
GEMM = ScaledMm(256, 128, torch.float8_e4m3fn, torch.bfloat16)
VARIANTS = [Variant(kernel, swap_ab) for kernel in ("whole", "split") for swap_ab in (False, True)]
CODE = GeneratedCode()
RIGHT = {"block_sizes": [128, 64, 16]}
FOUND = FullEffort(summarize([3.0]), "whole: some config", 12.5, gemm=GemmConfig(8, 16, 256, True, 3, 1, 8))


def inputs(num_tokens: int = 24) -> tuple[torch.Tensor, ...]:
    return GEMM.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(num_tokens))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_twin_computes_the_contract(variant: Variant, monkeypatch: pytest.MonkeyPatch):
    import helion
    from helion.runtime.ref_mode import RefMode

    monkeypatch.setenv("HELION_INTERPRET", "1")
    twin = getattr(helion_gemm, variant.kernel)
    # Whoever else runs in this process: this copy is interpreted. A depth that the split does not divide.
    config = helion.Config(block_sizes=[16, 16, 16], split_k=4)
    run = helion.kernel(twin.fn, static_shapes=True, config=config, ref_mode=RefMode.EAGER)
    contract = ScaledMm(304, 128, torch.float8_e4m3fn, torch.bfloat16)
    given = contract.sample_inputs(19, CPU, torch.Generator().manual_seed(1))
    y = run(*variant.arguments(*given))
    y = y.t() if variant.swap_ab else y
    assert y.is_contiguous()
    torch.testing.assert_close(y, contract.reference(*given), rtol=2**-7, atol=1e-3)


def test_a_candidate_is_refused_for_what_the_contract_refuses():
    y = GEMM.reference(*inputs(64)).float()
    # A few elements of a large row are off by more than most elements are large; the sums are as they should be.
    large = torch.full_like(y, 100.0)
    large[0] = 1.0
    off = large.bfloat16()
    off[3, :4] += 2.0
    helion_gemm.check(off, large)
    with pytest.raises(AssertionError, match=r"off by 0\.01"):
        helion_gemm.check(y * 1.01, y)
    # What the contract refuses in the end is refused while it is searched.
    with pytest.raises(AssertionError, match=r"off by 0\.005"):
        helion_gemm.check(y * 1.005, y)
    helion_gemm.check(
        torch_product(*VARIANTS[0].arguments(*inputs(64))), helion_gemm.expected(*VARIANTS[0].arguments(*inputs(64)))
    )
    with pytest.raises(AssertionError, match="off by nan"):
        helion_gemm.check(torch.full_like(y, torch.nan), y)
    for twin in (helion_gemm.whole, helion_gemm.split):
        assert twin.settings.autotune_baseline_accuracy_check_fn is helion_gemm.check


@pytest.mark.parametrize(("variant", "num_tokens"), [*zip(VARIANTS, (1, 32, 32, 1), strict=True)], ids=str)
def test_a_twin_is_built_for_hopper_from_where_the_search_begins(
    variant: Variant, num_tokens: int, monkeypatch: pytest.MonkeyPatch
):
    from helion.autotuner.config_generation import ConfigGeneration
    from helion.runtime.ref_mode import RefMode

    monkeypatch.delenv("HELION_INTERPRET", raising=False)
    twin = getattr(helion_gemm, variant.kernel)
    monkeypatch.setattr(twin.settings, "ref_mode", RefMode.OFF)
    twin.reset()
    arguments = variant.arguments(*inputs(num_tokens))
    bound = twin.bind(arguments)
    begin = dict(bound.config_spec.default_config().config)
    # What the search may change must be open: the three tiles, and for the split the number of parts.
    assert len(begin["block_sizes"]) == 3
    assert ("split_k" in begin) == (variant.kernel == "split")
    # A search begins with random ones, which cannot be drawn if a bound is no number.
    flat = ConfigGeneration(bound.config_spec)
    drawn = [dict(flat.random_config().config) for _ in range(40)]
    assert {each.get("split_k", 1) for each in drawn} <= {1, 2, 4, 8, 16}
    if variant.kernel == "split":
        assert MAX_SPLIT_K in {each["split_k"] for each in drawn}
    for changes in ({}, {"block_sizes": [128, 64, 32], "num_stages": 3, "split_k": 2}):
        config = {**begin, **{name: value for name, value in changes.items() if name in begin}}
        built = cross_compile(launch_of(variant, bound.to_triton_code(config), arguments), target("sm_90"))
        assert built.data.startswith(b"\x7fELF")


def launch_of(variant: Variant, source: str, arguments: tuple[Any, ...]) -> Launch:
    launches: list[Launch] = []

    def launcher(function: Any, grid: Any, *positional: Any, **options: Any) -> None:
        kept = {name: value for name, value in options.items() if not name.startswith("_")}
        launches.append(Launch(variant.kernel, function, positional, kept, source, KernelConfig()))

    getattr(CODE.module(source), variant.kernel)(*arguments, _launcher=launcher)
    [launch] = launches
    return launch


@pytest.mark.parametrize("num_tokens", [1, 16, 64, 256, 1024])
def test_the_algorithms_of_the_search_are_those_of_the_candidates(num_tokens: int):
    """What the tuner may choose and the yardstick may not would not be a fair comparison."""
    from parhelion.ops.gemm.target import gemm_target
    from parhelion.ops.scaled_mm.launch import candidates

    contract = ScaledMm(4096, 6144, torch.float8_e4m3fn, torch.bfloat16)
    swaps = {config.swap_ab for config in candidates(contract, num_tokens, gemm_target("sm_90"))}
    assert {each.swap_ab for each in helion_search.variants(num_tokens)} >= swaps
    assert any(each.kernel == "split" for each in helion_search.variants(num_tokens)) == (num_tokens <= 256)


def torch_product(*given: Any) -> torch.Tensor:
    return helion_gemm.expected(*given).to(torch.bfloat16)


def reference(attempt: Attempt, arguments: tuple[Any, ...]) -> tuple[Any, str]:
    """A search that finds torch, and for the swapped split a config that is wrong."""
    variant = attempt.variant
    if variant.kernel == "whole":
        return torch_product, RIGHT
    if variant.swap_ab:
        return lambda *given: (helion_gemm.expected(*given) * 1.1).bfloat16(), {"block_sizes": [64, 32, 16]}
    raise RuntimeError("no config compiles")


def test_the_fastest_right_one_wins(monkeypatch: pytest.MonkeyPatch):
    found = best_variant(GEMM, 64, CPU, reference, 0.0)
    assert found.config in (f"whole, swapped: {RIGHT}", f"whole: {RIGHT}")
    tile = (16, 64) if found.config.startswith("whole, swapped") else (64, 16)
    assert found.gemm == GemmConfig(*tile, 128, tile[0] == 16, num_stages=1)
    assert found.time_us.median > 0
    monkeypatch.setattr(helion_search, "variants", lambda *unused: (Variant("split", True), Variant("split", False)))
    with pytest.raises(HelionSearchError, match=r"above.*no config compiles"):
        best_variant(GEMM, 8, CPU, reference, 60.0)


def test_one_kernel_can_be_searched_alone():
    assert helion_search.variants(8, ["split"]) == (Variant("split", True),)
    with pytest.raises(HelionSearchError, match="M = 512 there is no split"):
        best_variant(GEMM, 512, CPU, reference, 1.0, ["split"])


def test_all_of_the_time_is_used_on_the_fastest(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    attempts: list[Attempt] = []

    def search(attempt: Attempt, arguments: tuple[Any, ...]) -> tuple[Any, str]:
        nonlocal now
        now += 20.0
        attempts.append(attempt)
        return torch_product, {"block_sizes": [64, 64, 64], "num_stages": attempt.number}

    times = iter([3e-6, 2e-6, 2.5e-6])
    monkeypatch.setattr(helion_search, "variants", lambda *unused: (Variant("whole", True), Variant("whole", False)))
    monkeypatch.setattr(helion_search, "time_launcher", lambda *unused: summarize([next(times)]))
    monkeypatch.setattr(helion_search.time, "monotonic", lambda: now)
    found = best_variant(GEMM, 64, CPU, search, 50.0)
    assert attempts == [
        Attempt(Variant("whole", True), 0, 25.0),
        Attempt(Variant("whole", False), 1, 25.0),
        Attempt(Variant("whole", False), 2, 10.0),
    ]
    assert found.gemm is not None
    assert (found.gemm.num_stages, found.seconds, found.searches) == (1, 60.0, 3)


def test_what_one_search_took_too_long_is_taken_from_those_to_come(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    budgets: list[float] = []

    def search(attempt: Attempt, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        nonlocal now
        now += attempt.budget_s + 20.0
        budgets.append(attempt.budget_s)
        return torch_product, RIGHT

    monkeypatch.setattr(helion_search, "variants", lambda *unused: tuple(VARIANTS[:3]))
    monkeypatch.setattr(helion_search.time, "monotonic", lambda: now)
    monkeypatch.setattr(helion_search, "time_launcher", lambda *unused: summarize([1e-6]))
    found = best_variant(GEMM, 64, CPU, search, 90.0)
    assert budgets == [30.0, 20.0]
    assert found.problems == (f"{VARIANTS[2].kernel}, swap_ab={VARIANTS[2].swap_ab}: no time was left",)


def test_the_fastest_is_searched_again_also_if_the_last_one_fails(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    searched: list[Variant] = []

    def search(attempt: Attempt, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        nonlocal now
        now += 20.0
        searched.append(attempt.variant)
        if attempt.variant == VARIANTS[1]:
            raise RuntimeError("no config compiles")
        return torch_product, RIGHT

    monkeypatch.setattr(helion_search, "variants", lambda *unused: tuple(VARIANTS[:2]))
    monkeypatch.setattr(helion_search.time, "monotonic", lambda: now)
    monkeypatch.setattr(helion_search, "time_launcher", lambda *unused: summarize([1e-6]))
    best_variant(GEMM, 64, CPU, search, 70.0)
    assert searched == [VARIANTS[0], VARIANTS[1], VARIANTS[0], VARIANTS[0]]


def test_a_search_that_fails_when_it_is_made_again_is_the_last(monkeypatch: pytest.MonkeyPatch):
    attempts: list[Attempt] = []

    def search(attempt: Attempt, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        attempts.append(attempt)
        if len(attempts) > 1:
            raise RuntimeError("out of memory")
        return torch_product, RIGHT

    monkeypatch.setattr(helion_search, "variants", lambda *unused: (Variant("whole", True),))
    found = best_variant(GEMM, 64, CPU, search, 600.0)
    assert len(attempts) == found.searches == 2
    assert found.problems == ("whole, swap_ab=True: RuntimeError: out of memory",)


def test_the_process_writes_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All of the process but Helion's own part, with a config as Helion gives it."""
    import helion

    config = helion.Config(block_sizes=[128, 64, 8], num_warps=1, num_stages=5, l2_groupings=[4], pid_type="flat")
    monkeypatch.setattr(helion_search, "helion_search", lambda attempt, arguments: (torch_product, config))
    output = tmp_path / "result.json"
    options = [GEMM.key(), "8", "--device", "cpu", "--seconds", "0.1", "--kernels", "whole", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["helion_search", *options])
    helion_search.main()
    found = msgspec.json.decode(output.read_bytes(), type=FullEffort)
    assert found.gemm == GemmConfig(8, 64, 128, True, 1, 1, 5, 4)
    assert found.time_us.median > 0
    assert found.config.startswith("whole, swapped: Config(")


def stand_in(folder: Path, body: str) -> tuple[str, ...]:
    """A program that is started in the place of the search."""
    script = folder / "search.py"
    script.write_text(f"import json, os, subprocess, sys, time\n{body}\n")
    return sys.executable, str(script)


def test_what_the_process_found_comes_back(tmp_path: Path):
    found = msgspec.json.encode(FOUND).decode()
    command = stand_in(
        tmp_path,
        "assert sys.argv[1].startswith('scaled_mm(in_features=256') and sys.argv[2:4] == ['8', '--device']\n"
        "assert os.environ['HELION_AUTOTUNE_EFFORT'] == 'full'\n"
        "assert sys.argv[sys.argv.index('--seconds') + 1] == '60.0'\n"
        "assert 'HELION_INTERPRET' not in os.environ\n"
        "assert os.environ['TMPDIR'] == os.path.dirname(sys.argv[-1])\n"
        f"open(sys.argv[-1], 'w').write({found!r})",
    )
    assert full_effort_search(GEMM, 8, 60.0, command=command) == FOUND
    assert json.loads(found)["config"] == FOUND.config


def test_a_search_that_fails_says_how(tmp_path: Path):
    command = stand_in(tmp_path, "print('out of memory'); sys.exit(3)")
    with pytest.raises(HelionSearchError, match=r"M = 8 ended with status 3: out of memory"):
        full_effort_search(GEMM, 8, 60.0, command=command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("/no/such/program",), r"M = 8 could not be made: .*/no/such/program"),
        (
            (sys.executable, "-c", "import sys; open(sys.argv[-1], 'w').write('{')"),
            "M = 8 could not be made: Input data",
        ),
        ((sys.executable, "-c", "pass"), "M = 8 ended with status 0"),
    ],
    ids=["does not start", "is cut short", "says nothing"],
)
def test_a_search_that_cannot_be_made_or_understood_is_a_reason(command: tuple[str, ...], said: str):
    with pytest.raises(HelionSearchError, match=said):
        full_effort_search(GEMM, 8, 60.0, command=command)


@pytest.mark.parametrize(
    ("device", "visible", "named", "sees"),
    [
        ("cuda:1", None, "cuda", "1"),
        ("cuda:0", None, "cuda", "0"),
        ("cuda:1", "5, 7", "cuda", "7"),
        ("cuda:0", "GPU-6f", "cuda", "GPU-6f"),
        ("cuda", "5,7", "cuda", "5,7"),
        ("cpu", None, "cpu", ""),
    ],
)
def test_a_search_sees_no_other_gpu(
    device: str, visible: str | None, named: str, sees: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    command = stand_in(
        tmp_path,
        f"assert sys.argv[sys.argv.index('--device') + 1] == {named!r}, sys.argv\n"
        f"assert os.environ.get('CUDA_VISIBLE_DEVICES', '') == {sees!r}, os.environ['CUDA_VISIBLE_DEVICES']\n"
        f"open(sys.argv[-1], 'w').write({msgspec.json.encode(FOUND).decode()!r})",
    )
    assert full_effort_search(GEMM, 8, 60.0, device, command=command) == FOUND


def test_a_search_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path):
    noted = tmp_path / "child"
    command = stand_in(
        tmp_path,
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(noted)!r}, 'w').write(str(child.pid))\ntime.sleep(600)",
    )
    with pytest.raises(HelionSearchError, match=r"did not end in 2\.5 s"):
        full_effort_search(GEMM, 8, 2.0, command=command, grace_s=0.5)
    assert _has_ended(int(noted.read_text()))


def test_a_search_that_the_user_interrupts_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    noted = tmp_path / "child"
    command = stand_in(
        tmp_path,
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(noted)!r} + '.new', 'w').write(str(child.pid))\n"
        f"os.rename({str(noted)!r} + '.new', {str(noted)!r})\ntime.sleep(600)",
    )
    wait = subprocess.Popen.wait

    def interrupted(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None:
            return wait(process)
        while not noted.exists():
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        full_effort_search(GEMM, 8, 60.0, command=command)
    assert _has_ended(int(noted.read_text()))


def _has_ended(process: int) -> bool:
    for _ in range(50):
        if not _runs(process):
            return True
        time.sleep(0.1)
    return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    "contract",
    [
        Linear(64, 64, torch.bfloat16),
        ScaledMm(64, 64, torch.int8, torch.bfloat16),
        ScaledMm(64, 64, torch.float8_e4m3fn, torch.bfloat16, True),
    ],
    ids=lambda each: each.key(),
)
def test_other_contracts_have_no_twin(contract: Any):
    with pytest.raises(ConfigError, match="no twin"):
        full_effort_search(contract, 8, 1.0)
