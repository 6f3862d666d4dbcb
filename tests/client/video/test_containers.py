"""How many frames a file says it has, read from its index alone."""

import asyncio
import os
from pathlib import Path

import pytest

from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.video.containers import declared_frames
from asl_triton.video.reader import open_video
from tests.client import videos
from tests.client.served import fake
from tests.live.mutations import mutated, seeds


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".m4v", ".avi"])
@pytest.mark.parametrize("num_frames", [1, 30])
def test_count_is_that_of_the_decoder(tmp_path: Path, extension: str, num_frames: int) -> None:
    path = videos.clip(tmp_path / f"clip{extension}", num_frames)
    with open_video(path) as video:
        assert declared_frames(path) == video.declared_frames == num_frames


def test_count_is_of_the_pictures_wherever_the_index_is(tmp_path: Path) -> None:
    sounding = videos.with_audio(tmp_path / "sound.mp4", 25, 2)
    swapped = tmp_path / "swapped.mp4"
    videos.ffmpeg("-i", sounding, "-map", "0:a", "-map", "0:v", "-c", "copy", swapped)
    fast = videos.faststart(tmp_path / "fast.mp4", swapped)
    cut = videos.cut(tmp_path / "cut.mp4", fast, 0.6)
    assert [declared_frames(path) for path in (sounding, swapped, fast, cut)] == [25] * 4


def test_count_is_that_of_real_clips(shared_folder: Path) -> None:
    paths = sorted((shared_folder / "wlasl" / "videos").iterdir())
    assert [declared_frames(path) for path in paths] == [68, 30]


def test_file_that_does_not_say_has_no_count(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "text.mp4").write_bytes(videos.TEXT)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "endless.mp4").write_bytes(b"\0\0\0\x18ftypisom" + b"\xff" * 100)
    files = [
        videos.clip(tmp_path / "clip.mkv"),
        videos.clip(tmp_path / "clip.webm"),
        videos.clip(tmp_path / "fragments.mp4", options=["-movflags", "frag_keyframe+empty_moov", "-g", "4"]),
        videos.audio_only(tmp_path / "audio.mp4"),
        videos.cut(tmp_path / "cut.mp4", videos.clip(tmp_path / "whole.mp4")),
        *(tmp_path / name for name in ("pipe.mp4", "text.mp4", "empty.mp4", "endless.mp4", "nowhere.mp4", "")),
        Path("a\0b.mp4"),
    ]
    assert [declared_frames(path) for path in files] == [None] * len(files)


def test_recognizer_tells_the_lengths_of_many_at_once(tmp_path: Path) -> None:
    paths = [videos.clip(tmp_path / f"{count}.mp4", count) for count in (20, 10)]

    async def ask() -> list[int | None]:
        async with AsyncRecognizer(transport=fake()) as recognizer:
            return await recognizer.lengths([paths[0], tmp_path / "nowhere.mp4", str(paths[1])])

    assert asyncio.run(ask()) == [20, None, 10]


def test_damaged_files_have_some_count_or_none(tmp_path: Path) -> None:
    originals = seeds(tmp_path)
    path = tmp_path / "damaged"
    found = set()
    for number in range(1500):
        path.write_bytes(mutated(number, originals))
        count = declared_frames(path)
        assert count is None or 0 < count < 2**32, number
        found.add(count)
    assert None in found and 12 in found
