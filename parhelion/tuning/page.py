"""The compile matrix as a page of Markdown: no times and nothing of this machine, so equal sources give equal pages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from parhelion.tuning.matrix import Build
from parhelion.tuning.target import Target


@dataclass(frozen=True)
class Asked:
    """What the matrix was made of.

    Attributes:
        models, schemes: their names.
        targets: the columns.
        num_tokens: sizes of M that configs were asked for.
        command: how to make it again.
    """

    models: tuple[str, ...]
    schemes: tuple[str, ...]
    targets: tuple[Target, ...]
    num_tokens: tuple[int, ...]
    command: str


def compile_matrix_page(builds: Sequence[Build], asked: Asked) -> str:
    """The whole page."""
    sections = [_head(builds, asked), _summary(builds, asked)]
    if any(not build.built for build in builds):
        sections.append(_not_built(builds))
    sections += [_details(op, builds, asked) for op in _unique(build.op for build in builds)]
    return "\n\n".join(sections) + "\n"


def summary_cell(builds: Sequence[Build]) -> str:
    """One op on one target: how many programs are built, and what serves in place of the others."""
    built = sum(build.built for build in builds)
    instead = _unique(build.instead for build in builds if build.instead)
    count = f"{built}/{len(builds)}"
    return f"{count}, else {' or '.join(f'`{name}`' for name in instead)}" if instead else count


def _head(builds: Sequence[Build], asked: Asked) -> str:
    names = ", ".join(f"{name} {version(name)}" for name in ("helion", "triton", "torch"))
    devices = ", ".join(f"{target.name} ({target.devices})" for target in asked.targets)
    tokens = ", ".join(map(str, asked.num_tokens))
    return "\n".join(
        [
            "# Compile matrix",
            "",
            f"Written by `{asked.command}` on a machine that needs no GPU; do not edit it.",
            "",
            "Every tile program is cross-compiled for every target, with the static dimensions that these models need: "
            f"{', '.join(asked.models)}, in the quantizations {', '.join(asked.schemes)}. Kinds of contracts that no "
            "layer calls are built for examples of their ops. "
            f"Configs are those for M = {tokens}; sizes of M that share a program share a row. {names}.",
            "",
            f"Targets: {devices}.",
            "",
            f"{sum(build.built for build in builds)} of {len(builds)} programs are built.",
        ]
    )


def _summary(builds: Sequence[Build], asked: Asked) -> str:
    lines = [
        "## Ops and targets",
        "",
        "Programs built, of those that there are, and what serves where one cannot be built.",
        "",
        _row(["op", *(target.name for target in asked.targets)]),
        _row(["---"] * (1 + len(asked.targets))),
    ]
    for op in _unique(build.op for build in builds):
        cells = [
            summary_cell([build for build in builds if (build.op, build.target) == (op, target.name)])
            for target in asked.targets
        ]
        lines.append(_row([f"`{op}`", *cells]))
    return "\n".join(lines)


def _not_built(builds: Sequence[Build]) -> str:
    lines = [
        "## Not built",
        "",
        _row(["op", "program", "targets", "programs", "why", "served by"]),
        _row(["---"] * 6),
    ]
    groups: dict[tuple[str, str, str, str], list[Build]] = {}
    for build in builds:
        if build.reason is not None:
            groups.setdefault((build.op, build.kernel, build.reason, build.instead or ""), []).append(build)
    for (op, kernel, reason, instead), members in groups.items():
        targets = ", ".join(_unique(member.target for member in members))
        cells = [f"`{op}`", f"`{kernel}`", targets, str(len(members)), reason.replace("|", "\\|"), f"`{instead}`"]
        lines.append(_row(cells))
    return "\n".join(lines)


def _details(op: str, builds: Sequence[Build], asked: Asked) -> str:
    lines = [
        f"## `{op}`",
        "",
        "Registers a thread / shared memory in KiB / binary in KiB; bytes spilled a thread, where there are any.",
        "",
        _row(["program", "static dimensions", "M", "warps", *(target.name for target in asked.targets)]),
        _row(["---"] * (4 + len(asked.targets))),
    ]
    rows: dict[tuple[str, str, tuple[int, ...], int], dict[str, Build]] = {}
    for build in builds:
        if build.op == op and build.built:
            key = (build.kernel, build.contract, build.num_tokens, build.num_warps)
            rows.setdefault(key, {})[build.target] = build
    for (kernel, contract, num_tokens, num_warps), by_target in sorted(rows.items()):
        dims = contract.removeprefix(f"{op}(").removesuffix(")")
        cells = [_cell(by_target.get(target.name)) for target in asked.targets]
        lines.append(_row([f"`{kernel}`", dims, ", ".join(map(str, num_tokens)), str(num_warps), *cells]))
    return "\n".join(lines)


def _cell(build: Build | None) -> str:
    if build is None:
        return "-"
    text = f"{build.registers} / {build.shared_bytes / 1024:.0f} / {build.binary_bytes / 1024:.0f}"
    return f"{text}; {build.stack_bytes} B" if build.stack_bytes else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
