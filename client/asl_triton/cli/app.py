"""The `asl-triton` command line. Errors become one sentence and an exit code here."""

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.markup import escape

from asl_triton.cli.batch import batch
from asl_triton.cli.bench import bench
from asl_triton.cli.doctor import doctor
from asl_triton.cli.evaluate import evaluate
from asl_triton.cli.export import export
from asl_triton.cli.fetch import fetch
from asl_triton.cli.finetune import finetune
from asl_triton.cli.models import models
from asl_triton.cli.recognize import recognize
from asl_triton.cli.serve import serve
from asl_triton.cli.teach import teach
from asl_triton.cli.terminal import Console
from asl_triton.cli.ui import ui
from asl_triton.cli.watch import watch
from asl_triton.errors import AslTritonError

app = typer.Typer(
    help="Sign-language recognition as a service: clips of a signer in, ranked glosses out.",
    epilog="Exit codes: 0 success; 1 error, with the reason; 2 wrong usage; 3 some clips failed and the rest were "
    "written.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order a newcomer needs them.
for command in (fetch, export, serve, recognize, batch, watch, ui, evaluate, teach, finetune, bench, doctor, models):
    app.command()(command)


def show_version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"asl-triton {version('asl-triton')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool | None, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """Handle the options that come before a command."""


def main() -> None:
    """Run the command line. An `AslTritonError` is printed as one sentence, with exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot encode must not end a batch
    try:
        app()
    except AslTritonError as exc:
        Console(stderr=True).print(f"[red]Error:[/] {escape(str(exc))}", soft_wrap=True, highlight=False)
        sys.exit(1)
