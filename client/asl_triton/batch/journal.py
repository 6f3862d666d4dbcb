"""The journal of a batch: one line a clip, on disk as soon as it is known, and read again by the next run."""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from asl_triton.files import FolderLock, ensure_folder, sync_folder, translate_write_errors
from asl_triton.results import AnyOutcome, Failure, Prediction, Recognition, Segment, Timeline
from asl_triton.video.discovery import FileFingerprint

JOURNAL = "journal.jsonl"
PARTS = "journal"  # the folder that has the journal of a cluster
LOCK = ".journal.lock"
FSYNC_EVERY_S = 1.0
QUESTION, STAMP = "question", "stamp"


# Of a line: those of other versions are left out, as are those that were cut off.
FIELDS = tuple({field.name for field in dataclasses.fields(kind)} for kind in (Recognition, Timeline, Failure))


class Entry(NamedTuple):
    """Where the last line about a clip starts, what its file was then, and whether it is a failure."""

    start: int
    fingerprint: FileFingerprint | None
    is_failure: bool


class Journal:
    """The outcomes of a folder's runs, one line each, in the order they come; held by one run at a time.

    The first line says what is asked of each clip: `begin` keeps what was known of the same question. The journals of
    other questions stay beside it under names of their own, and are taken up again when theirs is asked. Of a clip with
    several lines the last counts. A line is written whole: what a full disk cuts off is taken back, what `kill -9` or a
    power failure cut off is left out when it is read. Lines reach the disk itself within a second or so, and all of
    them when the block ends.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._lock = FolderLock(folder / LOCK)
        self._entries: dict[str, Entry] = {}
        self._file: BinaryIO | None = None
        self._synced_s = 0.0

    def __enter__(self) -> "Journal":
        ensure_folder(self.path.parent)
        self._lock.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if self._file is not None:
                with translate_write_errors(self.path), self._file:
                    os.fsync(self._file.fileno())
        finally:
            self._lock.__exit__(kind, exc, tb)

    def begin(self, question: Mapping[str, Any], *, fresh: bool = False) -> str | None:
        """Open it for one question, which JSON can hold; with `fresh` what is known of it is forgotten.

        Returns a sentence if another question's journal, or whatever else bore its name, was put aside.

        Raises:
            AslTritonError: it cannot be read or written.
        """
        with translate_write_errors(self.path):
            put_aside = self._make_way(question)
            kept, is_clean = ({}, False) if fresh else self._read(question)
            if not is_clean:
                kept = self._rewrite(question, kept)
            self._entries = kept
            self._file = self.path.open("r+b", buffering=0)
        return put_aside

    def fingerprint(self, video: str) -> FileFingerprint | None:
        """What a clip's file was when it was answered; None where it was not."""
        entry = self._entries.get(video)
        return None if entry is None or entry.is_failure else entry.fingerprint

    def has_failed(self, video: str) -> bool:
        """Whether the last that is known of a clip is a failure."""
        entry = self._entries.get(video)
        return entry is not None and entry.is_failure

    def forget(self, video: str) -> None:
        """Take what is known of a clip for unknown, until the file is read again: its own file is another now."""
        del self._entries[video]

    def append(self, outcome: AnyOutcome, fingerprint: FileFingerprint | None = None) -> None:
        """Write one outcome, with its file's fingerprint from before it was read.

        Raises:
            AslTritonError: the disk is full or gone; what was written before is whole.
        """
        assert self._file is not None
        stamp = fingerprint and dataclasses.astuple(fingerprint)
        line = json.dumps({STAMP: stamp, **dataclasses.asdict(outcome)}).encode() + b"\n"
        with translate_write_errors(self.path):
            start = self._file.seek(0, os.SEEK_END)
            try:
                written = self._file.write(line)
                if written != len(line):  # the disk took a part: the next write says why
                    self._file.write(line[written or 0 :])
            except OSError:
                self._file.truncate(start)
                raise
            if time.monotonic() - self._synced_s >= FSYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced_s = time.monotonic()
        self._entries[outcome.video] = Entry(start, fingerprint, isinstance(outcome, Failure))

    def count(self, videos: Collection[str]) -> int:
        """How many of these clips have an outcome."""
        return sum(video in videos for video in self._entries)

    def outcomes(self, videos: Collection[str]) -> Iterator[AnyOutcome]:
        """What is known of these clips, by their names."""
        return (parse_outcome(line) for line in self._lines(videos))

    def failures(self, videos: Collection[str]) -> Iterator[Failure]:
        """The failures among them, by their names."""
        for line in self._lines(videos, failures_only=True):
            outcome = parse_outcome(line)
            assert isinstance(outcome, Failure)
            yield outcome

    def _lines(self, videos: Collection[str], failures_only: bool = False) -> Iterator[dict[str, Any]]:
        if self._file is None:
            return
        with translate_write_errors(self.path), self.path.open("rb") as lines:
            for video, entry in sorted(self._entries.items()):
                if video in videos and (entry.is_failure or not failures_only):
                    lines.seek(entry.start)
                    yield json.loads(lines.readline())

    def _make_way(self, question: Mapping[str, Any]) -> str | None:
        """Put what is not this question's journal aside, and take up what is: a sentence if there was such a thing."""
        asked, said = json.loads(json.dumps(question)), None
        with suppress(FileNotFoundError):
            with self.path.open("rb") as lines:
                first = lines.readline()
            head = load_line(first) or {}
            if first and head.get(QUESTION) != asked:
                aside = self._aside(head.get(QUESTION) or first.decode(errors="replace"))
                self.path.replace(aside)
                said = f"{self.path} {describe_difference(head.get(QUESTION), asked)}: it is {aside.name} now"
        if not self.path.exists():
            with suppress(FileNotFoundError):
                self._aside(asked).replace(self.path)
        return said

    def _aside(self, question: Any) -> Path:
        """Where the journal of a question is while another is asked."""
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
        return self.path.with_name(f"{self.path.stem}.{digest}{self.path.suffix}")

    def _read(self, question: Mapping[str, Any]) -> tuple[dict[str, Entry], bool]:
        """The entries that there are to a question, and whether the file holds them and nothing else."""
        entries: dict[str, Entry] = {}
        try:
            lines = self.path.open("rb")
        except FileNotFoundError:
            return {}, False
        with lines:
            head = load_line(lines.readline())
            if head is None or head.get(QUESTION) != json.loads(json.dumps(question)):
                return {}, False
            is_clean, start = True, lines.tell()
            for line in lines:
                values = load_line(line)
                if values is None or values.keys() - {STAMP} not in FIELDS:
                    is_clean = False
                else:
                    stamp = values.get(STAMP)
                    is_clean = is_clean and values["video"] not in entries
                    entries[values["video"]] = Entry(
                        start, FileFingerprint(*stamp) if stamp else None, "error" in values
                    )
                start += len(line)
        return entries, is_clean

    def _rewrite(self, question: Mapping[str, Any], kept: Mapping[str, Entry]) -> dict[str, Entry]:
        """Put a file in place that holds the question and those lines alone: where they are now."""
        partial = self.path.with_name(f".{self.path.name}.part")
        entries = {}
        try:
            with partial.open("wb") as file:
                file.write(json.dumps({QUESTION: question}).encode() + b"\n")
                if kept:
                    with self.path.open("rb") as lines:
                        for video, entry in kept.items():
                            lines.seek(entry.start)
                            entries[video] = entry._replace(start=file.tell())
                            file.write(lines.readline())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
            sync_folder(self.path.parent)
        finally:
            partial.unlink(missing_ok=True)
        return entries


def describe_difference(question: Any, asked: Mapping[str, Any]) -> str:
    """What a journal of that question is, to who asks the other."""
    if not isinstance(question, dict):
        return "was no journal of a batch"
    names = [name for name in {**question, **asked} if question.get(name) != asked.get(name)]
    return f"is of another question ({', '.join(names)})"


def load_line(line: bytes) -> dict[str, Any] | None:
    """A line's JSON object; None where it is none, or has no end."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def parse_outcome(line: dict[str, Any]) -> AnyOutcome:
    """An outcome of its line."""
    line.pop(STAMP, None)
    if "error" in line:
        return Failure(**line)
    line["warnings"] = tuple(line["warnings"])
    if "segments" in line:
        line["segments"] = tuple(Segment(**segment) for segment in line["segments"])
        return Timeline(**line)
    line["predictions"] = tuple(Prediction(**prediction) for prediction in line["predictions"])
    return Recognition(**line)
