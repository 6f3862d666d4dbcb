"""Recognizes signs while they are being signed: frames in from a camera or a browser, glosses out.

Every few frames, the newest window of frames is sent to the server, with at most one request in flight. Frames that
arrive meanwhile wait in the window. If the server is slower than the camera, frames are dropped and the lag does not
grow.

>>> session = LiveSession(recognizer)  # of a `Recognizer`; one per visitor
>>> state = session.feed(image_bgr, time_s)  # returns at once
>>> print(state.gloss, [event.gloss for event in state.events], state.problem)
"""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType

import numpy as np

from asl_triton.errors import AslTritonError
from asl_triton.live.rules import LiveRules
from asl_triton.live.spotting import SignSpotter
from asl_triton.live.state import LiveEvent, LiveState
from asl_triton.live.window import LiveWindow, WindowSnapshot, check_image
from asl_triton.models.served import FRAMES, STEP_LOGITS, ServedModel
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.event_loop import run
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.signer.search import WHOLE
from asl_triton.signer.tracker import SignerTracker
from asl_triton.video.colors import Image
from asl_triton.video.windows import POSITION_FRAMES

EVENTS_KEPT = 500
LAGS_KEPT = 1000  # answers: five minutes and more
RATE_FRAMES = 50  # used to measure the frame rate
SILENT_S = 1.0  # without a frame: then nothing is known about the current sign
SLOW_ANSWER_S = 5.0  # a request that takes longer is a problem
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 2.0  # before retrying a server that failed


