"""Reads videos from files, bytes and streams with FFmpeg through PyAV, within limits: frames and their times."""

import io
import math
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from asl_triton.errors import VideoError
from asl_triton.results import ShotBox, SignerBox
from asl_triton.video.colors import FrameConverter, Image
from asl_triton.video.containers import is_truncated
from asl_triton.video.decoder import FrameDecoder, limit_pixels
from asl_triton.video.timestamps import assign_times

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# The extensions of a folder's videos, and the containers that are read, by FFmpeg's names. Others do not reach a
# demuxer, because FFmpeg also opens playlists and session descriptions, which refer to other files and hosts.
EXTENSIONS = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".3gp", ".3g2", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".vob", ".wmv", ".asf", ".flv", ".ogv", ".gif", ".mxf", ".dv"),
)
FORMATS = "mov,matroska,avi,mpegts,mpeg,asf,flv,ogg,gif,mxf,dv"
READ_BYTES = 2**18  # at once
DECLARED_EXCESS = 1.1  # tolerated at first, since containers estimate their length; decoding enforces the exact limit
DEFAULT_FRAME_RATE = 25.0  # frames per second, if a container has neither timestamps nor a rate
MAX_FRAME_RATE = 1000.0  # higher rates in a container are nonsense
MAX_GUESSED_FRAME_RATE = 240.0  # FFmpeg guesses the clock's rate if a container has none
MUCH_LOST = 0.1  # share of lost frames above which the answer may be wrong
HDR = {16: "PQ", 18: "HLG"}  # transfer functions (ITU-T H.273)


@dataclass(frozen=True)
class Limits:
    """Upper limits for a video. A video that exceeds one raises `VideoError`."""

    max_bytes: int = 2 * 2**30
    max_frames: int = 200_000
    max_pixels: int = 7680 * 4320  # of one frame: 8K
    max_duration_s: float = math.inf


# For timelines, which stream the file and never hold all of it in memory.
LONG_VIDEO_LIMITS = Limits(max_bytes=2**40, max_frames=2_000_000)


@dataclass(frozen=True)
class Frame:
    """One frame: `image` is uint8 BGR (H, W, 3), upright; `time_s` counts from the start of the file."""

    image: Image
    time_s: float


