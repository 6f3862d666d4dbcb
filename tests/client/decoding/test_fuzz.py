"""Damaged videos never crash this process, hang, or lose frames silently.

Decodes 200 videos by default. Set ASL_TRITON_FUZZ_FILES to their count and ASL_TRITON_FUZZ_FIRST to the number of the
first one. The same number always gives the same video.
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
    """Count the frames that the ffmpeg program decodes; 0 if it fails or times out."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "quiet", "-threads", "1", "-i", str(path)]
    command += ["-map", "0:V:0", "-fps_mode", "passthrough", "-frames:v", str(LIMITS.max_frames), "-f", "framemd5", "-"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        return 0
    return sum(not line.startswith(b"#") for line in done.stdout.splitlines())


def test_damaged_videos_lose_no_frame_silently(tmp_path: Path) -> None:
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
            with open_frames(path, LIMITS, "it") as video:  # how the page reads its pictures
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
            assert count >= expected - 1, f"file {number}: {count} of {expected} frames without a warning"
            return "whole"
        finally:
            path.unlink()

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        outcomes = Counter(threads.map(decode, range(FIRST, FIRST + FILES)))
    decoders.close()
    print("damaged videos:", dict(outcomes))
    assert sum(outcomes.values()) == FILES
    assert min(outcomes["whole"], outcomes["warned"], outcomes["refused"]) > FILES / 50
