"""Which container a file is, by its first bytes, and whether the file is cut off.

Only files recognized here reach FFmpeg, which would also open playlists, and so other files and hosts.
"""

from typing import BinaryIO, Literal

Container = Literal["mp4", "avi", "matroska"]

# ISO/IEC 14496-12 and QuickTime: what the first box of a file may be.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
MEDIA_BOXES = (b"moov", b"moof", b"mdat")  # what may be missing after the last of them is no loss
MAX_BOXES = 100_000
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # RFC 8794, RFC 9559
RIFF_HEADER_BYTES = 8


def detect_container(file: BinaryIO) -> Container | None:
    """The container of a file (mov and m4v are mp4, webm is matroska), or None if we do not read it."""
    file.seek(0)
    head = file.read(12)
    if head[4:8] in FIRST_BOXES:
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return "matroska" if head[:4] == EBML else None


def is_truncated(file: BinaryIO, container: Container) -> bool:
    """Whether the container says that it is longer than the file. Some do not say."""
    size = file.seek(0, 2)
    if container == "mp4":
        return _is_mp4_truncated(file, size)
    if container == "avi":
        file.seek(4)
        length = int.from_bytes(file.read(4), "little")
        return length != 0xFFFFFFFF and RIFF_HEADER_BYTES + length > size
    return _is_matroska_truncated(file, size)


def _is_mp4_truncated(file: BinaryIO, size: int) -> bool:
    """Whether a top-level box ends after the file."""
    start = 0
    for _ in range(MAX_BOXES):
        file.seek(start)
        length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
        if length == 1:  # too long for 32 bits
            length = int.from_bytes(file.read(8), "big")
        if length < 8:  # 0 is up to the end of the file
            return False
        start += length
        if start >= size:
            return start > size and kind in MEDIA_BOXES
    return False


def _is_matroska_truncated(file: BinaryIO, size: int) -> bool:
    """Whether the segment, which contains everything, ends after the file."""
    file.seek(len(EBML))
    header_bytes = read_length(file)
    file.seek(header_bytes or 0, 1)
    if file.read(4) != SEGMENT:
        return False
    segment_bytes = read_length(file)
    return segment_bytes is not None and file.tell() + segment_bytes > size


def read_length(file: BinaryIO) -> int | None:
    """Read an EBML length: one byte more than the first byte has leading zeros. None if all bits say `unknown`."""
    first = int.from_bytes(file.read(1), "big")
    more = 8 - first.bit_length()
    value = (first & (0x7F >> more)) << 8 * more | int.from_bytes(file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value
