"""Options that several commands share, word for word. Those of a connection are in `connection`."""

from pathlib import Path
from typing import Annotated

import typer

from asl_triton.errors import AslTritonError
from asl_triton.results import SignerBox

RepositoryOption = Annotated[Path, typer.Option(help="The model repository: what Triton serves.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Which model to ask. Not needed where only one is served.")
]
SignerOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|X0,Y0,X1,Y1",
        show_default="auto",
        help="Where the signer is in the frame: left, top, right and bottom as fractions of it, such as "
        "0.25,0.05,0.75,1; `auto` looks for a face, and cuts the signer out where the model or the picture needs it; "
        "`off` takes whole frames.",
    ),
]
PurposeOption = Annotated[
    str | None,
    typer.Option(
        show_default="the bundle's",
        help="What the model was trained on and is good for: one line, which every client shows.",
    ),
]
CaveatOption = Annotated[
    str | None,
    typer.Option(
        show_default="the bundle's",
        help="A warning that goes with each answer of the model, if it needs one; '' for none.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def format_box(box: SignerBox) -> str:
    """Where a signer is, in a line."""
    return f"signer ({box.source}): {box.x0:.0%} to {box.x1:.0%} across, {box.y0:.0%} to {box.y1:.0%} down"


def parse_signer(text: str | None) -> SignerBox | None:
    """The box that `--signer` gives, if it gives one."""
    if text in (None, "auto", "off"):
        return None
    try:
        return SignerBox.parse(text)
    except AslTritonError as exc:
        raise typer.BadParameter(str(exc), param_hint="--signer") from exc
