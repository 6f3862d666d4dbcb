"""`asl-triton watch`: print the glosses in a camera's picture, a stream or a file as they are recognized."""

import asyncio
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption, SignerOption, format_box, parse_signer
from asl_triton.cli.terminal import Console, echo
from asl_triton.labels import read_labels
from asl_triton.live.capture import Capture, SourceLost, SourceResumed
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveEvent, LiveState
from asl_triton.live.watch import (
    Happening,
    ModelWarning,
    ServerLost,
    ServerRecovered,
    SignerChanged,
    Watch,
    WatchSummary,
)
from asl_triton.results import box_to_json

DEFAULT_RULES = LiveRules()
ANSWER_TIMEOUT_S = 10.0  # a later answer is useless
KINDS: dict[type[Happening], str] = {
    LiveEvent: "sign",
    ModelWarning: "warning",
    SourceLost: "dropout",
    SourceResumed: "resumed",
    ServerLost: "server away",
    ServerRecovered: "server back",
    SignerChanged: "signer",
}


@with_connection("dictionary", "model", "local", "server", "transport", timeout_s=ANSWER_TIMEOUT_S)
def watch(
    source: Annotated[
        str,
        typer.Argument(
            envvar="ASL_TRITON_SOURCE",
            help="A camera's index (0), an rtsp:// or http:// address, or a video file, which plays in real time.",
        ),
    ],
    min_confidence: Annotated[
        float, typer.Option(min=0.01, max=1, help="Print signs with at least this confidence.")
    ] = DEFAULT_RULES.min_confidence,
    window: Annotated[
        int | None,
        typer.Option(min=1, help="Frames per request, at 25 frames per second. Default: from the model's preset."),
    ] = None,
    stride: Annotated[
        int, typer.Option(min=1, help="Frames from one request to the next.")
    ] = DEFAULT_RULES.stride_frames,
    repeat: Annotated[
        float, typer.Option(min=0.1, help="Print a gloss again if it goes on for this many seconds.")
    ] = DEFAULT_RULES.repeat_s,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Print only the glosses that this file lists, one per line.")
    ] = None,
    signer: SignerOption = None,
    give_up: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait for a source that drops out. Default: forever.")
    ] = None,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Print each gloss as it is signed, with its start time, until Ctrl-C.

    If the source or the server drops out, the command waits for it. If the server is slower than the source, frames are
    dropped so that the lag (from the newest frame of an answer to the answer) does not grow. --json prints one line per
    event. Exit code 3: it ended before the source did.

        asl-triton watch 0 --local
        asl-triton watch rtsp://camera.local/stream --min-confidence 0.7 --json
    """
    box = parse_signer(signer)
    rules = LiveRules(
        window_frames=window,
        stride_frames=stride,
        min_confidence=min_confidence,
        repeat_s=repeat,
        vocabulary=read_labels(vocabulary) if vocabulary else None,
    )
    with Capture(source, give_up_s=give_up) as capture, connection.address() as address, Screen(as_json) as screen:
        watching = Watch(capture, rules, on_happening=screen.tell, on_state=screen.show)

        async def run() -> None:
            # Do not retry requests, because the newest window is worth more.
            options = {"signer": box, "find_signer": signer != "off"}
            async with connection.make_recognizer(address, in_flight=1, resend=False, **options) as recognizer:
                await watching.run(recognizer)

        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end
            asyncio.run(run())
        summary = watching.summary
        screen.conclude(summary)
    if summary.stopped:
        raise typer.Exit(3 if summary.windows else 1)


class Screen:
    """Prints glosses or JSON on standard output. Status goes to standard error, on a terminal as one updating line."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=True, highlight=False)
        # If glosses and the status line share a terminal, glosses must be printed by the status line's console.
        self._shares = self._console.is_terminal and sys.stdout.isatty()
        self._line = Live(console=self._console, transient=True, auto_refresh=False, redirect_stdout=False)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._line.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._line.stop()

    def tell(self, happening: Happening) -> None:
        """Print an event."""
        if self._as_json:
            values = dataclasses.asdict(happening)
            if isinstance(happening, SignerChanged):
                values["signer"] = happening.signer and box_to_json(happening.signer)
            self._print(json.dumps({"event": KINDS[type(happening)], **values}))
        elif isinstance(happening, LiveEvent):
            self._print(
                f"{format_clock(happening.start_s)}  {happening.gloss}  {happening.confidence:.1%}".replace("%", " %")
            )
        else:
            self._console.print(f"[yellow]{escape(format_event(happening))}[/]", soft_wrap=True)

    def show(self, state: LiveState) -> None:
        """Update the status line."""
        if self._line.is_started:
            self._line.update(
                Text(format_status_line(state), style="dim", no_wrap=True, overflow="ellipsis"), refresh=True
            )

    def conclude(self, summary: WatchSummary) -> None:
        """Print the summary."""
        self._line.stop()
        if self._as_json:
            typer.echo(json.dumps({"event": "summary", **dataclasses.asdict(summary)}))
            return
        if summary.stopped:
            self._console.print(f"[red]stopped[/] before the end: {escape(summary.stopped)}", soft_wrap=True)
        lag, signs = "no answer", f"{summary.signs} {'sign' if summary.signs == 1 else 'signs'}"
        if summary.lag_p50_s is not None and summary.lag_p95_s is not None:
            lag = f"lag p50 {summary.lag_p50_s * 1000:.0f} ms, p95 {summary.lag_p95_s * 1000:.0f} ms"
        self._console.print(
            f"{signs} in {summary.seconds:.1f} s, {lag}, {summary.dropped_frames} of {summary.frames} frames dropped"
        )

    def _print(self, line: str) -> None:
        if self._shares:
            self._console.print(line, markup=False, soft_wrap=True)
        else:
            echo(line)


def format_event(
    happening: ModelWarning | SourceLost | SourceResumed | ServerLost | ServerRecovered | SignerChanged,
) -> str:
    """Describe an event of the source, the server or the signer, or a warning about the model."""
    match happening:
        case ModelWarning(warning):
            return warning
        case SourceLost(reason):
            return f"{reason}: waiting for it"
        case SourceResumed(away_s):
            return f"frames are back after {away_s:.1f} s"
        case ServerLost(reason):
            return f"no answers: {reason}"
        case ServerRecovered(away_s):
            return f"answers are back after {away_s:.1f} s"
        case SignerChanged(box):
            whole = "no signer found in the picture: using whole frames (or set --signer x0,y0,x1,y1)"
            return whole if box is None else format_box(box)


def format_status_line(state: LiveState) -> str:
    """Format the state as one status line."""
    lag = "" if state.lag_s is None else f"lag {state.lag_s * 1000:.0f} ms   "
    gloss = f"{state.gloss or '-'} {state.confidence:.0%}".replace("%", " %")
    frames = f"{state.frame_rate:.0f} frames per second, {state.dropped_frames} dropped"
    return f"{gloss}   {lag}{frames}" + ("   no answers" if state.problem else "")


def format_clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, such as 00:12.4 for 12.41, with hours if there are any."""
    minutes, seconds = divmod(max(round(seconds, 1), 0.0), 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}:" if hours else "") + f"{minutes:02}:{seconds:04.1f}"
