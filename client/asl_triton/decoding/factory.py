"""Where videos are decoded: in threads of this process, or in processes of their own."""

import sys
from typing import TYPE_CHECKING, Literal

from asl_triton.errors import AslTritonError

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
