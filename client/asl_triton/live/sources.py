"""Where live frames come from: a camera, an address, or a file; each opened, and opened again."""

import math
import os
import re
import socket
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

import av
import cv2
import numpy as np
from av.container import InputContainer

from asl_triton.decoding.factory import FrameReader, open_frames
from asl_triton.errors import VideoError
from asl_triton.video.colors import FrameConverter, Image
from asl_triton.video.decoder import FrameDecoder, limit_pixels
from asl_triton.video.reader import Frame, Limits, read_frame_rate

PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0  # silence for longer than the second is a dropout
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
        self._video: FrameReader | None = None
        self._frames: Iterator[Frame] = iter(())

    def open(self) -> None:
        self._video = open_frames(self.name, NO_LIMITS)
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
        cv2.setLogLevel(0)  # OpenCV writes to the terminal
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

    User, password and what follows a `?` are in no message. FFmpeg's options may be set in the environment variable
    `OPENCV_FFMPEG_CAPTURE_OPTIONS`, as `name;value|name;value`; without them RTSP goes over TCP.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        parts, self._place = parse_address(url)
        self.name = f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.is_paced = self.has_end = False
        self._container: InputContainer | None = None
        self._frames: deque[av.VideoFrame] = deque()  # decoded and not read yet
        self._time_s = -math.inf
        self._seen_s = -math.inf  # shown before it was opened again

    def open(self) -> None:
        try:
            self._container = av.open(
                self._url,
                mode="r",
                options={**limit_pixels(NO_LIMITS.max_pixels), **read_stream_options()},
                metadata_errors="ignore",
                timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S),
            )
        except (av.FFmpegError, OSError) as exc:
            raise VideoError(self._why_not()) from exc
        self._decoder = FrameDecoder(self._container, self.name, NO_LIMITS.max_pixels)
        self._convert = FrameConverter().convert
        self._frames.clear()
        self._frame_s = 1 / read_frame_rate(self._decoder.stream)
        self._start_s = (self._container.start_time or 0) / av.time_base
        self._declared_s = max(self._container.duration or 0, 0) / av.time_base
        self.has_end = self._declared_s > 0
        self.is_paced = self.has_end or urlsplit(self._url).path.endswith(".m3u8")  # whose segments come at once
        self._seen_s, self._time_s = self._time_s, -math.inf

    def read(self) -> tuple[Image, float] | None:
        while True:
            while not self._frames:
                if self._container is None or (frames := self._decoder.decode_next()) is None:
                    return None
                self._frames += frames
            frame = self._frames.popleft()
            stamp_s = math.nan if frame.time is None else frame.time - self._start_s
            is_first = self._time_s == -math.inf
            rises = stamp_s > self._time_s
            self._time_s = stamp_s if rises else (0.0 if is_first else self._time_s + self._frame_s)
            if not self.has_end or self._time_s > self._seen_s:
                return self._convert(frame), self._time_s

    def is_over(self) -> bool:
        return self.has_end and self._time_s + self._frame_s > self._declared_s - END_MISSING_S

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            self._frames.clear()
            container.close()

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
    user, at, _ = url.partition("://")[2].rpartition("@")
    if at and any(sign in user for sign in "/?#"):  # the rest of the password would be taken for the path, and shown
        raise VideoError("the user or password in the source's address holds a /, ? or #: write %2F, %3F or %23")
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


def read_stream_options() -> dict[str, str]:
    """FFmpeg's options for streams, from the environment."""
    text = os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    return dict(option.split(";", 1) for option in text.split("|") if ";" in option)
