"""Where videos are decoded: in threads of this process, or in processes of their own."""

import atexit
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol

from asl_triton.errors import AslTritonError
from asl_triton.video.reader import Frame, Limits, Source, open_video

if TYPE_CHECKING:
    from asl_triton.decoding.pool import DecoderPool

DecodeIn = Literal["threads", "processes"]

# Default for untrusted files: a video that crashes or hangs its decoder affects only itself.
SAFEST: DecodeIn = "processes" if sys.platform == "linux" else "threads"
DEFAULT_DECODE_TIMEOUT_S = 60.0
MAX_MEMORY_BYTES = 4 * 2**30  # of a decoder's process: several frames of 8K, and a file in memory
VIDEOS_PER_PROCESS = 100  # a start costs some milliseconds, and nothing that a decoder leaks lasts longer


def make_decoder_pool(decode_in: DecodeIn, timeout_s: float) -> "DecoderPool | None":
    """The processes that decode, or None for threads.

    In a process, opening a video may take `timeout_s`, and so may each of its windows. Close the pool at the end, which
    may take seconds.

    Raises:
        AslTritonError: this system has no such processes, or `timeout_s` is not above 0.
    """
    if decode_in == "threads":
        return None
    if sys.platform != "linux":
        raise AslTritonError("only Linux decodes videos in processes of their own: decode them in threads")
    if not timeout_s > 0:
        raise AslTritonError(f"a decoder cannot be given {timeout_s:g} s: give it more than none (--decode-timeout)")
    from asl_triton.decoding.pool import DecoderPool
    from asl_triton.decoding.worker import DecoderLimits

    limits = DecoderLimits(
        max_decode_s=None,
        max_window_s=timeout_s,
        max_memory_bytes=MAX_MEMORY_BYTES,
        videos_per_process=VIDEOS_PER_PROCESS,
    )
    return DecoderPool(limits, is_quiet=True)


class FrameReader(Protocol):
    """A video that is iterated over once for its frames, and closed: use it in a `with` block."""

    name: str
    frame_rate: float
    warnings: list[str]  # complete after the last frame

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order."""

    def close(self) -> None:
        """Let go of the video."""

    def __enter__(self) -> "FrameReader":
        """Itself."""

    def __exit__(self, *exception: object) -> None:
        """Close it."""


def open_frames(source: Source, limits: Limits | None = None, name: str | None = None) -> FrameReader:
    """Open a video file, its bytes, or a binary file object for its frames, in a process or a thread as `SAFEST` says.

    Raises:
        VideoError: the file is missing, is not a video, has no video stream, or exceeds a limit.
    """
    limits = limits or Limits()
    if SAFEST == "threads":
        return open_video(source, limits, name)
    from asl_triton.decoding.pool import SubprocessFrames

    return SubprocessFrames(_shared_pool(os.getpid()), source, limits, name)


def warm_up() -> None:
    """Start what `open_frames` needs, so that the first video does not wait for it."""
    if SAFEST == "processes":
        _shared_pool(os.getpid()).warm_up()


@cache
def _shared_pool(_process_id: int) -> "DecoderPool":
    """The processes that decode for this process; a forked one gets its own. They end with it."""
    pool = make_decoder_pool(SAFEST, DEFAULT_DECODE_TIMEOUT_S)
    assert pool is not None
    atexit.register(pool.close)
    return pool
