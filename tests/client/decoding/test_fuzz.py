"""Thousands of damaged videos: none ends this process, hangs, or loses frames without a word.

200 by default; ASL_TRITON_FUZZ_FILES says more, ASL_TRITON_FUZZ_FIRST the number of the first. The same number is the
same file.
"""

import os
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio_ffmpeg
import pytest

from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.factory import make_decoder_pool, open_frames
from asl_triton.errors import VideoError
from asl_triton.presets import PRESETS
from asl_triton.video.reader import Limits
from tests.client.mutations import mutated, seeds

FILES = int(os.environ.get("ASL_TRITON_FUZZ_FILES", "200"))
FIRST = int(os.environ.get("ASL_TRITON_FUZZ_FIRST", "0"))
LIMITS = Limits(max_bytes=2**24, max_frames=5_000, max_pixels=2_000_000)
OPTIONS = WindowingOptions(PRESETS["wlasl"], LIMITS)

pytestmark = pytest.mark.slow


def count_by_command_line(path: Path) -> int:
    """The frames that FFmpeg's own program decodes; 0 if it cannot, or does not end."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "quiet", "-threads", "1", "-i", str(path)]
    command += ["-map", "0:V:0", "-fps_mode", "passthrough", "-frames:v", str(LIMITS.max_frames), "-f", "framemd5", "-"]
    try:
        shown = subprocess.run(command, capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return 0
    return sum(not line.startswith(b"#") for line in shown.stdout.splitlines())


def test_damaged_videos_lose_no_frame_without_a_word(tmp_path: Path) -> None:
    originals = seeds(tmp_path)
    decoders = make_decoder_pool("processes", 20)
    assert decoders is not None

    def decode(number: int) -> str:
        content = mutated(number, originals)
        (path := tmp_path / f"{number}.bin").write_bytes(content)
        try:
            with decoders.create_session(content, OPTIONS, "it") as session:
                session.open()
                list(session.windows())
            with open_frames(path, LIMITS, "it") as video:  # the page's way to its pictures
                count = sum(1 for _ in video)
        except VideoError as exc:
            assert str(exc).startswith("it ") or str(exc).startswith("cannot read it"), (number, str(exc))
            assert "\n" not in str(exc), number
            return "refused" if "ends the decoder" not in str(exc) else "decoder ended"
        else:
            assert count == session.num_frames and set(video.warnings) <= set(session.warnings), number
            if session.warnings:
                return "warned"
            expected = count_by_command_line(path)
            assert count >= expected - 1, f"file {number}: {count} frames of {expected}, and no warning"
            return "whole"
        finally:
            path.unlink()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        told = Counter(threads.map(decode, range(FIRST, FIRST + FILES)))
    decoders.close()
    print("damaged videos:", dict(told))
    assert sum(told.values()) == FILES
    assert min(told["whole"], told["warned"], told["refused"]) > FILES / 50
