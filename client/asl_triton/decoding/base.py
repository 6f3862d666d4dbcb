"""One video, opened and read window by window, whichever process decodes it."""

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError
from asl_triton.presets import Preset
from asl_triton.results import ShotBox, SignerBox
from asl_triton.video.excerpt import Excerpt
from asl_triton.video.reader import Limits, Source, Video
from asl_triton.video.windows import Window, WindowTiming

WINDOWS_AHEAD = 4  # of one clip, asked about at once: a long video is never held whole


@dataclass(frozen=True)
class WindowingOptions:
    """How a video becomes windows.

    In a film, no window crosses a cut. `refuses_early` believes a container that declares too many frames. `signer` is
    where the signer is; `finds_signer` looks for the signer of a clip, or of each shot of a film, where that is not
    known. `excerpt` is the part of the video that is decoded.
    """

    preset: Preset
    limits: Limits
    is_film: bool = False
    refuses_early: bool = False
    signer: SignerBox | None = None
    finds_signer: bool = False
    excerpt: Excerpt | None = None


@dataclass(frozen=True)
class VideoInfo:
    """What is known about an open video before any of it is decoded.

    `declared_frames` is 0 where the container does not say. `crops_held` is how many crops are in memory at once while
    the server is asked about the video.
    """

    num_bytes: int
    width: int
    height: int
    declared_frames: int
    crops_held: int


class DecodeSession(ABC):
    """One video: `open` it, call `next_window` until it returns None, from one thread at a time, then `close` it.

    `close` never waits, may be called from any thread, and soon ends whatever another thread is doing with the video.
    `measures` is set by `open`. The other fields say what has been read so far; `decode_s` is the time spent in `open`
    and `next_window`, by the clock, without the time spent waiting for a thread to call them.
    """

    measures: VideoInfo

    def __init__(self, source: Source, options: WindowingOptions, name: str | None = None) -> None:
        self.name = format_source(source, name)
        self.num_frames = 0
        self.lost_frames = 0  # that could not be decoded; known after the last window
        self.duration_s = 0.0
        self.share_read = 0.0  # 0 to 1; 0 where the container does not say how long the video is
        self.warnings: list[str] = []
        self.decode_s = 0.0
        self.options = options
        self._source = source
        # The box that a clip's crops are cut out of, once the first is decoded; None for whole frames.
        self.signer: SignerBox | None = None
        self.shot_boxes: list[ShotBox] = []  # those of a film's shots so far
        self._windows: Iterator[tuple[Window, WindowTiming]] = iter(())
        self._in_use = threading.Lock()
        self._is_closed = False

    def open(self) -> VideoInfo:
        """Open the video.

        Raises:
            VideoError: it is not a video, or is beyond a limit. AslTritonError: the session was closed meanwhile.
        """
        with self._use():
            self.measures, self._windows = self._open()
            return self.measures

    def next_window(self) -> tuple[Window, WindowTiming] | None:
        """The next window of crops and its place in time; None after the last.

        Raises:
            VideoError: it cannot be decoded, or is beyond a limit. AslTritonError: the session was closed meanwhile.
        """
        with self._use():
            return next(self._windows, None)

    def windows(self) -> Iterator[tuple[Window, WindowTiming]]:
        """All windows, as `next_window` returns them."""
        return iter(self.next_window, None)

    def close(self) -> None:
        """Release the video, or leave that to the thread that uses it, which is interrupted."""
        self._is_closed = True
        self._interrupt()
        self._release_if_unused()

    def __enter__(self) -> "DecodeSession":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _use(self) -> Iterator[None]:
        try:
            with self._in_use:
                if self._is_closed:
                    raise closed_error(self.name)
                began_s = time.perf_counter()
                try:
                    yield
                finally:
                    self.decode_s += time.perf_counter() - began_s
        finally:
            if self._is_closed:
                self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._in_use.acquire(blocking=False):
            try:
                self._windows = iter(())
                self._release()
            finally:
                self._in_use.release()

    @abstractmethod
    def _open(self) -> tuple[VideoInfo, Iterator[tuple[Window, WindowTiming]]]: ...

    @abstractmethod
    def _interrupt(self) -> None:
        """Make another thread's use of the video end soon; never waits."""

    @abstractmethod
    def _release(self) -> None:
        """Close what is open. Called when no thread uses it, perhaps more than once."""


def closed_error(name: str) -> AslTritonError:
    """The error for a video that was closed while it was read."""
    return AslTritonError(f"the decoding of {name} was given up")


def estimate_crops_held(video: Video, preset: Preset) -> int:
    """How many crops of a clip are in memory at once while it is asked about, by the length its container declares."""
    if preset.frames == "centered":
        return min(video.declared_frames or preset.max_centered_frames, preset.max_centered_frames)
    most = max(preset.max_frames, WINDOWS_AHEAD * preset.window_frames)
    if video.declared_frames == 0:
        return most
    crops = video.declared_frames * (preset.frame_rate / video.frame_rate if preset.frame_rate else 1)
    least = preset.min_frames
    if preset.frames == "window":
        least = preset.window_frames
        if crops > preset.window_frames:
            crops *= preset.window_frames / preset.stride_frames  # windows overlap
    return min(math.ceil(max(crops, least)), most)


def format_source(source: Source, name: str | None) -> str:
    """What messages call a video."""
    return name or (str(Path(source)) if isinstance(source, str | os.PathLike) else "the video")
