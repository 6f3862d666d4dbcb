"""The tab "Many clips": recognizes several files, in a table that fills as answers arrive and can be downloaded."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from asl_triton.batch.workers import recognize_many
from asl_triton.errors import AslTritonError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.results import Failure, Outcome, Recognition
from asl_triton.video.discovery import Clip
from asl_triton_ui.downloads import write_batch_downloads
from asl_triton_ui.page_context import NOTHING, UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import format_count, render, render_problem
from asl_triton_ui.result_view import apply_threshold
from asl_triton_ui.state.request_queue import Ticket
from asl_triton_ui.state.server import on_background
from asl_triton_ui.state.taught_signs import Visitor
from asl_triton_ui.upload_components import numbers_only, uploads_only

CLIPS_AT_ONCE = 2  # per visitor
UPDATE_EVERY_S = 0.25
HINT = "Choose several files and press Recognize all. A file that cannot be read does not stop the others."
# Each column of the table, and whether it contains numbers.
COLUMNS = (
    ("Clip", False),
    ("Best gloss", False),
    ("Confidence", True),
    ("State", False),
    ("Then", False),
    ("Length", True),
)


@dataclass(frozen=True)
class Numbered(Clip):
    """A clip with its row in the table, because two clips may have the same name."""

    number: int


@dataclass
class BatchState:
    """A visitor's clips, their outcomes by row number, and the visitor's threshold."""

    clips: tuple[Numbered, ...]
    threshold: float
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def keep(self, clip: Numbered, outcome: Outcome) -> None:
        """Record a clip's outcome."""
        if isinstance(outcome, Recognition):
            outcome = apply_threshold(outcome, self.threshold)
        self.outcomes[clip.number] = outcome

    @property
    def known(self) -> list[Outcome]:
        """The outcomes so far, in the order of the table."""
        return [self.outcomes[number] for number in sorted(self.outcomes)]

    def render_table(self, otherwise: str) -> str:
        """Render all clips. Those without an outcome get the state `otherwise`."""
        rows = [make_row(clip, self.outcomes.get(clip.number), otherwise) for clip in self.clips]
        return render("table.html", columns=COLUMNS, rows=rows)


def make_row(clip: Numbered, outcome: Outcome | None, otherwise: str) -> dict[str, Any]:
    """Return one row of the table."""
    if not isinstance(outcome, Recognition):
        is_failure = isinstance(outcome, Failure)
        state = f"failed: {outcome.error}" if isinstance(outcome, Failure) else otherwise
        kind = "failed" if is_failure else "waiting"
        return {"clip": clip.name, "recognition": None, "state": state, "then": "", "kind": kind}
    kind = "unsure" if outcome.unsure else "recognized"
    return {
        "clip": clip.name,
        "recognition": outcome,
        "state": "; ".join((kind, *outcome.warnings)),
        "then": ", ".join(prediction.gloss for prediction in outcome.predictions[1:4]),
        "kind": kind,
    }


