"""Frames from a camera, an address or a file as they come: the newest win, and a dropout is waited for."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from asl_triton.errors import VideoError
from asl_triton.live.sources import make_source
from asl_triton.video.reader import Frame, Image

FRAMES_WAITING = 8  # of those not taken yet; then the oldest goes
MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0  # before a feed that dropped out is opened again, doubled each time
LATE_S = 1.0  # behind its own pace: then it goes on from there instead of hurrying
MAX_WAIT_S = 60.0  # for a frame: a timestamp beyond that is broken
CLOSE_TIMEOUT_S = 6.0  # a feed that is silent is left after less


@dataclass(frozen=True)
class SourceLost:
    """No more frames come, and the feed is opened again and again from now on."""

    reason: str


@dataclass(frozen=True)
class SourceResumed:
    """Frames come again, `away_s` after the last."""

    away_s: float


Item = Frame | SourceLost | SourceResumed


class Capture:
    """An open source; use it in a `with` block, and iterate over it once.

    `source` is a camera's index ("0", "/dev/video0"), an rtsp(s):// or http(s):// address, or a file. What has an end
    is played at its own pace, and its frames' times are its timestamps; other frames' times are seconds since the
    first, as they come. A thread of its own reads; frames that nobody takes are dropped, the oldest first.

    A dropout after the first frame ends nothing: the iteration yields `SourceLost`, then `SourceResumed` when frames
    come again. `give_up_s` is how long to wait; None: forever.
    """

    def __init__(self, source: str, *, give_up_s: float | None = None) -> None:
        self._feed = make_source(source)
        self.name = self._feed.name
        self.dropped_frames = 0
        self._give_up_s = give_up_s
        self._first: tuple[Image, float] | None = None
        self._waiting: deque[Item | VideoError | None] = deque()  # None: it is over
        self._come = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on, name="capture", daemon=True)

    def __enter__(self) -> "Capture":
        """Open it, and see a first frame.

        Raises:
            VideoError: there is no such camera, address or file, or no video comes from it.
        """
        self._feed.open()
        try:
            self._first = self._feed.read()
            if self._first is None:
                raise VideoError(f"{self.name} gives not one picture: see whether another program can show it")
        except BaseException:
            self._feed.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        """The frames as they come, dropouts between; ends with a file's end, and with `close`.

        Raises:
            VideoError: a dropout lasted for `give_up_s`.
        """
        self._thread.start()
        while True:
            with self._come:
                self._come.wait_for(lambda: self._waiting)
                item = self._waiting.popleft()
            if item is None:
                return
            if isinstance(item, VideoError):
                raise item
            yield item

    def close(self) -> None:
        """Stop reading, and let go of the source. Any thread; the iteration ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)
        else:
            self._feed.close()

    def _read_on(self) -> None:
        """What the thread does."""
        try:
            for item in self._items():
                self._put(item)
        except VideoError as exc:
            self._put(exc)
        finally:
            self._put(None)
            self._feed.close()

    def _put(self, item: Item | VideoError | None) -> None:
        """Give it to who iterates, and drop the oldest frame where that one is too slow."""
        with self._come:
            self._waiting.append(item)
            frames = [place for place, waiting in enumerate(self._waiting) if isinstance(waiting, Frame)]
            if len(frames) > FRAMES_WAITING:
                del self._waiting[frames[0]]
                self.dropped_frames += 1
            self._come.notify()

    def _items(self) -> Iterator[Item]:
        """The frames until the source is over, or it is closed; what happens between."""
        read, began_s = self._first, time.monotonic()
        self._first = None
        while True:
            yield from self._shown(read, began_s)
            if self._feed.is_over() or self._stop.is_set():
                return
            ended_s = time.monotonic()
            yield SourceLost(f"no more frames come from {self.name}")
            read = self._opened_again(ended_s)
            if read is None:
                return
            yield SourceResumed(time.monotonic() - ended_s)

    def _shown(self, read: tuple[Image, float] | None, began_s: float) -> Iterator[Frame]:
        """From the frame that was read until none comes: each when it is to be shown."""
        zero_s = -math.inf  # when a frame stamped 0 was shown
        while read is not None and not self._stop.is_set():
            image, stamp_s = read
            if self._feed.is_paced:
                early_s = zero_s + stamp_s - time.monotonic()
                if -LATE_S <= early_s <= MAX_WAIT_S:
                    self._stop.wait(max(early_s, 0.0))
                else:
                    zero_s = time.monotonic() - stamp_s
            yield Frame(image, stamp_s if self._feed.has_end else time.monotonic() - began_s)
            read = self._feed.read()

    def _opened_again(self, ended_s: float) -> tuple[Image, float] | None:
        """The first frame after a dropout, however long it takes; None where it is closed meanwhile.

        Raises:
            VideoError: it took too long.
        """
        pause_s = MIN_PAUSE_S
        while not self._stop.is_set():
            self._feed.close()
            try:
                self._feed.open()
                reason = f"{self.name} gives no picture"
                if (read := self._feed.read()) is not None:
                    return read
            except VideoError as exc:
                reason = str(exc)
            away_s = time.monotonic() - ended_s
            if self._give_up_s is not None and away_s >= self._give_up_s:
                raise VideoError(f"given up after {away_s:.0f} s without a frame: {reason}")
            self._stop.wait(pause_s if self._give_up_s is None else min(pause_s, self._give_up_s - away_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return None
