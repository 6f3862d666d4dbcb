"""Finding clips in unusual folders."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from asl_triton.errors import VideoError
from asl_triton.video.discovery import Clip, FileFingerprint, find_clips
from asl_triton.video.reader import open_video


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clip.mp4").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "itself.mp4").symlink_to(tmp_path / "itself.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a" / "clip.mp4")
    assert [clip.name for clip in find_clips(tmp_path)] == ["a/clip.mp4", "itself.mp4", "link.mp4"]
    with pytest.raises(VideoError, match=r"cannot read itself\.mp4: Too many levels of symbolic links"):
        open_video(tmp_path / "itself.mp4", name="itself.mp4")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_pipe_is_rejected_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert (
        FileFingerprint.of(tmp_path / "pipe.mp4") is None
        and FileFingerprint.of(tmp_path / "pipe.mp4", by_content=True) is None
    )
    with pytest.raises(VideoError, match="not a regular file"):
        open_video(tmp_path / "pipe.mp4")


def test_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private" / "below").mkdir(parents=True)
    (tmp_path / "clip.mp4").touch()
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == tmp_path / "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_clips(tmp_path) == [Clip(tmp_path / "clip.mp4", "clip.mp4"), Clip(tmp_path / "private", "private")]
    with pytest.raises(VideoError, match="cannot read private: Permission denied"):
        open_video(tmp_path / "private", name="private")
    with pytest.raises(VideoError, match=r"cannot read .*private: Permission denied"):
        find_clips(tmp_path / "private")
