"""Who signs to the page now: each visitor's own live session and transcript, and how many there may be at once."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from asl_triton.errors import ServerError
from asl_triton.live.recognizer import LiveSession
from asl_triton.live.state import LiveEvent, LiveState
from asl_triton_ui.rendering import format_count

SIGNS_KEPT = 500  # of one visitor's transcript
IDLE_S = 15.0  # without a frame: others may have the place
SWEEP_EVERY_S = 5.0


@dataclass
class LiveVisitor:
    """One open page that signs, or did. Times are seconds since it began."""

    began_s: float = field(default_factory=time.monotonic)
    session: LiveSession | None = None  # None: it has no place among the live ones
    model: str | None = None  # that the session asks
    state: LiveState = field(default_factory=LiveState)
    is_paused: bool = False
    fed_s: float = field(default_factory=time.monotonic)  # when the newest frame came, by the machine's clock
    drawn_s: float = 0.0  # when the page was last told, by the machine's clock
    drawn_problem: str = ""  # the sentence that the page shows
    is_streaming: bool = False  # as far as the page was told
    transcript: deque[LiveEvent] = field(default_factory=lambda: deque(maxlen=SIGNS_KEPT))
    heard: int = 0  # of the session's events, how many are in the transcript

    def update(self, state: LiveState) -> bool:
        """Keep a state of the session, and in the transcript what is new in it; tells whether anything is."""
        self.state = state
        new = state.num_events - self.heard
        self.heard = state.num_events
        if new > 0:
            self.transcript += state.events[-new:]
        return new > 0

    def clear(self) -> None:
        """Begin anew."""
        if self.session is not None:
            self.session.clear()
        self.transcript.clear()
        self.began_s = time.monotonic()
        self.state, self.heard = LiveState(), 0


class LiveSessions:
    """All visitors that sign, by the names of their sessions on the page; at most `most` have a place at once.

    One who sends no frames for 15 seconds loses the place, and takes one again with the next frame; who sends none for
    `keep_s` is forgotten with the transcript. From any thread.
    """

    def __init__(self, most: int, keep_s: float) -> None:
        self.most, self.keep_s = most, keep_s
        self._visitors: dict[str, LiveVisitor] = {}
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None

    def visitor(self, name: str) -> LiveVisitor:
        """The visitor of that name, a new one if need be."""
        with self._lock:
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._keep_swept, name="live-sweep", daemon=True)
                self._sweeper.start()
            return self._visitors.setdefault(name, LiveVisitor())

    def known(self, name: str) -> LiveVisitor | None:
        """The visitor of that name, if there is one."""
        return self._visitors.get(name)

    def open_session(
        self, visitor: LiveVisitor, model: str | None, open_session: Callable[[], LiveSession]
    ) -> LiveSession:
        """The visitor's session with that model: the one there is, or a new one.

        Raises:
            ServerError: too many are live already. And what `open_session` raises.
        """
        if visitor.session is not None and visitor.model == model:
            return visitor.session
        self.close_session(visitor)
        with self._lock:
            if sum(other.session is not None for other in self._visitors.values()) >= self.most:
                raise ServerError(
                    f"this page takes {format_count(self.most, 'visitor')} live at once, and all are taken: it goes "
                    "on by itself when one of them stops"
                )
            visitor.session, visitor.model, visitor.heard = open_session(), model, 0
            return visitor.session

    def close_session(self, visitor: LiveVisitor) -> None:
        """End a visitor's session, if there is one; the transcript stays."""
        with self._lock:
            session, visitor.session = visitor.session, None
        if session is not None:
            session.close()

    def leave(self, name: str) -> None:
        """Forget a visitor who closed the page."""
        with self._lock:
            visitor = self._visitors.pop(name, None)
        if visitor is not None:
            self.close_session(visitor)

    def close(self) -> None:
        """Forget all."""
        for name in list(self._visitors):
            self.leave(name)

    def sweep(self) -> None:
        """Take the place from those who send no frames, and forget those who have not for long."""
        now_s = time.monotonic()
        for name, visitor in list(self._visitors.items()):
            if now_s - visitor.fed_s > self.keep_s:
                self.leave(name)
            elif now_s - visitor.fed_s > IDLE_S:
                self.close_session(visitor)

    def _keep_swept(self) -> None:
        """Sweep for as long as there are visitors."""
        while True:
            time.sleep(SWEEP_EVERY_S)
            self.sweep()
            with self._lock:
                if not self._visitors:
                    self._sweeper = None
                    return
