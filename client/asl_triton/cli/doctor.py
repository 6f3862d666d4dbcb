"""`asl-triton doctor`: check a server, its models and their answers."""

import asyncio
import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, ModelOption
from asl_triton.cli.terminal import Console
from asl_triton.doctor.checks import Check, run_checks
from asl_triton.extras import require_extra

MARKS = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "failed": "[red]failed [/]"}


@with_connection("server")
def doctor(
    model: ModelOption = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="The model repository with the golden answers. Default: ./model_repository, if it exists."),
    ] = None,
    *,
    connection: Connection,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Repeat the checks until Ctrl-C and serve the results to Prometheus here, such as at 127.0.0.1:9109.",
        ),
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.1, help="With --metrics: seconds from one round of checks to the next.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Check the server, each model's contract and labels, and its answer to a clip with a known answer.

    Each problem comes with a way to fix it. Exit code 0: no check failed, but there may be warnings; 1: a check failed.

        asl-triton doctor
        asl-triton doctor --server gpu-box:8001 --json
        asl-triton doctor --server gpu-box:8001 --metrics 127.0.0.1:9109 --every 60
    """
    if repository is None and Path("model_repository").is_dir():
        repository = Path("model_repository")
    console = Console()

    def show(check: Check) -> None:
        if as_json or (metrics and check.state == "ok"):
            return
        console.print(f"{MARKS[check.state]} [bold]{escape(check.name)}[/]: {escape(check.found)}", soft_wrap=True)
        if check.remedy:
            console.print(f"        -> {escape(check.remedy)}", soft_wrap=True)

    async def look() -> list[Check]:
        transport = connection.make_transport(connection.server, in_flight=1)
        checks = []
        try:
            async for check in run_checks(transport, model, repository):
                checks.append(check)
                show(check)
        finally:
            await transport.close()
        return checks

    def once() -> list[Check]:
        checks = asyncio.run(look())
        if as_json:
            found = {"well": is_well(checks), "checks": [dataclasses.asdict(check) for check in checks]}
            typer.echo(json.dumps(found))
        return checks

    if metrics is not None:
        keep_looking(once, metrics, every)
    raise typer.Exit(0 if is_well(once()) else 1)


def is_well(checks: list[Check]) -> bool:
    """Return whether no check failed."""
    return all(check.state != "failed" for check in checks)


def keep_looking(once: Callable[[], list[Check]], address: str, every_s: float) -> NoReturn:
    """Repeat the checks until Ctrl-C, and serve the latest results."""
    with require_extra("monitoring"):
        from asl_triton.doctor.metrics import Examinations, serve_metrics
    examinations = Examinations()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # handle it like Ctrl-C
    server = serve_metrics(examinations, address)
    try:
        while True:
            began_s = time.monotonic()
            examinations.record(once(), time.monotonic() - began_s)
            time.sleep(max(0.0, began_s + every_s - time.monotonic()))
    except KeyboardInterrupt:
        raise typer.Exit from None
    finally:
        server.shutdown()
        server.server_close()
