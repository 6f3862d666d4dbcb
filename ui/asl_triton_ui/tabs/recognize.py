"""The tab "Recognize": one clip, ten ranked glosses, and when the best of them was signed."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import gradio as gr

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.models.status import ServerStatus
from asl_triton_ui import samples
from asl_triton_ui.downloads import write_downloads
from asl_triton_ui.filming_guide import build_filming_guide
from asl_triton_ui.page_context import NOTHING, UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import render, render_problem
from asl_triton_ui.result_view import DisplayedResult, Progress, apply_threshold, make_plot, read_film
from asl_triton_ui.state.server import on_background
from asl_triton_ui.upload_components import numbers_only, uploads_only

FIRST_PROGRESS_S, PROGRESS_EVERY_S = 0.5, 0.3  # an answer that is quicker is not announced
DRAWN_WITHIN_S = 0.1  # the glosses, by a browser: what is less urgent waits for it
HINT = "Choose or record a clip of one sign, and press Recognize: its ten best glosses appear here."
NO_CLIP = "choose a video file, record one, or take a sample; then press Recognize"


class RecognizeTab:
    """The tab's components, and what happens when."""

    def __init__(self, context: PageContext) -> None:
        self._server, self._turns = context.server, context.turns
        self._keep_minutes = context.options.keep_minutes
        with gr.Row(elem_classes="two"):
            with gr.Column(scale=5, min_width=300):
                clip = uploads_only(
                    gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip", include_audio=True)
                )
                with gr.Column(visible=False, elem_classes="samples", elem_id="samples") as self.samples:
                    gr.HTML('<p class="soft" id="samples-title">No clip at hand? Take one of the demo signer:</p>')
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
                        info="If nothing reaches it, the answer is marked as unsure. It begins at the model's own.",
                        elem_id="threshold",
                    )
                )
                build_filming_guide()
            with gr.Column(scale=6, min_width=300):
                self.answer = gr.HTML(render("empty.html", hint=HINT, content=""), elem_id="answer")
                self.downloads = gr.HTML("", elem_id="downloads")
        with gr.Column(elem_id="when"):  # the style sheet hides it while there is no answer
            gr.HTML(render("when.html"))
            self.plot = gr.Plot(show_label=False, container=False, elem_id="timeline")
            self.film = gr.HTML("", elem_id="film")
        self.shown = gr.State(None, time_to_live=60 * self._keep_minutes)
        outputs = [self.answer, self.downloads, self.plot, self.film, self.stop, self.shown]
        asking = start.click(self.ask, [clip, context.model, threshold], outputs, concurrency_limit=None, **UNSEEN)
        # Only then, so that no progress which is still on its way comes last.
        self.stop.click(None, cancels=[asking]).then(self.show_stopped, None, outputs, queue=False, **UNSEEN)
        clip.change(self.change_clip, [clip, self.shown], outputs, queue=False, **UNSEEN)
        threshold.change(
            self.change_threshold,
            [self.shown, threshold],
            outputs,
            queue=False,
            trigger_mode="always_last",
            **UNSEEN,
        )

    def show_server(self, status: ServerStatus, model: str | None) -> Updates:
        """The samples, if they fit the model."""
        return {self.samples: gr.Column(visible=samples.fits_model(status.model(model)))}

    async def ask(self, path: str | None, model: str | None, percent: float) -> AsyncIterator[Updates]:
        """Ask about a clip: how far it is now and then; the answer, or a sentence; and its frames."""
        if path is None:
            yield self._show_problem(NO_CLIP, "There is no clip yet.")
            return
        threshold = percent / 100
        progress = Progress(self._turns)
        asking = asyncio.create_task(self._recognize(Path(path), model, progress))
        try:
            pause_s = FIRST_PROGRESS_S
            while not (await asyncio.wait([asking], timeout=pause_s))[0]:
                yield self._show_nothing(HINT, progress.html(), under_way=True)
                pause_s = PROGRESS_EVERY_S
            shown = asking.result()
            yield self._show_answer(shown, threshold)
            await asyncio.sleep(DRAWN_WITHIN_S)
            film = await asyncio.to_thread(read_film, shown, self._server.limits)
            yield {self.plot: make_plot(shown, threshold), self.film: film}
        except AslTritonError as exc:
            yield self._show_problem(str(exc), "Not recognized.")
            await self._server.state(now=True)
        finally:
            asking.cancel()

    async def _recognize(self, path: Path, model: str | None, progress: Progress) -> DisplayedResult:
        """One clip's answer, when its turn has come.

        Raises:
            AslTritonError: it cannot be read or answered, or too many wait.
        """
        if not path.is_file():
            raise VideoError(
                f"{path.name} is no longer here: uploads are deleted after {self._keep_minutes:g} minutes. "
                "Choose it again"
            )
        async with self._turns.wait_for_turn(progress.ticket):
            recognizer = self._server.recognizer(model)
            asking = recognizer.recognize_with_curves(path, name=path.name, on_start=progress.started)
            return DisplayedResult(path, *await on_background(asking))

    def change_threshold(self, shown: DisplayedResult | None, percent: float) -> Updates:
        """Show the same answer with another threshold."""
        if shown is None:
            return NOTHING
        return {**self._show_answer(shown, percent / 100), self.plot: make_plot(shown, percent / 100)}

    def change_clip(self, path: str | None, shown: DisplayedResult | None) -> Updates:
        """Remove the answer to another clip."""
        # The answer may be quicker than the news that there is a clip.
        is_its_answer = shown is not None and path is not None and Path(path) == shown.path
        return NOTHING if is_its_answer else self._show_nothing(HINT)

    def show_stopped(self) -> Updates:
        """Nothing is asked any more."""
        return self._show_nothing("Stopped. " + HINT)

    def _show_answer(self, shown: DisplayedResult, threshold: float) -> Updates:
        """The answer, all but its curves and frames."""
        recognition = apply_threshold(shown.recognition, threshold)
        return {
            self.answer: render("answer.html", recognition=recognition, threshold=threshold),
            self.downloads: write_downloads(shown, threshold),
            self.stop: gr.Button(interactive=False),
            self.shown: shown,
        }

    def _show_nothing(self, hint: str, content: str = "", *, under_way: bool = False) -> Updates:
        """No answer yet, or none any more."""
        return {
            self.answer: render("empty.html", hint=hint, content=content),
            self.downloads: "",
            self.plot: None,
            self.film: "",
            self.stop: gr.Button(interactive=under_way),
            self.shown: None,
        }

    def _show_problem(self, sentence: str, title: str) -> Updates:
        """A sentence where the answer would be."""
        return self._show_nothing(HINT, render_problem(sentence, title))
