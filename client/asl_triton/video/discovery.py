"""Finds the clips in a folder, names them, and detects changed files."""

import fnmatch
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asl_triton.errors import VideoError
from asl_triton.files import sha256
from asl_triton.results import SignerBox
from asl_triton.video.excerpt import Excerpt
from asl_triton.video.reader import EXTENSIONS

SHOWN_SKIPPED = 5  # names in the error for a folder without videos


@dataclass(frozen=True)
class Clip:
    """A clip of a batch: its file, and its name in the results.

    If a data set says so, `signer` is where the signer is, and `excerpt` is the part of the file that is the clip.
    """

    path: Path
    name: str
    signer: SignerBox | None = field(default=None, kw_only=True)
    excerpt: Excerpt | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class FileFingerprint:
    """A file's size and modification time when it was read, and optionally an identifier of its content.

    `content_id` is the SHA-256 of a file, or a bucket's own identifier for the content of an object.
    """

    size: int
    mtime_ns: int
    content_id: str | None = None

    @classmethod
    def of(cls, path: Path, by_content: bool = False) -> "FileFingerprint | None":
        """Take a file's fingerprint; `by_content` reads the whole file.

        Returns None if there is no such file, or if it is not a regular file, since reading a pipe could block forever.
        """
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                return None
            return cls(status.st_size, status.st_mtime_ns, sha256(path) if by_content else None)
        except OSError:
            return None

    def is_same(self, now: "FileFingerprint | None") -> bool:
        """Whether a file is unchanged whose fingerprint is `now`. Compares the content if `now` has its identifier."""
        if now is None:
            return False
        if now.content_id is not None:
            return self.content_id == now.content_id
        return (self.size, self.mtime_ns) == (now.size, now.mtime_ns)


def find_clips(folder: Path, glob: str | None = None) -> list[Clip]:
    """Find the videos in a folder and its sub-folders, sorted by name. If `folder` is a file, return that one.

    Videos are found by extension, or by a pattern such as `*_front.mp4`. Hidden files and folders are skipped. A
    sub-folder that cannot be read is returned as a clip, so that it is reported without affecting the others.

    Raises:
        VideoError: there is no such folder or file, or it has no video.
    """
    if folder.is_file():
        return [Clip(folder, format_name(folder.name))]
    if not folder.is_dir():
        raise VideoError(f"there is no {'file' if is_video(folder) else 'folder'} {folder}")
    clips: list[Clip] = []
    unread: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unread.append):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for file in files:
            path = Path(parent, file)
            name = path.relative_to(folder).as_posix()
            if is_wanted(name, glob):
                clips.append(Clip(path, format_name(name)))
    for error in unread:
        path = Path(error.filename)
        if path == folder:
            raise VideoError(f"cannot read {folder}: {error.strerror}") from error
        clips.append(Clip(path, format_name(path.relative_to(folder).as_posix())))
    if not clips:
        raise no_clips_error(str(folder), glob, find_skipped(folder, glob))
    return sorted(clips, key=lambda clip: clip.name)


def find_skipped(folder: Path, glob: str | None = None) -> list[str]:
    """Find the files in a folder and its sub-folders that `find_clips` skips, sorted, except hidden ones."""
    skipped = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        names = [Path(parent, file).relative_to(folder).as_posix() for file in files if not is_hidden(file)]
        skipped += [format_name(name) for name in names if not is_wanted(name, glob)]
    return sorted(skipped)


def is_wanted(name: str, glob: str | None) -> bool:
    """Whether a file is one of a folder's clips, judging by its path relative to the folder."""
    parts = name.split("/")
    if any(map(is_hidden, parts)):
        return False
    return fnmatch.fnmatch(parts[-1], glob) or fnmatch.fnmatch(name, glob) if glob else is_video(Path(parts[-1]))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or the folder that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def no_clips_error(folder: str, glob: str | None, skipped: Sequence[str]) -> VideoError:
    """Build the error for a folder without clips, all of whose files were skipped."""
    what = f"file that matches {glob!r}" if glob else f"video ({', '.join(EXTENSIONS)})"
    others = f" and {len(skipped) - SHOWN_SKIPPED} more" if len(skipped) > SHOWN_SKIPPED else ""
    found = f": found only {', '.join(skipped[:SHOWN_SKIPPED])}{others}" if skipped else ""
    return VideoError(f"there is no {what} in {folder} or its subfolders{found}")


def is_video(path: Path) -> bool:
    """Whether a file has a video extension."""
    return path.suffix.lower() in EXTENSIONS


def format_name(name: str) -> str:
    """Format a file's name as one printable line, with bytes that are not UTF-8 and control characters escaped."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda control: f"\\x{ord(control[0]):02x}", text)
