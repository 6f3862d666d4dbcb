"""The processes that decode: a fork server, and workers forked from it, each of which decodes one video after another.

`python -m asl_triton.decoding.worker FD LIMITS` is the server. It imports everything once, so that a worker starts in
milliseconds instead of half a second. Over the socket FD it gets two sockets for each worker. Over the first one the
worker gets requests and answers them, in JSON and never pickled, with crops in shared memory that comes with each
request. Over the second one the server reports how the worker ended; closing it kills the worker. So nothing outlives
the process that started it.

Threat model: a video that crashes, hangs or fills its worker costs itself alone. A video that takes the worker over has
the rights of the user who runs it, as no system call is filtered, and can read and falsify the worker's later videos.
So a worker decodes no more than `DecoderLimits.videos_per_process`, a video that fails or is damaged is its last,
and `recognize_sign`, whose videos come from different strangers, gives each a process of its own.

`multiprocessing`'s forkserver has the same design, and was tried: it imports the caller's `__main__` again, SIGTERM
ends its server, a hung worker outlives a caller that is killed, and the interpreter to start, which inside Triton is
not `sys.executable`, can only be set for the whole process. Plain subprocesses take half a second each to start.
"""

import json
import math
import mmap
import os
import resource
import selectors
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import numpy.typing as npt

from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.in_process import cut_video, read_video_info
from asl_triton.errors import AslTritonError
from asl_triton.presets import Preset
from asl_triton.results import SignerBox
from asl_triton.video.colors import Image
from asl_triton.video.excerpt import Excerpt
from asl_triton.video.preprocessing import CROP_SHAPE
from asl_triton.video.reader import Limits, Source, Video, open_video
from asl_triton.video.windows import WindowTiming

GO_ON = b"go on"
NUM_FILES = 2  # that the server gets for each worker
CHANNELS = 3
EXIT_CODE = struct.Struct("i")  # of a worker, or minus the number of the signal that ended it
MAX_KEPT_BYTES = 256 * 2**20  # of memory that a worker may have kept from earlier videos when it takes the next one


@dataclass(frozen=True)
class DecoderLimits:
    """What decoding one video may cost. Beyond it: `VideoError`. None is no limit."""

    max_decode_s: int | None = 60  # of a processor's time, for the whole video
    max_window_s: float | None = None  # by the clock, to open it and then for each window; computing is limited too
    max_memory_bytes: int = 2**30  # in addition to what every decoder needs
    videos_per_process: int = 1  # one after another


