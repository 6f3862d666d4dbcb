"""Helpers for batch tests: run a batch, read what it wrote, and fake a server that goes down."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asl_triton.batch.journal import JOURNAL
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.errors import ServerError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Outcome
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.discovery import Clip
from tests.client.observing import RecordingObserver


def make_clips(path: Path, count: int, prefix: str = "") -> list[Clip]:
    """List one file as `count` clips under different names."""
    return [Clip(path, f"{prefix}{n:03}.mp4") for n in range(count)]


def run_batch(
    transport: FakeTransport,
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str] = ("jsonl",),
    ranking: Ranking | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    clips_at_once: int = 4,
    observer: RecordingObserver | None = None,
    **options: Any,
) -> Summary:
    def recognizer() -> AsyncRecognizer:
        return AsyncRecognizer(transport=transport, in_flight=clips_at_once)

    ranking = ranking or Ranking()
    batch_options = BatchOptions(in_flight=clips_at_once, **options)
    batch = RecognitionBatch(clips, output, formats, ranking, batch_options, observer or RecordingObserver(on_outcome))
    return batch.run(recognizer)


def read_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_video_names(path: Path) -> list[object]:
    return [line["video"] for line in read_lines(path)]


def list_results(output: Path) -> list[str]:
    """List the files for users, without the lock and the journal."""
    return sorted(path.name for path in output.iterdir() if not path.name.startswith(".") and path.name != JOURNAL)


@dataclass
class DyingServer(FakeTransport):
    """A server that goes away after `num_answers` inferences."""

    num_answers: int = 0
    inferences: list[str] = field(default_factory=list)

    def _raise_if_down(self, call: str) -> None:
        if call == "infer":
            self.inferences.append(call)
        if len(self.inferences) > self.num_answers:
            raise ServerError("no server answers at fake:8001")

    async def server_version(self) -> str:
        self._raise_if_down("version")
        return "fake"

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self._raise_if_down("infer")
        return await super().infer(model, inputs, outputs, priority, parameters)
