"""The tab "Recognize": one clip, its ten best glosses, and when each was signed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

import gradio as gr

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.models.status import ServerStatus
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import SignerBox
from asl_triton.signer.guide import AdviceFilter
from asl_triton_ui import samples
from asl_triton_ui.downloads import write_downloads
from asl_triton_ui.filming_guide import build_filming_guide
from asl_triton_ui.guide import guide_recording
from asl_triton_ui.page_context import NOTHING, UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import format_sentence, render, render_problem
from asl_triton_ui.result_view import DisplayedResult, Progress, apply_threshold, make_plot, render_film
from asl_triton_ui.signer_box import (
    SIDES,
    WHOLE,
    find_box,
    make_side_fields,
    parse_box,
    render_picture,
    render_said,
    render_seen,
    to_percents,
)
from asl_triton_ui.state.server import on_background
from asl_triton_ui.state.taught_signs import Visitor
from asl_triton_ui.upload_components import numbers_only, uploads_only
from asl_triton_ui.uploads import check_is_here

FIRST_PROGRESS_S, PROGRESS_EVERY_S = 0.5, 0.3  # a faster answer shows no progress
DRAWN_WITHIN_S = 0.1  # time for a browser to draw the glosses before the plot and frames are sent
HINT = "Choose or record a clip of one sign, and press Recognize. The ten best glosses appear here."
NO_CLIP = "choose a video file, record one, or pick a sample; then press Recognize"


class RecognizeTab:
    """The tab's components and event handlers."""

    def __init__(self, context: PageContext) -> None:
        self._server, self._turns, self._taught = context.server, context.turns, context.taught
        self._keep_minutes = context.options.keep_minutes
        with gr.Row(elem_classes="two", elem_id="recognize-tab"):
            with gr.Column(scale=5, min_width=300):
                clip = uploads_only(
                    gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip", include_audio=True)
                )
                guide = gr.HTML("", elem_id="clip-guide")
                picture = gr.Textbox(label="Camera picture", elem_id="clip-frame", elem_classes="script-only")
                advice = gr.State(AdviceFilter())
                picture.change(guide_recording, [picture, advice], [guide, advice], concurrency_limit=2, **UNSEEN)
                with gr.Column(visible=False, elem_classes="samples", elem_id="samples") as self.samples:
                    gr.HTML('<p class="soft" id="samples-title">No clip at hand? Try one of the demo signer:</p>')
                    with gr.Row():
                        for sample in samples.SAMPLES:
                            button = gr.Button(sample.gloss, size="sm", min_width=60)
                            button.click(partial(str, sample.path), None, clip, queue=False, **UNSEEN)
                with gr.Row(elem_classes="actions"):
                    start = gr.Button(
                        "Recognize", variant="primary", size="lg", elem_id="recognize", scale=3, min_width=140
                    )
                    self.stop = gr.Button("Stop", size="lg", elem_id="stop", scale=1, min_width=80, interactive=False)
                self.threshold = threshold = numbers_only(
                    gr.Slider(
                        0,
                        100,
                        value=0,
                        step=1,
                        label="Threshold in percent",
                        info="An answer below it is marked as unsure. It starts at the model's own threshold.",
                        elem_id="threshold",
                    )
                )
                build_filming_guide()
                with gr.Column(elem_id="box"):  # hidden by the style sheet while there is no picture
                    gr.HTML(render("box_hint.html"))
                    self.picture = gr.HTML("", elem_id="box-picture")
                    with gr.Row(elem_id="box-sides"):
                        self.sides = make_side_fields()
                    with gr.Row(elem_id="box-buttons"):
                        find = gr.Button("Find the signer", size="sm", elem_id="box-find", min_width=100)
                        whole = gr.Button("Whole frame", size="sm", elem_id="box-whole", min_width=90)
                        empty = gr.Button("Empty", size="sm", elem_id="box-empty", min_width=60)
                    self.said = gr.HTML("", elem_id="box-said")
            with gr.Column(scale=6, min_width=300):
                self.answer = gr.HTML(render("empty.html", hint=HINT, content=""), elem_id="answer")
                self.downloads = gr.HTML("", elem_id="downloads")
        with gr.Column(elem_id="when"):  # hidden by the style sheet while there is no answer
            gr.HTML(render("when.html"))
            self.plot = gr.Plot(show_label=False, container=False, elem_id="timeline")
            self.film = gr.HTML("", elem_id="film")
        self.shown = gr.State(None, time_to_live=60 * self._keep_minutes)
        outputs = [self.answer, self.downloads, self.plot, self.film, self.stop, self.shown, self.said]
        asked = [clip, context.model, context.signs, threshold, *self.sides]
        # A press while the frames of the last answer are still being drawn counts once they are there.
        asking = start.click(self.ask, asked, outputs, concurrency_limit=None, trigger_mode="always_last", **UNSEEN)
        # Clear the answer only after the cancellation, so that no late progress update overwrites it.
        self.stop.click(None, cancels=[asking]).then(self.show_stopped, None, outputs, queue=False, **UNSEEN)
        clip.change(self.change_clip, [clip, self.shown], outputs, queue=False, **UNSEEN)
        boxed = [self.picture, self.said, *self.sides]
        clip.change(self.change_picture, [clip], boxed, queue=False, **UNSEEN)
        find.click(self.find_signer, [clip], boxed, concurrency_limit=2, **UNSEEN)
        whole.click(self.take_whole_frame, None, boxed, queue=False, **UNSEEN)
        empty.click(self.empty_box, None, boxed, queue=False, **UNSEEN)
        threshold.change(
            self.change_threshold,
            [self.shown, threshold],
            outputs,
            queue=False,
            trigger_mode="always_last",
            **UNSEEN,
        )

    def show_server(self, status: ServerStatus, model: str | None) -> Updates:
        """Show the samples if they fit the model."""
        return {self.samples: gr.Column(visible=samples.fits_model(status.model(model)))}

    async def ask(
        self,
        path: str | None,
        model: str | None,
        signs: str,
        percent: float,
        request: gr.Request,
        *sides: float | None,
    ) -> AsyncIterator[Updates]:
        """Recognize a clip; yield its progress, then the answer or a problem, then the plot and the frames."""
        if path is None:
            yield self._show_problem(NO_CLIP, "There is no clip yet.")
            return
        threshold = percent / 100
        progress = Progress(self._turns)
        try:
            box, finds = parse_box(sides)
            dictionary, with_vocabulary = self._taught.choose(signs, Visitor.of(request))
        except AslTritonError as exc:
            yield self._show_problem(str(exc), "Not recognized.")
            return
        ask = partial(self._server.recognizer, model, dictionary, with_vocabulary=with_vocabulary)
        asking = asyncio.create_task(self._recognize(Path(path), ask, progress, box, finds))
        try:
            pause_s = FIRST_PROGRESS_S
            while not (await asyncio.wait([asking], timeout=pause_s))[0]:
                yield self._show_nothing(HINT, progress.html(), under_way=True)
                pause_s = PROGRESS_EVERY_S
            shown = asking.result()
            recognizer = ask()
            served = await on_background(recognizer.model())
            seen = render_seen(shown.recognition.signer, served.preset)
            yield {**self._show_answer(shown, threshold), self.said: seen}
            await asyncio.sleep(DRAWN_WITHIN_S)
            try:
                reading = recognizer.crops(shown.path, shown.film_times_s, signer=box, find_signer=finds)
                crops = await on_background(reading)
            except VideoError:  # deleted in the meantime
                crops = []
            yield {self.plot: make_plot(shown, threshold), self.film: render_film(shown, crops)}
        except AslTritonError as exc:
            yield self._show_problem(str(exc), "Not recognized.")
            await self._server.state(now=True)
        finally:
            asking.cancel()

    async def _recognize(
        self,
        path: Path,
        ask: Callable[[], AsyncRecognizer],
        progress: Progress,
        box: SignerBox | None,
        finds: bool,
    ) -> DisplayedResult:
        """Wait for a turn and recognize one clip. The signer is in the `box`, or is searched for if `finds`.

        Raises:
            AslTritonError: the clip cannot be read or recognized, or too many clips are waiting.
        """
        check_is_here(path, self._keep_minutes)
        async with self._turns.wait_for_turn(progress.ticket):
            asking = ask().recognize_with_curves(
                path, name=path.name, signer=box, find_signer=finds, on_start=progress.started
            )
            return DisplayedResult(path, *await on_background(asking))

    def change_threshold(self, shown: DisplayedResult | None, percent: float) -> Updates:
        """Show the same answer with another threshold."""
        if shown is None:
            return NOTHING
        return {**self._show_answer(shown, percent / 100), self.plot: make_plot(shown, percent / 100)}

    def change_clip(self, path: str | None, shown: DisplayedResult | None) -> Updates:
        """Remove the answer to another clip."""
        # The answer may arrive before the event that reports the new clip.
        is_its_answer = shown is not None and path is not None and Path(path) == shown.path
        return NOTHING if is_its_answer else self._show_nothing(HINT)

    def change_picture(self, path: str | None) -> Updates:
        """Show the first frame of another clip, and empty the box."""
        picture = render_picture(Path(path), self._server.limits) if path else ""
        return {self.picture: picture, **self.empty_box()}

    def find_signer(self, path: str | None) -> Updates:
        """Look for the signer in the clip and fill in the box."""
        if path is None:
            return self.empty_box()
        try:
            box, sentence = find_box(Path(path), self._server.limits)
        except AslTritonError as exc:
            return {self.said: render_said(format_sentence(str(exc)))}
        return {self.said: render_said(sentence), **self._fill_in(to_percents(box) if box else [None] * len(SIDES))}

    def take_whole_frame(self) -> Updates:
        """Fill in the whole frame."""
        return {self.said: render_said("The whole frame will be used: press Recognize."), **self._fill_in(WHOLE)}

    def empty_box(self) -> Updates:
        """Empty the box, so that the page looks for the signer."""
        return {self.said: "", **self._fill_in([None] * len(SIDES))}

    def _fill_in(self, percents: Sequence[float | None]) -> Updates:
        return dict(zip(self.sides, percents, strict=True))

    def show_stopped(self) -> Updates:
        """Show that recognition was stopped."""
        return self._show_nothing("Stopped. " + HINT)

    def _show_answer(self, shown: DisplayedResult, threshold: float) -> Updates:
        """Show the answer without its curves and frames."""
        recognition = apply_threshold(shown.recognition, threshold)
        return {
            self.answer: render("answer.html", recognition=recognition, threshold=threshold),
            self.downloads: write_downloads(shown, threshold),
            self.stop: gr.Button(interactive=False),
            self.shown: shown,
        }

    def _show_nothing(self, hint: str, content: str = "", *, under_way: bool = False) -> Updates:
        """Show that there is no answer, or not yet."""
        return {
            self.answer: render("empty.html", hint=hint, content=content),
            self.downloads: "",
            self.plot: None,
            self.film: "",
            self.said: "",
            self.stop: gr.Button(interactive=under_way),
            self.shown: None,
        }

    def _show_problem(self, sentence: str, title: str) -> Updates:
        """Show a problem in place of the answer."""
        return self._show_nothing(HINT, render_problem(sentence, title))
