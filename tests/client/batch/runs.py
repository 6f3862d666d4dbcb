"""Batches as tests run them, what they wrote, and a server that goes down."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asl_triton.batch.journal import JOURNAL
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.errors import (
    ServerError,
)
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Outcome
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.discovery import Clip
from tests.client.observing import Told


def named(path: Path, count: int, prefix: str = "") -> list[Clip]:
    return [Clip(path, f"{prefix}{n:03}.mp4") for n in range(count)]


def batch(
    transport: FakeTransport,
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str] = ("jsonl",),
    ranking: Ranking | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    clips_at_once: int = 4,
    told: Told | None = None,
    **options: Any,
) -> Summary:
    def recognizer() -> AsyncRecognizer:
        return AsyncRecognizer(transport=transport, in_flight=clips_at_once)

    ranking = ranking or Ranking()
    batch_options = BatchOptions(in_flight=clips_at_once, **options)
    return RecognitionBatch(clips, output, formats, ranking, batch_options, told or Told(on_outcome)).run(recognizer)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def videos_of(path: Path) -> list[object]:
    return [line["video"] for line in lines(path)]


def left(output: Path) -> list[str]:
    """The files for users: not the lock, and not the journal."""
    return sorted(path.name for path in output.iterdir() if not path.name.startswith(".") and path.name != JOURNAL)


@dataclass
class Mortal(FakeTransport):
    """A server that goes away after so many answers."""

    answers: int = 0
    given: list[str] = field(default_factory=list)

    def _live(self, what: str) -> None:
        if what == "infer":
            self.given.append(what)
        if len(self.given) > self.answers:
            raise ServerError("no server answers at fake:8001")

    async def server_version(self) -> str:
        self._live("version")
        return "fake"

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self._live("infer")
        return await super().infer(model, inputs, outputs, priority, parameters)
