"""Visitors of the tab "Live": each one's live session and transcript, and how many may be live at once."""

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
IDLE_S = 15.0  # without a frame: others may have the place
SWEEP_EVERY_S = 5.0


@dataclass
class LiveVisitor:
    """One open page that signs, or did. Times are by `time.monotonic`."""

    session: LiveSession | None = None  # None while this page has no place among those that are live
    model: str | None = None  # that the session asks
    dictionary: SignDictionary | None = None  # whose signs the session answers with
    with_vocabulary: bool = False
    sliders: tuple[float, ...] = ()  # that the session's rules were made from
    state: LiveState = field(default_factory=LiveState)  # of the session, when the newest frame was fed
    earlier_signs: tuple[LiveEvent, ...] = ()  # of this visitor's sessions before
    began_s: float = field(default_factory=time.monotonic)
    fed_s: float = field(default_factory=time.monotonic)  # when the newest frame came
    drawn_s: float = 0.0  # when the page was last updated
    drawn_problem: str = ""  # the sentence that the page shows
    drawn_advice: Advice | None = None  # that the page shows
    is_streaming: bool = False  # as the page shows it
    is_paused: bool = False

    @property
    def transcript(self) -> tuple[LiveEvent, ...]:
        """The newest signs, oldest first."""
        return (*self.earlier_signs, *self.state.events)[-SIGNS_KEPT:]

    def clear(self) -> None:
        """Begin again."""
        if self.session is not None:
            self.session.clear()
        self.earlier_signs, self.state, self.began_s = (), LiveState(), time.monotonic()


class LiveSessions:
    """All visitors that sign, by the names of their sessions on the page. At most `most` are live at once. Any thread.

    A visitor that sends no frames for 15 seconds gives up its place, and takes one again with the next frame; after
    `keep_s` it is forgotten, and its transcript with it.
    """

    def __init__(self, server: ServerConnection, most: int, keep_s: float) -> None:
        self._server, self._most, self._keep_s = server, most, keep_s
        self._visitors: dict[str, LiveVisitor] = {}
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None

    def get_visitor(self, name: str) -> LiveVisitor:
        """The visitor of that name, a new one if there is none."""
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
        """The visitor's session with that model and those signs, a new one if there is none.

        Raises:
            ServerError, ContractError: too many are live already, the server is away, or it serves no such model.
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
                    f"this page takes {format_count(self._most, 'visitor')} live at once, and all are taken: it goes "
                    "on by itself when one of them stops"
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
        """As long as there are visitors, close the sessions of those that send no frames."""
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