class ForkServer:
    """Forks a worker for each pair of sockets that comes over `control`, until that is closed."""

    def __init__(self, control: socket.socket, limits: DecoderLimits) -> None:
        self._control, self._limits = control, limits
        self._running: dict[int, socket.socket] = {}  # by process ID: where to report its end
        self._selector = selectors.DefaultSelector()
        self._child_ended, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._own = (control.fileno(), self._child_ended, writer, self._selector.fileno())

    def run(self) -> None:
        """Serve until the other end of `control` is closed, then kill the workers."""
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    files = socket.recv_fds(self._control, 1, NUM_FILES)[1]
                    if len(files) < NUM_FILES:
                        for pid in self._running:
                            os.kill(pid, signal.SIGKILL)
                        return
                    self._fork(*files)
                elif key.fileobj == self._child_ended:
                    os.read(self._child_ended, 1024)
                    self._report_ended()
                elif key.data in self._running:  # closed: the worker is not wanted any more
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self, connection: int, status: int) -> None:
        try:
            pid = os.fork()
        except OSError:  # too many processes: the caller finds both sockets closed
            os.close(connection)
            os.close(status)
            return
        if pid == 0:
            for number in (status, *self._own, *(other.fileno() for other in self._running.values())):
                os.close(number)
            work_and_exit(connection, self._limits)
        os.close(connection)
        self._running[pid] = socket.socket(fileno=status)
        self._selector.register(self._running[pid], selectors.EVENT_READ, pid)

    def _report_ended(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                with self._running.pop(pid) as waiting, suppress(OSError):
                    with suppress(KeyError):
                        self._selector.unregister(waiting)
                    waiting.send(EXIT_CODE.pack(os.waitstatus_to_exitcode(status)))


def work_and_exit(number: int, limits: DecoderLimits) -> NoReturn:
    """Be a worker that gets its requests over the socket `number`."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        cv2.setNumThreads(1)  # videos are decoded side by side
        with Connection(number) as connection, suppress(OSError, EOFError):  # the caller may go away at any time
            Worker(connection, limits).run()
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


class Worker:
    """Decodes the videos that are requested over `connection`, one after another.

    For each video come a request, memory for what is decoded, and the file's bytes if it has no path. If the request
    has a preset, the answer is `VideoInfo`, and then `describe` for each window; otherwise it is the frame rate, and
    then the size and time of each frame. `GO_ON` comes before each of them. The last answer, which `is_last`, is sent
    once the video is closed, so that a crash in closing is not blamed on the next video. A video that cannot be decoded
    is answered with `failed`.
    """

    def __init__(self, connection: Connection, limits: DecoderLimits) -> None:
        self._connection, self._limits = connection, limits
        self._is_reused = limits.videos_per_process > 1
        self._most_kept_bytes = measure_data_bytes() + (MAX_KEPT_BYTES if self._is_reused else 0)
        set_rlimit(resource.RLIMIT_FSIZE, 0, 0)
        set_rlimit(resource.RLIMIT_CORE, 0, 0)

    def run(self) -> None:
        """Decode until a video fails, is damaged, or leaves too much memory in use."""
        is_reusable = True
        while is_reusable:
            request = json.loads(self._connection.recv_bytes())
            try:
                last = self._decode(request)
            except AslTritonError as exc:
                return self._send(failed=str(exc))
            except (MemoryError, cv2.error) as exc:
                if isinstance(exc, cv2.error) and exc.code != cv2.Error.StsNoMem:
                    what = f"cannot be decoded: {exc.err}. Convert or record it again"
                else:
                    most = f"{self._limits.max_memory_bytes // 2**20:,} MiB"
                    what = f"takes more than {most} to decode, the limit: scale it down"
                return self._send(failed=f"{request['name']} {what}")
            is_damaged = last.pop("is_damaged")
            is_reusable = self._is_reused and not is_damaged and measure_data_bytes() <= self._most_kept_bytes
            self._send(**last, is_last=True, is_reusable=is_reusable)

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Decode a video and send all messages but the last, which is returned when the video is closed."""
        received = reduction.recv_handle(self._connection)
        memory = mmap.mmap(received, 0)
        os.close(received)
        self._limit_video()
        source: Source = self._connection.recv_bytes() if request["path"] is None else Path(request["path"])
        with open_video(source, Limits(**request["limits"]), request["name"]) as video:
            if "preset" in request:
                return self._decode_windows(video, request, view_crops(memory))
            return self._decode_frames(video, np.frombuffer(memory, np.uint8))

    def _decode_windows(self, video: Video, request: dict[str, Any], crops: Image) -> dict[str, Any]:
        options = WindowingOptions(
            preset=Preset.from_json(request["preset"]),
            limits=video.limits,
            is_film=request["is_film"],
            refuses_early=request["refuses_early"],
            signer=SignerBox(**request["signer"]) if request["signer"] else None,
            finds_signer=request["finds_signer"],
            excerpt=Excerpt(**request["excerpt"]) if request["excerpt"] else None,
        )
        self._send(**asdict(read_video_info(video, options)))
        windows = cut_video(video, options, video, crops)
        num_shots = 0  # whose boxes were sent
        while True:
            self._wait()
            window, timing = next(windows, (None, None))
            message = describe(video, timing, num_shots)
            if window is None or timing is None or window.is_only:
                return message
            crops[: timing.num_frames] = window.frames
            self._send(**message, is_last=False)
            num_shots = len(video.shot_boxes)

    def _decode_frames(self, video: Video, memory: npt.NDArray[np.uint8]) -> dict[str, Any]:
        self._send(frame_rate=video.frame_rate)
        self._wait()
        for frame in video:
            height, width = frame.image.shape[:2]
            memory[: frame.image.size].reshape(frame.image.shape)[:] = frame.image
            self._send(height=height, width=width, time_s=frame.time_s, is_last=False)
            self._wait()
        return {"warnings": video.warnings, "is_damaged": video.is_damaged}

    def _wait(self) -> None:
        """Wait until more is wanted."""
        self._connection.recv_bytes(len(GO_ON))
        self._limit_window()

    def _limit_video(self) -> None:
        """Bound what this process may use for a video: memory, and computing if that is limited for the whole of it."""
        most_bytes = self._limits.max_memory_bytes
        set_rlimit(resource.RLIMIT_DATA, measure_data_bytes() + most_bytes, self._most_kept_bytes + most_bytes)
        if self._limits.max_decode_s is not None:
            until_s = int(measure_computing_s()) + self._limits.max_decode_s
            set_rlimit(resource.RLIMIT_CPU, until_s, None if self._is_reused else until_s + 1)  # a signal, then the end
        self._limit_window()

    def _limit_window(self) -> None:
        """Let this process compute as long as a window may take, from now on: it ends even if nobody watches it."""
        if self._limits.max_window_s is not None:
            until_s = math.ceil(measure_computing_s() + self._limits.max_window_s) + 1
            set_rlimit(resource.RLIMIT_CPU, until_s, None)

    def _send(self, **message: Any) -> None:
        self._connection.send_bytes(json.dumps(message).encode())


def describe(video: Video, timing: WindowTiming | None, num_shots: int) -> dict[str, Any]:
    """What has been read of a video so far, and the place of a window unless there are no more.

    The boxes of a film's first `num_shots` shots are left out.
    """
    window = None
    if timing is not None:
        start, num_frames, edges_s = timing.start, timing.num_frames, timing.edges_s.tolist()
        window = {"start": start, "num_frames": num_frames, "edges_s": edges_s, "shot": timing.shot}
    return {
        "window": window,
        "num_frames": video.num_frames,
        "duration_s": video.duration_s,
        "share_read": video.share_read,
        "lost_frames": video.lost_frames,
        "signer": video.signer and asdict(video.signer),
        "shot_boxes": [(shot.start_s, shot.box and asdict(shot.box)) for shot in video.shot_boxes[num_shots:]],
        "warnings": video.warnings,
        "is_damaged": video.is_damaged,
    }


def view_crops(memory: mmap.mmap) -> Image:
    """The crops (N, 224, 224, 3) that shared memory has room for."""
    return np.frombuffer(memory, np.uint8).reshape(-1, *CROP_SHAPE)


def measure_data_bytes() -> int:
    """The memory of this process, as RLIMIT_DATA counts it."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def measure_computing_s() -> float:
    """The processor time that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def set_rlimit(which: int, soft: int, hard: int | None) -> None:
    """Set a limit of this process, no higher than it was allowed before; None keeps the hard limit."""
    allowed = resource.getrlimit(which)[1]
    if hard is None:
        hard = allowed
    elif allowed != resource.RLIM_INFINITY:
        hard = min(hard, allowed)
    resource.setrlimit(which, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        ForkServer(control, DecoderLimits(**json.loads(sys.argv[2]))).run()
