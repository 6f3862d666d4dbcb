"""Frames from a camera, an address or a file as they come; dropouts are waited for."""

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from asl_triton.errors import VideoError
from asl_triton.live.sources import make_source
from asl_triton.video.colors import Image
from asl_triton.video.reader import Frame

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0  # before a source that dropped out is opened again, doubled each time
LATE_S = 1.0  # behind its own pace: then it goes on from there instead of hurrying
MAX_WAIT_S = 60.0  # for a frame: a timestamp beyond that is broken
CLOSE_TIMEOUT_S = 6.0  # a source that is silent gives up a read sooner


@dataclass(frozen=True)
class SourceLost:
    """No more frames come; from now on the source is opened again and again."""

    reason: str


@dataclass(frozen=True)
class SourceResumed:
    """Frames come again, `away_s` after the last."""

    away_s: float


class Capture:
    """An open source; use it in a `with` block, and iterate over it once, fast enough for its frames.

    `source` is a camera's index ("0", "/dev/video0"), an rtsp(s):// or http(s):// address, or a file. A source that has
    an end is played at its own pace, and its frames have its timestamps; other frames are stamped in seconds since the
    first, as they come.

    A dropout after the first frame does not end the iteration: it yields `SourceLost`, then `SourceResumed` when frames
    come again. `give_up_s` is how long to wait; None: forever.
    """

    def __init__(self, source: str, *, give_up_s: float | None = None) -> None:
        self._source = make_source(source)
        self.name = self._source.name
        self._give_up_s = give_up_s
        self._first: tuple[Image, float] | None = None
        self._lock = threading.Lock()  # for the source
        self._stop = threading.Event()

    def __enter__(self) -> "Capture":
        """Open the source, and read a first frame.

        Raises:
            VideoError: there is no such camera, address or file, or no video comes from it.
        """
        self._source.open()
        try:
            self._first = self._source.read()
            if self._first is None:
                raise VideoError(f"{self.name} gives not one picture: see whether another program can show it")
        except BaseException:
            self._source.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame | SourceLost | SourceResumed]:
        """The frames as they come, with dropouts in between; ends at a file's end, and with `close`.

        Raises:
            VideoError: a dropout lasted for `give_up_s`.
        """
        read, began_s = self._first, time.monotonic()
        self._first = None
        try:
            while True:
                yield from self._play(read, began_s)
                if self._stop.is_set() or self._source.is_over():
                    return
                ended_s = time.monotonic()
                yield SourceLost(f"no more frames come from {self.name}")
                if (read := self._reopen(ended_s)) is None:
                    return
                yield SourceResumed(time.monotonic() - ended_s)
        finally:
            self._source.close()

    def close(self) -> None:
        """Stop reading, and close the source. Any thread; the iteration ends."""
        self._stop.set()
        if self._lock.acquire(timeout=CLOSE_TIMEOUT_S):  # else who reads closes it
            self._source.close()
            self._lock.release()

    def _play(self, read: tuple[Image, float] | None, began_s: float) -> Iterator[Frame]:
        """From the frame that was read until none comes: each when it is to be shown."""
        zero_s = -math.inf  # when a frame stamped 0 was shown
        while read is not None and not self._stop.is_set():
            image, stamp_s = read
            if self._source.is_paced:
                early_s = zero_s + stamp_s - time.monotonic()
                if -LATE_S <= early_s <= MAX_WAIT_S:
                    self._stop.wait(max(early_s, 0.0))
                else:
                    zero_s = time.monotonic() - stamp_s
            yield Frame(image, stamp_s if self._source.has_end else time.monotonic() - began_s)
            with self._lock:
                read = None if self._stop.is_set() else self._source.read()

    def _reopen(self, ended_s: float) -> tuple[Image, float] | None:
        """The first frame after a dropout, however long it takes; None if `close` is called meanwhile.

        Raises:
            VideoError: it took too long.
        """
        pause_s = MIN_PAUSE_S
        while not self._stop.is_set():
            with self._lock:
                self._source.close()
                try:
                    self._source.open()
                    reason = f"{self.name} gives no picture"
                    if (read := self._source.read()) is not None:
                        return read
                except VideoError as exc:
                    reason = str(exc)
            away_s = time.monotonic() - ended_s
            if self._give_up_s is not None and away_s >= self._give_up_s:
                raise VideoError(f"given up after {away_s:.0f} s without a frame: {reason}")
            self._stop.wait(pause_s if self._give_up_s is None else min(pause_s, self._give_up_s - away_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return None
