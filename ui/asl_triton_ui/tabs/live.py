"""The tab "Live": the camera streams, and each sign appears while it is being signed.

Frames arrive through Gradio's stream, which keeps only the newest one while a handler is busy. The page's script drops
frames while several are in flight. So no frames pile up, however slow the browser, network or server.
"""

import re
import time

import gradio as gr
import numpy as np
from gradio.context import Context

from asl_triton.errors import AslTritonError
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveState
from asl_triton_ui.downloads import write_live_downloads
from asl_triton_ui.filming_guide import build_filming_guide
from asl_triton_ui.guide import render_guide
from asl_triton_ui.page_context import NOTHING, UNSEEN, PageContext, Updates
from asl_triton_ui.rendering import render, render_problem
from asl_triton_ui.signer_box import format_corners
from asl_triton_ui.state.live_sessions import LiveSessions, LiveVisitor
from asl_triton_ui.state.taught_signs import Visitor
from asl_triton_ui.upload_components import decode_picture, encoded_pictures, numbers_only

FRAME_EVERY_S = 0.04  # presets without their own frame rate use 25 per second
DRAW_EVERY_S = 0.2
SILENT_S = 1.5  # without a frame before the camera counts as off
CAMERA = {"width": {"ideal": 320}, "height": {"ideal": 240}, "frameRate": {"ideal": 30}}  # networks see 224 x 224
RULES = LiveRules()
SIGNS_SHOWN = 50
HINT = "Allow the camera, press Start, and sign. Each gloss appears here while you sign it."
FIGURES = re.compile(r"\d+")


class LiveTab:
    """The tab's components and event handlers."""

    def __init__(self, context: PageContext) -> None:
        self._taught = context.taught
        self._sessions = LiveSessions(context.server, context.options.max_live, 60 * context.options.keep_minutes)
        with gr.Row(elem_classes="two", elem_id="live-tab"):
            with gr.Column(scale=5, min_width=300):
                # The style sheet mirrors the video. Gradio would also mirror the frames it sends, and so the signs.
                camera = encoded_pictures(
                    gr.Image(
                        label="Camera",
                        sources=["webcam"],
                        streaming=True,
                        buttons=[],
                        webcam_options=gr.WebcamOptions(mirror=False, constraints={"video": CAMERA}),
                        elem_id="live-camera",
                    )
                )
                self.guide = gr.HTML(render_guide(None), elem_id="live-guide")
                with gr.Row(elem_classes="actions"):
                    self.pause = gr.Button("Pause", size="lg", elem_id="live-pause", min_width=120, interactive=False)
                    clear = gr.Button("Clear", size="lg", elem_id="live-clear", min_width=120)
                sliders = make_sliders()
                build_filming_guide()
            with gr.Column(scale=6, min_width=300):
                self.problem = gr.HTML("", elem_id="live-problem")
                self.now = gr.HTML(render_now(LiveVisitor()), elem_id="live-now")
                gr.HTML(render("hint.html", hint=""), elem_id="live-way")  # filled by the page's script
                self.transcript = gr.HTML(render_transcript(LiveVisitor()), elem_id="live-transcript")
                self.downloads = gr.HTML("", elem_id="live-downloads")
        self.timer = gr.Timer(1.0, active=False)
        outputs = [self.problem, self.now, self.transcript, self.downloads, self.pause, self.timer, self.guide]
        camera.stream(
            self.feed,
            [camera, context.model, *sliders, context.signs],
            outputs,
            stream_every=FRAME_EVERY_S,
            time_limit=None,
            concurrency_limit=None,
            **UNSEEN,
        )
        self.timer.tick(self.poll, None, outputs, queue=False, **UNSEEN)
        self.pause.click(self.toggle_pause, None, outputs, queue=False, **UNSEEN)
        clear.click(self.clear, None, outputs, queue=False, **UNSEEN)
        if Context.root_block is not None:
            Context.root_block.unload(self.leave)

    def feed(
        self,
        picture: str | None,
        model: str | None,
        percent: float,
        repeat_s: float,
        stride: float,
        signs: str,
        request: gr.Request,
    ) -> Updates:
        """Take a frame as a `data:` URI; update the page several times per second and at each new sign.

        The frame is decoded only if the visitor has a live place.
        """
        visitor = self._sessions.get_visitor(str(request.session_hash))
        if picture is None or visitor.is_paused:
            return NOTHING
        now_s = visitor.fed_s = time.monotonic()
        num_events = visitor.state.num_events
        try:
            dictionary, with_vocabulary = self._taught.choose(signs, Visitor.of(request))
            session = self._sessions.open_session(visitor, model, dictionary, with_vocabulary=with_vocabulary)
            if visitor.sliders != (percent, repeat_s, stride):
                session.rules = make_rules(percent, repeat_s, stride)
                visitor.sliders = (percent, repeat_s, stride)
            frame_bgr = np.ascontiguousarray(decode_picture(picture)[..., ::-1])
            state = session.feed(frame_bgr, now_s - visitor.began_s)
            if session is visitor.session:  # otherwise it was closed in the meantime
                visitor.state = state
        except AslTritonError as exc:
            visitor.state = LiveState(problem=str(exc), num_events=num_events, events=visitor.state.events)
        is_new = visitor.state.num_events > num_events
        if not is_new and now_s - visitor.drawn_s < DRAW_EVERY_S:
            return NOTHING
        return self._draw(visitor, is_new=is_new)

    def _draw(self, visitor: LiveVisitor, *, is_new: bool) -> Updates:
        """Update the page of a streaming visitor, including the transcript if there are new signs."""
        updates: Updates = {}
        if not visitor.is_streaming:
            updates = {self.pause: gr.Button(interactive=True), self.timer: gr.Timer(active=True)}
        visitor.is_streaming, visitor.drawn_s = True, time.monotonic()
        problem = visitor.state.problem or ""
        if FIGURES.sub("", visitor.drawn_problem) != FIGURES.sub("", problem):  # or its counts are read out each time
            visitor.drawn_problem = problem
            updates[self.problem] = render_problem(problem, "No answers now.") if problem else ""
        if is_new:
            updates[self.transcript] = render_transcript(visitor)
            updates[self.downloads] = write_live_downloads(visitor.transcript, visitor.state.model or "")
        if visitor.drawn_advice != visitor.state.advice:
            visitor.drawn_advice = visitor.state.advice
            updates[self.guide] = render_guide(visitor.state.advice)
        updates[self.now] = render_now(visitor)
        return updates

    def poll(self, request: gr.Request) -> Updates:
        """Show that the frames have stopped, more than once because the last frame's update may arrive late."""
        visitor = self._sessions.get_visitor(str(request.session_hash))
        if not SILENT_S <= time.monotonic() - visitor.fed_s < 4 * SILENT_S:
            return NOTHING
        visitor.is_streaming, visitor.drawn_problem, visitor.drawn_advice = False, "", None
        return {self.problem: "", self.now: render_now(visitor), self.guide: render_guide(None)}

    def toggle_pause(self, request: gr.Request) -> Updates:
        """Pause or resume."""
        visitor = self._sessions.get_visitor(str(request.session_hash))
        visitor.is_paused = not visitor.is_paused
        return {self.now: render_now(visitor), self.pause: gr.Button("Resume" if visitor.is_paused else "Pause")}

    def clear(self, request: gr.Request) -> Updates:
        """Clear the transcript."""
        visitor = self._sessions.get_visitor(str(request.session_hash))
        visitor.clear()
        return {self.now: render_now(visitor), self.transcript: render_transcript(visitor), self.downloads: ""}

    def leave(self, request: gr.Request) -> None:
        """Forget a visitor who closed the page."""
        self._sessions.leave(str(request.session_hash))