class LiveRecognizer:
    """The asyncio client: feed it frames, and read `events()` in another task.

    Server failures do not end it. `state().problem` says what is wrong until answers are back. Use it in an
    `async with` block; leaving the block cancels the request in flight and ends `events()`. `rules` may be replaced at
    any time.

    The signer is where the recognizer's `signer` is, or is searched for (see `SignerTracker`). With `guides`,
    `state().advice` says how to sit in front of the camera.
    """

    def __init__(self, recognizer: AsyncRecognizer, rules: LiveRules | None = None, *, guides: bool = False) -> None:
        self.rules = rules or LiveRules()
        self._recognizer, self._guides = recognizer, guides
        self._tracker: SignerTracker | None = None  # None until the preset is known
        self._tracking = threading.Lock()  # for the tracker, which is slow
        self._lock = threading.Lock()  # for everything below, since frames come from any thread
        self._served: ServedModel | None = None
        self._spotter: SignSpotter | None = None  # None until the preset is known
        self._obeyed: LiveRules | None = None  # the rules that the window and the spotter use
        self._problem: str | None = None
        self._sent_s: float | None = None  # when the request in flight was sent
        self._is_last = False  # no more frames will come
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._fed, self._answered = asyncio.Event(), asyncio.Event()
        self._num_read = 0  # events
        self.clear()

    def feed(self, image_bgr: Image, time_s: float) -> None:
        """Add one frame, uint8 BGR (H, W, 3), shown at `time_s` on any increasing clock. Call from any thread.

        Never waits for the server. When searching for the signer, one frame every two seconds takes about 10 to 80 ms.

        A jump of the clock, a different frame size or a cut starts a new window.

        Raises:
            VideoError: the image is not uint8 (H, W, 3), or absurdly narrow.
        """
        now_s = time.monotonic()
        check_image(image_bgr)
        with self._tracking:
            if (tracker := self._tracker) is not None and math.isfinite(time_s):
                tracker.check(image_bgr, time_s)
            framing = WHOLE if tracker is None else tracker.framing
        with self._lock:
            self._fed_times_s.append(now_s)
            self._window.push(image_bgr, time_s, now_s, framing)
            is_due = self._window.is_due
        if is_due and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fed.set)

    def state(self) -> LiveState:
        """Return the current state. Call from any thread."""
        now_s = time.monotonic()
        with self._lock:
            first_s, newest_s = (self._fed_times_s[0], self._fed_times_s[-1]) if self._fed_times_s else (now_s, 0.0)
            lag_s, lag_p95_s = np.quantile(self._lags_s, [0.5, 0.95]).tolist() if self._lags_s else (None, None)
            problem = self._problem
            if problem is None and self._sent_s is not None and now_s - self._sent_s >= SLOW_ANSWER_S:
                address, waited_s = self._recognizer.transport.address, now_s - self._sent_s
                problem = f"{address} has not answered for {waited_s:.0f} s: it is overloaded, stuck or down"
            return LiveState(
                gloss=self._spotter.gloss if self._spotter and now_s - newest_s < SILENT_S else None,
                confidence=self._spotter.confidence if self._spotter else 0.0,
                lag_s=lag_s,
                lag_p95_s=lag_p95_s,
                frame_rate=len(self._fed_times_s) / (now_s - first_s) if now_s > first_s else 0.0,
                frames=self._window.frames,
                dropped_frames=self._window.dropped_frames,
                windows=self._num_windows,
                dropped_windows=self._window.dropped_windows,
                num_events=self._num_events,
                events=tuple(self._events),
                problem=problem,
                model=self._served.name if self._served else None,
                warnings=self._served.card.warnings if self._served else (),
                signer=self._tracker.framing.signer if self._tracker else None,
                is_signer_missing=self._tracker is not None and self._tracker.is_missing,
                advice=self._tracker.advice if self._tracker else None,
            )

    async def events(self) -> AsyncIterator[LiveEvent]:
        """Yield signs as they are recognized, for one reader. Ends after `finish`, or with the block.

        A reader that is too slow gets only the newest 500.
        """
        while True:
            self._answered.clear()
            while self._num_read < self._num_events:
                with self._lock:
                    unread = min(self._num_events - self._num_read, len(self._events))
                    event = self._events[-unread]
                    self._num_read = self._num_events - unread + 1
                yield event
            if self._task is None or self._task.done():
                return
            await self._answered.wait()

    def clear(self) -> None:
        """Forget frames, events and counts, as if newly started. Call from any thread."""
        with self._lock:
            self._window = LiveWindow()
            self._fed_times_s: deque[float] = deque(maxlen=RATE_FRAMES)
            self._lags_s: deque[float] = deque(maxlen=LAGS_KEPT)
            self._events: deque[LiveEvent] = deque(maxlen=EVENTS_KEPT)
            self._num_windows, self._num_events, self._num_read = 0, 0, 0
            if self._served is not None:
                self._prepare(self._served)

    async def finish(self) -> None:
        """End the stream: send the frames that were not part of a request yet, and return once they are answered.

        If the server is down, this returns as well, and `state().problem` says so.
        """
        self._is_last = True
        self._fed.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def start(self) -> None:
        """Start sending requests. The `async with` block calls this."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._answered.set())

    async def stop(self) -> None:
        """Cancel the request in flight. The `async with` block calls this."""
        self._loop = None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def __aenter__(self) -> "LiveRecognizer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def _run(self) -> None:
        """Send one window after another, no matter what the server does."""
        pause_s = MIN_PAUSE_S
        while True:
            try:
                served = await self._recognizer.model(again=self._problem is not None)
                with self._lock:
                    if served != self._served:
                        self._prepare(served)
                while True:
                    self._fed.clear()
                    with self._lock:
                        if self.rules is not self._obeyed:
                            self._obey(self.rules)
                        window = self._window.take(flush=self._is_last)
                    if window is not None:
                        await self._ask(served, window)
                        pause_s = MIN_PAUSE_S
                    elif self._is_last:
                        return
                    else:
                        await self._fed.wait()
            except AslTritonError as exc:
                with self._lock:
                    self._problem, self._sent_s = str(exc), None
                    if self._spotter is not None:
                        self._spotter.pause()
            if self._is_last:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _prepare(self, served: ServedModel) -> None:
        """Start with an empty window for this model."""
        self._served, self._spotter, self._obeyed = served, SignSpotter(served.labels, served.preset), None
        self._window.prepare(served.preset)
        asked = self._recognizer
        self._tracker = SignerTracker(served.preset, asked.signer, finds=asked.find_signer, guides=self._guides)

    def _obey(self, rules: LiveRules) -> None:
        """Use new rules, or rules that did not fit the previous model.

        Raises:
            LabelsError, AslTritonError: the rules do not fit the model.
        """
        assert self._spotter is not None
        self._spotter.obey(rules)
        self._window.obey(rules)
        self._obeyed = rules

    async def _ask(self, served: ServedModel, window: WindowSnapshot) -> None:
        """Send a window, and report the resulting signs."""
        spotter = self._spotter
        self._sent_s = time.monotonic()
        if served.datatype == "UINT8":
            tensor = served.make_input(window.frames)
        else:  # normalizing takes long enough to block other tasks
            tensor = await asyncio.to_thread(served.make_input, window.frames)
        answers = await self._recognizer.transport.infer(
            served.name, {FRAMES: tensor}, [STEP_LOGITS], self._recognizer.priority
        )
        steps = max(math.ceil(len(window.frames) / POSITION_FRAMES) - 1, 1)
        step_logits = served.check_output(answers[STEP_LOGITS][0], (steps,), self._recognizer.transport.address)
        with self._lock:
            self._problem = self._sent_s = None
            if spotter is None or spotter is not self._spotter:
                return  # cleared in the meantime
            signs = spotter.add(window, step_logits)
            lag_s = time.monotonic() - window.fed_s
            self._num_windows += 1
            self._lags_s.append(lag_s)
            self._num_events += len(signs)
            self._events += [
                LiveEvent(sign.gloss, sign.class_id, sign.confidence, sign.start_s, sign.end_s, lag_s) for sign in signs
            ]
        self._answered.set()


class LiveSession:
    """The synchronous `LiveRecognizer`, for web pages, with one session per visitor. Feed it from any thread.

    Many sessions may share a `recognizer`, which they do not close. Close a session when you stop feeding it frames.
    """

    def __init__(self, recognizer: Recognizer, rules: LiveRules | None = None, *, guides: bool = False) -> None:
        self._live = LiveRecognizer(recognizer.asynchronous, rules, guides=guides)
        self._is_closed = False
        run(self._live.start())

    @property
    def rules(self) -> LiveRules:
        """The rules. They may be replaced at any time, and apply from the next window on."""
        return self._live.rules

    @rules.setter
    def rules(self, rules: LiveRules) -> None:
        self._live.rules = rules

    def feed(self, image_bgr: Image, time_s: float) -> LiveState:
        """Feed a frame as `LiveRecognizer.feed` does. Returns the state at once, no matter what the server does."""
        if not self._is_closed:
            self._live.feed(image_bgr, time_s)
        return self._live.state()

    def state(self) -> LiveState:
        """Return the current state."""
        return self._live.state()

    def clear(self) -> None:
        """Forget frames, events and counts, as if newly started."""
        self._live.clear()

    def close(self) -> None:
        """Cancel the request in flight. Closing twice is fine. Frames fed later are ignored."""
        if not self._is_closed:
            self._is_closed = True
            run(self._live.stop())

    def __enter__(self) -> "LiveSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
