"""`asl-triton doctor`: is everything between here and the answer well?"""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from asl_triton.commands.connection import Connection
from asl_triton.commands.options import (
    ApiKeyOption,
    JsonOption,
    ModelOption,
    ServerOption,
    TimeoutOption,
    TlsCaOption,
    TlsCertOption,
    TlsKeyOption,
    TlsOption,
)
from asl_triton.doctor import Check, examine
from asl_triton.transport import DEFAULT_SERVER, DEFAULT_TIMEOUT_S, Security

MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "failed": "[red]failed [/]"}


def doctor(
    model: ModelOption = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Where the model folders lie, for their golden answers; ./model_repository if it is there."),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    tls: TlsOption = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    api_key: ApiKeyOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Check the server, each recogniser's contract and labels, and its answer to a clip whose answer is known.

    Says what to do about each thing that is not well. Exit code 0: all well, or with warnings; 1: something failed.

        asl-triton doctor
        asl-triton doctor --server gpu-box:8001 --json
    """
    connection = Connection(server, Security(tls, tls_ca, tls_cert, tls_key, api_key), timeout)
    if repository is None and Path("model_repository").is_dir():
        repository = Path("model_repository")
    console = Console()

    def show(check: Check) -> None:
        if as_json:
            return
        console.print(f"{MARKS[check.state]} [bold]{escape(check.name)}[/]: {escape(check.found)}", soft_wrap=True)
        if check.remedy:
            console.print(f"        -> {escape(check.remedy)}", soft_wrap=True)

    async def look() -> list[Check]:
        transport = connection.transport(server, in_flight=1)
        checks = []
        try:
            async for check in examine(transport, model, repository):
                checks.append(check)
                show(check)
        finally:
            await transport.close()
        return checks

    checks = asyncio.run(look())
    well = all(check.state != "failed" for check in checks)
    if as_json:
        typer.echo(json.dumps({"well": well, "checks": [dataclasses.asdict(check) for check in checks]}))
    raise typer.Exit(0 if well else 1)
