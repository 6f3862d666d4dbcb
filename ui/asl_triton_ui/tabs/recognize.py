"""The tab "Recognize": one clip, ten ranked glosses, and when the best of them was signed."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from asl_triton.errors import AslTritonError, VideoError
from asl_triton_ui import samples
from asl_triton_ui.downloads import write_downloads
from asl_triton_ui.page_context import DEFAULT_THRESHOLD, UNSEEN, PageContext
from asl_triton_ui.rendering import render, render_problem
from asl_triton_ui.result_view import DisplayedResult, Progress, apply_threshold, make_plot, read_film
from asl_triton_ui.state.server import on_background
from asl_triton_ui.upload_components import uploads_only

FIRST_PROGRESS_S, PROGRESS_EVERY_S = 0.5, 0.3  # an answer that is quicker is not announced
DRAWN_WITHIN_S = 0.1  # the glosses, by a browser: what is less urgent waits for it
HINT = "Choose or record a clip of one sign, and press Recognize: its ten best glosses appear here."
NOTHING_CHOSEN = "choose a video file, record one, or take a sample; then press Recognize"


@dataclass(frozen=True)
class View:
    """The tab's outputs, in the order of the events that fill them."""

    answer: gr.HTML
    downloads: gr.HTML
    plot: gr.Plot
    film: gr.HTML
    stop: gr.Button
    shown: gr.State

    @property
    def outputs(self) -> list[Any]:
        """For Gradio's events."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclass(frozen=True)
class Update:
    """What becomes of each of `View`'s outputs; what is not given stays as it is."""

    answer: Any = dataclasses.field(default_factory=gr.skip)
    downloads: Any = dataclasses.field(default_factory=gr.skip)
    plot: Any = dataclasses.field(default_factory=gr.skip)
    film: Any = dataclasses.field(default_factory=gr.skip)
    stop: Any = dataclasses.field(default_factory=gr.skip)
    shown: Any = dataclasses.field(default_factory=gr.skip)

    def values(self) -> list[Any]:
        """In the order of `View.outputs`."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def build(shell: PageContext) -> None:
    """The tab's components and events."""
    with gr.Row(elem_classes="two"):
        with gr.Column(scale=5, min_width=300):
            clip = uploads_only(
                gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip", include_audio=True)
            )
            with gr.Column(visible=False, elem_classes="samples", elem_id="samples") as row:
                gr.HTML('<p class="soft" id="samples-title">No clip at hand? Take one of the demo signer:</p>')
                with gr.Row():
                    buttons = [gr.Button(sample.gloss, size="sm", min_width=60) for sample in samples.SAMPLES]
            with gr.Row(elem_classes="actions"):
                start = gr.Button(
                    "Recognize", variant="primary", size="lg", elem_id="recognize", scale=3, min_width=140
                )
                stop = gr.Button("Stop", size="lg", elem_id="stop", scale=1, min_width=80, interactive=False)
            threshold = gr.Slider(
                0,
                100,
                value=100 * DEFAULT_THRESHOLD,
                step=1,
                label="Threshold in percent",
                info="Where nothing reaches it, the answer is marked as unsure.",
                elem_id="threshold",
            )
        with gr.Column(scale=6, min_width=300):
            answer = gr.HTML(render("empty.html", hint=HINT, content=""), elem_id="answer")
            downloads = gr.HTML("", elem_id="downloads")
    with gr.Column(elem_id="when"):  # always there, so that it can be filled; the style sheet shows it with an answer
        gr.HTML(render("when.html"))
        plot = gr.Plot(show_label=False, container=False, elem_id="timeline")
        strip = gr.HTML("", elem_id="film")
    shown = gr.State(None, time_to_live=60 * shell.options.keep_minutes)
    bind_events(shell, View(answer, downloads, plot, strip, stop, shown), clip, threshold, start)
    for button, sample in zip(buttons, samples.SAMPLES, strict=True):
        button.click(partial(str, sample.path), None, clip, queue=False, **UNSEEN)
    shell.follow([row], lambda state, model: [gr.Column(visible=samples.fits_model(state.model(model)))])


