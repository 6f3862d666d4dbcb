"""Clips of about the same length one after another: a server joins requests of equal length to batches."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress

from asl_triton.batch.workers import AnyClip
from asl_triton.errors import AslTritonError
from asl_triton.recognizer.async_client import AsyncRecognizer

LOOKED_AT_ONCE = 256  # clips, whose files are opened for their lengths while those before are asked about


async def by_length(clips: AsyncIterator[AnyClip], recognizer: AsyncRecognizer) -> AsyncIterator[AnyClip]:
    """The same clips, of each 256 the shortest first, in frames to the next multiple of the recognizer's `bucket`.

    Of those whose container does not tell its length, or that cannot be opened, the length counts as 0.
    """

    async def next_ones() -> list[AnyClip]:
        ones = await taken(clips)
        lengths = await recognizer.lengths([clip.path for clip in ones])
        buckets = [math.ceil((length or 0) / recognizer.bucket) for length in lengths]
        return [ones[place] for place in sorted(range(len(ones)), key=buckets.__getitem__)]

    coming = asyncio.create_task(next_ones())
    try:
        while ones := await coming:
            coming = asyncio.create_task(next_ones())
            for clip in ones:
                yield clip
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, AslTritonError):
            await coming


async def taken(clips: AsyncIterator[AnyClip]) -> list[AnyClip]:
    """The next of them, up to `LOOKED_AT_ONCE`; the others stay."""
    ones: list[AnyClip] = []
    while len(ones) < LOOKED_AT_ONCE and (clip := await anext(clips, None)) is not None:
        ones.append(clip)
    return ones
