"""Signs recognized while they are signed: frames as they come, from a camera or a browser, to glosses.

A window of the newest frames is asked about every few frames. At most one request is under way; what comes meanwhile
waits in the window, and the newest window wins: with a server that is slower than the camera frames are dropped, and
the answers never come later and later.

>>> session = LiveSession(recognizer)  # of a `Recognizer`; one a visitor
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
from dataclasses import replace
from types import TracebackType

from asl_triton.errors import AslTritonError
from asl_triton.live.spotting import LiveRules, SignSpotter
from asl_triton.live.state import EVENTS_KEPT, LiveCounters, LiveEvent, LiveState
from asl_triton.live.window import LiveWindow, WindowSnapshot
from asl_triton.models.served import FRAMES, STEP_LOGITS, ServedModel
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.event_loop import run
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.video.reader import Image
from asl_triton.video.windows import POSITION_FRAMES

__all__ = ["LiveEvent", "LiveRecognizer", "LiveRules", "LiveSession", "LiveState"]

SLOW_ANSWER_S = 5.0  # from which on a wait is worth a sentence
MIN_PAUSE_S, MAX_PAUSE_S = 0.25, 2.0  # before a server that was away is asked again


class LiveRecognizer:
    """Frames in, events out, for asyncio: feed it, and read `events()` in another task.

    It goes on whatever the server does: `state().problem` says what is wrong, until it is well again. Use it in an
    `async with` block; leaving it gives up what is under way, and ends `events()`. `rules` may be replaced at any time.
    """

    def __init__(self, recognizer: AsyncRecognizer, rules: LiveRules | None = None) -> None:
        self.rules = rules or LiveRules()
        self._recognizer = recognizer
        self._lock = threading.Lock()  # over all that follows: frames come from any thread
        self._record = LiveCounters()
        self._served: ServedModel | None = None
        self._window: LiveWindow | None = None  # None until the server said how frames are prepared
        self._signs: SignSpotter | None = None
        self._unread: deque[LiveEvent] = deque(maxlen=EVENTS_KEPT)
        self._problem: str | None = None
        self._asked_s: float | None = None  # when the request that is under way was sent
        self._is_last = False  # no more frames come
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: asyncio.Task[None] | None = None
        self._fed, self._told = asyncio.Event(), asyncio.Event()

    def feed(self, image_bgr: Image, time_s: float) -> None:
        """Take one frame, uint8 (H, W, 3) BGR, shown at `time_s` by any clock that rises. Never waits; any thread.

        A pause in the clock, a clock that goes back, pictures of another size or a cut begin a new window.

        Raises:
            VideoError: the image is not uint8 (H, W, 3), or absurdly narrow.
        """
        now_s = time.monotonic()
        with self._lock:
            self._record.feed(now_s)
            if self._window is None:
                self._record.dropped_frames += 1
                return
            self._window.push(image_bgr, time_s, now_s)
            is_due = self._window.is_due
        if is_due and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fed.set)

    def state(self) -> LiveState:
        """How it stands, now. From any thread."""
        now_s = time.monotonic()
        with self._lock:
            state = replace(self._record.state(now_s), problem=self._problem or self._slowness(now_s))
            if self._window is None or self._signs is None or self._served is None:
                return state
            now = self._signs.now if self._record.is_fed(now_s) else None
            return replace(
                state,
                gloss=None if now is None else self._served.labels[now],
                confidence=self._signs.best,
                dropped_frames=state.dropped_frames + self._window.dropped_frames,
                dropped_windows=state.dropped_windows + self._window.dropped_windows,
                model=self._served.name,
            )

    async def events(self) -> AsyncIterator[LiveEvent]:
        """The signs as they are recognized, for one reader; ends after `finish`, or with the block.

        One who reads too slowly gets the newest 100.
        """
        while True:
            self._told.clear()
            while self._unread:
                yield self._unread.popleft()
            if self._asking is None or self._asking.done():
                return
            await self._told.wait()

    def clear(self) -> None:
        """Forget frames, events and counts, as if it had just begun. From any thread."""
        with self._lock:
            self._record = LiveCounters()
            self._unread.clear()
            if self._served is not None:
                self._prepare(self._served)

    async def finish(self) -> None:
        """No more frames come: ask about those not asked about yet, and return when all is answered.

        Where the server is away this ends too; `state().problem` says so then.
        """
        self._is_last = True
        self._fed.set()
        if self._asking is not None:
            await asyncio.shield(self._asking)

    async def start(self) -> None:
        """Begin to ask. The block does it."""
        self._loop = asyncio.get_running_loop()
        self._asking = asyncio.create_task(self._ask_on())
        self._asking.add_done_callback(lambda _: self._told.set())

    async def stop(self) -> None:
        """Give up what is under way. The block does it."""
        self._loop = None
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    async def __aenter__(self) -> "LiveRecognizer":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    async def _ask_on(self) -> None:
        """Ask about one window after another, through all that a server may do."""
        pause_s = MIN_PAUSE_S
        while True:
            try:
                served = await self._recognizer.model(again=self._problem is not None)
                with self._lock:
                    if served != self._served:
                        self._prepare(served)
                while (clip := await self._next_clip()) is not None:
                    await self._ask(served, clip)
                    pause_s = MIN_PAUSE_S
                return
            except AslTritonError as exc:
                with self._lock:
                    self._problem, self._asked_s = str(exc), None
                    if self._signs is not None:
                        self._signs.pause()
            if self._is_last:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _prepare(self, served: ServedModel) -> None:
        """Begin with an empty window, as that model wants it."""
        if self._window is not None:
            self._record.dropped_frames += self._window.dropped_frames
            self._record.dropped_windows += self._window.dropped_windows
        self._served, self._window, self._signs = served, LiveWindow(served.preset), SignSpotter(served.preset)

    async def _next_clip(self) -> WindowSnapshot | None:
        """The newest window, when one is due; None when no more come."""
        while True:
            self._fed.clear()
            with self._lock:
                assert self._window is not None
                self._window.size(self.rules.window_frames, self.rules.stride_frames)
                clip = self._window.take(flush=self._is_last)
            if clip is not None or self._is_last:
                return clip
            await self._fed.wait()

    async def _ask(self, served: ServedModel, clip: WindowSnapshot) -> None:
        """Ask about a window, and tell the signs that come of it."""
        rules, signs = self.rules, self._signs
        class_ids = rules.class_ids(served.labels, served.preset)
        self._asked_s = time.monotonic()
        if served.datatype == "UINT8":
            tensor = served.make_input(clip.frames)
        else:  # normalizing takes long enough to hold up others
            tensor = await asyncio.to_thread(served.make_input, clip.frames)
        answers = await self._recognizer.transport.infer(
            served.name, {FRAMES: tensor}, [STEP_LOGITS], self._recognizer.priority
        )
        steps = max(math.ceil(len(clip.frames) / POSITION_FRAMES) - 1, 1)
        step_logits = served.check_output(answers[STEP_LOGITS][0], (steps,), self._recognizer.transport.address)
        with self._lock:
            self._problem = self._asked_s = None
            if signs is None or signs is not self._signs:
                return  # cleared meanwhile
            signed = signs.add(clip, step_logits, rules, class_ids)
            lag_s = time.monotonic() - clip.fed_s
            told = [
                LiveEvent(served.labels[s.class_id], s.class_id, s.confidence, s.start_s, s.end_s, lag_s)
                for s in signed
            ]
            self._record.answer(lag_s, told)
            self._unread += told
        self._told.set()

    def _slowness(self, now_s: float) -> str | None:
        """The sentence for an answer that takes long."""
        if self._asked_s is None or now_s - self._asked_s < SLOW_ANSWER_S:
            return None
        address = self._recognizer.transport.address
        return f"{address} has not answered for {now_s - self._asked_s:.0f} s: it is overloaded, stuck or away"


class LiveSession:
    """The sync face of `LiveRecognizer`, for pages: one a visitor. It may be fed from any thread.

    `recognizer` may be shared by many sessions, and is not closed with them. Close a session that is not fed any more.
    """

    def __init__(self, recognizer: Recognizer, rules: LiveRules | None = None) -> None:
        self._live = LiveRecognizer(recognizer.asynchronous, rules)
        self._is_closed = False
        run(self._live.start())

    @property
    def rules(self) -> LiveRules:
        """May be replaced at any time; the next window obeys."""
        return self._live.rules

    @rules.setter
    def rules(self, rules: LiveRules) -> None:
        self._live.rules = rules

    def feed(self, image_bgr: Image, time_s: float) -> LiveState:
        """As `LiveRecognizer.feed`; gives how it stands then, at once, whatever the server does."""
        if not self._is_closed:
            self._live.feed(image_bgr, time_s)
        return self._live.state()

    def state(self) -> LiveState:
        """How it stands, now."""
        return self._live.state()

    def clear(self) -> None:
        """Forget frames, events and counts, as if it had just begun."""
        self._live.clear()

    def close(self) -> None:
        """Give up what is under way. Closing twice is well; a frame fed after that is ignored."""
        if not self._is_closed:
            self._is_closed = True
            run(self._live.stop())

    def __enter__(self) -> "LiveSession":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
