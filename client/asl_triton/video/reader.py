"""Reads videos from files, bytes and streams: frames with their times, within limits."""

import io
import math
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

# FFmpeg writes to the terminal, and reads this when OpenCV first uses it. Our errors say what is wrong.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2

from asl_triton.errors import VideoError
from asl_triton.video.containers import detect_container, is_truncated

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO
Image = npt.NDArray[np.uint8]

EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
DECLARED_EXCESS = 1.1  # containers estimate their number of frames; decoding enforces the exact limit
DEFAULT_FRAME_RATE = 25.0  # frames per second, if a container has neither timestamps nor a rate


@dataclass(frozen=True)
class Limits:
    """What a video may have at most. Beyond it: `VideoError`."""

    max_bytes: int = 2 * 2**30
    max_frames: int = 200_000
    max_pixels: int = 7680 * 4320  # of one frame: 8K
    max_duration_s: float = math.inf


# For timelines: the file is streamed, and never in memory as a whole.
LONG_VIDEO_LIMITS = Limits(max_bytes=2**40, max_frames=2_000_000)


@dataclass(frozen=True)
class Frame:
    """One frame: `image` is uint8 BGR (H, W, 3), upright; `time_s` counts from the first frame."""

    image: Image
    time_s: float


@dataclass
class Video:
    """An open video: iterate over it once for its frames. Close it, or use it in a `with` block.

    It may be closed while another thread reads it, which ends the iteration after the current frame.
    """

    name: str
    capture: cv2.VideoCapture
    stream: BinaryIO  # that `capture` may read from; it crashes if this is closed first
    limits: Limits
    frame_rate: float
    declared_frames: int  # by the container, perhaps an estimate; 0 if it does not say
    is_cut: bool = False  # the file ends before its container says
    warnings: list[str] = field(default_factory=list)  # what went wrong without an error
    num_frames: int = 0  # read so far
    duration_s: float = 0.0  # of the frames read so far
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            VideoError: no frame can be decoded, or there are more than the limit.
        """
        time_s = -1 / self.frame_rate
        while (read := self._read()) is not None:
            image, stamp_s = read
            if self.num_frames == self.limits.max_frames:
                raise VideoError(
                    f"{self.name} has more than {self.limits.max_frames:,} frames, the limit: cut it shorter"
                )
            first = self.num_frames == 0
            # A frame without a timestamp, or with one that does not rise, follows the previous one at the usual rate.
            rises = math.isfinite(stamp_s) and (stamp_s > time_s or first)
            time_s = max(stamp_s, 0.0) if rises else time_s + 1 / self.frame_rate
            if time_s > self.limits.max_duration_s:
                raise _too_long_error(self.name, self.limits)
            self.num_frames += 1
            self.duration_s = time_s + 1 / self.frame_rate
            yield Frame(image, time_s)
        if self.num_frames == 0:
            what = "is cut off or damaged: not one frame of it can be decoded. Copy or record it again"
            raise VideoError(f"{self.name} {what}")
        if self.is_cut:
            self.warnings.append(f"cut off: the file ends too early, after {self.num_frames} frames that can be read")

    def _read(self) -> tuple[Image, float] | None:
        """The next frame, BGR, and its timestamp in seconds; None after the last."""
        with self._reading:
            try:
                more, image = self.capture.read()
            except cv2.error as exc:
                if exc.code == cv2.Error.StsNoMem:
                    raise VideoError(
                        f"{self.name} takes more memory to decode than there is: scale it down, or convert it"
                    ) from exc
                self.warnings.append(f"damaged: decoding stopped after frame {self.num_frames} ({exc.err})")
                return None
            if not more:
                return None
            return image.astype(np.uint8, copy=False), self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000

    @property
    def share_read(self) -> float:
        """How much of it was read, 0 to 1; 0 if its container does not say how long it is."""
        return min(self.num_frames / self.declared_frames, 1.0) if self.declared_frames else 0.0

    def close(self) -> None:
        """Release the decoder."""
        with self._reading:
            self.capture.release()
            self.stream.close()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_video(source: Source, limits: Limits | None = None, name: str | None = None) -> Video:
    """Open a video file, its bytes, or a binary file object. Frames are rotated as its metadata says.

    Messages call it `name`, by default its path.

    Raises:
        VideoError: there is no such file, it is not a video, has no video stream, or exceeds a limit.
    """
    limits = limits or Limits()
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = name or str(path)
        stream: BinaryIO = open_file(path, name)
    else:
        path = None
        name = name or "the video"
        stream = io.BytesIO(source.read(limits.max_bytes + 1) if hasattr(source, "read") else source)
    try:
        return open_stream(stream, path, name, limits)
    except BaseException:
        stream.close()
        raise


def read_frames_at(source: Source, times_s: Sequence[float], limits: Limits | None = None) -> list[Frame]:
    """Read the frames shown at these times, in the order given, in one pass that ends with the last of them.

    Times before the first frame get the first one, times after the last frame the last one.

    Raises:
        VideoError: as `open_video` does, or the video cannot be decoded.
    """
    shown: dict[int, Frame] = {}  # by the place in `times_s`
    waiting = sorted(range(len(times_s)), key=lambda place: times_s[place], reverse=True)  # the earliest last
    with open_video(source, limits) as video:
        for frame, after in pairwise(chain(video, [None])):
            while frame and waiting and (after is None or times_s[waiting[-1]] < after.time_s):
                shown[waiting.pop()] = frame
            if not waiting:
                break
    return [shown[place] for place in range(len(times_s))]


def open_file(path: Path, name: str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        VideoError: it cannot be read, or is not a regular file.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # raises if it may not be read, which is reported instead
            raise VideoError(f"{name} is a folder, not a video: `asl-triton batch` takes folders")
        if not stat.S_ISREG(mode):  # reading a pipe could wait forever
            raise VideoError(f"{name} is no regular file: name a video file")
        return path.open("rb")
    except FileNotFoundError as exc:
        if path.is_symlink():
            raise VideoError(f"{name} is a link to {os.readlink(path)}, which is not there") from exc
        raise VideoError(f"there is no file {name}") from exc
    except (OSError, ValueError) as exc:
        raise VideoError(f"cannot read {name}: {exc.strerror if isinstance(exc, OSError) else exc}") from exc


def open_stream(stream: BinaryIO, path: Path | None, name: str, limits: Limits) -> Video:
    """Open the video in `stream`, the file at `path` or bytes in memory if that is None. Raises as `open_video`."""
    size = stream.seek(0, io.SEEK_END)
    if size == 0:
        raise VideoError(f"{name} is empty (0 bytes): copy or record it again")
    if size > limits.max_bytes:
        raise VideoError(f"{name} is larger than {limits.max_bytes:,} bytes, the limit: cut or compress it first")
    container = detect_container(stream)
    if container is None:
        raise VideoError(
            f"{name} cannot be read as a video: it is something else. "
            f"Containers that are read: {', '.join(e.removeprefix('.') for e in EXTENSIONS)}"
        )
    cut = is_truncated(stream, container)
    stream.seek(0)
    capture = open_capture(stream, path)
    if not capture.isOpened():
        what = (
            "the file is cut off" if cut else "it is audio only, damaged, or coded in a way that FFmpeg does not know"
        )
        raise VideoError(f"{name} cannot be read as a video: {what}. Copy, record or convert it again")
    width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > limits.max_pixels:
        capture.release()
        raise VideoError(
            f"{name} is {width} x {height} pixels, beyond the limit of {limits.max_pixels:,}: scale it down first"
        )
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # off by default, contrary to OpenCV's documentation
    rate = capture.get(cv2.CAP_PROP_FPS)
    declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    frame_rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_FRAME_RATE
    declared_frames = int(declared) if math.isfinite(declared) and declared > 0 else 0
    if declared_frames / frame_rate > limits.max_duration_s * DECLARED_EXCESS:
        capture.release()
        raise _too_long_error(name, limits)
    return Video(
        name,
        capture,
        stream,
        limits,
        frame_rate=frame_rate,
        declared_frames=declared_frames,
        is_cut=cut,
    )


def _too_long_error(name: str, limits: Limits) -> VideoError:
    """The error for a video longer than `max_duration_s`."""
    return VideoError(f"{name} is longer than {limits.max_duration_s / 60:g} minutes, the limit: cut it shorter")


def open_capture(stream: BinaryIO, path: Path | None) -> cv2.VideoCapture:
    """OpenCV's decoder of a file or, if `path` is None, of a stream in memory."""
    cv2.setLogLevel(0)
    one_thread = [cv2.CAP_PROP_N_THREADS, 1]  # clips are decoded side by side
    if path is None:
        in_memory: Any = stream  # OpenCV accepts any such object, its stubs do not
        return cv2.VideoCapture(in_memory, cv2.CAP_FFMPEG, one_thread)
    file = str(path.absolute())  # so that FFmpeg does not take the name for a protocol or an option
    if any("\ud800" <= letter <= "\udfff" for letter in file):  # OpenCV crashes on names that are not UTF-8
        file = f"/dev/fd/{stream.fileno()}"
    return cv2.VideoCapture(file, cv2.CAP_FFMPEG, one_thread)
