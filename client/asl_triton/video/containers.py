"""Video containers: which one a file is, by its first bytes, whether the file ends before it does, and its frames.

Only what is recognized here goes to FFmpeg: among what else it opens are playlists, which name other files and hosts.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

Container = Literal["mp4", "avi", "matroska"]

# ISO/IEC 14496-12 and QuickTime: what the first box of a file may be.
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
MEDIA_BOXES = (b"moov", b"moof", b"mdat")  # what may lie behind the last of them is no loss
MAX_BOXES = 100_000
EBML, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"  # RFC 8794, RFC 9559
RIFF_HEADER_BYTES = 8
AVI_HEAD, AVI_NUM_FRAMES_AT = (b"LIST", b"hdrl", b"avih"), 48  # Microsoft's AVIMAINHEADER, dwTotalFrames


def detect_container(file: BinaryIO) -> Container | None:
    """The container of a file (mov and m4v are mp4, webm is matroska), or None where it is none that we read."""
    file.seek(0)
    head = file.read(12)
    if head[4:8] in FIRST_BOXES:
        return "mp4"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return "matroska" if head[:4] == EBML else None


def is_truncated(file: BinaryIO, container: Container) -> bool:
    """Whether the container says that it goes on where the file ends. Some do not say."""
    size = file.seek(0, 2)
    if container == "mp4":
        return _is_mp4_truncated(file, size)
    if container == "avi":
        file.seek(4)
        length = int.from_bytes(file.read(4), "little")
        return length != 0xFFFFFFFF and RIFF_HEADER_BYTES + length > size
    return _is_matroska_truncated(file, size)


def _is_mp4_truncated(file: BinaryIO, size: int) -> bool:
    """Whether one of the outermost boxes is longer than the file."""
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
    """Whether the segment, which holds everything, is longer than the file."""
    file.seek(len(EBML))
    header_bytes = read_length(file)
    file.seek(header_bytes or 0, 1)
    if file.read(4) != SEGMENT:
        return False
    segment_bytes = read_length(file)
    return segment_bytes is not None and file.tell() + segment_bytes > size


def read_length(file: BinaryIO) -> int | None:
    """EBML's length: as many bytes as the first has leading zeros, and one. None where all bits say `unknown`."""
    first = int.from_bytes(file.read(1), "big")
    more = 8 - first.bit_length()
    value = (first & (0x7F >> more)) << 8 * more | int.from_bytes(file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value


def declared_frames(path: Path) -> int | None:
    """How many frames a file says it has, mp4 (with mov and m4v) and avi; None where it does not, or cannot be read.

    For ordering many clips by their length: a tenth of a millisecond each, without FFmpeg, and so without its crashes.
    Frames that an edit list hides are counted.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for without end
            return None
        with path.open("rb") as file:
            container = detect_container(file)
            if container == "mp4":
                return frames_of_mp4(file) or None
            return (frames_of_avi(file) or None) if container == "avi" else None
    except (OSError, ValueError):
        return None


def frames_of_mp4(file: BinaryIO) -> int:
    """The samples of the first track of pictures that has some, by its table of sample sizes; 0 where there is none."""
    size = file.seek(0, 2)
    for track in boxes_at(file, (0, size), b"moov", b"trak"):
        if [read_at(file, start + 8) for start, _ in boxes_at(file, track, b"mdia", b"hdlr")] != [b"vide"]:
            continue
        for kind in (b"stsz", b"stz2"):
            for start, _ in boxes_at(file, track, b"mdia", b"minf", b"stbl", kind):
                if count := int.from_bytes(read_at(file, start + 8), "big"):
                    return count
    return 0


def frames_of_avi(file: BinaryIO) -> int:
    """The frames that the header of the file tells of; 0 where it has none."""
    if tuple(read_at(file, at) for at in (12, 20, 24)) != AVI_HEAD:
        return 0
    return int.from_bytes(read_at(file, AVI_NUM_FRAMES_AT), "little")


def boxes_at(file: BinaryIO, span: tuple[int, int], *path: bytes) -> Iterator[tuple[int, int]]:
    """Where the content of each box of the last kind of `path` starts and ends; those before say what it lies in."""
    start, end = span
    for _ in range(MAX_BOXES):
        if start >= end:
            return
        length, kind, header_bytes = int.from_bytes(read_at(file, start), "big"), read_at(file, start + 4), 8
        if length == 1:  # too long for 32 bits
            length, header_bytes = int.from_bytes(read_at(file, start + 8, 8), "big"), 16
        elif length == 0:  # up to the end
            length = end - start
        if length < header_bytes:
            return
        if kind == path[0]:
            content = start + header_bytes, min(start + length, end)
            if path[1:]:
                yield from boxes_at(file, content, *path[1:])
            else:
                yield content
        start += length


def read_at(file: BinaryIO, at: int, count: int = 4) -> bytes:
    """Some bytes of a file."""
    file.seek(at)
    return file.read(count)
