"""The tab "Live": the camera streams, and each sign appears while it is signed.

Frames come by Gradio's own stream, which keeps the newest one alone while a handler is at work; the page's script sends
none while several are still on their way. So nothing is queued, however slow browser, way or server are.
"""

import dataclasses
import re
import time
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
from gradio.context import Context

from asl_triton.errors import AslTritonError
from asl_triton.live.recognizer import LiveSession
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveState
from asl_triton.video.reader import Image
from asl_triton_ui.downloads import write_live_downloads
from asl_triton_ui.page_context import UNSEEN, PageContext
from asl_triton_ui.rendering import render, render_problem
from asl_triton_ui.state.live_sessions import LiveSessions, LiveVisitor

FRAME_EVERY_S = 0.04  # Presets without a rate of their own take 25 frames a second.
DRAW_EVERY_S = 0.2
SILENT_S = 1.5  # without a frame: the camera is off
CAMERA = {"width": {"ideal": 320}, "height": {"ideal": 240}, "frameRate": {"ideal": 30}}  # networks see 224 x 224
RULES = LiveRules()
SIGNS_SHOWN = 50
HINT = "Allow the camera, press Start, and sign: each gloss appears here while it is signed."


@dataclass(frozen=True)
class View:
    """The tab's outputs, in the order of the events that fill them."""

    problem: gr.HTML
    now: gr.HTML
    transcript: gr.HTML
    downloads: gr.HTML
    pause: gr.Button
    timer: gr.Timer

    @property
    def outputs(self) -> list[Any]:
        """For Gradio's events."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


@dataclass(frozen=True)
class Update:
    """What becomes of each of `View`'s outputs; what is not given stays as it is."""

    problem: Any = dataclasses.field(default_factory=gr.skip)
    now: Any = dataclasses.field(default_factory=gr.skip)
    transcript: Any = dataclasses.field(default_factory=gr.skip)
    downloads: Any = dataclasses.field(default_factory=gr.skip)
    pause: Any = dataclasses.field(default_factory=gr.skip)
    timer: Any = dataclasses.field(default_factory=gr.skip)

    def values(self) -> list[Any]:
        """In the order of `View.outputs`."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def build(shell: PageContext) -> None:
    """The tab's components and events."""
    with gr.Row(elem_classes="two", elem_id="live-tab"):
        with gr.Column(scale=5, min_width=300):
            # Mirrored by the style sheet: Gradio would mirror what is sent too, and so each sign.
            camera = gr.Image(
                label="Camera",
                sources=["webcam"],
                streaming=True,
                buttons=[],
                webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": CAMERA}),
                elem_id="live-camera",
            )
            with gr.Row(elem_classes="actions"):
                pause = gr.Button("Pause", size="lg", elem_id="live-pause", min_width=120, interactive=False)
                clear = gr.Button("Clear", size="lg", elem_id="live-clear", min_width=120)
            sliders = read_sliders()
        with gr.Column(scale=6, min_width=300):
            sentence = gr.HTML("", elem_id="live-problem")
            now = gr.HTML(render_now(None), elem_id="live-now")
            gr.HTML(render("hint.html", hint=""), elem_id="live-way")  # the page's script fills it
            transcript = gr.HTML(render_transcript(None), elem_id="live-transcript")
            downloads = gr.HTML("", elem_id="live-downloads")
    view = View(sentence, now, transcript, downloads, pause, gr.Timer(1.0, active=False))
    bind_events(shell, view, camera, clear, sliders)


def read_sliders() -> list[gr.Slider]:
    """What may be adjusted while it runs: threshold, repeat suppression, stride."""
    return [
        gr.Slider(
            1,
            100,
            value=100 * RULES.min_confidence,
            step=1,
            label="Threshold in percent",
            info="What reaches it nowhere is no sign, as hands that rest.",
            elem_id="live-threshold",
        ),
        gr.Slider(
            0,
            10,
            value=RULES.gone_s,
            step=0.1,
            label="Repeat suppression in seconds",
            info="The same gloss, back within so long, is not told again.",
            elem_id="live-repeat",
        ),
        gr.Slider(
            1,
            64,
            value=RULES.stride_frames,
            step=1,
            label="Stride in frames",
            info="How often the server is asked, at 25 frames a second: fewer frames, less lag, more work for it.",
            elem_id="live-stride",
        ),
    ]


def make_rules(percent: float, repeat_s: float, stride: float) -> LiveRules:
    """What the sliders say."""
    return LiveRules(
        stride_frames=int(stride),
        min_confidence=percent / 100,
        gone_s=repeat_s,
        repeat_s=max(RULES.repeat_s, repeat_s),  # else a gloss that is suppressed for longer would count as held
    )