class Video:
    """An open video: iterate over it once for its frames. Close it, or use it in a `with` block.

    It may be closed while another thread reads it, which ends the iteration after the current frame.

    `declared_frames` is the number, or an estimate, that the container declares; 0 if it does not. `num_frames` and
    `duration_s` describe what was read so far. After the iteration, `lost_frames` is the number of frames that could
    not be decoded, and `warnings` lists problems that did not raise an error.
    """

    def __init__(
        self, name: str, container: InputContainer, stream: BinaryIO, num_bytes: int, limits: Limits, is_cut: bool
    ) -> None:
        self.name, self.num_bytes, self.limits = name, num_bytes, limits
        self.warnings: list[str] = []
        self.num_frames = self.lost_frames = 0
        self.signer: SignerBox | None = None  # set if a clip's frames are cropped to the signer
        self.shot_boxes: list[ShotBox] = []  # of a film, one per shot as it is read
        self.duration_s = 0.0
        self._container, self._stream, self._is_cut = container, stream, is_cut
        self._decoder = FrameDecoder(container, name, limits.max_pixels)
        self._video = video = self._decoder.stream
        self.width, self.height = video.codec_context.width, video.codec_context.height
        self._check_size(self.width, self.height)
        self.frame_rate = read_frame_rate(video)
        self._unit_s = float(video.time_base or 0)
        # AVI has no presentation times. Those that FFmpeg makes up start late if frames are reordered.
        is_timed = container.start_time is not None and container.format.name != "avi"
        self._start_s = container.start_time / av.time_base if is_timed else None
        self._declared_s = max(container.duration or 0, 0) / av.time_base
        estimate = round(self._declared_s * self.frame_rate) if video.average_rate else 0
        self.declared_frames = video.frames or estimate
        self._convert = FrameConverter().convert
        self._first_s = 0.0
        self._transfer = 0
        self._reading, self._is_closed = threading.Lock(), False

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order. Frames that cannot be decoded are skipped and counted.

        Raises:
            VideoError: no frame can be decoded, or a limit is exceeded.
        """
        frame_s = 1 / self.frame_rate
        for frame, time_s in assign_times(self._decode(), frame_s, self._declared_s or math.inf):
            if self.num_frames == self.limits.max_frames:
                raise VideoError(
                    f"{self.name} has more than {self.limits.max_frames:,} frames, the limit: cut it shorter"
                )
            if time_s > self.limits.max_duration_s:
                raise _too_long_error(self.name, self.limits)
            if self.num_frames == 0:
                self._first_s = time_s
            self.num_frames += 1
            self.duration_s = time_s + frame_s
            try:
                image = self._convert(frame)
            except MemoryError as exc:
                raise _memory_error(self.name) from exc
            yield Frame(image, time_s)
        if self._is_closed:
            return
        if self.num_frames == 0:
            large = "" if self.width else f", or its frames are beyond the limit of {self.limits.max_pixels:,} pixels"
            raise VideoError(
                f"{self.name} is cut off or damaged: none of its frames can be decoded{large}. Copy or record it again"
            )
        self.lost_frames = self._decoder.num_lost
        self.warnings += self._describe_faults()

    def _decode(self) -> Iterator[tuple[av.VideoFrame, float | None]]:
        """Yield the frames that can be decoded, in display order, each with its timestamp in seconds."""
        while True:
            try:
                with self._reading:
                    frames = None if self._is_closed else self._decoder.decode_next()
            except MemoryError as exc:
                raise _memory_error(self.name) from exc
            if frames is None:
                return
            for frame in frames:
                self._check_size(frame.width, frame.height)
                self._transfer = frame.color_trc
                stamp = frame.dts if frame.pts is None else frame.pts
                if stamp is None:
                    yield frame, None
                    continue
                if self._start_s is None:
                    self._start_s = stamp * self._unit_s
                yield frame, max(stamp * self._unit_s - self._start_s, 0.0)

    def _describe_faults(self) -> Iterator[str]:
        """Yield warnings about a video that was read to its end."""
        if self._is_cut:
            yield f"cut off: the file ends too early, after {self.num_frames} readable frames"
        elif self.lost_frames:
            total = self.lost_frames + self.num_frames
            text = f"damaged: {self.lost_frames} of {total} frames could not be decoded"
            begins_s = (self._video.start_time or 0) * self._unit_s - (self._start_s or 0.0)
            if self._first_s - begins_s > 1.5 / self.frame_rate:
                text += f", including the first {self._first_s - begins_s:.1f} s"
            yield text + (", so the answer may be wrong" if self.lost_frames > MUCH_LOST * total else "")
        if self._decoder.is_interlaced:
            yield "interlaced: moving hands show comb lines; deinterlace it first (ffmpeg -vf bwdif)"
        if self._transfer in HDR:
            yield f"HDR ({HDR[self._transfer]}): colors look pale without tone mapping; convert it to SDR first"

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            raise VideoError(
                f"{self.name} is {width} x {height} pixels, beyond the limit of {self.limits.max_pixels:,}: "
                "scale it down first"
            )

    @property
    def is_damaged(self) -> bool:
        """Whether frames could not be decoded or the file ends too early. Known after the iteration."""
        return self._is_cut or self.lost_frames > 0

    @property
    def share_read(self) -> float:
        """The share of the video that was read so far, 0 to 1; 0 if the container does not declare a length."""
        return min(self.num_frames / self.declared_frames, 1.0) if self.declared_frames else 0.0

    def close(self) -> None:
        """Release the decoder."""
        with self._reading:
            self._is_closed = True
            self._container.close()
            self._stream.close()

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_video(source: Source, limits: Limits | None = None, name: str | None = None) -> Video:
    """Open a video file, its bytes, or a binary file object. Frames are upright.

    Messages call it `name`, by default its path.

    Raises:
        VideoError: the file is missing, is not a video, has no video stream, or exceeds a limit.
    """
    limits = limits or Limits()
    if isinstance(source, str | os.PathLike):
        name = name or str(Path(source))
        stream: BinaryIO = open_file(Path(source), name)
    else:
        name = name or "the video"
        stream = io.BytesIO(source.read(limits.max_bytes + 1) if hasattr(source, "read") else source)
    try:
        return open_stream(stream, name, limits)
    except BaseException:
        stream.close()
        raise


def open_file(path: Path, name: str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        VideoError: it cannot be read, or is not a regular file.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # raises if it is not readable, which is reported instead
            raise VideoError(f"{name} is a folder, not a video: `asl-triton batch` takes folders")
        if not stat.S_ISREG(mode):  # reading a pipe could block forever
            raise VideoError(f"{name} is not a regular file: name a video file")
        return path.open("rb")
    except FileNotFoundError as exc:
        if path.is_symlink():
            raise VideoError(f"{name} is a link to {os.readlink(path)}, which does not exist") from exc
        raise VideoError(f"there is no file {name}") from exc
    except (OSError, ValueError) as exc:
        raise VideoError(f"cannot read {name}: {exc.strerror if isinstance(exc, OSError) else exc}") from exc


def open_stream(stream: BinaryIO, name: str, limits: Limits) -> Video:
    """Open the video in a stream. Raises the same errors as `open_video`."""
    size = stream.seek(0, io.SEEK_END)
    if size == 0:
        raise VideoError(f"{name} is empty (0 bytes): copy or record it again")
    if size > limits.max_bytes:
        raise VideoError(f"{name} is larger than {limits.max_bytes:,} bytes, the limit: cut or compress it first")
    is_cut = is_truncated(stream)
    stream.seek(0)
    try:
        container = av.open(
            stream,
            mode="r",
            # No protocols and no other containers, so that nothing but the stream is read.
            options={**limit_pixels(limits.max_pixels), "format_whitelist": FORMATS, "protocol_whitelist": "none"},
            metadata_errors="ignore",
            buffer_size=READ_BYTES,
        )
    except av.FFmpegError as exc:
        what = (
            "the file is cut off. Copy or record it again"
            if is_cut
            else "it is something else, or its beginning is damaged. Supported containers: "
            + ", ".join(extension.removeprefix(".") for extension in EXTENSIONS)
        )
        raise VideoError(f"{name} cannot be read as a video: {what}") from exc
    except OSError as exc:
        raise VideoError(f"cannot read {name}: {exc.strerror}") from exc
    try:
        video = Video(name, container, stream, size, limits, is_cut)
        if video.declared_frames / video.frame_rate > limits.max_duration_s * DECLARED_EXCESS:
            raise _too_long_error(name, limits)
        return video
    except BaseException:
        container.close()
        raise


def read_frame_rate(video: VideoStream) -> float:
    """Return the frames per second that the container declares or FFmpeg guesses."""
    for rate, most in ((video.average_rate, MAX_FRAME_RATE), (video.guessed_rate, MAX_GUESSED_FRAME_RATE)):
        if rate is not None and 0 < rate <= most:
            return float(rate)
    return DEFAULT_FRAME_RATE


def _too_long_error(name: str, limits: Limits) -> VideoError:
    """Build the error for a video longer than `max_duration_s`."""
    return VideoError(f"{name} is longer than {limits.max_duration_s / 60:g} minutes, the limit: cut it shorter")


def _memory_error(name: str) -> VideoError:
    return VideoError(f"{name} takes more memory to decode than is available: scale it down, or convert it")
