"""Excerpts of longer videos, by frame or by time."""

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.video.excerpt import Excerpt, cut_excerpt
from asl_triton.video.reader import Frame


def build_frames(count: int) -> list[Frame]:
    """Build frames at 10 per second whose pixels hold their number."""
    return [Frame(np.full((1, 1, 3), n, np.uint8), n / 10) for n in range(count)]


@pytest.mark.parametrize(("excerpt", "expected"), [
    (Excerpt(), range(20)),
    (Excerpt(3, 7), range(3, 8)),
    (Excerpt(3), range(3, 20)),
    (Excerpt(19, 40), [19]),
    (Excerpt(start_s=0.5, end_s=0.9), range(5, 9)),
    (Excerpt(start_s=1.2), range(12, 20)),
])  # fmt: skip
def test_times_of_an_excerpt_start_at_zero(excerpt: Excerpt, expected: list[int]) -> None:
    cut = list(cut_excerpt(build_frames(20), excerpt, "it"))
    assert [int(frame.image[0, 0, 0]) for frame in cut] == list(expected)
    assert [frame.time_s for frame in cut] == pytest.approx([n / 10 for n in range(len(cut))])


def test_reading_stops_at_the_end_of_the_excerpt() -> None:
    waiting = iter(build_frames(20))
    assert len(list(cut_excerpt(waiting, Excerpt(2, 4), "it"))) == 3
    assert len(list(waiting)) == 14  # one more was read, to see that it is outside


@pytest.mark.parametrize("excerpt", [Excerpt(20), Excerpt(start_s=2.0), Excerpt(30, 40)])
def test_excerpt_beyond_the_end_is_rejected(excerpt: Excerpt) -> None:
    with pytest.raises(VideoError, match=r"it has no frame from .*: it is shorter than its data set says"):
        list(cut_excerpt(build_frames(20), excerpt, "it"))


@pytest.mark.parametrize("values", [{"first_frame": -1}, {"first_frame": 5, "last_frame": 4}, {"start_s": -1.0},
                                    {"start_s": 2.0, "end_s": 1.0}, {"start_s": float("nan")}])  # fmt: skip
def test_invalid_excerpt_is_rejected(values: dict[str, float]) -> None:
    with pytest.raises(AslTritonError, match="must end after it begins"):
        Excerpt(**values)  # type: ignore[arg-type]