class BatchTab:
    """The tab's components and event handlers."""

    def __init__(self, context: PageContext) -> None:
        self._server, self._turns, self._taught = context.server, context.turns, context.taught
        self._max_clips = context.options.max_clips
        with gr.Row(elem_classes="two"):
            with gr.Column(scale=5, min_width=300):
                files = uploads_only(
                    gr.File(label=f"Clips, up to {self._max_clips}", file_count="multiple", elem_id="clips", height=200)
                )
            with gr.Column(scale=6, min_width=300):
                self.threshold = threshold = numbers_only(
                    gr.Slider(
                        0,
                        100,
                        value=0,
                        step=1,
                        label="Threshold in percent",
                        info="Answers below it are marked as unsure. It starts at the model's own threshold.",
                        elem_id="many-threshold",
                    )
                )
                with gr.Row(elem_classes="actions"):
                    start = gr.Button("Recognize all", variant="primary", size="lg", elem_id="recognize-all", scale=3)
                    self.stop = gr.Button(
                        "Stop", size="lg", elem_id="stop-all", scale=1, min_width=80, interactive=False
                    )
                self.status = gr.HTML(render("hint.html", hint=HINT), elem_id="many-status")
        self.table = gr.HTML("", elem_id="table")
        self.downloads = gr.HTML("", elem_id="many-downloads")
        self.batch = gr.State(None, time_to_live=60 * context.options.keep_minutes)
        outputs = [self.status, self.table, self.downloads, self.stop, self.batch]
        asked = [files, context.model, context.signs, threshold]
        asking = start.click(self.ask, asked, outputs, concurrency_limit=None, **UNSEEN)
        # Draw the summary only after the cancellation, so that no late update overwrites it.
        self.stop.click(None, cancels=[asking]).then(self.show_stopped, [self.batch], outputs, queue=False, **UNSEEN)

    async def ask(
        self, paths: list[str] | None, model: str | None, signs: str, percent: float, request: gr.Request
    ) -> AsyncIterator[Updates]:
        """Recognize clips; yield the table whenever more outcomes are known."""
        if not paths or len(paths) > self._max_clips:
            wrong = "choose several video files first"
            if paths:
                most = f"{format_count(len(paths), 'clip')} are more than this page's limit of {self._max_clips}"
                wrong = f"{most}: choose fewer, or use `asl-triton batch`"
            problem = render_problem(wrong, "Nothing to recognize.")
            yield {self.status: problem, self.table: "", self.downloads: "", self.batch: None}
            return
        clips = tuple(Numbered(Path(path), Path(path).name, number) for number, path in enumerate(paths))
        batch = BatchState(clips, percent / 100)
        asking = asyncio.create_task(self._recognize(batch, model, signs, Visitor.of(request)))
        try:
            known = -1
            while not (await asyncio.wait([asking], timeout=UPDATE_EVERY_S))[0]:
                if known != len(batch.outcomes):
                    known = len(batch.outcomes)
                    yield self._show_progress(batch)
            asking.result()
            yield self._show_summary(batch, "Done.")
        except AslTritonError as exc:
            yield self._show_summary(batch, "Stopped before the end.", str(exc))
            await self._server.state(now=True)
        finally:
            asking.cancel()

    async def _recognize(self, batch: BatchState, model: str | None, signs: str, visitor: Visitor) -> None:
        """Wait for a turn and recognize all clips of a batch.

        Raises:
            AslTritonError: the server is away or cannot be used, too many clips are waiting, or no signs are taught.
        """
        dictionary, with_vocabulary = self._taught.choose(signs, visitor)
        async with self._turns.wait_for_turn(Ticket()):
            make = self._server.factory(model, CLIPS_AT_ONCE, dictionary, with_vocabulary=with_vocabulary)
            await on_background(recognize_many(make, batch.clips, Ranking(), CLIPS_AT_ONCE, batch.keep))

    def show_stopped(self, batch: BatchState | None) -> Updates:
        """Show the outcomes at the time the visitor pressed Stop."""
        return NOTHING if batch is None else self._show_summary(batch, "Stopped.")

    def _show_progress(self, batch: BatchState) -> Updates:
        """Show the progress and the table so far."""
        share = len(batch.outcomes) / len(batch.clips)
        detail = f"{len(batch.outcomes)} of {format_count(len(batch.clips), 'clip')}"
        return {
            self.status: render("progress.html", what="Recognizing", detail=detail, share=share),
            self.table: batch.render_table("waiting"),
            self.downloads: "",
            self.stop: gr.Button(interactive=True),
            self.batch: batch,
        }

    def _show_summary(self, batch: BatchState, how: str, why: str | None = None) -> Updates:
        """Show all outcomes so far as a table and as files to download."""
        known = batch.known
        recognized = [outcome for outcome in known if isinstance(outcome, Recognition)]
        summary = render(
            "summary.html",
            how=how,
            recognized=len(recognized),
            unsure=sum(bool(recognition.unsure) for recognition in recognized),
            failed=len(known) - len(recognized),
            not_tried=len(batch.clips) - len(known),
        )
        return {
            self.status: summary if why is None else render_problem(why, how) + summary,
            self.table: batch.render_table("not tried"),
            self.downloads: write_batch_downloads(known),
            self.stop: gr.Button(interactive=False),
            self.batch: batch,
        }
