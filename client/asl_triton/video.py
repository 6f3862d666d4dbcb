"""Video files, bytes and streams to timed frames, within limits."""

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.errors import VideoError

Source = str | os.PathLike[str] | bytes | BinaryIO
Image = npt.NDArray[np.uint8]

EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
DEFAULT_FRAME_RATE = 25.0  # frames per second, where a container gives neither timestamps nor a rate


@dataclass(frozen=True)
class Limits:
    """What a video may be. Beyond it: `VideoError`."""

    max_bytes: int = 2 * 2**30
    max_frames: int = 200_000
    max_pixels: int = 7680 * 4320  # of one frame: 8K


@dataclass(frozen=True)
class Frame:
    """One frame: `image` is uint8 BGR (H, W, 3), upright; `time_s` counts from the first frame."""

    image: Image
    time_s: float


@dataclass
class Video:
    """An open video; iterate over it once for its frames. Close it, or use it in a `with` block."""

    name: str
    capture: cv2.VideoCapture
    limits: Limits
    frame_rate: float
    declared_frames: int  # as the container says; 0 where it does not
    warnings: list[str] = field(default_factory=list)  # what went wrong without stopping the reading
    num_frames: int = 0  # read so far
    duration_s: float = 0.0  # of the frames read so far

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            VideoError: not one frame can be decoded, or more frames come than the limit.
        """
        time_s = -1 / self.frame_rate
        while True:
            try:
                more, image = self.capture.read()
            except cv2.error as exc:
                self.warnings.append(f"decoding stopped after frame {self.num_frames}: {exc.err}")
                break
            if not more or image is None:
                break
            if self.num_frames == self.limits.max_frames:
                raise VideoError(
                    f"{self.name} has more than {self.limits.max_frames} frames, the limit: cut it shorter"
                )
            stamp_s = self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            first = self.num_frames == 0
            # Without a timestamp, or with one that does not rise, a frame follows the one before at the usual rate.
            rises = math.isfinite(stamp_s) and (stamp_s > time_s or first)
            time_s = max(stamp_s, 0.0) if rises else time_s + 1 / self.frame_rate
            self.num_frames += 1
            self.duration_s = time_s + 1 / self.frame_rate
            yield Frame(as_bgr(image.astype(np.uint8, copy=False)), time_s)
        if self.num_frames == 0:
            raise VideoError(f"{self.name} has a video stream, but not one frame of it can be decoded: is it cut off?")
        missing = self.declared_frames - self.num_frames
        if missing > max(2, self.declared_frames // 50):  # some containers only estimate their length
            self.warnings.append(
                f"cut off or damaged: {self.num_frames} of {self.declared_frames} frames could be read"
            )

    def close(self) -> None:
        """Release the decoder."""
        self.capture.release()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def open_video(source: Source, limits: Limits | None = None, name: str | None = None) -> Video:
    """Open a video file, its bytes, or a binary file object; rotation metadata is honoured.

    `name` is what messages call it: the path if not given.

    Raises:
        VideoError: there is no such file, it is not a video, has no video stream, or is beyond a limit.
    """
    limits = limits or Limits()
    # FFmpeg speaks to the terminal; what it has to say becomes our error.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.setLogLevel(0)
    one_thread = [cv2.CAP_PROP_N_THREADS, 1]  # clips are decoded side by side
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        name = name or str(path)
        check_file(path, limits)
        # Absolute, so that FFmpeg takes no name for a protocol or an option.
        capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG, one_thread)
    else:
        data = source if isinstance(source, bytes) else source.read(limits.max_bytes + 1)
        name = name or "the video"
        check_size(name, len(data), limits)
        try:
            stream: Any = io.BytesIO(data)  # OpenCV's stubs want a class of its own, its code any such object
            capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, one_thread)
        except cv2.error as exc:
            raise VideoError(not_a_video(name)) from exc
    if not capture.isOpened():
        raise VideoError(not_a_video(name))
    width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > limits.max_pixels:
        capture.release()
        raise VideoError(
            f"{name} is {width} x {height} pixels, beyond the limit of {limits.max_pixels:,}: scale it down first"
        )
    rate = capture.get(cv2.CAP_PROP_FPS)
    declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return Video(
        name,
        capture,
        limits,
        frame_rate=rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_FRAME_RATE,
        declared_frames=int(declared) if math.isfinite(declared) and declared > 0 else 0,
    )


def check_file(path: Path, limits: Limits) -> None:
    """Refuse what is no readable file of an allowed size."""
    try:
        if path.is_dir():
            raise VideoError(f"{path} is a folder, not a video: `asl-triton batch` takes folders")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as exc:
        raise VideoError(f"there is no file {path}") from exc
    except (OSError, ValueError) as exc:
        raise VideoError(f"cannot read {path}: {exc.strerror if isinstance(exc, OSError) else exc}") from exc
    check_size(str(path), size, limits)


def check_size(name: str, size: int, limits: Limits) -> None:
    """Refuse no bytes, and too many."""
    if size == 0:
        raise VideoError(f"{name} is empty (0 bytes): copy or record it again")
    if size > limits.max_bytes:
        raise VideoError(f"{name} is larger than {limits.max_bytes:,} bytes, the limit: cut or compress it first")


def not_a_video(name: str) -> str:
    """The sentence for what no decoder opens."""
    return (
        f"{name} cannot be read as a video: it is audio only, cut off, damaged, or of another kind. "
        f"Containers that are read: {', '.join(e.removeprefix('.') for e in EXTENSIONS)}"
    )


def as_bgr(image: Image) -> Image:
    """Grey frames of some decoders as BGR."""
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR).astype(np.uint8, copy=False) if image.ndim == 2 else image
