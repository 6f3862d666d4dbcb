"""Decoding in processes of their own: what a video does to its decoder, it does to that video alone.

A video that crashes FFmpeg, that never ends or that wants all memory costs its own process; another one starts in
milliseconds. See `worker.py` for the processes. Linux only.
"""

import fcntl
import json
import math
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from asl_triton.decoding.base import DecodeSession, VideoInfo, WindowingOptions, closed_error, format_source
from asl_triton.decoding.worker import CHANNELS, EXIT_CODE, GO_ON, DecoderLimits, view_crops
from asl_triton.errors import AslTritonError, ServerError, VideoError
from asl_triton.results import ShotBox, SignerBox
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import CROP_SHAPE
from asl_triton.video.reader import Frame, Limits, Source
from asl_triton.video.windows import Window, WindowTiming

MAX_MESSAGE_BYTES = 2**20  # of JSON
# A worker that says nothing for this many times the computing time it may take is hung: busy machines are slower.
STALLED_AFTER, STALLED_AFTER_AT_LEAST_S = 5, 30
SLICE_S = 1.0
ENDS_WITHIN_S = 5.0  # the fork server, once its socket is closed
MAX_IDLE = os.cpu_count() or 1  # workers that wait for a video


@dataclass
class WorkerHandle:
    """A worker that waits for a request: the way to it, and where its end is reported."""

    connection: Connection
    status: socket.socket
    num_videos: int = 0  # that it was given

    def is_alive(self) -> bool:
        """Whether it waits for a request. Until then it has nothing to say, and nor has the fork server."""
        return not wait([self.connection, self.status], 0)

    def close(self) -> None:
        """Let go of it: the fork server ends it."""
        self.connection.close()
        self.status.close()


