"""Options for archives, of `asl-triton batch`: what is done again, what is put up with, and how fast it goes."""

from typing import Annotated

import typer

from asl_triton.batch.concurrency import MAX_IN_FLIGHT
from asl_triton.batch.workers import DEFAULT_WAIT_S
from asl_triton.decoding.factory import DecodeIn

PANEL = "Archives: speed and faults"  # of --help

InFlightOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        min=1,
        max=256,
        show_default=f"adapts itself, up to {MAX_IN_FLIGHT}",
        help="How many clips may be under way at once.",
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option("--fresh", rich_help_panel=PANEL, help="Ask about all clips, also those that OUTPUT already knows."),
]
RawOption = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Leave text in csv as it is. Without it, text that a spreadsheet would compute (=, +, -, @) gets an "
        "apostrophe before it; names of files and glosses are other people's. For csv that a program reads.",
    ),
]
HashOption = Annotated[
    bool,
    typer.Option(
        "--hash",
        rich_help_panel=PANEL,
        help="Tell by their content whether files have changed, not by size and time.",
    ),
]
WaitOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=PANEL,
        min=0,
        show_default=f"{DEFAULT_WAIT_S:g}; 0 with --local",
        help="Seconds that the server may be away, or have no room for a clip, before the run gives up.",
    ),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(rich_help_panel=PANEL, min=1, show_default="any number", help="Stop when so many clips have failed."),
]
DecodingOption = Annotated[
    DecodeIn,
    typer.Option(
        rich_help_panel=PANEL,
        help="Where videos are decoded: in `processes`, each of which one video may crash or hang; or in `threads`.",
    ),
]
DecodersOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        min=1,
        max=256,
        show_default="one a processor",
        help="How many videos are decoded at once.",
    ),
]
DecodeTimeoutOption = Annotated[
    float,
    typer.Option(
        rich_help_panel=PANEL,
        min=0.1,
        help="Seconds that a process may take to open a video, and for each window of it.",
    ),
]
