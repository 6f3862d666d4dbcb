"""Which videos may be under way at once, and opening them: memory is bounded by their number and their crops."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from asl_triton.decoding.base import DecodeSession, Reader, VideoInfo, WindowingOptions
from asl_triton.decoding.frame_budget import CROP_VALUES, CROPS_A_REQUEST, FrameBudget
from asl_triton.video.reader import Source

FILES_OF_A_VIDEO = 3  # its own, and FFmpeg's; or the way to its decoder, and what they share for a moment
OTHER_FILES = 40  # of Python, gRPC and who calls


def max_open_videos() -> int:
    """How many videos may be open at once, so that this process stays within its limit on open files."""
    try:
        import resource
    except ImportError:  # Windows has thousands
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max((limit - OTHER_FILES) // FILES_OF_A_VIDEO, 1)


class Admission:
    """Opens videos in `threads`, at most `in_flight` at once, fewer where they hold more than `crops` together, or
    where this process may open few files.

    Memory is bounded by that: 48 crops for each, if it is not given.
    """

    def __init__(self, in_flight: int, reader: Reader, threads: Executor, crops: int | None = None) -> None:
        self.threads = threads
        self._open = asyncio.Semaphore(min(in_flight, max_open_videos()))
        self._budget = FrameBudget(crops or in_flight * CROPS_A_REQUEST)
        self._reader = reader

    @asynccontextmanager
    async def open(
        self, source: Source, cutting: WindowingOptions, *, name: str | None, bytes_a_value: int
    ) -> AsyncIterator[DecodeSession]:
        """A video, open for the length of the block, when there is room for it and for its crops.

        `bytes_a_value` is what the model's input has for a pixel's color.

        Raises:
            VideoError: it cannot be opened.
        """
        async with (
            self._open,
            self._opened(source, cutting, name) as reading,
            self._budget.share(reading.measures.crops_held * bytes_a_value),
        ):
            yield reading

    async def measure(self, source: Source, cutting: WindowingOptions, name: str | None = None) -> VideoInfo:
        """What a video tells of itself when it is opened; nothing of it is decoded.

        Raises:
            VideoError: it cannot be opened.
        """
        async with self._opened(source, cutting, name) as reading:
            return reading.measures

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Room for a video's file of so many bytes, for the length of the block."""
        async with self._open, self._budget.share(math.ceil(size / CROP_VALUES)):
            yield

    @asynccontextmanager
    async def _opened(
        self, source: Source, cutting: WindowingOptions, name: str | None
    ) -> AsyncIterator[DecodeSession]:
        with self._reader(source, cutting, name) as reading:
            await asyncio.get_running_loop().run_in_executor(self.threads, reading.open)
            yield reading
