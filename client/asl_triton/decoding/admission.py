"""Opens videos when there is room for them: memory is bounded by how many are open, and by their crops."""

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from asl_triton.decoding.base import DecodeSession, VideoInfo, WindowingOptions
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.presets import INPUT_SIZE
from asl_triton.video.reader import Source

if TYPE_CHECKING:
    from asl_triton.decoding.pool import DecoderPool

# A crop is 150 kB, and a request holds two more copies of it: the message, and gRPC's own.
CROPS_PER_REQUEST = 48
CROP_VALUES = INPUT_SIZE * INPUT_SIZE * 3  # of one crop, one byte each where the input is UINT8
FILES_PER_VIDEO = 3  # its own and FFmpeg's; or the sockets to its decoder, and the crops
OTHER_FILES = 40  # of Python, gRPC and the caller


class FrameBudget:
    """Crops that clips may hold together. Shares are given first come, first served."""

    def __init__(self, crops: int) -> None:
        self.crops = self._free = crops
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def share(self, crops: int) -> AsyncIterator[None]:
        """Wait until this many may be held, and hold them for the block. More than there are means all of them."""
        crops = min(crops, self.crops)
        async with self._turn:
            while self._free < crops:
                self._given_back.clear()
                await self._given_back.wait()
            self._free -= crops
        try:
            yield
        finally:
            self._free += crops
            self._given_back.set()


class Admission:
    """Opens at most `in_flight` videos at once, fewer where they would hold more than `crops` together, or where this
    process may open few files. `crops` is 48 for each video if not given.

    `threads` open and read them: in this process, or with the processes of `pool`.
    """

    def __init__(self, in_flight: int, pool: "DecoderPool | None", threads: Executor, crops: int | None = None) -> None:
        self.threads = threads
        self._open = asyncio.Semaphore(min(in_flight, max_open_videos()))
        self._budget = FrameBudget(crops or in_flight * CROPS_PER_REQUEST)
        self._create_session: Callable[[Source, WindowingOptions, str | None], DecodeSession] = (
            InProcessDecodeSession if pool is None else pool.create_session
        )

    @asynccontextmanager
    async def open(
        self, video: Source, options: WindowingOptions, *, name: str | None, bytes_a_value: int
    ) -> AsyncIterator[DecodeSession]:
        """A video, open for the block, once there is room for it and for its crops.

        `bytes_a_value` is the size of one color value in the model's input.

        Raises:
            VideoError: it cannot be opened.
        """
        async with self._open:
            with self._create_session(video, options, name) as session:
                measures = await asyncio.get_running_loop().run_in_executor(self.threads, session.open)
                async with self._budget.share(measures.crops_held * bytes_a_value):
                    yield session

    async def measure(self, video: Source, options: WindowingOptions, name: str | None = None) -> VideoInfo:
        """What a video's container says; nothing is decoded.

        Raises:
            VideoError: it cannot be opened.
        """
        with self._create_session(video, options, name) as session:
            return await asyncio.get_running_loop().run_in_executor(self.threads, session.open)

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Room for a video file of `size` bytes, for the block."""
        async with self._open, self._budget.share(math.ceil(size / CROP_VALUES)):
            yield


def max_open_videos() -> int:
    """How many videos may be open at once, so that this process stays within its limit on open files."""
    try:
        import resource
    except ImportError:  # Windows allows thousands
        return sys.maxsize
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else max((limit - OTHER_FILES) // FILES_PER_VIDEO, 1)
