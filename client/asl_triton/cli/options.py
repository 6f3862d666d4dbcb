"""Options that several commands share, word for word. Those of a connection are in `connection`."""

from pathlib import Path
from typing import Annotated

import typer

RepositoryOption = Annotated[Path, typer.Option(help="The model repository: what Triton serves.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Which model to ask. Not needed where only one is served.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
