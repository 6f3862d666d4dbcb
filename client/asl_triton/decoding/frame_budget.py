"""How many crops may be held in memory at once, by all clips that are under way."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.video.reader import Video

WINDOWS_AHEAD = 4  # of one clip, asked about at once: a long video is never held whole
# A crop is 150 kB, and gRPC holds four further copies of it while a request is under way: eight requests of so many
# crops are 290 MB.
CROPS_A_REQUEST = 48
CROP_VALUES = INPUT_SIZE * INPUT_SIZE * 3  # of one crop, a byte each where the input is UINT8


class FrameBudget:
    """Crops that clips may hold together. They get their share first come, first served."""

    def __init__(self, crops: int) -> None:
        self.crops = self._free = crops
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def share(self, crops: int) -> AsyncIterator[None]:
        """Wait until so many may be held, and hold them for the block; more than there are is all of them."""
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


def estimate_frames_in_memory(video: Video, preset: Preset) -> int:
    """How many crops of a clip are held at once while it is asked about, as far as its container tells its length."""
    most = max(preset.max_frames, WINDOWS_AHEAD * preset.window_frames)
    if video.declared_frames == 0:
        return most
    crops = video.declared_frames * (preset.frame_rate / video.frame_rate if preset.frame_rate else 1)
    least = preset.min_frames
    if preset.frames == "window":
        least = preset.window_frames
        if crops > preset.window_frames:
            crops *= preset.window_frames / preset.stride_frames  # windows overlap
    return min(math.ceil(max(crops, least)), most)
