"""Where live frames come from: a camera, an address, or a file; each opened, and opened again."""

import math
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

import cv2
import numpy as np

from asl_triton.errors import VideoError
from asl_triton.video.reader import DEFAULT_FRAME_RATE, Frame, Image, Limits, Video, open_video

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
OPEN_TIMEOUT_MS, READ_TIMEOUT_MS = 10_000, 5_000  # silence for longer than the second is a dropout
PROBE_TIMEOUT_S = 2.0
END_MISSING_S = 1.0  # of a video by address: what is missing at its end may be the container's estimate
NO_LIMITS = Limits(max_bytes=2**62, max_frames=2**62)  # what is played at its own pace is never held
CAMERA = re.compile(r"(?:/dev/video)?(\d{1,4})")
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class FrameSource(Protocol):
    """A source of frames. `name` holds no password."""

    name: str
    is_paced: bool  # it gives frames as fast as they are read; else they come when they are to be shown
    has_end: bool  # it is a whole video, whose timestamps count

    def open(self) -> None:
        """Open it, again too. Raises `VideoError` with the reason."""

    def read(self) -> tuple[Image, float] | None:
        """The next frame, BGR, and its timestamp in seconds, which a paced feed has; None where none comes."""

    def is_over(self) -> bool:
        """Whether none came because that was all."""

    def close(self) -> None:
        """Let go of it."""


def make_source(source: str) -> FrameSource:
    """The feed that a source names: a camera's index, an rtsp:// or http:// address, or a file.

    Raises:
        VideoError: an address of another kind, or of no kind.
    """
    if match := CAMERA.fullmatch(source):
        return CameraSource(int(match[1]))
    if ADDRESS.match(source):
        return UrlSource(source)
    return FileSource(source)


class FileSource:
    """A video file, played at its own pace, from its beginning to its end."""

    is_paced = has_end = True

    def __init__(self, path: str) -> None:
        self.name = path
        self._video: Video | None = None
        self._frames: Iterator[Frame] = iter(())

    def open(self) -> None:
        self._video = open_video(self.name, NO_LIMITS)
        self._frames = iter(self._video)

    def read(self) -> tuple[Image, float] | None:
        frame = next(self._frames, None)
        return None if frame is None else (frame.image, frame.time_s)

    def is_over(self) -> bool:
        return True

    def close(self) -> None:
        if self._video is not None:
            self._video.close()


class CameraSource:
    """A camera of this machine, by its index."""

    is_paced = has_end = False

    def __init__(self, index: int) -> None:
        self.name = f"camera {index}"
        self._index = index
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        silence_ffmpeg()
        is_linux = sys.platform == "linux"
        if is_linux and not Path(f"/dev/video{self._index}").exists():
            there = sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video*"))
            raise VideoError(
                f"there is no camera {self._index} on this machine: "
                + (f"it has {', '.join(there)}" if there else "it has none; name a file or an address instead")
            )
        self._capture = cv2.VideoCapture(self._index, cv2.CAP_V4L2 if is_linux else cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise VideoError(
                f"{self.name} cannot be opened: it is no camera that takes pictures, another program has it, or you "
                "may not use it (on Linux: be in the group `video`)"
            )

    def read(self) -> tuple[Image, float] | None:
        image = read_image(self._capture)
        return None if image is None else (image, math.nan)

    def is_over(self) -> bool:
        return False

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()


class UrlSource:
    """A stream or a video by its address. What of it has an end is played at its own pace.

    User, password and what follows a `?` are in no message. FFmpeg's own options are read from
    `OPENCV_FFMPEG_CAPTURE_OPTIONS`, as OpenCV documents; without them RTSP goes over TCP where the camera can.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        parts, self._place = parse_address(url)
        self.name = f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.is_paced = self.has_end = False
        self._capture: cv2.VideoCapture | None = None
        self._time_s = -math.inf
        self._frame_rate = DEFAULT_FRAME_RATE
        self._declared_s = 0.0
        self._seen_s = -math.inf  # shown before it was opened again

    def open(self) -> None:
        silence_ffmpeg()
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
        one_thread = [cv2.CAP_PROP_N_THREADS, 1]  # several hold a frame back each
        self._capture = cv2.VideoCapture(self._url, cv2.CAP_FFMPEG, timeouts + one_thread)
        if not self._capture.isOpened():
            raise VideoError(self._why_not())
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self._frame_rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else DEFAULT_FRAME_RATE
        self._declared_s = count / self._frame_rate if math.isfinite(count) and count > 0 else 0.0
        self.has_end = self._declared_s > 0
        self.is_paced = self.has_end or urlsplit(self._url).path.endswith(".m3u8")  # whose segments come at once
        self._seen_s, self._time_s = self._time_s, -math.inf

    def read(self) -> tuple[Image, float] | None:
        while (image := read_image(self._capture)) is not None:
            assert self._capture is not None
            stamp_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            is_first = self._time_s == -math.inf
            rises = math.isfinite(stamp_s) and (is_first or stamp_s > self._time_s)
            self._time_s = stamp_s if rises else (0.0 if is_first else self._time_s + 1 / self._frame_rate)
            if not self.has_end or self._time_s > self._seen_s:
                return image, self._time_s
        return None

    def is_over(self) -> bool:
        return self.has_end and self._time_s + 1 / self._frame_rate > self._declared_s - END_MISSING_S

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()

    def _why_not(self) -> str:
        """FFmpeg does not say; whether anybody is there, a look tells."""
        host, port = self._place
        try:
            socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
        except socket.gaierror:
            return f"{self.name} cannot be opened: there is no host {host}; check the address"
        except OSError:
            return f"{self.name} cannot be opened: nobody answers at {host}, port {port}; check address and network"
        return (
            f"{self.name} cannot be opened: {host} answers, but with no video that FFmpeg knows; check path, user and "
            "password"
        )


def parse_address(url: str) -> tuple[SplitResult, tuple[str, int]]:
    """An address in its parts, and the host and port that it leads to.

    Raises:
        VideoError: it is of another kind than can be watched, or cannot be read.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as exc:  # whose text may hold what is between // and @
        raise VideoError("the source's address has no readable host and port: write rtsp://host:port/path") from exc
    if parts.scheme not in PORTS:
        kinds = ", ".join(f"{scheme}://" for scheme in PORTS)
        raise VideoError(f"{parts.scheme}:// cannot be watched: name {kinds}, a camera's index or a file's path")
    if not host:
        raise VideoError(f"the source's address names no host: write {parts.scheme}://host/path")
    return parts, (host, port)


def read_image(capture: cv2.VideoCapture | None) -> Image | None:
    """The next picture, BGR; None where none comes."""
    try:
        more, image = capture.read() if capture is not None else (False, None)
    except cv2.error:
        return None
    return np.asarray(image, np.uint8) if more and image is not None else None


def silence_ffmpeg() -> None:
    """OpenCV and FFmpeg speak to the terminal, addresses with their passwords too; what they say becomes our error."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.setLogLevel(0)
