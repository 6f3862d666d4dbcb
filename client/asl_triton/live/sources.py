"""Sources of live frames: a camera, an address or a file. Each can be reopened."""

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
OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0  # no frame within READ_TIMEOUT_S is a dropout
PROBE_TIMEOUT_S = 2.0
END_MISSING_S = 1.0  # at the end of a remote video, since the container's duration may be an estimate
NO_LIMITS = Limits(max_bytes=2**62, max_frames=2**62)  # frames of a paced source are never held in memory
CAMERA = re.compile(r"(?:/dev/video)?(\d{1,4})")
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class FrameSource(Protocol):
    """A source of frames. `name` never contains a password."""

    name: str
    is_paced: bool  # frames arrive as fast as they are read; otherwise they arrive when they should be shown
    has_end: bool  # it is a whole video, whose timestamps are used

    def open(self) -> None:
        """Open or reopen the source. Raises `VideoError` with the reason."""

    def read(self) -> tuple[Image, float] | None:
        """Return the next frame (BGR) and its timestamp in seconds (NaN if not paced), or None if there is none."""

    def is_over(self) -> bool:
        """Return whether frames stopped because the video has ended."""

    def close(self) -> None:
        """Close the source."""


def make_source(source: str) -> FrameSource:
    """Create the source for a camera's index, an rtsp:// or http:// address, or a file.

    Raises:
        VideoError: the address is invalid or not supported.
    """
    if match := CAMERA.fullmatch(source):
        return CameraSource(int(match[1]))
    if ADDRESS.match(source):
        return UrlSource(source)
    return FileSource(source)


class FileSource:
    """A video file, played at its own pace from start to end."""

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
    """A camera of this machine, by index."""

    is_paced = has_end = False

    def __init__(self, index: int) -> None:
        self.name = f"camera {index}"
        self._index = index
        self._capture: cv2.VideoCapture | None = None

    def open(self) -> None:
        # Otherwise OpenCV writes to the terminal. From 4.13 on, this function is in `utils.logging`.
        getattr(cv2.utils, "logging", cv2).setLogLevel(0)
        is_linux = sys.platform == "linux"
        if is_linux and not Path(f"/dev/video{self._index}").exists():
            there = sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video*"))
            raise VideoError(
                f"camera {self._index} does not exist on this machine: "
                + (f"it has {', '.join(there)}" if there else "it has none; name a file or an address instead")
            )
        self._capture = cv2.VideoCapture(self._index, cv2.CAP_V4L2 if is_linux else cv2.CAP_ANY)
        if not self._capture.isOpened():
            raise VideoError(
                f"cannot open {self.name}: it does not take pictures, another program is using it, or you lack "
                "permission (on Linux, join the group `video`)"
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
    """A stream or a video by its address. Anything with an end is played at its own pace.

    Messages never contain the user, the password, or anything after a `?`. Options for FFmpeg may be set in the
    environment variable `OPENCV_FFMPEG_CAPTURE_OPTIONS`, as `name;value|name;value`. Without them, RTSP uses TCP.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        parts, self._place = parse_address(url)
        self.name = f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self.is_paced = self.has_end = False
        self._container: InputContainer | None = None
        self._frames: deque[av.VideoFrame] = deque()  # decoded but not read yet
        self._time_s = -math.inf
        self._seen_s = -math.inf  # time reached before reopening

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
        self.is_paced = self.has_end or urlsplit(self._url).path.endswith(".m3u8")  # whose segments arrive in bursts
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
        """Explain why the address did not open. FFmpeg does not say, so this tries to connect."""
        host, port = self._place
        try:
            socket.create_connection((host, port), PROBE_TIMEOUT_S).close()
        except socket.gaierror:
            return f"cannot open {self.name}: cannot resolve host {host}; check the address"
        except OSError:
            return f"cannot open {self.name}: no answer from {host}, port {port}; check the address and the network"
        return (
            f"cannot open {self.name}: {host} answers, but not with a video that FFmpeg can read; check the path, user "
            "and password"
        )


def parse_address(url: str) -> tuple[SplitResult, tuple[str, int]]:
    """Split an address into its parts, and its host and port.

    Raises:
        VideoError: the address is invalid or not supported.
    """
    user, at, _ = url.partition("://")[2].rpartition("@")
    if at and any(sign in user for sign in "/?#"):  # the rest of the password would be mistaken for the path, and shown
        raise VideoError("the user or password in the source's address contains /, ? or #: write %2F, %3F or %23")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme, 0)
    except ValueError as exc:  # its text may contain the password
        raise VideoError("the source's address has no readable host and port: write rtsp://host:port/path") from exc
    if parts.scheme not in PORTS:
        kinds = ", ".join(f"{scheme}://" for scheme in PORTS)
        raise VideoError(f"{parts.scheme}:// is not supported: use {kinds}, a camera's index or a file's path")
    if not host:
        raise VideoError(f"the source's address has no host: write {parts.scheme}://host/path")
    return parts, (host, port)


def read_image(capture: cv2.VideoCapture | None) -> Image | None:
    """Read the next picture (BGR). Returns None if there is none."""
    try:
        more, image = capture.read() if capture is not None else (False, None)
    except cv2.error:
        return None
    return np.asarray(image, np.uint8) if more and image is not None else None


def read_stream_options() -> dict[str, str]:
    """Read FFmpeg's options for streams from the environment."""
    text = os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")
    return dict(option.split(";", 1) for option in text.split("|") if ";" in option)
