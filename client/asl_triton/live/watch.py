"""Watches a camera, an address or a file until its end, and reports the signs that a live recognizer finds."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from asl_triton.errors import VideoError
from asl_triton.live.capture import Capture, SourceLost, SourceResumed
from asl_triton.live.recognizer import LiveRecognizer
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveEvent, LiveState
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import SignerBox
from asl_triton.video.reader import Frame

POLL_EVERY_S = 0.2  # for the state


@dataclass(frozen=True)
class ModelWarning:
    """A warning about all of the model's signs. It comes before the first one."""

    warning: str


@dataclass(frozen=True)
class ServerLost:
    """The server stopped answering. Signs are lost until it recovers."""

    reason: str


@dataclass(frozen=True)
class ServerRecovered:
    """The server answers again, `away_s` after it stopped."""

    away_s: float


@dataclass(frozen=True)
class SignerChanged:
    """From now on, frames are cropped to this box. None means whole frames, because no signer was found."""

    signer: SignerBox | None


Happening = LiveEvent | ModelWarning | SourceLost | SourceResumed | ServerLost | ServerRecovered | SignerChanged


@dataclass(frozen=True)
class WatchSummary:
    """The result of watching. The lags are over the last 1,000 answers."""

    source: str
    seconds: float
    signs: int
    frames: int  # fed
    dropped_frames: int  # never part of a request
    windows: int
    dropped_windows: int
    dropouts: int
    lag_p50_s: float | None
    lag_p95_s: float | None
    stopped: str | None = None  # why it ended before the source did


class Watch:
    """Watches an open capture.

    `on_happening` gets the model's warnings, then signs, dropouts, changes of the signer's box and outages of the
    server as they happen. `on_state` gets the state several times per second. `summary` may be read at any time, even
    after Ctrl-C.
    """

    def __init__(
        self,
        capture: Capture,
        rules: LiveRules,
        *,
        on_happening: Callable[[Happening], None],
        on_state: Callable[[LiveState], None] = lambda state: None,
    ) -> None:
        self._capture, self._rules = capture, rules
        self._on_happening, self._on_state = on_happening, on_state
        self._live: LiveRecognizer | None = None
        self._began_s = time.monotonic()
        self._lost_s: float | None = None  # when the server stopped answering
        self._dropouts = 0
        self._stopped: str | None = None
        self._shown: tuple[SignerBox | None, bool] = (None, False)  # the box, and whether one is missing

    async def run(self, recognizer: AsyncRecognizer) -> None:
        """Watch until the source ends or is given up.

        Raises:
            AslTritonError: before watching starts, the server is down, has no suitable model, or the rules do not fit
                the model.
        """
        served = await recognizer.model()
        self._rules.class_ids(served.labels, served.preset)  # raises before the first frame if something does not fit
        for warning in served.card.warnings:
            self._on_happening(ModelWarning(warning))
        async with LiveRecognizer(recognizer, self._rules) as live:
            self._live, self._began_s = live, time.monotonic()
            tasks = [asyncio.create_task(self._feed(live)), asyncio.create_task(self._poll(live))]
            try:
                async for event in live.events():
                    self._on_happening(event)
                self._report(live.state())
                self._stopped = self._stopped or live.state().problem
            finally:
                self._capture.close()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def summary(self) -> WatchSummary:
        """The result so far."""
        state = self._live.state() if self._live else LiveState()
        return WatchSummary(
            source=self._capture.name,
            seconds=time.monotonic() - self._began_s,
            signs=state.num_events,
            frames=state.frames,
            dropped_frames=state.dropped_frames,
            windows=state.windows,
            dropped_windows=state.dropped_windows,
            dropouts=self._dropouts,
            lag_p50_s=state.lag_s,
            lag_p95_s=state.lag_p95_s,
            stopped=self._stopped,
        )

    async def _feed(self, live: LiveRecognizer) -> None:
        """Feed all frames of the source from a thread."""
        try:
            await asyncio.to_thread(self._feed_frames, live, asyncio.get_running_loop())
        except VideoError as exc:
            self._stopped = str(exc)
        await live.finish()

    def _feed_frames(self, live: LiveRecognizer, loop: asyncio.AbstractEventLoop) -> None:
        for item in self._capture:
            if isinstance(item, Frame):
                live.feed(item.image, item.time_s)
            else:
                self._dropouts += isinstance(item, SourceLost)
                loop.call_soon_threadsafe(self._on_happening, item)

    async def _poll(self, live: LiveRecognizer) -> None:
        while True:
            self._report(live.state())
            await asyncio.sleep(POLL_EVERY_S)

    def _report(self, state: LiveState) -> None:
        """Report the state, and whether the server went down or came back."""
        if state.problem is not None and self._lost_s is None:
            self._lost_s = time.monotonic()
            self._on_happening(ServerLost(state.problem))
        elif state.problem is None and self._lost_s is not None:
            self._on_happening(ServerRecovered(time.monotonic() - self._lost_s))
            self._lost_s = None
        shown = (state.signer, state.is_signer_missing)
        if shown != self._shown:
            self._shown = shown
            self._on_happening(SignerChanged(state.signer))
        self._on_state(state)
