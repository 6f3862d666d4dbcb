"""Which videos may be under way at once, and opening them: memory is bounded by their number and their crops."""

import asyncio
import math
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager

from asl_triton.memory import CROP_VALUES, CROPS_A_REQUEST, CropBudget, crops_held
from asl_triton.presets import Preset
from asl_triton.video import Limits, Source, Video, open_video


class Admission:
    """Opens videos, at most `in_flight` at once, fewer where they are long: memory is bounded by 48 crops for each."""

    def __init__(self, in_flight: int, decoders: Executor) -> None:
        self._open = asyncio.Semaphore(in_flight)
        self._budget = CropBudget(in_flight * CROPS_A_REQUEST)
        self._decoders = decoders

    @asynccontextmanager
    async def open(
        self, source: Source, limits: Limits, preset: Preset, *, name: str | None, bytes_a_value: int
    ) -> AsyncIterator[Video]:
        """A video, open for the length of the block, when there is room for it and for its crops.

        `bytes_a_value` is what the recogniser's input has for a pixel's colour.

        Raises:
            VideoError: it cannot be opened.
        """
        async with self._open:
            opening = self._decoders.submit(open_video, source, limits, name)
            try:
                video = await asyncio.wrap_future(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(close_what_came)
                raise
            with video:
                async with self._budget.share(crops_held(video, preset) * bytes_a_value):
                    yield video

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Room for a video's file of so many bytes, for the length of the block."""
        async with self._open, self._budget.share(math.ceil(size / CROP_VALUES)):
            yield


def close_what_came(opening: Future[Video]) -> None:
    """Close a video that was opened for nobody."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
