"""Options that several commands share. Connection options are in `connection`."""

from pathlib import Path
from typing import Annotated

import typer

from asl_triton.errors import AslTritonError
from asl_triton.results import SignerBox

RepositoryOption = Annotated[Path, typer.Option(help="The model repository that Triton serves.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="The model to use. Optional if the server has only one.")
]
SignerOption = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|X0,Y0,X1,Y1",
        show_default="auto",
        help="Where the signer is: left, top, right and bottom as fractions of the frame, such as 0.25,0.05,0.75,1. "
        "`auto` looks for a face and crops to the signer if the model or the picture needs it. `off` uses whole "
        "frames.",
    ),
]
PurposeOption = Annotated[
    str | None,
    typer.Option(
        show_default="the bundle's",
        help="One line on what the model was trained on and is good for. Every client shows it.",
    ),
]
CaveatOption = Annotated[
    str | None,
    typer.Option(
        show_default="the bundle's",
        help="A warning to attach to each of the model's answers; '' for none.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def format_box(box: SignerBox) -> str:
    """Describe a signer's box in one line."""
    return f"signer ({box.source}): {box.x0:.0%} to {box.x1:.0%} across, {box.y0:.0%} to {box.y1:.0%} down"


def parse_signer(text: str | None) -> SignerBox | None:
    """Parse `--signer`. Returns None for `auto` and `off`."""
    if text in (None, "auto", "off"):
        return None
    try:
        return SignerBox.parse(text)
    except AslTritonError as exc:
        raise typer.BadParameter(str(exc), param_hint="--signer") from exc
