"""Detects truncated video files, whose container says that they are longer. FFmpeg does not report them."""

from typing import BinaryIO

MEDIA_BOXES = (b"moov", b"moof", b"mdat")  # other boxes may be truncated without losing frames
MAX_BOXES = 100_000
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # RFC 8794, RFC 9559
RIFF_HEADER_BYTES = 8


def is_truncated(file: BinaryIO) -> bool:
    """Whether an MP4, AVI or Matroska file is shorter than its container says. Other containers do not say."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(12)
    if head[:4] == EBML:
        return _is_matroska_truncated(file, size)
    if head[:4] == b"RIFF":
        length = int.from_bytes(head[4:8], "little")
        return length != 0xFFFFFFFF and RIFF_HEADER_BYTES + length > size
    return _is_mp4_truncated(file, size)


def _is_mp4_truncated(file: BinaryIO, size: int) -> bool:
    """Whether a top-level box extends beyond the end of the file."""
    start = 0
    for _ in range(MAX_BOXES):
        file.seek(start)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if length == 1:  # too long for 32 bits
            length = int.from_bytes(file.read(8), "big")
        if length < 8:  # 0 means up to the end of the file
            return False
        start += length
        if start >= size:
            return start > size and kind in MEDIA_BOXES
    return False


def _is_matroska_truncated(file: BinaryIO, size: int) -> bool:
    """Whether the segment, which contains everything, extends beyond the end of the file."""
    file.seek(len(EBML))
    header_bytes = read_length(file)
    file.seek(header_bytes or 0, 1)
    if file.read(4) != SEGMENT:
        return False
    segment_bytes = read_length(file)
    return segment_bytes is not None and file.tell() + segment_bytes > size


def read_length(file: BinaryIO) -> int | None:
    """Read an EBML length, or None if it says `unknown`. It has one byte more than the first byte has leading zeros."""
    first = int.from_bytes(file.read(1), "big")
    more = 8 - first.bit_length()
    value = (first & (0x7F >> more)) << 8 * more | int.from_bytes(file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value
