"""``parhelion doctor``: what this machine offers, and what stands in the way."""

from __future__ import annotations

import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from parhelion.cli.output import format_bytes, print_json, spinner, stdout
from parhelion.config import ServerConfig, read_environment

if TYPE_CHECKING:  # it brings torch with it
    from parhelion.ops.provider import Availability

State = Literal["ok", "note", "problem"]

MIN_FREE_MEMORY = 1 << 30
MIN_FREE_DISK = 1 << 30
# Instruction sets that decide how quick CPU kernels are.
TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Finding:
    """One line of the report: ``ok`` serves as it is, ``note`` costs speed or comfort, ``problem`` stops serving."""

    topic: str
    state: State
    detail: str


def doctor(
    port: Annotated[int, typer.Option(help="The port that a server would take.")] = ServerConfig.port,
    tp: Annotated[int, typer.Option(min=1, help="Ranks that would share each layer.")] = 1,
    json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what this machine can serve with, what is missing, and the way out. Exit code 1 if something stops serving.

    Example: [cyan]parhelion doctor --port 8000[/]
    """
    with spinner("looking around"):
        findings = examine(port, tp)
        providers = examine_providers()
    if json_:
        print_json([*findings, *map(provider_finding, providers)])
    else:
        console = stdout()
        console.print(_finding_table(findings))
        console.print()
        console.print(_provider_table(providers))
        console.print()
        console.print(_absence_table(providers))
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def examine(port: int, tp: int = 1) -> list[Finding]:
    """Everything there is to say of this machine, its providers of ops excepted."""
    home = read_environment().home
    checks: tuple[Callable[[], Finding], ...] = (
        check_python,
        check_torch,
        check_device,
        lambda: check_pack(tp),
        check_cpu,
        check_memory,
        lambda: check_disk(home),
        check_compiler,
        check_models,
        lambda: check_port(port),
    )
    return [check() for check in checks]


def check_python() -> Finding:
    """The interpreter."""
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def check_torch() -> Finding:
    """Torch and what it was built for."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "problem", f"it cannot be imported ({str(error)[:200]}); install it again with pip")
    if torch.version.hip is not None:
        return Finding("torch", "ok", f"{torch.__version__}, built for ROCm {torch.version.hip}")
    built_for = "CPUs only" if torch.version.cuda is None else f"CUDA {torch.version.cuda}"
    return Finding("torch", "ok", f"{torch.__version__}, built for {built_for}")


def check_device() -> Finding:
    """The device that ``--device auto`` takes."""
    import torch

    from parhelion.platform.device import choose_device, device_name, free_memory

    device = choose_device("auto")
    if device.type == "cpu":
        return Finding("device", "ok", "no GPU that torch can use, so models run on the CPU")
    free = format_bytes(free_memory(device))
    more = f"; {torch.cuda.device_count()} GPUs in all" if torch.cuda.device_count() > 1 else ""
    return Finding("device", "ok", f"{device_name(device)} as {device}, {free} free{more}")


def check_pack(tp: int = 1) -> Finding:
    """The pack that ``--pack auto`` takes on that device, and what serves without one.

    Args:
        tp: ranks whose shapes it should have.
    """
    import torch

    from parhelion.ops.choose_pack import AUTO, find_pack
    from parhelion.ops.device_fingerprint import device_fingerprint
    from parhelion.platform.device import choose_device

    device: torch.device = choose_device("auto")
    if device.type == "cpu":
        return Finding("pack", "ok", "none is needed: packs are for GPUs")
    found = find_pack(AUTO, device_fingerprint(device))
    if found.chosen is None:
        return Finding("pack", "note", "; ".join(found.notes))
    pack, match = found.chosen.stored.pack, found.chosen.match
    models = ", ".join(each.title for each in pack.models) or "no model by name"
    details = [f"{pack.name} with {len(pack.rows)} rows for {models}: {match.reason}", *found.notes]
    serves = match.level == "exact"
    if tp > 1 and not any(each.tp == tp for each in pack.models):
        serves = False
        details.append(
            f"no model's rows are those of a rank of {tp}: they serve where shapes agree, and a table chooses "
            f"elsewhere; parhelion tune MODEL --tp {tp} makes them"
        )
    return Finding("pack", "ok" if serves else "note", "; ".join(details))


def check_cpu() -> Finding:
    """Model, vector units and the threads that the engine would take."""
    from parhelion.platform.cpu import fingerprint

    cpu = fingerprint()
    flags = [flag for flag in TELLING_FLAGS if flag in cpu_flags()]
    state: State = "note" if cpu.capability == "DEFAULT" else "ok"
    detail = f"{cpu.name}; {cpu.cores} cores, so {cpu.cores} threads; torch uses {cpu.capability}"
    return Finding("cpu", state, detail + (f"; has {', '.join(flags)}" if flags else ""))


def cpu_flags() -> frozenset[str]:
    """The instruction-set flags that Linux lists; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def check_memory() -> Finding:
    """Memory that weights and KV cache can have."""
    from parhelion.platform.cpu import fingerprint, free_memory

    free, total = free_memory(), fingerprint().memory_bytes
    detail = f"{format_bytes(free)} free of {format_bytes(total)}"
    if free < MIN_FREE_MEMORY:
        return Finding("memory", "note", f"{detail}: end other programs, or give a small --kv-cache-memory")
    return Finding("memory", "ok", detail)


def check_disk(home: Path) -> Finding:
    """Room where models are pulled to, and whether it can be written to."""
    folder = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{format_bytes(free)} free at {home}"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("disk", "problem", f"{folder}: {reason}; set PARHELION_HOME to a folder that you may write to")
    if free < MIN_FREE_DISK:
        return Finding("disk", "note", f"{detail}: make room, or set PARHELION_HOME to a folder on a larger disk")
    return Finding("disk", "ok", detail)


def check_compiler() -> Finding:
    """The C++ compiler that ``--compile`` needs."""
    from parhelion.platform.compiler import cpp_compiler

    found = cpp_compiler()
    if found is None:
        return Finding("c++ compiler", "note", "none found, so --compile cannot work; install g++ or clang++ to use it")
    return Finding("c++ compiler", "ok", f"{found} (used by --compile)")


def check_models() -> Finding:
    """Which aliases are pulled."""
    from parhelion.models.catalog import CATALOG
    from parhelion.models.pull import pulled_path

    pulled = [entry.alias for entry in CATALOG if pulled_path(entry).exists()]
    absent = [entry.alias for entry in CATALOG if entry.alias not in pulled]
    parts = [f"pulled: {', '.join(pulled)}"] if pulled else []
    parts += [f"not pulled yet: {', '.join(absent)} (done on first use)"] if absent else []
    return Finding("models", "ok", "; ".join(parts))


def check_port(port: int) -> Finding:
    """Whether a server could listen."""
    host = ServerConfig.host
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return Finding("port", "note", f"{host}:{port}: {reason}; serve on another with --port")
    return Finding("port", "ok", f"{host}:{port} is free")


def examine_providers() -> list[Availability]:
    """Every provider of every op, and whether it can serve on the device that ``--device auto`` takes."""
    from parhelion.ops.registry import provider_report
    from parhelion.platform.device import choose_device

    return provider_report(choose_device("auto"))


def provider_finding(entry: Availability) -> Finding:
    """A provider of an op as a line of the report."""
    return Finding(f"{entry.op}: {entry.provider}", "ok" if entry.available else "note", entry.reason)


def _finding_table(findings: Sequence[Finding]) -> Table:
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}
    table = Table("", "what", "finding", box=None)
    for finding in findings:
        table.add_row(marks[finding.state], escape(finding.topic), escape(finding.detail))
    return table


def _provider_table(providers: Sequence[Availability]) -> Table:
    """An op a line: who can serve it, as ``--kernels op=provider`` takes it, and who cannot."""
    table = Table("op", "can serve", "cannot", box=None)
    for op in dict.fromkeys(entry.op for entry in providers):
        names = {
            available: ", ".join(e.provider for e in providers if e.op == op and e.available == available)
            for available in (True, False)
        }
        table.add_row(op, f"[green]{names[True]}[/]", f"[dim]{names[False]}[/]")
    return table


def _absence_table(providers: Sequence[Availability]) -> Table:
    """Why those that cannot serve cannot: the same reason once, with the ops that it is given for."""
    ops: dict[tuple[str, str], list[str]] = {}
    for entry in providers:
        if not entry.available:
            ops.setdefault((entry.provider, entry.reason), []).append(entry.op)
    table = Table("provider", "why not", "of", box=None)
    for (provider, reason), names in sorted(ops.items()):
        table.add_row(provider, escape(reason), f"[dim]{names[0] if len(names) == 1 else f'{len(names)} ops'}[/]")
    return table
