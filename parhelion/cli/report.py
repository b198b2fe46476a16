"""``parhelion report``: what was measured, what it cost and what builds where, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.output import print_note
from parhelion.errors import ConfigError, PackError

if TYPE_CHECKING:
    from parhelion.packs.format import Pack


def report(
    pack: Annotated[
        list[str] | None,
        typer.Option(help="A pack's name or path; may be repeated. Default: all installed packs; off: none."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="A folder of benchmarks' results, such as benchmarks/results.")
    ] = None,
    matrix: Annotated[
        Path | None, typer.Option(help="A compile matrix: the output of parhelion build --check --json.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the page is written.")] = Path("report.html"),
    json_: Annotated[Path | None, typer.Option("--json", help="Write the same as JSON to this file.")] = None,
) -> None:
    """Write one HTML page, which needs no network, of what packs and benchmarks measured beside the device's limits.

    Example: [cyan]parhelion report --pack h100 --results benchmarks/results --output report.html[/]
    """
    from parhelion.tuning.report.collect import make_report
    from parhelion.tuning.report.data import to_json
    from parhelion.tuning.report.page import report_page

    packs = [] if pack == ["off"] else _packs(pack)
    if not packs and results is None and matrix is None:
        raise ConfigError("there is nothing to report: no pack is installed; pass --pack, --results or --matrix")
    made = make_report(packs, results, matrix)
    _write(output, report_page(made).encode())
    if json_ is not None:
        _write(json_, to_json(made))


def _packs(names: list[str] | None) -> list[Pack]:
    """Those that are named; else all that are installed and can be read."""
    from parhelion.packs.location import find_packs, open_pack
    from parhelion.packs.store import read_pack

    if names:
        return [open_pack(name).pack for name in names]
    found = []
    for path in find_packs():
        try:
            found.append(read_pack(path).pack)
        except PackError as error:
            print_note(f"left out: {error}")
    return found


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; name another file") from error
    print_note(f"written to {path}")