def make_sliders() -> list[gr.Slider]:
    """Make the sliders that may be moved while the camera runs: threshold, repeat suppression, stride."""
    sliders = [
        gr.Slider(
            1,
            100,
            value=100 * RULES.min_confidence,
            step=1,
            label="Threshold in percent",
            info="Signs below this confidence are ignored. Raise it if resting hands are reported.",
            elem_id="live-threshold",
        ),
        gr.Slider(
            0,
            10,
            value=RULES.gone_s,
            step=0.1,
            label="Repeat suppression in seconds",
            info="Report the same gloss only once within this time.",
            elem_id="live-repeat",
        ),
        gr.Slider(
            1,
            64,
            value=RULES.stride_frames,
            step=1,
            label="Stride in frames",
            info="Frames between answers, at 25 frames per second. A smaller stride means less lag, more server load.",
            elem_id="live-stride",
        ),
    ]
    return [numbers_only(slider) for slider in sliders]


def make_rules(percent: float, repeat_s: float, stride: float) -> LiveRules:
    """Build the live rules from the sliders' values."""
    return LiveRules(
        stride_frames=int(stride),
        min_confidence=percent / 100,
        gone_s=repeat_s,
        repeat_s=max(RULES.repeat_s, repeat_s),  # otherwise a gloss suppressed for longer would count as held
    )


def render_now(visitor: LiveVisitor) -> str:
    """Render the current sign and the session's status."""
    is_on = visitor.is_streaming and not visitor.is_paused
    if visitor.is_paused:
        word = "Paused"
    elif not is_on:
        word = "Camera off"
    elif visitor.state.problem is not None:
        word = "No answers"
    else:
        word = "No sign" if visitor.state.windows else "Waiting for the first answer"
    gloss = visitor.state.gloss if is_on else None
    corners = format_corners(visitor.state.signer) if is_on else ""
    return render("live.html", state=visitor.state, gloss=gloss, word=word, is_on=is_on, hint=HINT, corners=corners)


def render_transcript(visitor: LiveVisitor) -> str:
    """Render the signs so far, newest first."""
    signs = visitor.transcript
    shown = signs[: -SIGNS_SHOWN - 1 : -1]
    return render("transcript.html", signs=shown, more=len(signs) - len(shown))
