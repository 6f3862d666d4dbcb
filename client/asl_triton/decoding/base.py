"""A video that gives its windows of crops one after another, wherever it is decoded."""

import io
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from asl_triton.errors import AslTritonError
from asl_triton.presets import Preset
from asl_triton.video.reader import Limits, Source
from asl_triton.video.windows import Window, WindowTiming


@dataclass(frozen=True)
class WindowingOptions:
    """How a video becomes windows. No window of a film crosses a shot. `refuses_early` trusts a container that declares
    too many frames."""

    preset: Preset
    limits: Limits
    is_film: bool = False
    refuses_early: bool = False


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video that is open before anything of it is decoded, as far as its container tells.

    `declared_frames` is 0 where the container does not tell; `crops_held` is how many crops are in memory at once while
    it is asked about.
    """

    num_bytes: int
    width: int
    height: int
    declared_frames: int
    crops_held: int


class DecodeSession(ABC):
    """One video on its way: `open` it, then ask for the `next_window` until it gives None, from one thread at a time.

    `close` it in the end. That never waits, may be done from any thread, and ends what another one is doing with it.
    `measures` are there once it is open. The other fields tell what has been read so far; `decode_s` is the time that
    `open` and `next_window` took, by the clock: waiting for a thread to call them in is not in it.
    """

    measures: VideoInfo

    def __init__(self, source: Source, cutting: WindowingOptions, name: str | None = None) -> None:
        self.name = format_source(source, name)
        self.num_frames = 0
        self.duration_s = 0.0
        self.share_read = 0.0  # 0 to 1; 0 where the container does not tell the length
        self.warnings: list[str] = []
        self.decode_s = 0.0
        self._source, self._cutting = source, cutting
        self._in_use = threading.Lock()
        self._is_over = False

    def open(self) -> VideoInfo:
        """Open the video.

        Raises:
            VideoError: it is none, or beyond a limit. AslTritonError: it was closed meanwhile.
        """
        with self._use():
            self.measures = self._open()
            return self.measures

    def next_window(self) -> tuple[Window, WindowTiming] | None:
        """The next window of crops and its place in time; None behind the last.

        Raises:
            VideoError: it cannot be decoded, or is beyond a limit. AslTritonError: it was closed meanwhile.
        """
        with self._use():
            return self._next_window()

    def windows(self) -> Iterator[tuple[Window, WindowTiming]]:
        """All windows, as `next_window` gives them."""
        while (window := self.next_window()) is not None:
            yield window

    def close(self) -> None:
        """Let go of the video, or have that done by the thread that is at it; whatever it does ends soon."""
        self._is_over = True
        self._interrupt()
        self._let_go_if_unused()

    def __enter__(self) -> "DecodeSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _use(self) -> Iterator[None]:
        try:
            with self._in_use:
                if self._is_over:
                    raise self._closed_error()
                began_s = time.perf_counter()
                try:
                    yield
                finally:
                    self.decode_s += time.perf_counter() - began_s
        finally:
            if self._is_over:
                self._let_go_if_unused()

    def _let_go_if_unused(self) -> None:
        if self._in_use.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._in_use.release()

    def _closed_error(self) -> AslTritonError:
        return AslTritonError(f"the decoding of {self.name} was given up")

    @abstractmethod
    def _open(self) -> VideoInfo: ...

    @abstractmethod
    def _next_window(self) -> tuple[Window, WindowTiming] | None: ...

    @abstractmethod
    def _interrupt(self) -> None:
        """Have what another thread does with it end; never waits."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close what is open. Called once or more, when no thread is at it."""


Reader = Callable[
    [Source, WindowingOptions, str | None], DecodeSession
]  # begins one, of a video that messages call by the name


def measure_stream(stream: BinaryIO) -> int:
    """How many bytes a stream has; it stays where it is."""
    at = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(at)
    return size


def format_source(source: Source, name: str | None) -> str:
    """What messages call a video."""
    return name or (str(Path(source)) if isinstance(source, str | os.PathLike) else "the video")