class DecoderPool:
    """Starts workers and keeps those that may decode one more video. Threads may share it.

    Nothing runs before the first video, or `warm_up`. Close it at the end. Ctrl-C and SIGTERM, which reach a whole
    group of processes, do not reach the workers: they end when they are let go of, or when this process is gone. What a
    dying worker writes to the terminal is dropped if `is_quiet`.
    """

    def __init__(self, limits: DecoderLimits, *, is_quiet: bool = False) -> None:
        self.limits = limits
        self._stderr = subprocess.DEVNULL if is_quiet else None
        self._lock = threading.Lock()
        self._idle: list[WorkerHandle] = []
        self._control: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def create_session(
        self, source: Source, options: WindowingOptions, name: str | None = None
    ) -> "SubprocessDecodeSession":
        """A video that one of the workers will decode. A file is opened there, and never read here."""
        return SubprocessDecodeSession(self, source, options, name)

    def acquire(self) -> WorkerHandle:
        """A worker for one video: one that is idle, or a new one. Close it, or `release` it.

        Raises:
            AslTritonError: the pool is closed. OSError: no worker can be started.
        """
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    break
                worker.close()
            else:
                worker = self._fork()
        worker.num_videos += 1
        return worker

    def release(self, worker: WorkerHandle) -> None:
        """Take back a worker that has decoded a whole video, for the next one."""
        with self._lock:
            is_kept = not self._is_closed and len(self._idle) < MAX_IDLE
            if is_kept and worker.num_videos < self.limits.videos_per_process:
                self._idle.append(worker)
                return
        worker.close()

    def warm_up(self) -> None:
        """Start the fork server, so that the first video does not wait for it."""
        with self._lock:
            self._start_server()

    def close(self) -> None:
        """End the fork server, and with it all workers. Nothing can be decoded any more."""
        with self._lock:
            self._is_closed = True
            self._stop_server()

    def _fork(self) -> WorkerHandle:
        connection, theirs = socket.socketpair()
        status, reports = socket.socketpair()
        with theirs, reports, ExitStack() as failed:
            failed.enter_context(connection)
            failed.enter_context(status)
            files = [theirs.fileno(), reports.fileno()]
            try:
                socket.send_fds(self._start_server(), [b"."], files)
            except OSError:  # the server has died since the last worker
                self._stop_server()
                socket.send_fds(self._start_server(), [b"."], files)
            failed.pop_all()
        return WorkerHandle(Connection(connection.detach()), status)

    def _start_server(self) -> socket.socket:
        """The way to the fork server, which is started unless it runs."""
        if self._is_closed:
            raise AslTritonError("the decoders are closed: nothing can be decoded any more")
        if self._server is not None and self._server.poll() is not None:
            self._stop_server()
        if self._control is None:
            self._control, theirs = socket.socketpair()
            # Inside Triton, this interpreter is not one that can be started, and has another set of modules.
            python = sys.executable or shutil.which("python3") or "python3"
            # It imports nothing from the working directory, unless this process does.
            own = {} if sys.path[0] in ("", os.getcwd()) else {"PYTHONSAFEPATH": "1"}
            limits = json.dumps(asdict(self.limits))
            with theirs, block_signals():
                self._server = subprocess.Popen(
                    [python, "-m", "asl_triton.decoding.worker", str(theirs.fileno()), limits],
                    stdin=subprocess.DEVNULL,
                    stderr=self._stderr,
                    pass_fds=[theirs.fileno()],
                    # One thread, so that it can fork, and no memory that OpenBLAS reserves.
                    env={**os.environ, **own, "OPENBLAS_NUM_THREADS": "1"},
                )
        return self._control

    def _stop_server(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._control is not None:
            self._control.close()
        if self._server is not None:
            with suppress(subprocess.TimeoutExpired):  # it ends its workers, then itself
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


def allocate_memory(size: int) -> int:
    """A file of shared memory that a worker may write to and nobody can resize; takes memory as it is written to."""
    memory = os.memfd_create("frames", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(memory, size)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory


class WorkerClient:
    """What is said between this process and the worker that decodes one video.

    `close` may be called from any thread, and soon ends what another thread waits for.
    """

    def __init__(self, pool: DecoderPool, name: str) -> None:
        self._pool, self._name = pool, name
        self._worker: WorkerHandle | None = None
        self._changing = threading.Lock()  # `_worker`, or closing it
        self._is_closed = False

    def request(self, source: Source, limits: Limits, options: dict[str, Any], memory_bytes: int) -> mmap.mmap:
        """Ask a worker to decode a video; returns the memory that it writes to.

        Raises:
            VideoError: the video is too large. AslTritonError: no worker can be started.
        """
        path = str(Path(source).absolute()) if isinstance(source, str | os.PathLike) else None
        content = read_content(source, limits.max_bytes, self._name) if path is None else None
        request = {"name": self._name, "path": path, "limits": asdict(limits), **options}
        try:
            worker = self._worker = self._pool.acquire()
            if self._is_closed:  # by a thread that found no worker to end
                raise closed_error(self._name)
            memory = allocate_memory(memory_bytes)
        except OSError as exc:
            raise AslTritonError(f"{self._name} cannot be decoded: no decoder can be started ({exc.strerror})") from exc
        with os.fdopen(memory), suppress(OSError):  # from a worker that has died: `receive` says how
            worker.connection.send_bytes(json.dumps(request).encode())
            reduction.send_handle(worker.connection, memory, None)
            if content is not None:
                worker.connection.send_bytes(content)
            return mmap.mmap(memory, memory_bytes)
        return mmap.mmap(-1, memory_bytes)

    def go_on(self) -> None:
        """Let the worker decode what comes next."""
        worker = self._worker
        with suppress(OSError):  # it has died: `receive` says how
            if worker is not None:
                worker.connection.send_bytes(GO_ON)

    @contextmanager
    def receive(self) -> Iterator[dict[str, Any]]:
        """What the worker says next, which the block reads: a worker that was taken over may say anything.

        The seconds in which this process is stopped do not count as waiting.

        Raises:
            VideoError: the video cannot be decoded. AslTritonError: this was closed meanwhile. ServerError: something
                other than the video ended the worker.
        """
        worker, left_s = self._worker, self._patience_s
        if worker is None:
            raise closed_error(self._name)
        try:
            while not worker.connection.poll(min(left_s, SLICE_S)):
                left_s -= SLICE_S
                if left_s <= 0:
                    raise self._stalled_error()
            message = json.loads(worker.connection.recv_bytes(MAX_MESSAGE_BYTES))
            if "failed" in message:
                raise VideoError(str(message["failed"]))
            yield message
        except (OSError, EOFError) as exc:
            raise self._ended_error(worker.status) from exc
        except (KeyError, OverflowError, TypeError, ValueError) as exc:
            raise VideoError(
                f"{self._name} cannot be decoded: its decoder answers nonsense. Convert or record it again"
            ) from exc

    def interrupt(self) -> None:
        """End what another thread waits for."""
        self._is_closed = True
        with self._changing, suppress(OSError):
            if self._worker is not None:
                self._worker.status.shutdown(socket.SHUT_RDWR)

    def release(self, *, is_reusable: bool = False) -> None:
        """Let go of the worker: it ends, unless it may decode another video."""
        with self._changing:
            worker, self._worker = self._worker, None
        if worker is not None:
            self._pool.release(worker) if is_reusable else worker.close()

    @property
    def _patience_s(self) -> float:
        limits = self._pool.limits
        return limits.max_window_s or max(STALLED_AFTER * (limits.max_decode_s or 0), STALLED_AFTER_AT_LEAST_S)

    def _stalled_error(self) -> VideoError:
        remedy = (
            ". Convert or record it again, or give it longer (--decode-timeout)"
            if self._pool.limits.max_window_s
            else ""
        )
        return VideoError(f"{self._name} cannot be decoded: the decoder stood still for {self._patience_s:g} s{remedy}")

    def _ended_error(self, status: socket.socket) -> AslTritonError:
        """Why the worker is gone."""
        if self._is_closed:
            return closed_error(self._name)
        report = b""
        status.settimeout(ENDS_WITHIN_S)
        with suppress(OSError):
            report = status.recv(EXIT_CODE.size)
        if len(report) < EXIT_CODE.size:  # the fork server is gone too
            return ServerError(f"the decoding of {self._name} was interrupted: send it again")
        (code,) = EXIT_CODE.unpack(report)
        limit_s = self._pool.limits.max_decode_s
        if limit_s is not None and code in (-signal.SIGXCPU, -signal.SIGKILL):
            return VideoError(
                f"{self._name} takes more than {limit_s} s to decode, the limit: cut it shorter or scale it down"
            )
        if code == -signal.SIGXCPU:
            return self._stalled_error()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return VideoError(f"{self._name} cannot be decoded: it ends the decoder ({how}). Convert or record it again")


class SubprocessDecodeSession(DecodeSession):
    """Decodes with a worker of the pool.

    In addition to what `DecodeSession` raises: `ServerError` when something other than the video interrupted it.
    """

    def __init__(self, pool: DecoderPool, source: Source, options: WindowingOptions, name: str | None) -> None:
        super().__init__(source, options, name)
        self._client = WorkerClient(pool, self.name)

    def _open(self) -> tuple[VideoInfo, Iterator[tuple[Window, WindowTiming]]]:
        preset = self.options.preset
        options = {
            "preset": preset.to_json(),
            "is_film": self.options.is_film,
            "refuses_early": self.options.refuses_early,
            "signer": self.options.signer and asdict(self.options.signer),
            "finds_signer": self.options.finds_signer,
            "excerpt": self.options.excerpt and asdict(self.options.excerpt),
        }
        memory = self._client.request(
            self._source, self.options.limits, options, preset.max_frames * math.prod(CROP_SHAPE)
        )
        with self._client.receive() as info:
            measures = VideoInfo(
                num_bytes=int(info["num_bytes"]),
                width=int(info["width"]),
                height=int(info["height"]),
                declared_frames=int(info["declared_frames"]),
                crops_held=int(info["crops_held"]),
            )
        return measures, self._read_windows(view_crops(memory))

    def _read_windows(self, crops: Image) -> Iterator[tuple[Window, WindowTiming]]:
        is_last = False
        while not is_last:
            self._client.go_on()
            with self._client.receive() as message:
                self.num_frames, self.duration_s = int(message["num_frames"]), float(message["duration_s"])
                self.share_read, self.lost_frames = float(message["share_read"]), int(message["lost_frames"])
                self.warnings = [str(warning) for warning in message["warnings"]]
                if message["signer"]:
                    self.signer = SignerBox(**message["signer"])
                for start_s, box in message["shot_boxes"]:
                    self.shot_boxes.append(ShotBox(float(start_s), box and SignerBox(**box)))
                is_last, timing = bool(message["is_last"]), parse_timing(message["window"], len(crops))
                if is_last:
                    self._client.release(is_reusable=bool(message["is_reusable"]))
            if timing is not None:
                frames = crops[: timing.num_frames]
                # The next window would overwrite this one.
                yield Window(timing.start, frames if is_last else frames.copy(), is_only=is_last), timing

    def _interrupt(self) -> None:
        self._client.interrupt()

    def _release(self) -> None:
        self._client.release()


class SubprocessFrames:
    """The frames of a video that a worker of the pool decodes: iterate over them once, and close it."""

    def __init__(self, pool: DecoderPool, source: Source, limits: Limits, name: str | None = None) -> None:
        self.name = format_source(source, name)
        self.warnings: list[str] = []
        self._client = WorkerClient(pool, self.name)
        try:
            self._memory = self._client.request(source, limits, {}, limits.max_pixels * CHANNELS)
            with self._client.receive() as info:
                self.frame_rate = float(info["frame_rate"])
        except BaseException:
            self._client.release()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order, as `Video` gives them.

        Raises:
            VideoError: the video cannot be decoded, or is beyond a limit.
        """
        while True:
            self._client.go_on()
            with self._client.receive() as message:
                if bool(message["is_last"]):
                    self.warnings = [str(warning) for warning in message["warnings"]]
                    self._client.release(is_reusable=bool(message["is_reusable"]))
                    return
                height, width, time_s = int(message["height"]), int(message["width"]), float(message["time_s"])
                if min(height, width) < 1:
                    raise ValueError(f"a frame of {width} x {height} pixels")
                pixels = np.frombuffer(self._memory, np.uint8, height * width * CHANNELS)
            yield Frame(pixels.reshape(height, width, CHANNELS).copy(), time_s)

    def close(self) -> None:
        """Let go of the video; another thread that reads it is interrupted."""
        self._client.interrupt()
        self._client.release()

    def __enter__(self) -> "SubprocessFrames":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_content(source: Source, max_bytes: int, name: str) -> bytes | bytearray | memoryview:
    """The bytes of a video that is not a path.

    Raises:
        VideoError: there are more than `max_bytes`.
    """
    assert not isinstance(source, str | os.PathLike)
    content = source.read(max_bytes + 1) if hasattr(source, "read") else source
    if memoryview(content).nbytes > max_bytes:
        raise VideoError(f"{name} is larger than {max_bytes:,} bytes, the limit: cut or compress it first")
    return content


def parse_timing(place: Any, num_crops: int) -> WindowTiming | None:
    """Read what the worker says about a window's place.

    Raises:
        KeyError, OverflowError, TypeError, ValueError: it is nonsense.
    """
    if place is None:
        return None
    edges_s = np.array([float(edge_s) for edge_s in place["edges_s"]])
    timing = WindowTiming(int(place["start"]), int(place["num_frames"]), edges_s, int(place["shot"]))
    if not 0 < timing.num_frames <= num_crops or not 2 <= len(edges_s) <= timing.num_frames + 1:
        raise ValueError(f"a window of {timing.num_frames} crops, {len(edges_s)} edges")
    return timing
