"""The processes that decode: a small server that has imported all it needs, and one forked from it for each video.

`python -m asl_triton.decoding.worker FD` is the server. Over the socket FD it gets for each video two sockets and some
memory to share. Over the first socket the video's own process is asked and answers, in JSON and never pickled: of all
processes it is the one that strangers' files may take over. The memory takes its crops. Over the second socket the
server says how that process ended; who closes it ends that process. So nothing of all this outlives whoever started it.
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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np

from asl_triton.decoding.base import DecodeSession, WindowingOptions
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.errors import AslTritonError
from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.video.reader import Image, Limits

GO_ON = b"go on"
NUM_FILES = 3  # that the server gets for each video
CROP_SHAPE = (INPUT_SIZE, INPUT_SIZE, 3)
STATE = ("num_frames", "duration_s", "share_read", "warnings")  # of a `DecodeSession`: what is known with each window
ENDED = struct.Struct("i")  # the exit code of a decoder, or minus the number of its signal


@dataclass(frozen=True)
class DecoderLimits:
    """What the decoding of one video may cost. Beyond it: `VideoError`. None is no limit."""

    max_decode_s: int | None = 60  # of a processor's time, for the whole video
    max_window_s: float | None = None  # by the clock, to open it and for each window then; what computes is ended too
    max_memory_bytes: int = 2**30  # beside what every decoder needs


@dataclass(frozen=True)
class DecodeRequest:
    """What a decoder is told to decode, and how: a file, or the bytes of one, which follow where `path` is None."""

    name: str
    path: str | None
    cutting: WindowingOptions
    limits: DecoderLimits

    def to_json(self) -> str:
        """The order as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> "DecodeRequest":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        cutting = values["cutting"]
        preset, limits = Preset.from_json(json.dumps(cutting["preset"])), Limits(**cutting["limits"])
        cutting = WindowingOptions(**{**cutting, "preset": preset, "limits": limits})
        return cls(values["name"], values["path"], cutting, DecoderLimits(**values["limits"]))


class ForkServer:
    """Forks a decoder for each video whose sockets and memory come over `control`, until that is closed."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, socket.socket] = {}  # by process; where to tell how it ended
        self._selector = selectors.DefaultSelector()
        self._child_ended, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._own = (control.fileno(), self._child_ended, writer, self._selector.fileno())

    def run(self) -> None:
        """Serve until nobody can ask any more; what is running then is ended."""
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
                    self._tell_of_the_ended()
                elif key.data in self._running:  # closed: nobody waits for this decoder any more
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)

    def _fork(self, connection: int, status: int, memory: int) -> None:
        try:
            pid = os.fork()
        except OSError:  # too many processes: who asked for this one finds nobody there
            for number in (connection, status, memory):
                os.close(number)
            return
        if pid == 0:
            for number in (status, *self._own, *(other.fileno() for other in self._running.values())):
                os.close(number)
            decode_and_exit(connection, memory)
        os.close(connection)
        os.close(memory)
        self._running[pid] = socket.socket(fileno=status)
        self._selector.register(self._running[pid], selectors.EVENT_READ, pid)

    def _tell_of_the_ended(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                with self._running.pop(pid) as waiting, suppress(OSError):
                    with suppress(KeyError):
                        self._selector.unregister(waiting)
                    waiting.send(ENDED.pack(os.waitstatus_to_exitcode(status)))


def decode_and_exit(number: int, memory: int) -> NoReturn:
    """Be the process of one video, asked over the socket `number`, with the crops of a window in `memory`."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        cv2.setNumThreads(1)  # videos are decoded side by side
        with Connection(number) as connection, suppress(OSError, EOFError):  # whoever asks may go at any time
            decode(connection, memory)
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def decode(connection: Connection, memory: int) -> None:
    """Read an order, open its video and write its windows, each when it is asked for."""
    order = DecodeRequest.from_json(connection.recv_bytes())
    apply_rlimits(order.limits)
    extend_cpu_limit(order.limits)
    try:
        source = connection.recv_bytes() if order.path is None else Path(order.path)
        shared = map_crops(memory)
        with InProcessDecodeSession(source, order.cutting, order.name, memory=shared) as reading:
            send_message(connection, measures=asdict(reading.open()))
            write_windows(connection, shared, reading, order.limits)
    except AslTritonError as exc:
        send_message(connection, failed=str(exc))
    except MemoryError:
        megabytes = order.limits.max_memory_bytes // 2**20
        send_message(
            connection, failed=f"{order.name} takes more than {megabytes:,} MiB to decode, the limit: scale it down"
        )
    except cv2.error as exc:
        send_message(connection, failed=f"{order.name} cannot be decoded: {exc.err}. Convert or record it again")


def apply_rlimits(limits: DecoderLimits) -> None:
    """Bound what this process may use, for good: computing, memory, and no file of a byte."""
    pages_held = int(Path("/proc/self/statm").read_text().split()[5])  # of data, as RLIMIT_DATA counts it
    memory = pages_held * resource.getpagesize() + limits.max_memory_bytes
    set_rlimit(resource.RLIMIT_DATA, memory, memory)
    set_rlimit(resource.RLIMIT_FSIZE, 0, 0)
    set_rlimit(resource.RLIMIT_CORE, 0, 0)
    if limits.max_decode_s is not None:
        set_rlimit(resource.RLIMIT_CPU, limits.max_decode_s, limits.max_decode_s + 1)  # a signal, then the end


def extend_cpu_limit(limits: DecoderLimits) -> None:
    """Let this process compute as long as a window may take, from now on: it ends by itself, whoever may watch it."""
    if limits.max_window_s is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        until_s = math.ceil(usage.ru_utime + usage.ru_stime + limits.max_window_s) + 1
        set_rlimit(resource.RLIMIT_CPU, until_s, resource.getrlimit(resource.RLIMIT_CPU)[1])


def set_rlimit(which: int, soft: int, hard: int) -> None:
    """Set a limit of this process, no higher than it was allowed before."""
    allowed = resource.getrlimit(which)[1]
    if allowed != resource.RLIM_INFINITY:
        soft, hard = min(soft, allowed), min(hard, allowed) if hard != resource.RLIM_INFINITY else allowed
    resource.setrlimit(which, (soft, hard))


def write_windows(connection: Connection, shared: Image, reading: DecodeSession, limits: DecoderLimits) -> None:
    """Write each window when it is asked for, and at last, or with the only one, what is known of the video."""

    def state() -> dict[str, Any]:
        return {name: getattr(reading, name) for name in STATE}

    while connection.recv_bytes(len(GO_ON)):
        extend_cpu_limit(limits)
        found = reading.next_window()
        if found is None:
            send_message(connection, **state())
            return
        window, span = found
        if not window.is_only:  # which is there already
            shared[: span.num_frames] = window.frames
        place = {"start": span.start, "length": span.num_frames, "shot": span.shot, "edges_s": span.edges_s.tolist()}
        send_message(connection, **place, is_only=window.is_only, **state())


def map_crops(memory: int) -> Image:
    """The crops (N, 224, 224, 3) that a file of shared memory has room for."""
    return np.frombuffer(mmap.mmap(memory, 0), np.uint8).reshape(-1, *CROP_SHAPE)


def send_message(connection: Connection, **message: Any) -> None:
    """Write a message."""
    connection.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        ForkServer(control).run()
