"""An observer of batches."""

from collections.abc import Callable
from typing import Any

from asl_triton.batch.workers import Observer


class RecordingObserver(Observer):
    """Records all calls. `on_outcome` is called with each outcome."""

    def __init__(self, on_outcome: Callable[[Any], None] = lambda outcome: None) -> None:
        self.outcomes: list[Any] = []
        self.skipped = 0
        self.shares: dict[str, list[float]] = {}
        self.sentences: list[str] = []
        self._on_outcome = on_outcome

    def advance(self, outcome: Any) -> None:
        self.outcomes.append(outcome)
        self._on_outcome(outcome)

    def skip(self, count: int) -> None:
        self.skipped += count

    def move(self, video: str, share: float) -> None:
        self.shares.setdefault(video, []).append(share)

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)
