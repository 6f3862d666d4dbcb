"""Options of `asl-triton batch` for large archives: what to redo, which faults to tolerate, and how fast to go."""

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
        show_default=f"adaptive, up to {MAX_IN_FLIGHT}",
        help="How many clips may be in flight at once.",
    ),
]
FreshOption = Annotated[
    bool,
    typer.Option(
        "--fresh", rich_help_panel=PANEL, help="Recognize all clips again, including those already in OUTPUT."
    ),
]
RawOption = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Leave text in CSV unchanged, for programs that read it. Without this option, text that a spreadsheet "
        "would run as a formula (=, +, -, @) gets a leading apostrophe, because file names and glosses may come from "
        "others.",
    ),
]
HashOption = Annotated[
    bool,
    typer.Option(
        "--hash",
        rich_help_panel=PANEL,
        help="Detect changed files by their content instead of size and time.",
    ),
]
WaitOption = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=PANEL,
        min=0,
        show_default=f"{DEFAULT_WAIT_S:g}; 0 with --local",
        help="Seconds to wait for a server that is down, or too busy for a clip, before giving up.",
    ),
]
MaxFailuresOption = Annotated[
    int | None,
    typer.Option(rich_help_panel=PANEL, min=1, show_default="any number", help="Stop after this many failed clips."),
]
DecodingOption = Annotated[
    DecodeIn,
    typer.Option(
        rich_help_panel=PANEL,
        help="Decode videos in `processes`, where a video that crashes or hangs its decoder affects only itself, or in "
        "`threads`.",
    ),
]
DecodersOption = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        min=1,
        max=256,
        show_default="one per CPU",
        help="How many videos to decode at once.",
    ),
]
DecodeTimeoutOption = Annotated[
    float,
    typer.Option(
        rich_help_panel=PANEL,
        min=0.1,
        help="Seconds that a process may take to open a video, and to decode each window of it.",
    ),
]
