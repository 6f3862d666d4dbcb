"""Clips of about the same length one after another."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from asl_triton.batch.runner import Manner, run
from asl_triton.batch.together import LOOKED_AT_ONCE, by_length
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.video.discovery import Clip, find_clips
from tests.client import videos
from tests.client.served import fake


@dataclass
class Lengths:
    """A recognizer that is only asked for lengths: the numbers that files are named after, if they are."""

    bucket: int
    asked: list[int] = field(default_factory=list)

    async def lengths(self, paths: Sequence[Path]) -> list[int | None]:
        self.asked.append(len(paths))
        return [int(path.name) if path.name.isdigit() else None for path in paths]


def order(names: Sequence[str], bucket: int) -> tuple[list[str], list[int]]:
    """The names in the order they come in, and how many were looked at together."""
    recognizer = Lengths(bucket)

    async def clips() -> AsyncIterator[Clip]:
        for name in names:
            yield Clip(Path(name), name)

    async def come() -> list[str]:
        return [clip.name async for clip in by_length(clips(), cast(Any, recognizer))]

    return asyncio.run(come()), recognizer.asked


@pytest.mark.parametrize(("bucket", "expected"), [
    (1, ["x", "9", "17", "20", "20", "30", "64"]), (16, ["x", "9", "20", "30", "17", "20", "64"]),
])  # fmt: skip
def test_shortest_come_first_and_of_one_bucket_in_their_order(bucket: int, expected: list[str]) -> None:
    assert order(["64", "20", "30", "9", "x", "17", "20"], bucket)[0] == expected


def test_clips_are_looked_at_in_parts_and_none_is_lost() -> None:
    names = [str(number) for number in range(700, 0, -1)]
    come, asked = order(names, 1)
    assert sorted(come, key=int) == sorted(names, key=int)
    assert come[:LOOKED_AT_ONCE] == sorted(names[:LOOKED_AT_ONCE], key=int)
    assert asked == [LOOKED_AT_ONCE, LOOKED_AT_ONCE, 700 - 2 * LOOKED_AT_ONCE, 0]


def test_who_leaves_early_leaves_nothing_behind() -> None:
    async def clips() -> AsyncIterator[Clip]:
        for number in range(1000):
            yield Clip(Path(str(number)), str(number))

    async def leave() -> None:
        coming = by_length(clips(), cast(Any, Lengths(1)))
        await anext(coming)
        await coming.aclose()  # type: ignore[attr-defined]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(leave())


@pytest.mark.parametrize("decoding", ["threads", "processes"])
def test_batch_asks_about_equal_lengths_together_with_the_same_answers(tmp_path: Path, decoding: Any) -> None:
    (tmp_path / "clips").mkdir()
    for number, length in enumerate((30, 12, 30, 20, 12, 20)):
        videos.clip(tmp_path / "clips" / f"{number}.mp4", num_frames=length, size="32x32")
    clips, asked = find_clips(tmp_path / "clips"), {}
    for by_length_too in (False, True):
        transport = fake(answer=lambda frames: np.full(6, frames.mean()))
        run(
            lambda transport=transport: AsyncRecognizer(transport=transport, decoding=decoding),  # type: ignore[misc]
            clips,
            tmp_path / str(by_length_too),
            ["csv"],
            Ranking(),
            manner=Manner(in_flight=1, by_length=by_length_too),
        )
        asked[by_length_too] = [inputs["FRAMES__0"][1] for _, inputs in transport.calls]
    assert asked[False][-6:] == [30, 12, 30, 20, 12, 20] and asked[True][-6:] == [12, 12, 20, 20, 30, 30]
    assert (tmp_path / "True" / "results.csv").read_bytes() == (tmp_path / "False" / "results.csv").read_bytes()
