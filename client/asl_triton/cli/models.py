"""`asl-triton models`: list a server's models."""

import asyncio
import dataclasses
import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, ModelOption
from asl_triton.cli.terminal import Console, echo
from asl_triton.errors import ContractError
from asl_triton.models.served import ServedModel, list_models, read_model


@with_connection("server")
def models(
    model: ModelOption = None,
    labels: Annotated[bool, typer.Option("--labels", help="List the glosses of one model, one per line.")] = False,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """List a server's models with their vocabulary, preset and precision.

    asl-triton models
    asl-triton models --model i3d_wlasl2000 --labels > glosses.txt
    """
    served = asyncio.run(read_all(connection, model, only_one=labels))
    if labels:
        echo(json.dumps(served[0].labels) if as_json else "\n".join(served[0].labels))
    elif as_json:
        typer.echo(json.dumps([to_dict(m) for m in served]))
    else:
        table = Table(title=escape(f"Models on {connection.server}"), title_justify="left")
        for column in ("model", "version", "glosses", "preset", "precision", "input"):
            table.add_column(column, justify="right" if column == "glosses" else "left", overflow="fold")
        for m in served:
            table.add_row(
                escape(m.name),
                escape(m.version),
                str(len(m.labels)),
                escape(m.preset.name),
                escape(m.precision),
                escape(m.datatype.lower()),
            )
        console = Console()
        console.print(table)
        for m in served:
            origin = f"exported by {m.exporter} from checkpoint {m.checkpoint_sha256[:12]}"
            for line in filter(None, (m.card.describe(), origin)):
                console.print(f"[bold]{escape(m.name)}[/]: {escape(line)}", highlight=False, soft_wrap=True)


async def read_all(connection: Connection, model: str | None, only_one: bool) -> list[ServedModel]:
    """Read the contracts of all models, or only the contract of `model`."""
    transport = connection.make_transport(connection.server, in_flight=1)
    try:
        await transport.server_version()
        if model is not None or only_one:
            return [await read_model(transport, model)]
        names = [description.name for description in await list_models(transport)]
        if not names:
            raise ContractError(f"{connection.server} serves no asl-triton model: create one with `asl-triton export`")
        return [await read_model(transport, name) for name in names]
    finally:
        await transport.close()


def to_dict(served: ServedModel) -> dict[str, object]:
    """Return a contract for `--json`: the number of glosses instead of the glosses, and the card's fields inlined."""
    values = dataclasses.asdict(served)
    card = values.pop("card")
    return {**values, **card, "labels": len(served.labels)}
