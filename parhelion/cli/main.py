"""The ``parhelion`` command. Importing it loads neither torch nor transformers, so that ``--help`` is quick."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from parhelion import __version__
from parhelion.cli.bench import bench_app
from parhelion.cli.build import build
from parhelion.cli.chat import chat
from parhelion.cli.doctor import doctor
from parhelion.cli.generate import generate
from parhelion.cli.output import print_error
from parhelion.cli.pack import pack_app
from parhelion.cli.plan import plan
from parhelion.cli.pull import pull
from parhelion.cli.report import report
from parhelion.cli.serve import serve
from parhelion.cli.tune import tune
from parhelion.config import read_environment
from parhelion.errors import ParhelionError

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


class ErrorReportingGroup(TyperGroup):
    """Turns errors raised on purpose into one line on stderr; any other is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ParhelionError as error:
            if read_environment().log_level == "DEBUG":
                raise
            print_error(str(error))
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


def _print_version(asked: bool) -> None:
    if asked:
        print(f"parhelion {__version__}")
        raise typer.Exit


def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """LLM inference: a server, an offline engine and the tools around them."""
    level = read_environment().log_level
    logging.basicConfig(level=level if level in logging.getLevelNamesMapping() else "INFO", format=LOG_FORMAT)


def build_app() -> typer.Typer:
    """The command and its subcommands."""
    app = typer.Typer(
        cls=ErrorReportingGroup,
        callback=_start,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for command in (pull, serve, generate, chat, doctor, build, tune, report, plan):
        app.command()(command)
    app.add_typer(bench_app())
    app.add_typer(pack_app())
    return app


def main() -> None:
    """Run the command line."""
    build_app()(prog_name="parhelion")
