"""Captures frames from a camera, an address or a file as they arrive, and waits out dropouts."""

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

MIN_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0  # before reopening a source that dropped out; doubles each time
LATE_S = 1.0  # behind its own pace: beyond this, it continues from there instead of catching up
MAX_WAIT_S = 60.0  # for a frame: a timestamp beyond this is broken
CLOSE_TIMEOUT_S = 6.0  # longer than a read from a silent source takes to give up


@dataclass(frozen=True)
class SourceLost:
    """Frames stopped. From now on, the source is reopened again and again."""

    reason: str


@dataclass(frozen=True)
class SourceResumed:
    """Frames are back, `away_s` after the last one."""

    away_s: float


class Capture:
    """An open source. Use it in a `with` block, and iterate over it once, fast enough to keep up with its frames.

    `source` is a camera's index ("0", "/dev/video0"), an rtsp(s):// or http(s):// address, or a file. A source that has
    an end is played at its own pace with its own timestamps. Other frames are stamped on arrival, in seconds since the
    first one.

    A dropout after the first frame does not end the iteration. It yields `SourceLost`, then `SourceResumed` once frames
    are back. `give_up_s` is how long to wait; None means forever.
    """

    def __init__(self, source: str, *, give_up_s: float | None = None) -> None:
        self._source = make_source(source)
        self.name = self._source.name
        self._give_up_s = give_up_s
        self._first: tuple[Image, float] | None = None
        self._lock = threading.Lock()  # for the source
        self._stop = threading.Event()

    def __enter__(self) -> "Capture":
        """Open the source and read the first frame.

        Raises:
            VideoError: the camera, address or file does not exist, or has no video.
        """
        self._source.open()
        try:
            self._first = self._source.read()
            if self._first is None:
                raise VideoError(f"{self.name} gives no picture: check whether another program can show it")
        except BaseException:
            self._source.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame | SourceLost | SourceResumed]:
        """Yield frames as they arrive, and dropouts. Ends at the end of a file, or when `close` is called.

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
                yield SourceLost(f"no more frames from {self.name}")
                if (read := self._reopen(ended_s)) is None:
                    return
                yield SourceResumed(time.monotonic() - ended_s)
        finally:
            self._source.close()

    def close(self) -> None:
        """Stop reading and close the source, which ends the iteration. Call from any thread."""
        self._stop.set()
        if self._lock.acquire(timeout=CLOSE_TIMEOUT_S):  # otherwise the reading thread closes it
            self._source.close()
            self._lock.release()

    def _play(self, read: tuple[Image, float] | None, began_s: float) -> Iterator[Frame]:
        """Yield each frame when it should be shown, starting with `read`, until there are no more."""
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
        """Wait for the first frame after a dropout. Returns None if `close` is called meanwhile.

        Raises:
            VideoError: the dropout lasted for `give_up_s`.
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
                raise VideoError(f"gave up after {away_s:.0f} s without a frame: {reason}")
            self._stop.wait(pause_s if self._give_up_s is None else min(pause_s, self._give_up_s - away_s))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        return None
