"""Where videos are decoded: in threads of this process, or each in a process of its own."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from asl_triton.decoding.base import Reader
from asl_triton.decoding.in_process import InProcessDecodeSession
from asl_triton.errors import AslTritonError

DecodeIn = Literal["threads", "processes"]

# For many files of which nobody knows what they hold: one that crashes or hangs its decoder ends nothing else.
SAFEST: DecodeIn = "processes" if sys.platform == "linux" else "threads"
DEFAULT_DECODE_TIMEOUT_S = 60.0
MAX_MEMORY_BYTES = 4 * 2**30  # of a decoder's process: several frames of 8K, and a file in memory


@dataclass(frozen=True)
class DecoderBackend:
    """Begins readings; `close` it in the end, which may take seconds."""

    reader: Reader
    close: Callable[[], None]


def make_decoder_backend(decode_in: DecodeIn, timeout_s: float) -> DecoderBackend:
    """Of either kind. In a process, nothing may take longer than `timeout_s`: opening a video, and each window then.

    Raises:
        AslTritonError: this system has no such processes, or the time is none.
    """
    if decode_in == "threads":
        return DecoderBackend(InProcessDecodeSession, lambda: None)
    if sys.platform != "linux":
        raise AslTritonError("only Linux decodes videos in processes of their own: decode them in threads")
    if not timeout_s > 0:
        raise AslTritonError(f"a decoder cannot be given {timeout_s:g} s: give it more than none (--decode-timeout)")
    from asl_triton.decoding.pool import DecoderPool
    from asl_triton.decoding.worker import DecoderLimits

    limits = DecoderLimits(max_decode_s=None, max_window_s=timeout_s, max_memory_bytes=MAX_MEMORY_BYTES)
    decoders = DecoderPool(limits, is_quiet=True)
    return DecoderBackend(decoders.reading, decoders.close)
