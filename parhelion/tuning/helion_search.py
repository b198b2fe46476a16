"""Helion's own autotuner at full effort, in a process of its own: one of the tuner's strategies, and the yardstick for
what it finds otherwise.

Its searches take minutes a shape, compile thousands of programs and start processes themselves; one that does not end
is killed with all that it has started. ``python -m parhelion.tuning.helion_search`` is that process.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch

from parhelion.errors import ConfigError, ParhelionError
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.gemm.candidates import SMALL_BUCKET
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.kernel_config import PidType
from parhelion.ops.kernel_timer import rotating_inputs, time_launcher
from parhelion.ops.oracle import Oracle
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.platform.measure import Summary, scaled

KERNELS = ("whole", "split")
"""Of ``helion_gemm``."""

GRACE_S = 600.0
"""What a search may take beyond its budget, which Helion looks at between generations only."""

_MOST_SWAPPED = 256
"""Up to this M the swapped algorithm is searched as well."""

_LAST_LINES = 5


class HelionSearchError(ParhelionError):
    """A search ended without a result."""


@dataclass(frozen=True)
class Variant:
    """One of the algorithms between which Helion's search cannot choose by itself.

    Attributes:
        kernel: ``whole`` or ``split`` of ``helion_gemm``.
        swap_ab: the weight is the left operand.
    """

    kernel: str
    swap_ab: bool

    def arguments(
        self, codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor
    ) -> tuple[Any, ...]:
        """The twin's, from the inputs of ``scaled_mm``."""
        if self.swap_ab:
            return (weight, codes, weight_scales, scales, torch.bfloat16, True)
        return (codes, weight, scales, weight_scales, torch.bfloat16, False)


@dataclass(frozen=True)
class FullEffort:
    """What a search has found.

    Attributes:
        time_us: microseconds of one launch, measured as the project's own are.
        config: the algorithm and Helion's config, in words.
        seconds: of all searches of this shape.
        searches: how many there were.
        problems: of those that failed.
        gemm: the same choices, as far as the tile program that serves has them; None: not told.
    """

    time_us: Summary
    config: str
    seconds: float
    searches: int = 1
    problems: tuple[str, ...] = ()
    gemm: GemmConfig | None = None


def full_effort_search(
    contract: Contract,
    num_tokens: int,
    seconds: float,
    device: str = "cuda",
    command: Sequence[str] = (),
    kernels: Sequence[str] = KERNELS,
    grace_s: float = GRACE_S,
) -> FullEffort:
    """Search in a process of its own, which sees no other GPU.

    Args:
        contract: an FP8 ``scaled_mm`` without bias, the one op that has a twin.
        num_tokens: M.
        seconds: for all algorithms together, and all of them are used: where Helion's searches end by themselves, the
            fastest algorithm is searched again, from another beginning.
        command: runs instead of this module, with the same arguments.
        kernels: which of ``helion_gemm`` are searched.
        grace_s: what it may take beyond its seconds until it is killed.

    Raises:
        ConfigError: the contract is another one.
        HelionSearchError: the search failed, or did not end.
    """
    _check(contract)
    own = (sys.executable, "-m", "parhelion.tuning.helion_search")
    # What was killed may still be writing.
    with tempfile.TemporaryDirectory(prefix="parhelion-search-", ignore_cleanup_errors=True) as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        named, environment = _device_in_process(device)
        options = [contract.key(), str(num_tokens), "--device", named, "--seconds", str(seconds)]
        options += ["--kernels", *kernels, "--output", str(result)]
        where = f"Helion's search for {contract.key()} with M = {num_tokens}"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*(command or own), *options],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # What thousands of programs leave behind, in caches as well, goes with the folder.
                    env=_environment() | environment | {"TMPDIR": folder},
                    start_new_session=True,
                )
                status = _wait(process, seconds + grace_s)
            if status == 0 and result.exists():
                return msgspec.json.decode(result.read_bytes(), type=FullEffort)
        except (OSError, msgspec.MsgspecError) as error:
            raise HelionSearchError(f"{where} could not be made: {error}") from error
        lines = log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:]
        ended = f"did not end in {seconds + grace_s:g} s" if status is None else f"ended with status {status}"
        raise HelionSearchError(f"{where} {ended}: {' | '.join(lines)}")


