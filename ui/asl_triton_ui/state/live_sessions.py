"""Visitors of the tab "Live": their sessions and transcripts, and the limit on how many are live at once."""

import threading
import time
from dataclasses import dataclass, field, replace

from asl_triton.errors import ServerError
from asl_triton.live.recognizer import LiveSession
from asl_triton.live.state import LiveEvent, LiveState
from asl_triton.signer.guide import Advice
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton_ui.rendering import format_count
from asl_triton_ui.state.server import ServerConnection

SIGNS_KEPT = 500  # in one visitor's transcript
IDLE_S = 15.0  # without a frame before others may take the place
SWEEP_EVERY_S = 5.0


@dataclass
class LiveVisitor:
    """One open page that has used the camera. Times are from `time.monotonic`."""

    session: LiveSession | None = None  # None while this page has no live place
    model: str | None = None  # used by the session
    dictionary: SignDictionary | None = None  # of taught signs, used by the session
    with_vocabulary: bool = False
    sliders: tuple[float, ...] = ()  # the values behind the session's rules
    state: LiveState = field(default_factory=LiveState)  # the session's, when the newest frame was fed
    earlier_signs: tuple[LiveEvent, ...] = ()  # from this visitor's previous sessions
    began_s: float = field(default_factory=time.monotonic)
    fed_s: float = field(default_factory=time.monotonic)  # when the newest frame came
    drawn_s: float = 0.0  # when the page was last updated
    drawn_problem: str = ""  # the sentence on the page
    drawn_advice: Advice | None = None  # the advice on the page
    is_streaming: bool = False  # as shown on the page
    is_paused: bool = False

    @property
    def transcript(self) -> tuple[LiveEvent, ...]:
        """The newest signs, oldest first."""
        return (*self.earlier_signs, *self.state.events)[-SIGNS_KEPT:]

    def clear(self) -> None:
        """Clear the transcript and start over."""
        if self.session is not None:
            self.session.clear()
        self.earlier_signs, self.state, self.began_s = (), LiveState(), time.monotonic()


class LiveSessions:
    """All visitors of the tab, by the name of their Gradio session. Up to `most` are live at once. Thread-safe.

    A visitor who sends no frames for 15 seconds gives up the place and takes one again with the next frame. After
    `keep_s` without frames, the visitor and the transcript are deleted.
    """

    def __init__(self, server: ServerConnection, most: int, keep_s: float) -> None:
        self._server, self._most, self._keep_s = server, most, keep_s
        self._visitors: dict[str, LiveVisitor] = {}
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None

    def get_visitor(self, name: str) -> LiveVisitor:
        """Return the visitor of that name, or a new one."""
        with self._lock:
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep, name="live-sweep", daemon=True)
                self._sweeper.start()
            return self._visitors.setdefault(name, LiveVisitor())

    def open_session(
        self,
        visitor: LiveVisitor,
        model: str | None,
        dictionary: SignDictionary | None = None,
        *,
        with_vocabulary: bool = False,
    ) -> LiveSession:
        """Return the visitor's session with this model and these signs, opening one if needed.

        Raises:
            ServerError: too many visitors are live already, or the server is away.
            ContractError: the server does not serve this model.
        """
        is_same = (
            visitor.model == model and visitor.dictionary is dictionary and visitor.with_vocabulary == with_vocabulary
        )
        if visitor.session is not None and is_same:
            return visitor.session
        self._close_session(visitor)
        with self._lock:
            if sum(other.session is not None for other in self._visitors.values()) >= self._most:
                raise ServerError(
                    f"only {format_count(self._most, 'visitor')} can be live on this page at once: your session starts "
                    "by itself when a place is free"
                )
            recognizer = self._server.live_recognizer(model, dictionary, with_vocabulary=with_vocabulary)
            visitor.session = LiveSession(recognizer, guides=True)
            visitor.model, visitor.sliders = model, ()
            visitor.dictionary, visitor.with_vocabulary = dictionary, with_vocabulary
            return visitor.session

    def leave(self, name: str) -> None:
        """Forget a visitor."""
        with self._lock:
            visitor = self._visitors.pop(name, None)
        if visitor is not None:
            self._close_session(visitor)

    def _close_session(self, visitor: LiveVisitor) -> None:
        """Close a visitor's session if there is one; the transcript stays."""
        with self._lock:
            session, visitor.session, visitor.dictionary = visitor.session, None, None
            visitor.earlier_signs = visitor.transcript
            visitor.state = replace(visitor.state, num_events=0, events=())
        if session is not None:
            session.close()

    def _sweep(self) -> None:
        """Close the sessions of visitors who send no frames, until there are no visitors left."""
        while True:
            time.sleep(SWEEP_EVERY_S)
            now_s = time.monotonic()
            for name, visitor in list(self._visitors.items()):
                if now_s - visitor.fed_s > self._keep_s:
                    self.leave(name)
                elif now_s - visitor.fed_s > IDLE_S:
                    self._close_session(visitor)
            with self._lock:
                if not self._visitors:
                    self._sweeper = None
                    return
