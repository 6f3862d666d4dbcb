"""Limits on open videos and on the memory of a client, whatever the number and length of its clips."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asl_triton.decoding.admission import FrameBudget, max_open_videos
from asl_triton.decoding.base import estimate_crops_held
from asl_triton.presets import PRESETS, Preset
from asl_triton.video.reader import open_video
from tests.client import videos
from tests.client.grpc_server import GLOSSES, Triton, serving

WLASL, BSL1K = PRESETS["wlasl"], PRESETS["bsl1k"]
MIB = 2**20

# Recognizes a clip repeatedly and prints its peak memory in KiB.
CLIENT = """
import sys
from pathlib import Path
from asl_triton import AsyncRecognizer
from asl_triton.batch.runner import BatchOptions, RecognitionBatch
from asl_triton.video.discovery import Clip
from asl_triton.postprocessing.ranking import Ranking

server, clip, times, output = sys.argv[1:]
clips = [Clip(Path(clip), f"{n:04}.mp4") for n in range(int(times))]
run = RecognitionBatch(clips, Path(output), ["csv"], Ranking(), BatchOptions(in_flight=8))
summary = run.run(lambda: AsyncRecognizer(server))
assert summary.recognized == len(clips), summary
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_shares_are_granted_first_come_first_served() -> None:
    async def share() -> list[str]:
        budget, log = FrameBudget(100), []
        release = {name: asyncio.Event() for name in "abcd"}

        async def hold(name: str, crops: int) -> None:
            async with budget.share(crops):
                log.append(name)
                await release[name].wait()

        tasks = [asyncio.create_task(hold(*share)) for share in (("a", 60), ("b", 1000), ("c", 10), ("d", 10))]
        for name in "abcd":
            for _ in range(10):
                await asyncio.sleep(0)
            log.append("|")
            release[name].set()
        await asyncio.gather(*tasks)
        return log

    # b waits for the whole budget, and the smaller shares behind it wait their turn.
    assert asyncio.run(share()) == ["a", "|", "b", "|", "c", "d", "|", "|"]


def test_share_is_returned_on_failure_or_cancellation() -> None:
    async def share() -> None:
        budget = FrameBudget(10)
        with pytest.raises(ZeroDivisionError):
            async with budget.share(10):
                _ = 1 / 0
        async with budget.share(10):
            waiting = asyncio.create_task(budget.share(5).__aenter__())
            await asyncio.sleep(0)
            waiting.cancel()
        async with budget.share(10):
            pass

    asyncio.run(share())


@pytest.mark.parametrize(("preset", "num_frames", "rate", "crops"), [
    (WLASL, 1, "25", 9), (WLASL, 100, "25", 100), (WLASL, 300, "25", 300), (WLASL, 3000, "25", 300),
    (BSL1K, 50, "25", 64), (BSL1K, 64, "25", 64), (BSL1K, 80, "25", 160), (BSL1K, 80, "50", 64),
    (BSL1K, 40, "10", 200), (BSL1K, 3000, "25", 300),
], ids=lambda value: getattr(value, "name", value))  # fmt: skip
def test_share_of_a_clip_is_estimated_from_its_container(
    tmp_path: Path, preset: Preset, num_frames: int, rate: str, crops: int
) -> None:
    with open_video(videos.clip(tmp_path / "clip.mp4", num_frames, "32x32", rate)) as video:
        assert estimate_crops_held(video, preset) == crops


def test_clip_of_unknown_length_gets_the_largest_share(tmp_path: Path) -> None:
    with open_video(videos.clip(tmp_path / "live.webm", options=["-live", "1", "-f", "webm"])) as video:
        assert estimate_crops_held(video, WLASL) == 300


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
@pytest.mark.parametrize(("files", "videos"), [(64, 8), (256, 72), (20, 1)])
def test_open_videos_stay_within_the_limit_on_open_files(files: int, videos: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, before[1]))
    try:
        assert max_open_videos() == videos
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


LOADS: dict[str, tuple[Preset, Callable[[Path], Path], int]] = {
    "64 frames": (WLASL, lambda folder: videos.clip(folder / "clip.mp4", 64, "320x240"), 24),
    "300 frames of 720p": (
        WLASL, lambda folder: videos.clip(folder / "clip.mp4", 300, "1280x720", options=["-preset", "ultrafast"]), 3,
    ),
    "windows": (BSL1K, lambda folder: videos.clip(folder / "clip.mp4", 600, "32x32"), 4),
}  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("load", LOADS)
def test_memory_is_bounded(tmp_path: Path, load: str) -> None:
    preset, make, times = LOADS[load]

    def logits(frames: np.ndarray) -> np.ndarray:
        return np.full(len(GLOSSES), frames.mean(), np.float32)

    with serving(Triton(preset, logits), workers=1) as triton:
        command = [sys.executable, "-c", CLIENT, triton.address, make(tmp_path), str(times), tmp_path / "out"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 600 * MIB
