"""Count the functions and files that one clip, one webcam frame and one recognize_sign request pass through.

    make demo && .venv/bin/python scripts/trace_calls.py

It serves the demo model with a real Triton, follows the calls with Python's profiler hook in all threads of this
process, and prints for each journey the functions entered, the files that they are in, and how many of our functions
lie between the entry and the gRPC call, across asyncio tasks. Comprehensions and lambdas do not count. `--list` prints
the functions, too.
"""

import asyncio
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(str(ROOT / folder) + "/" for folder in ("client", "deploy", "ui", "export"))
DEMO = ROOT / "build" / "demo"

Function = tuple[str, str]  # file, qualified name


class CallTrace:
    """The functions of our packages that are entered while a block runs, from a call of `start` until `end` returns.

    Both are names of functions; without them everything counts. The first `skip` returns of `end` do not.
    """

    def __init__(self, start: str | None = None, end: str | None = None, skip: int = 0) -> None:
        self.functions: set[Function] = set()
        self.way_to_grpc: list[Function] = []
        self._start, self._end, self._skip = start, end, skip
        self._is_on = start is None
        self._tasks: weakref.WeakKeyDictionary[asyncio.Task[Any], list[Function]] = weakref.WeakKeyDictionary()

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Follow the calls of all threads."""
        create_task = asyncio.BaseEventLoop.create_task

        def create(loop: Any, *args: Any, **kwargs: Any) -> Any:
            task = create_task(loop, *args, **kwargs)
            self._tasks[task] = self._read_way(sys._getframe(1))
            return task

        with patch.object(asyncio.BaseEventLoop, "create_task", create):
            threading.setprofile_all_threads(self._see) if sys.version_info >= (3, 12) else threading.setprofile(
                self._see
            )
            sys.setprofile(self._see)
            try:
                yield
            finally:
                sys.setprofile(None)
                threading.setprofile(None)

    @property
    def files(self) -> set[str]:
        return {file for file, _ in self.functions}

    def _see(self, frame: FrameType, event: str, _arg: object) -> None:
        function = identify(frame)
        if event == "return" and function and function[1] == self._end:
            self._is_on, self._skip = False, self._skip - 1
        if event != "call":
            return
        if function and function[1] == self._start and self._skip == 0:
            self._is_on = True
        if function and self._is_on:
            self.functions.add(function)
        if self._is_on and not self.way_to_grpc and function and function[1] == "RetryPolicy.run":
            self.way_to_grpc = self._read_way(frame)

    def _read_way(self, frame: FrameType | None) -> list[Function]:
        """Our functions from the entry to this frame, through the tasks that led to it."""
        way: list[Function] = []
        while frame is not None:
            if frame.f_code.co_filename.endswith("asyncio/events.py") and frame.f_code.co_name == "_run":
                task = asyncio.current_task()
                return (self._tasks.get(task, []) if task else []) + way[::-1]
            if function := identify(frame):
                way.append(function)
            frame = frame.f_back
        return way[::-1]


def identify(frame: FrameType) -> Function | None:
    """A function of ours; None for anything else."""
    code = frame.f_code
    if not code.co_filename.startswith(PACKAGES) or code.co_name.startswith("<"):
        return None
    name = code.co_qualname if sys.version_info >= (3, 11) else code.co_name
    return code.co_filename.removeprefix(f"{ROOT}/"), name


def report(journey: str, trace: CallTrace) -> None:
    """Print the figures of a journey, and the way to the gRPC call."""
    figures = f"{len(trace.functions)} functions in {len(trace.files)} files"
    print(f"{journey}: {figures}; {len(trace.way_to_grpc)} of ours down to gRPC")
    for depth, (file, name) in enumerate(trace.way_to_grpc, start=1):
        print(f"    {depth:2} {name}  ({file})")
    if "--list" in sys.argv[1:]:
        for file in sorted(trace.files):
            names = sorted(name for where, name in trace.functions if where == file)
            print(f"    {file}: {len(names)}: {', '.join(names)}")


def trace_batch(address: str, clips: Path) -> None:
    """`asl-triton batch`, with clips decoded in threads of this process, one after another."""
    from asl_triton.cli.app import main

    for journey, trace in (
        ("batch DIR, the whole command", CallTrace()),
        ("its first clip, which registers shared memory", CallTrace("ClipWorkers._process", "Journal.append")),
        ("its second clip, like each later one", CallTrace("ClipWorkers._process", "Journal.append", skip=1)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["batch", str(clips), "--output", folder, "--server", address, "--decoding", "threads"]
            arguments += ["--in-flight", "1", "--json"]
            with patch.object(sys, "argv", ["asl-triton", *arguments]), trace.follow():
                try:
                    main()
                except SystemExit as exc:
                    assert exc.code == 0, exc.code
        report(journey, trace)


def trace_webcam(address: str, clip: Path) -> None:
    """A clip's frames at their own pace through `LiveSession`, until the first sign is reported."""
    from asl_triton import LiveSession, Recognizer
    from asl_triton.video.reader import open_video

    with open_video(clip) as video:
        frames = [(frame.image, frame.time_s) for frame in video]
    trace = CallTrace()
    with trace.follow(), Recognizer(address) as recognizer, LiveSession(recognizer) as session:
        for image, time_s in [*frames, *((frames[-1][0], frames[-1][1] + n / 25) for n in range(1, 40))]:
            session.feed(image, time_s)
            time.sleep(0.04)
        assert session.state().events
    report("webcam frames until a sign is reported, from LiveSession on", trace)


def trace_recognize_sign(address: str, clip: Path, repository: Path) -> None:
    """A request to `recognize_sign`, from the service on; the model is asked over gRPC: this is not inside Triton."""
    from asl_triton.models.repository import read_repositories
    from asl_triton.transport.triton_grpc import GrpcTransport
    from asl_triton.triton_backend.service import ServiceLimits, SignService

    class Server(GrpcTransport):
        async def is_ready(self, model: str) -> bool:
            return True

    async def ask() -> CallTrace:
        service = SignService(read_repositories([repository]), Server(address), ServiceLimits.from_parameters({}))
        try:
            await service.recognize(clip.read_bytes())  # the first request to a model checks it
            trace = CallTrace()
            with trace.follow():
                await service.recognize(clip.read_bytes())
            return trace
        finally:
            service.close()

    report("recognize_sign, from the service on, without the decoder's process", asyncio.run(ask()))


def main() -> None:
    """Trace the journeys."""
    from asl_triton_deploy.local import LocalTriton

    clip = next((DEMO / "clips").glob("*.mp4"))
    repository = DEMO / "model_repository"
    with LocalTriton(repository) as triton:
        trace_batch(triton.address, clip.parent)
        trace_webcam(triton.address, clip)
        trace_recognize_sign(triton.address, clip, repository)


if __name__ == "__main__":
    main()
