"""Decoding in a process of its own: what a video does to the decoder, it does to that video alone.

A video that crashes FFmpeg, that never ends or that wants all memory costs its own process, which lives for one video
and starts in milliseconds (see `decoder_process.py`). Linux only.
"""

import fcntl
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from asl_triton.clips import Span, Window
from asl_triton.decoder_process import CROP_SHAPE, ENDED, GO_ON, DecoderLimits, crops_in
from asl_triton.errors import AslTritonError, ServerError, VideoError
from asl_triton.presets import Preset
from asl_triton.video import Image

MAX_MESSAGE_BYTES = 2**20  # of JSON
# A decoder hangs that says no word for so many times the seconds of computing it may take: busy machines are slower.
STALLED_AFTER, STALLED_AFTER_AT_LEAST_S = 5, 30


class Decoders:
    """Starts decoders. Threads may share it. Nothing runs before the first, or `warm_up`; close it at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None

    def start(self, video: bytes, preset: Preset, limits: DecoderLimits, name: str = "the video") -> "Decoding":
        """Begin to decode a video file's bytes as `preset` says; close what is returned.

        Raises:
            VideoError: more bytes than the limit.
        """
        if len(video) > limits.video.max_bytes:
            raise VideoError(
                f"{name} is larger than {limits.video.max_bytes:,} bytes, the limit: cut or compress it first"
            )
        connection, theirs = socket.socketpair()
        status, told = socket.socketpair()
        memory, shared = shared_crops(preset.max_frames)
        with theirs, told, self._lock:
            files = [theirs.fileno(), told.fileno(), memory]
            try:
                socket.send_fds(self._ready(), [b"."], files)
            except OSError:  # the server has died since the last video
                self._let_go()
                socket.send_fds(self._ready(), [b"."], files)
            finally:
                os.close(memory)
        decoding = Decoding(name, limits, shared, Connection(connection.detach()), status)
        decoding.send(preset.to_json().encode(), limits.to_json().encode(), name.encode(), video)
        return decoding

    def warm_up(self) -> None:
        """Start the server of decoders, for which the first video would wait otherwise."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """End the server, and with it whatever still decodes."""
        with self._lock:
            self._let_go()

    def _ready(self) -> socket.socket:
        """The way to the server, which is started where it does not run."""
        if self._server is not None and self._server.poll() is not None:
            self._let_go()
        if self._control is None:
            self._control, theirs = socket.socketpair()
            # Not of the interpreter that this may be embedded in: Triton's has a build and modules of its own.
            python = sys.executable or shutil.which("python3") or "python3"
            with theirs:
                self._server = subprocess.Popen(
                    [python, "-m", "asl_triton.decoder_process", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # One thread, so that it can be forked; and none of its memory kept for later.
                    env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                )
        return self._control

    def _let_go(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._control = self._server = None


def shared_crops(count: int) -> tuple[int, Image]:
    """Memory for so many crops as a file that a decoder may write to and nobody can resize, and the crops in it."""
    memory = os.memfd_create("crops", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(memory, count * math.prod(CROP_SHAPE))  # takes memory as it is written to
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory, crops_in(memory)


class Decoding:
    """One video on its way: `crops_held`, then `next_window` until it gives None. From one thread at a time.

    It may be ended and closed from another thread. The fields are those of `Video`.
    """

    def __init__(
        self, name: str, limits: DecoderLimits, shared: Image, connection: Connection, status: socket.socket
    ) -> None:
        self.name = name
        self.num_frames = 0
        self.duration_s = 0.0
        self.warnings: list[str] = []
        self._limits, self._shared, self._connection, self._status = limits, shared, connection, status
        self._in_use = threading.Lock()

    def send(self, *parts: bytes) -> None:
        """Hand over what is to be decoded, and how; a decoder that is not there to take it is told of later."""
        with self._in_use, suppress(OSError):
            for part in parts:
                self._connection.send_bytes(part)

    def crops_held(self) -> int:
        """Open the video: how many crops its decoding will hold at once, as far as the container tells.

        Raises:
            VideoError: it is none, or beyond a limit. ServerError: the decoding was interrupted.
        """
        with self._in_use:
            return int(self._message()["crops"])

    def next_window(self) -> tuple[Window, Span] | None:
        """The next window of crops and its place in time; None behind the last.

        Raises:
            VideoError: it cannot be decoded, or is beyond a limit. ServerError: the decoding was interrupted.
        """
        with self._in_use:
            with suppress(OSError):
                self._connection.send_bytes(GO_ON)
            message = self._message()
            self.num_frames, self.duration_s = int(message["num_frames"]), float(message["duration_s"])
            self.warnings = [str(warning) for warning in message["warnings"]]
            if "edges_s" not in message:
                return None
            start, length = int(message["start"]), int(message["length"])
            if not 0 < length <= len(self._shared):
                raise ValueError(f"the decoder speaks of a window of {length} crops")
            frames = self._shared[:length].copy()  # the next window comes to the same place
            return Window(start, frames), Span(start, length, np.array(message["edges_s"], np.float64))

    def windows(self) -> Iterator[tuple[Window, Span]]:
        """All windows, as `next_window` gives them."""
        while (window := self.next_window()) is not None:
            yield window

    def end(self) -> None:
        """End the decoder, if it has not ended by itself; what waits for it in another thread is told."""
        with suppress(OSError):
            self._status.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the decoder and let go of it."""
        self.end()
        with self._in_use:
            self._connection.close()
            self._status.close()

    def __enter__(self) -> "Decoding":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _message(self) -> dict[str, Any]:
        stalled_after_s = max(STALLED_AFTER * self._limits.max_decode_s, STALLED_AFTER_AT_LEAST_S)
        try:
            if not self._connection.poll(stalled_after_s):
                raise VideoError(f"{self.name} cannot be decoded: the decoder stood still for {stalled_after_s} s")
            message: dict[str, Any] = json.loads(self._connection.recv_bytes(MAX_MESSAGE_BYTES))
        except (OSError, EOFError) as exc:
            raise self._death() from exc
        if "failed" in message:
            raise VideoError(str(message["failed"]))
        return message

    def _death(self) -> AslTritonError:
        """The sentence for a decoder that is gone."""
        told = b""
        with suppress(OSError):
            told = self._status.recv(ENDED.size)
        if len(told) < ENDED.size:  # the server of decoders is gone too
            return ServerError(f"the decoding of {self.name} was interrupted: send it again")
        (code,) = ENDED.unpack(told)
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            return VideoError(
                f"{self.name} takes more than {self._limits.max_decode_s} s to decode, the limit: "
                "cut it shorter or scale it down"
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return VideoError(f"{self.name} cannot be decoded: it ends the decoder ({how}). Convert or record it again")
