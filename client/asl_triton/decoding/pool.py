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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from asl_triton.decoding.base import DecodeSession, VideoInfo, WindowingOptions
from asl_triton.decoding.worker import CROP_SHAPE, ENDED, GO_ON, STATE, DecodeRequest, DecoderLimits, map_crops
from asl_triton.errors import AslTritonError, ServerError, VideoError
from asl_triton.video.reader import Image, Source
from asl_triton.video.windows import Window, WindowTiming

MAX_MESSAGE_BYTES = 2**20  # of JSON
# A decoder hangs that says no word for so many times the seconds of computing it may take: busy machines are slower.
STALLED_AFTER, STALLED_AFTER_AT_LEAST_S = 5, 30
SLICE_S = 1.0
ENDS_WITHIN_S = 5.0  # the server of decoders, when nobody can ask it any more


@dataclass(frozen=True)
class WorkerHandle:
    """A process that waits for its order: the way to it, where its end is told, and what it writes its crops to."""

    connection: Connection
    status: socket.socket
    crops: Image


class DecoderPool:
    """Starts decoders. Threads may share it. Nothing runs before the first, or `warm_up`; close it at the end.

    Ctrl-C and SIGTERM, which reach a whole group of processes, are nothing to them: they end when they are let go of,
    or when who started them is gone. What a dying decoder says to the terminal is dropped if `is_quiet`.
    """

    def __init__(self, limits: DecoderLimits, *, is_quiet: bool = False) -> None:
        self.limits = limits
        self._stderr = subprocess.DEVNULL if is_quiet else None
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def reading(self, source: Source, cutting: WindowingOptions, name: str | None = None) -> "SubprocessDecodeSession":
        """A video that will have a process of its own. A file is opened there, and never read here."""
        return SubprocessDecodeSession(self, source, cutting, name)

    def start(self, num_crops: int) -> WorkerHandle:
        """A new process, with room for so many crops.

        Raises:
            AslTritonError: none can be started any more.
        """
        connection, theirs = socket.socketpair()
        status, told = socket.socketpair()
        with theirs, told, ExitStack() as failed:
            failed.enter_context(connection)
            failed.enter_context(status)
            memory, crops = allocate_crops(num_crops)
            try:
                self._hand_over([theirs.fileno(), told.fileno(), memory])
            finally:
                os.close(memory)
            failed.pop_all()
        return WorkerHandle(Connection(connection.detach()), status, crops)

    def warm_up(self) -> None:
        """Start the server of decoders, for which the first video would wait otherwise."""
        with self._lock:
            self._ready()

    def close(self) -> None:
        """End the server, and with it whatever still decodes; nothing is decoded any more."""
        with self._lock:
            self._is_closed = True
            self._let_go()

    def _hand_over(self, files: list[int]) -> None:
        with self._lock:
            try:
                socket.send_fds(self._ready(), [b"."], files)
            except OSError:  # the server has died since the last video
                self._let_go()
                socket.send_fds(self._ready(), [b"."], files)

    def _ready(self) -> socket.socket:
        """The way to the server, which is started where it does not run."""
        if self._is_closed:
            raise AslTritonError("the decoders are closed: nothing can be decoded any more")
        if self._server is not None and self._server.poll() is not None:
            self._let_go()
        if self._control is None:
            self._control, theirs = socket.socketpair()
            # Not of the interpreter that this may be embedded in: Triton's has a build and modules of its own.
            python = sys.executable or shutil.which("python3") or "python3"
            # Of the folder that it is in it imports nothing, unless this process does.
            own = {} if sys.path[0] in ("", os.getcwd()) else {"PYTHONSAFEPATH": "1"}
            with theirs, block_signals():
                self._server = subprocess.Popen(
                    [python, "-m", "asl_triton.decoding.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=[theirs.fileno()],
                    # One thread, so that it can be forked; and none of its memory kept for later.
                    env={**os.environ, **own, "OPENBLAS_NUM_THREADS": "1"},
                )
        return self._control

    def _let_go(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            with suppress(subprocess.TimeoutExpired):  # it ends what it started, then itself
                self._server.wait(ENDS_WITHIN_S)
            self._server.kill()
            self._server.wait()
        self._control = self._server = None


@contextmanager
def block_signals() -> Iterator[None]:
    """Start processes that Ctrl-C and SIGTERM do not reach, from their first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def allocate_crops(count: int) -> tuple[int, Image]:
    """Memory for so many crops as a file that a decoder may write to and nobody can resize, and the crops in it."""
    memory = os.memfd_create("crops", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(memory, count * math.prod(CROP_SHAPE))  # takes memory as it is written to
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory, map_crops(memory)


class SubprocessDecodeSession(DecodeSession):
    """Decodes in a process of its own.

    Besides what `DecodeSession` raises: `ServerError` when something other than the video interrupted the decoding.
    """

    def __init__(self, decoders: DecoderPool, source: Source, cutting: WindowingOptions, name: str | None) -> None:
        super().__init__(source, cutting, name)
        self._decoders, self._limits = decoders, decoders.limits
        self._decoder: WorkerHandle | None = None
        self._ending = threading.Lock()

    def _open(self) -> VideoInfo:
        path, content = None, None
        if isinstance(self._source, str | os.PathLike):
            path = str(Path(self._source).absolute())
        else:
            content = self._content()
        order = DecodeRequest(self.name, path, self._cutting, self._limits)
        try:
            self._decoder = self._decoders.start(self._cutting.preset.max_frames)
        except OSError as exc:
            raise AslTritonError(f"{self.name} cannot be decoded: no decoder can be started ({exc.strerror})") from exc
        if self._is_over:  # by somebody who found no decoder to end
            raise self._closed_error()
        with suppress(OSError):  # of one that is not there to take it; what it has to say is told now
            self._decoder.connection.send_bytes(order.to_json().encode())
            if content is not None:
                self._decoder.connection.send_bytes(content)
        return VideoInfo(**self._message()["measures"])

    def _content(self) -> bytes | bytearray | memoryview:
        assert not isinstance(self._source, str | os.PathLike)
        most = self._cutting.limits.max_bytes
        content = self._source.read(most + 1) if hasattr(self._source, "read") else self._source
        if memoryview(content).nbytes > most:
            raise VideoError(f"{self.name} is larger than {most:,} bytes, the limit: cut or compress it first")
        return content

    def _next_window(self) -> tuple[Window, WindowTiming] | None:
        if self._decoder is None:
            return None
        with suppress(OSError):
            self._decoder.connection.send_bytes(GO_ON)
        message = self._message()
        for name in STATE:
            setattr(self, name, type(getattr(self, name))(message[name]))
        if "edges_s" not in message:
            self._let_go()  # of the crops too: the clip may wait for its answer for long
            return None
        start, length, shot = int(message["start"]), int(message["length"]), int(message["shot"])
        is_only, crops = bool(message["is_only"]), self._decoder.crops
        if not 0 < length <= len(crops):
            raise ValueError(f"the decoder speaks of a window of {length} crops")
        if is_only:
            self._let_go()
        # The next window would come to the same place.
        window = Window(start, crops[:length] if is_only else crops[:length].copy(), is_only)
        return window, WindowTiming(start, length, np.array(message["edges_s"], np.float64), shot)

    def _interrupt(self) -> None:
        with self._ending, suppress(OSError):
            if self._decoder is not None:
                self._decoder.status.shutdown(socket.SHUT_RDWR)

    def _let_go(self) -> None:
        with self._ending:
            if self._decoder is not None:
                self._decoder.connection.close()
                self._decoder.status.close()
            self._decoder = None

    def _message(self) -> dict[str, Any]:
        assert self._decoder is not None
        try:
            self._wait(self._decoder.connection)
            message: dict[str, Any] = json.loads(self._decoder.connection.recv_bytes(MAX_MESSAGE_BYTES))
        except (OSError, EOFError) as exc:
            raise self._death(self._decoder.status) from exc
        if "failed" in message:
            raise VideoError(str(message["failed"]))
        return message

    def _wait(self, connection: Connection) -> None:
        """Wait for a word of the decoder; the seconds in which this process is stopped do not count."""
        left_s = self._patience_s
        while not connection.poll(min(left_s, SLICE_S)):
            left_s -= SLICE_S
            if left_s <= 0:
                raise self._stalled()

    @property
    def _patience_s(self) -> float:
        limits = self._limits
        return limits.max_window_s or max(STALLED_AFTER * (limits.max_decode_s or 0), STALLED_AFTER_AT_LEAST_S)

    def _stalled(self) -> VideoError:
        remedy = (
            ". Convert or record it again, or give it longer (--decode-timeout)" if self._limits.max_window_s else ""
        )
        return VideoError(f"{self.name} cannot be decoded: the decoder stood still for {self._patience_s:g} s{remedy}")

    def _death(self, status: socket.socket) -> AslTritonError:
        """The sentence for a decoder that is gone."""
        if self._is_over:
            return self._closed_error()
        told = b""
        with suppress(OSError):
            told = status.recv(ENDED.size)
        if len(told) < ENDED.size:  # the server of decoders is gone too
            return ServerError(f"the decoding of {self.name} was interrupted: send it again")
        (code,) = ENDED.unpack(told)
        limit_s = self._limits.max_decode_s
        if limit_s is not None and code in (-signal.SIGXCPU, -signal.SIGKILL):
            return VideoError(
                f"{self.name} takes more than {limit_s} s to decode, the limit: cut it shorter or scale it down"
            )
        if code == -signal.SIGXCPU:
            return self._stalled()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return VideoError(f"{self.name} cannot be decoded: it ends the decoder ({how}). Convert or record it again")