def variants(num_tokens: int, kernels: Sequence[str] = KERNELS) -> tuple[Variant, ...]:
    """The algorithms that are searched for an M: those that the project's own candidates for it are of."""
    split = [Variant("split", True), Variant("split", False)] if num_tokens <= _MOST_SWAPPED else []
    swapped = [Variant("whole", True)] if num_tokens <= _MOST_SWAPPED else []
    found = [each for each in (*swapped, Variant("whole", False), *split) if each.kernel in kernels]
    if num_tokens < SMALL_BUCKET:
        # With fewer tokens than the matrix unit has rows, x is better on the right.
        found = [each for each in found if each.swap_ab]
    return tuple(found)


@dataclass(frozen=True)
class Attempt:
    """One search of a variant.

    Attributes:
        number: of the search, so that no two begin alike.
        budget_s: seconds that it may take.
    """

    variant: Variant
    number: int
    budget_s: float


Choices = Mapping[str, Any]
"""A ``helion.Config``, or a dictionary of the same."""

Search = Callable[[Attempt, tuple[Any, ...]], tuple[Callable[..., torch.Tensor], Choices]]
"""Finds a variant's best config for these arguments, and what launches it."""


def gemm_config(variant: Variant, choices: Choices, in_features: int) -> GemmConfig:
    """A config of a twin as one of the tile program that serves: what that one has no choice of is left out."""
    # Helion numbers block sizes as they are registered: of K, then of the tile's rows and columns.
    block_k, left, right = choices["block_sizes"]
    block_m, block_n = (right, left) if variant.swap_ab else (left, right)
    pid_type = choices.get("pid_type", "flat")
    # The split twin rounds what a program takes of K to a power of two, which may leave fewer programs.
    span = 1 << (-(-in_features // choices.get("split_k", 1)) - 1).bit_length()
    return GemmConfig(
        block_m,
        block_n,
        block_k,
        swap_ab=variant.swap_ab,
        split_k=-(-in_features // span),
        num_warps=choices.get("num_warps", 4),
        num_stages=choices.get("num_stages", 1),
        group_m=(choices.get("l2_groupings") or [1])[0],
        pid_type=pid_type if pid_type in get_args(PidType) else "flat",
    )


def best_variant(
    contract: ScaledMm,
    num_tokens: int,
    device: torch.device,
    search: Search,
    seconds: float,
    kernels: Sequence[str] = KERNELS,
) -> FullEffort:
    """Search all variants here, and the fastest again until the time is spent; check and time what was found, as
    candidates are.

    Raises:
        HelionSearchError: none of them gives a result that is right.
    """
    sets = rotating_inputs(contract, num_tokens, device)
    oracle = Oracle(contract, sets[0])
    found: list[tuple[Summary, Choices, Variant]] = []
    problems: list[str] = []
    start = time.monotonic()
    waiting = list(variants(num_tokens, kernels))
    if not waiting:
        raise HelionSearchError(f"for M = {num_tokens} there is no {' or '.join(kernels)} to search")
    share = seconds / len(waiting)
    searches = 0
    while True:
        left_s = seconds - (time.monotonic() - start)
        attempt = _next_attempt(waiting, found, searches, left_s, share)
        if attempt is None:
            break
        is_again, waiting = not waiting, waiting[1:]
        searches += 1
        variant = attempt.variant
        try:
            run, config = search(attempt, variant.arguments(*sets[0]))
            launch = _launcher(variant, run)
            wrong = [error.problem for error in oracle.compare(launch) if error.problem is not None]
            if wrong:
                raise HelionSearchError(f"y {wrong[0]}")
            times = scaled(time_launcher(launch, sets, device), 1e6)
            found.append((times, config, variant))
        # One algorithm may fail in any way; the others are searched all the same.
        except Exception as error:
            problems.append(f"{variant.kernel}, swap_ab={variant.swap_ab}: {type(error).__name__}: {error}")
            # One that was found before would fail again and again.
            if is_again:
                break
        print(f"{attempt}: {time.monotonic() - start:.0f} s, {len(found)} found, {problems[-1:]}", flush=True)
    if not found:
        raise HelionSearchError("; ".join(problems))
    problems += [f"{each.kernel}, swap_ab={each.swap_ab}: no time was left" for each in waiting]
    times, config, variant = min(found, key=lambda each: each[0].median)
    words = f"{variant.kernel}{', swapped' if variant.swap_ab else ''}: {config}"
    took_s = time.monotonic() - start
    return FullEffort(
        times, words, took_s, searches, tuple(problems), gemm_config(variant, config, contract.in_features)
    )


def _next_attempt(
    waiting: Sequence[Variant],
    found: Sequence[tuple[Summary, Choices, Variant]],
    number: int,
    left_s: float,
    share_s: float,
) -> Attempt | None:
    """The first that waits, else the fastest of those found again; None at the end, which is not before one is found or
    all have been searched.
    """
    if found and left_s <= 0:
        return None
    if waiting:
        # Searches end late rather than early; what one took too long is taken from all that are to come.
        return Attempt(waiting[0], number, max(0.0, min(share_s, left_s / len(waiting))))
    if found:
        return Attempt(min(found, key=lambda each: each[0].median)[2], number, left_s)
    return None


def helion_search(attempt: Attempt, arguments: tuple[Any, ...]) -> tuple[Callable[..., torch.Tensor], Choices]:
    """Helion's autotuner, with the effort that the environment says."""
    from parhelion.tuning import helion_gemm

    kernel: Any = getattr(helion_gemm, attempt.variant.kernel)
    kernel.settings.autotune_budget_seconds = max(1, round(attempt.budget_s))
    kernel.settings.autotune_random_seed += attempt.number
    bound = kernel.bind(arguments)
    config = bound.autotune(arguments, force=True)
    return bound.compile_config(config), config


def _launcher(variant: Variant, run: Callable[..., torch.Tensor]) -> Launcher:
    def launch(*inputs: torch.Tensor) -> torch.Tensor:
        y = run(*variant.arguments(*inputs))
        return y.t() if variant.swap_ab else y

    return launch


def has_twin(contract: Contract) -> bool:
    """Whether Helion can search it: an FP8 ``scaled_mm`` to bfloat16 without bias."""
    return (
        isinstance(contract, ScaledMm)
        and contract.quant_dtype == torch.float8_e4m3fn
        and contract.dtype == torch.bfloat16
        and not contract.bias
    )


def _check(contract: Contract) -> ScaledMm:
    if not has_twin(contract):
        raise ConfigError(
            f"{contract.key()} has no twin that Helion can search: give a scaled_mm of float8_e4m3fn to bfloat16 "
            "without bias"
        )
    assert isinstance(contract, ScaledMm)
    return contract


def _device_in_process(device: str) -> tuple[str, dict[str, str]]:
    """What a device is called in a process that sees no other GPU, and what makes it see no other: the processes that
    Helion starts there, and Triton's launches, take the current device, which is the first one.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return device, {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return kind, {"CUDA_VISIBLE_DEVICES": visible[int(index)].strip() if visible != [""] else index}


def _environment() -> dict[str, str]:
    """Helion's own settings, as its documentation has them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HELION_")}
    return {
        **kept,
        "HELION_AUTOTUNE_EFFORT": "full",
        "HELION_AUTOTUNE_PROGRESS_BAR": "0",
    }


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit status; None if it had to be killed. Whatever it has started ends with it."""
    status: int | None = None
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return status


def main() -> None:
    """Search, and write what was found."""
    from parhelion.tuning.contract_key import contract_of_key

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contract", help="as Contract.key() spells it")
    parser.add_argument("num_tokens", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    contract = _check(contract_of_key(options.contract))
    device = torch.device(options.device)
    found = best_variant(contract, options.num_tokens, device, helion_search, options.seconds, options.kernels)
    options.output.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()
