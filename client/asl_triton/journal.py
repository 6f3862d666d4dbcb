"""The journal of a batch: one line a clip, on disk as soon as it is known."""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from asl_triton.errors import AslTritonError
from asl_triton.predictions import Prediction, Recognition
from asl_triton.timeline import Segment, Timeline


@dataclass(frozen=True)
class Failure:
    """A clip that was not recognised, and why. `rejected`: the server had no room, so that it may be asked again."""

    video: str
    error: str
    rejected: bool = False


Outcome = Recognition | Failure
AnyOutcome = Recognition | Timeline | Failure


class Journal:
    """Outcomes appended to a file, in the order they come, and read back in the order of their clips.

    A line is whole or not there: what a full disk cuts off is taken back, and the lines before stay.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: list[tuple[str, int]] = []  # a clip's name, and where its line starts
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Journal":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w+b", buffering=0)
        except OSError as exc:
            raise AslTritonError(
                f"cannot write to {self.path.parent}: {exc.strerror or exc}. Choose another folder with --output"
            ) from exc
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()

    def __len__(self) -> int:
        return len(self._lines)

    def discard(self) -> None:
        """Delete the file: what it held is written elsewhere, or there was nothing."""
        self.path.unlink(missing_ok=True)

    def append(self, outcome: AnyOutcome) -> None:
        """Write one outcome.

        Raises:
            AslTritonError: the disk is full or gone; what was written before is whole.
        """
        assert self._file is not None
        line = json.dumps(dataclasses.asdict(outcome)).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            if written != len(line):  # the disk took a part: the next write says why
                self._file.write(line[written or 0 :])
        except OSError as exc:
            self._file.truncate(start)
            raise AslTritonError(
                f"cannot write {self.path}: {exc.strerror or exc}. Make room, or choose another --output"
            ) from exc
        self._lines.append((outcome.video, start))

    def outcomes(self) -> Iterator[AnyOutcome]:
        """What was appended, by the clips' names."""
        assert self._file is not None
        with self.path.open("rb") as lines:
            for _, start in sorted(self._lines):
                lines.seek(start)
                yield parsed(json.loads(lines.readline()))


def parsed(line: dict[str, Any]) -> AnyOutcome:
    """An outcome of its JSON object."""
    if "error" in line:
        return Failure(**line)
    line["warnings"] = tuple(line["warnings"])
    if "segments" in line:
        line["segments"] = tuple(Segment(**segment) for segment in line["segments"])
        return Timeline(**line)
    line["predictions"] = tuple(Prediction(**prediction) for prediction in line["predictions"])
    return Recognition(**line)
