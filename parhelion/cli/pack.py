"""``parhelion pack``: what was measured and built ahead of time, looked at and put together."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.output import print_error, print_json, print_note, stdout

if TYPE_CHECKING:
    from parhelion.packs.format import Pack
    from parhelion.packs.summary import BlockSummary, PackSummary, RowSummary

EXIT_PROBLEMS = 1

PackName = Annotated[str, typer.Argument(metavar="PACK", help="A name that parhelion pack ls lists, or a path.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def pack_app() -> typer.Typer:
    """The group of commands about packs."""
    app = typer.Typer(name="pack", help="List, show, compare, check and merge packs.", no_args_is_help=True)
    for command in (ls, show, diff, verify, merge):
        app.command()(command)
    return app


@dataclass(frozen=True)
class ShownPack:
    """What ``show --json`` prints: the pack in figures, and the rows and the blocks with them that were asked for."""

    pack: PackSummary
    rows: tuple[RowSummary, ...]
    blocks: tuple[BlockSummary, ...]


@dataclass(frozen=True)
class Checked:
    """What ``verify --json`` prints. ``stale_checked``: sources were compared with those here."""

    pack: str
    problems: tuple[str, ...]
    stale_checked: bool


def ls(json_: AsJson = False) -> None:
    """List the packs that come with Parhelion and those in PARHELION_HOME/packs.

    Example: [cyan]parhelion pack ls[/]
    """
    from parhelion.cli.pack_tables import packs_table
    from parhelion.errors import PackError
    from parhelion.packs.location import SHIPPED, find_packs, user_packs
    from parhelion.packs.store import read_pack
    from parhelion.packs.summary import summarize

    summaries = []
    for path in find_packs():
        try:
            summaries.append(summarize(read_pack(path)))
        except PackError as error:
            print_error(str(error))
    if json_:
        print_json(summaries)
        return
    if not summaries:
        print_note(f"no packs in {user_packs()} or {SHIPPED}")
        return
    stdout().print(packs_table(summaries))


def show(
    pack: PackName,
    op: Annotated[list[str] | None, typer.Option(help="Rows of this op alone; may be repeated.")] = None,
    contract: Annotated[str | None, typer.Option(help="Rows whose contract has this text in it.")] = None,
    json_: AsJson = False,
) -> None:
    """Show what a pack was measured on, what it cost, and who serves what at which fraction of the hardware's limit.

    Example: [cyan]parhelion pack show h100 --op rms_norm[/]
    """
    from parhelion.cli.pack_tables import blocks_table, pack_table, rows_table
    from parhelion.errors import ConfigError
    from parhelion.packs.location import open_pack
    from parhelion.packs.summary import summarize, summarize_block, summarize_row

    stored = open_pack(pack)
    summary = summarize(stored)
    if unknown := sorted(set(op or ()) - set(summary.ops)):
        raise ConfigError(f"pack {summary.name} has no rows of op {unknown[0]!r}; it has {', '.join(summary.ops)}")
    rows = tuple(
        summarize_row(row)
        for row in stored.pack.rows
        if (not op or row.op in op) and (contract is None or contract in row.contract)
    )
    shown = {row.contract for row in rows}
    blocks = tuple(summarize_block(each, stored.pack) for each in stored.pack.blocks if shown & set(each.contracts))
    if json_:
        print_json(ShownPack(summary, rows, blocks))
        return
    console = stdout()
    console.print(pack_table(summary))
    console.print(rows_table(rows))
    if blocks:
        console.print(blocks_table(blocks))


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A pack's name or path.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    json_: AsJson = False,
) -> None:
    """Say which rows are in one pack only or are served by another provider or config, and how their times compare.

    Example: [cyan]parhelion pack diff old.zip new.zip[/]
    """
    from parhelion.cli.pack_tables import differences_table
    from parhelion.packs.diff import diff as differences_of
    from parhelion.packs.location import open_pack

    first, second = open_pack(a).pack, open_pack(b).pack
    differences = differences_of(first, second)
    if json_:
        print_json(differences)
    else:
        stdout().print(differences_table(differences, (a, b)))
        if first.blocks or second.blocks:
            print_note(f"times of whole blocks: {len(first.blocks)} in A, {len(second.blocks)} in B")


def verify(pack: PackName, json_: AsJson = False) -> None:
    """Check binaries, recipes and rows, and that the sources here are those of the pack. Exit code 1 with problems.

    Example: [cyan]parhelion pack verify h100[/]
    """
    from parhelion.packs.location import open_pack
    from parhelion.packs.verify import verify as problems_of

    stored = open_pack(pack)
    hashes = _source_hashes()
    problems = problems_of(stored, hashes)
    if json_:
        print_json(Checked(stored.pack.name, tuple(problems), hashes is not None))
    else:
        for problem in problems:
            print_error(problem)
        unchecked = "" if hashes is not None else "; whether it is stale was not checked"
        print_note(f"{_contents(stored.pack)}: {len(problems) or 'no'} problems{unchecked}")
    if problems:
        raise typer.Exit(EXIT_PROBLEMS)


def merge(
    packs: Annotated[list[str], typer.Argument(metavar="PACK...", help="Names or paths; later ones win.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write: a zip if it ends in .zip.")],
    name: Annotated[str | None, typer.Option(help="The pack's name. Default: the output's.")] = None,
    json_: AsJson = False,
) -> None:
    """Make one pack of several that are of one device: rows of the same bucket are taken from the last that has them.

    Example: [cyan]parhelion pack merge old.zip new.zip --output h100.zip[/]
    """
    from parhelion.packs.location import open_pack, pack_name
    from parhelion.packs.merge import merge as merge_packs
    from parhelion.packs.store import read_pack, write_pack
    from parhelion.packs.summary import summarize

    merged, binaries = merge_packs([open_pack(pack) for pack in packs], name or pack_name(output))
    write_pack(merged, binaries, output)
    if json_:
        print_json(summarize(read_pack(output)))
    else:
        print_note(f"written to {output}: {_contents(merged)}")


def _contents(pack: Pack) -> str:
    """What is in a pack, counted."""
    blocks = f", {len(pack.blocks)} times of whole blocks" if pack.blocks else ""
    return f"{len(pack.rows)} rows{blocks} and {len(pack.binaries)} binaries"


def _source_hashes() -> dict[str, str] | None:
    """Op to the hash of its sources here; None if this installation cannot tell."""
    if importlib.util.find_spec("parhelion.ops.source_hash") is None:
        return None
    hashes: dict[str, str] = importlib.import_module("parhelion.ops.source_hash").source_hashes()
    return hashes