def bind_events(shell: PageContext, view: View, clip: gr.Video, threshold: gr.Slider, start: gr.Button) -> None:
    """What happens when."""

    async def recognize(path: str | None, model: str | None, percent: float) -> AsyncIterator[list[Any]]:
        async for update in show_result(shell, path, model, percent / 100):
            yield update.values()

    def judge(shown: DisplayedResult | None, percent: float) -> list[Any]:
        if shown is None:
            return Update().values()
        again = show_progress(shown, percent / 100)
        return dataclasses.replace(again, plot=make_plot(shown, percent / 100)).values()

    def stopped() -> list[Any]:
        return show_nothing("Stopped. " + HINT).values()

    def cleared(path: str | None, shown: DisplayedResult | None) -> list[Any]:
        # The answer may be quicker than the news that there is a clip.
        is_its_answer = shown is not None and path is not None and Path(path) == shown.path
        return (Update() if is_its_answer else show_nothing(HINT)).values()

    asking = start.click(recognize, [clip, shell.model, threshold], view.outputs, concurrency_limit=None, **UNSEEN)
    # Only then, so that no progress which is still on its way comes last.
    view.stop.click(None, cancels=[asking]).then(stopped, None, view.outputs, queue=False, **UNSEEN)
    clip.change(cleared, [clip, view.shown], view.outputs, queue=False, **UNSEEN)
    threshold.change(judge, [view.shown, threshold], view.outputs, queue=False, trigger_mode="always_last", **UNSEEN)


async def show_result(
    shell: PageContext, path: str | None, model: str | None, threshold: float
) -> AsyncIterator[Update]:
    """Ask about a clip: how far it is now and then; the answer, or a sentence; and its frames."""
    if path is None:
        yield show_failure(NOTHING_CHOSEN, "There is no clip yet.")
        return
    progress = Progress(shell.turns)
    asking = asyncio.create_task(stream_recognition(shell, Path(path), model, progress))
    try:
        pause_s = FIRST_PROGRESS_S
        while not (await asyncio.wait([asking], timeout=pause_s))[0]:
            yield show_nothing(HINT, progress.html(), under_way=True)
            pause_s = PROGRESS_EVERY_S
        shown = asking.result()
        yield show_progress(shown, threshold)
        await asyncio.sleep(DRAWN_WITHIN_S)
        pictures = await asyncio.to_thread(read_film, shown, shell.server.limits)
        yield Update(plot=make_plot(shown, threshold), film=pictures)
    except AslTritonError as exc:
        yield show_failure(str(exc), "Not recognized.")
        await shell.server.state(now=True)
    finally:
        asking.cancel()


async def stream_recognition(shell: PageContext, path: Path, model: str | None, progress: Progress) -> DisplayedResult:
    """One clip's answer, when its turn has come.

    Raises:
        AslTritonError: it cannot be read or answered, or too many wait.
    """
    if not path.is_file():
        raise VideoError(
            f"{path.name} is no longer here: uploads are deleted after {shell.options.keep_minutes:g} minutes. "
            "Choose it again"
        )
    async with shell.turns.wait_for_turn(progress.ticket):
        recognizer = shell.server.recognizer(model)
        asking = recognizer.recognize_with_curves(path, name=path.name, on_start=progress.started)
        return DisplayedResult(path, *await on_background(asking))


def show_progress(shown: DisplayedResult, threshold: float) -> Update:
    """The answer, all but its curves and frames."""
    recognition = apply_threshold(shown.recognition, threshold)
    return Update(
        answer=render("answer.html", recognition=recognition, threshold=threshold),
        downloads=write_downloads(shown, threshold),
        stop=gr.Button(interactive=False),
        shown=shown,
    )


def show_nothing(hint: str, content: str = "", *, under_way: bool = False) -> Update:
    """No answer yet, or none any more."""
    return Update(
        answer=render("empty.html", hint=hint, content=content),
        downloads="",
        plot=None,
        film="",
        stop=gr.Button(interactive=under_way),
        shown=None,
    )


def show_failure(sentence: str, title: str) -> Update:
    """A sentence where the answer would be."""
    return show_nothing(HINT, render_problem(sentence, title))
