"""``parhelion bench kernels``: what is measured, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from parhelion.bench.kernels import KernelRow, measure_kernels
from parhelion.bench.machine import Circumstances, describe_circumstances
from parhelion.bench.report import format_figure
from parhelion.ops.contract import Contract
from parhelion.ops.kernel_timer import Timing
from parhelion.ops.registry import op
from parhelion.platform.ceilings import Ceilings, measure_ceilings
from parhelion.platform.device import choose_device
from parhelion.tuning.model_contracts import SCHEMES, contracts_of_models, scheme, with_uncalled_ops
from parhelion.tuning.model_shapes import model_shape


@dataclass(frozen=True)
class KernelSettings:
    """What to measure.

    Attributes:
        models: whose shapes.
        ops, providers, quantizations: names; none means all.
        num_tokens: sizes of M.
        device: ``auto``, ``cpu`` or ``cuda``.
        rounds: values of each sample.
    """

    models: tuple[str, ...]
    ops: tuple[str, ...]
    num_tokens: tuple[int, ...]
    providers: tuple[str, ...]
    quantizations: tuple[str, ...]
    device: str
    rounds: int


@dataclass(frozen=True)
class KernelReport:
    """The rows, the limits that their floors are made of, and where they were measured."""

    benchmark: str
    settings: KernelSettings
    ceilings: Ceilings
    rows: tuple[KernelRow, ...]
    circumstances: Circumstances


def measure_report(settings: KernelSettings, progress: Callable[[int, int], None]) -> KernelReport:
    """Measure what the settings ask for.

    Raises:
        ConfigError: a model, an op, a provider, a scheme or the device does not exist.
    """
    device = choose_device(settings.device)
    rows = measure_kernels(
        contracts_asked_for(settings),
        settings.num_tokens,
        device,
        settings.providers,
        Timing(rounds=settings.rounds),
        progress,
    )
    return KernelReport("kernels", settings, measure_ceilings(device), tuple(rows), describe_circumstances())


def contracts_asked_for(settings: KernelSettings) -> list[Contract]:
    """The contracts of the models and ops; of an op that no layer calls, its examples."""
    for name in settings.ops:
        op(name)
    schemes = [scheme(name) for name in settings.quantizations] or list(SCHEMES)
    contracts = with_uncalled_ops(contracts_of_models([model_shape(name) for name in settings.models], schemes))
    return [contract for contract in contracts if not settings.ops or contract.name in settings.ops]


def to_kernel_table(report: KernelReport) -> Table:
    """The report for a person."""
    limits = report.ceilings
    caption = f"{limits.device}: copies at {limits.bandwidth / 1e12:.3f} TB/s"
    rates = (("bf16", limits.bfloat16), ("fp8", limits.float8), ("int8", limits.int8))
    caption += "".join(f", {name} {rate / 1e12:.3g} Tflop/s" for name, rate in rates if rate)
    table = Table(title="kernels", caption=caption, title_justify="left")
    for heading in ("contract", "M", "provider"):
        table.add_column(heading, overflow="fold")
    for heading in ("us", "p10 to p90", "floor us", "of floor", "vs best rival"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        table.add_row(escape(row.contract), str(row.num_tokens), row.provider, *_figures(row))
    return table


def _figures(row: KernelRow) -> list[str]:
    if row.time_us is None:
        return ["-", escape(row.problem or ""), format_figure(row.floor_us), "-", "-"]
    return [
        format_figure(row.time_us.median),
        f"{format_figure(row.time_us.p10)} to {format_figure(row.time_us.p90)}",
        format_figure(row.floor_us),
        f"{row.of_floor:.0%}" if row.of_floor is not None else "-",
        f"{row.vs_best_rival:.2f}x" if row.vs_best_rival is not None else "-",
    ]
