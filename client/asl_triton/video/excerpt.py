"""A part of a video. Data sets locate signs in longer videos by frames or times."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.video.reader import Frame


@dataclass(frozen=True)
class Excerpt:
    """Frames `first_frame` to `last_frame`, inclusive and counted from 0, that are shown from `start_s` to `end_s`.

    None stands for the end of the video.

    Raises:
        AslTritonError: the excerpt ends before it begins.
    """

    first_frame: int = 0
    last_frame: int | None = None
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        ends_early = self.last_frame is not None and self.last_frame < self.first_frame
        if self.first_frame < 0 or ends_early or not 0 <= self.start_s < (self.end_s or float("inf")):
            raise AslTritonError(f"{self.describe()} is not a valid part of a video: it must end after it begins")

    def describe(self) -> str:
        """Describe the excerpt for a message."""
        if self.start_s or self.end_s is not None:
            return f"{self.start_s:g} s to " + ("the end" if self.end_s is None else f"{self.end_s:g} s")
        return f"frame {self.first_frame} to " + ("the end" if self.last_frame is None else f"frame {self.last_frame}")


def cut_excerpt(frames: Iterable[Frame], excerpt: Excerpt, name: str) -> Iterator[Frame]:
    """Yield the frames of an excerpt, with times that count from the first one. Nothing is decoded after its end.

    Raises:
        VideoError: the video `name` ends before the excerpt begins.
    """
    first_s: float | None = None
    for number, frame in enumerate(frames):
        if excerpt.last_frame is not None and number > excerpt.last_frame:
            break
        if excerpt.end_s is not None and frame.time_s >= excerpt.end_s:
            break
        if number < excerpt.first_frame or frame.time_s < excerpt.start_s:
            continue
        first_s = frame.time_s if first_s is None else first_s
        yield Frame(frame.image, frame.time_s - first_s)
    if first_s is None:
        raise VideoError(f"{name} has no frame from {excerpt.describe()}: it is shorter than its data set says")