def bind_events(shell: PageContext, view: View, camera: gr.Image, clear: gr.Button, sliders: list[gr.Slider]) -> None:
    """What happens when."""
    visitors = LiveSessions(shell.options.max_live, 60 * shell.options.keep_minutes)

    def feed(
        image: Image | None, model: str | None, percent: float, repeat_s: float, stride: float, request: gr.Request
    ) -> list[Any]:
        if image is None:
            return Update().values()
        visitor = visitors.visitor(str(request.session_hash))
        return feed_frame(shell, visitors, visitor, image, model, make_rules(percent, repeat_s, stride)).values()

    def look(request: gr.Request) -> list[Any]:
        return poll(visitors.known(str(request.session_hash))).values()

    def toggle(request: gr.Request) -> list[Any]:
        return toggle_pause(visitors.visitor(str(request.session_hash))).values()

    def cleared(request: gr.Request) -> list[Any]:
        visitor = visitors.known(str(request.session_hash))
        if visitor is not None:
            visitor.clear()
        return Update(now=render_now(visitor), transcript=render_transcript(visitor), downloads="").values()

    def leave(request: gr.Request) -> None:
        visitors.leave(str(request.session_hash))

    camera.stream(
        feed,
        [camera, shell.model, *sliders],
        view.outputs,
        stream_every=FRAME_EVERY_S,
        time_limit=None,
        concurrency_limit=None,
        **UNSEEN,
    )
    view.timer.tick(look, None, view.outputs, queue=False, **UNSEEN)
    view.pause.click(toggle, None, view.outputs, queue=False, **UNSEEN)
    clear.click(cleared, None, view.outputs, queue=False, **UNSEEN)
    if Context.root_block is not None:
        Context.root_block.unload(leave)


def feed_frame(
    shell: PageContext, visitors: LiveSessions, visitor: LiveVisitor, image: Image, model: str | None, rules: LiveRules
) -> Update:
    """Take a frame, RGB (H, W, 3), of a visitor; what is to be drawn anew, several times a second."""
    now_s = time.monotonic()
    if visitor.is_paused:
        return Update()
    visitor.fed_s = now_s
    is_new = False
    try:
        session = visitors.open_session(visitor, model, lambda: LiveSession(shell.server.live_recognizer(model), rules))
        if session.rules != rules:
            session.rules = rules
        image_bgr = np.ascontiguousarray(image[..., ::-1])
        is_new = visitor.update(session.feed(image_bgr, now_s - visitor.began_s))
    except AslTritonError as exc:
        visitor.state = LiveState(problem=str(exc))
    if not is_new and now_s - visitor.drawn_s < DRAW_EVERY_S:
        return Update()
    begins, visitor.is_streaming = not visitor.is_streaming, True
    return draw(visitor, is_new=is_new, begins=begins)


def draw(visitor: LiveVisitor, *, is_new: bool, begins: bool) -> Update:
    """How it stands with a visitor whose frames come."""
    visitor.drawn_s = time.monotonic()
    said, sentence = visitor.drawn_problem, visitor.state.problem or ""
    is_said = hide_figures(said) == hide_figures(sentence)  # or it would be read out every second
    if not is_said:
        visitor.drawn_problem = sentence
    return Update(
        problem=gr.skip() if is_said else render_problem(sentence, "No answers now.") if sentence else "",
        now=render_now(visitor),
        transcript=render_transcript(visitor) if is_new else gr.skip(),
        downloads=write_live_downloads(visitor.transcript, visitor.state.model or "") if is_new else gr.skip(),
        pause=gr.Button(interactive=True) if begins else gr.skip(),
        timer=gr.Timer(active=True) if begins else gr.skip(),
    )


def poll(visitor: LiveVisitor | None) -> Update:
    """How it stands with a visitor whose frames may have ceased: told more than once, as the last frame's news may be
    late."""
    if visitor is None or not SILENT_S <= time.monotonic() - visitor.fed_s < 4 * SILENT_S:
        return Update()
    visitor.is_streaming, visitor.drawn_problem = False, ""
    return Update(problem="", now=render_now(visitor))


def toggle_pause(visitor: LiveVisitor) -> Update:
    """Pause, or go on."""
    visitor.is_paused = not visitor.is_paused
    return Update(now=render_now(visitor), pause=gr.Button("Go on" if visitor.is_paused else "Pause"))


def render_now(visitor: LiveVisitor | None) -> str:
    """What is being signed, and how well it goes."""
    state = visitor.state if visitor else LiveState()
    is_on = visitor is not None and visitor.is_streaming and not visitor.is_paused
    if visitor is not None and visitor.is_paused:
        word = "Paused"
    elif not is_on:
        word = "Camera off"
    elif state.problem is not None:
        word = "No answers"
    else:
        word = "No sign" if state.windows else "Waiting for the first answer"
    return render("live.html", state=state, gloss=state.gloss if is_on else None, word=word, is_on=is_on, hint=HINT)


def render_transcript(visitor: LiveVisitor | None) -> str:
    """The signs so far, the newest first."""
    signs = list(visitor.transcript)[: -SIGNS_SHOWN - 1 : -1] if visitor else []
    return render("transcript.html", signs=signs, more=len(visitor.transcript) - len(signs) if visitor else 0)


def hide_figures(sentence: str) -> str:
    """A sentence that says the same a second later."""
    return re.sub(r"\d+", "", sentence)
