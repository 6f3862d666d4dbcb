"""The journal of a batch: one line per clip, written as soon as its outcome is known and read by the next run."""

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

from asl_triton.files import FolderLock, atomic_write, ensure_folder, sync_folder, translate_write_errors
from asl_triton.results import AnyOutcome, Failure, Prediction, Recognition, Segment, ShotBox, SignerBox, Timeline
from asl_triton.video.discovery import FileFingerprint

JOURNAL = "journal.jsonl"
PARTS = "journal"  # the folder for a journal in a bucket
LOCK = ".journal.lock"
FSYNC_EVERY_S = 1.0
QUESTION, STAMP = "question", "stamp"  # keys
# The fields of a line. Lines from other versions are ignored, as are truncated ones.
FIELDS = tuple({field.name for field in dataclasses.fields(kind)} for kind in (Recognition, Timeline, Failure))
ADDED = {"signer", "signers", "lost_frames"}  # missing in lines from earlier versions


class Entry(NamedTuple):
    """Where a clip's last line starts, the fingerprint of its file, and whether the outcome is a failure."""

    start: int
    fingerprint: FileFingerprint | None
    is_failure: bool


class Journal:
    """The outcomes of all runs in a folder, one line each, in the order they arrive. One run at a time may use it.

    The first line is the question that was asked about each clip: the model and the options. `begin` keeps the outcomes
    of the same question. Journals of other questions are renamed, and used again when their question returns. If a clip
    has several lines, the last one counts. A line that a full disk truncates is removed. A line that `kill -9` or a
    power failure truncates is ignored on reading. Lines are synced to disk about once a second, and when the block
    ends.
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
        """Open the journal for a question, which must be JSON values. `fresh` discards its earlier outcomes.

        Returns a sentence if the journal of another question, or any other file of that name, was renamed.

        Raises:
            AslTritonError: the journal could not be read or written.
        """
        with translate_write_errors(self.path):
            put_aside = self._make_way(question)
            kept, is_clean = ({}, False) if fresh else self._read(question)
            if not is_clean:
                kept = self._rewrite(question, kept)
            self._entries = kept
            self._file = self.path.open("r+b", buffering=0)
        return put_aside

    @property
    def address(self) -> str:
        """Where the journal is, for messages."""
        return str(self.path)

    def fingerprint(self, video: str) -> FileFingerprint | None:
        """Return the fingerprint of a clip's file when it was recognized, or None if it was not."""
        entry = self._entries.get(video)
        return None if entry is None or entry.is_failure else entry.fingerprint

    def has_failed(self, video: str) -> bool:
        """Return whether the last outcome of a clip is a failure."""
        entry = self._entries.get(video)
        return entry is not None and entry.is_failure

    def forget(self, video: str) -> None:
        """Forget a clip whose file has changed. Its line stays, and the next run reads it."""
        del self._entries[video]

    def append(self, outcome: AnyOutcome, fingerprint: FileFingerprint | None = None) -> None:
        """Write one outcome, with the fingerprint of its file from before it was read.

        Raises:
            AslTritonError: the disk is full or gone. Earlier lines stay intact.
        """
        assert self._file is not None
        stamp = fingerprint and dataclasses.astuple(fingerprint)
        line = json.dumps({STAMP: stamp, **dataclasses.asdict(outcome)}).encode() + b"\n"
        with translate_write_errors(self.path):
            start = self._file.seek(0, os.SEEK_END)
            try:
                written = self._file.write(line)
                if written != len(line):  # a partial write: the next write raises the reason
                    self._file.write(line[written or 0 :])
            except OSError:
                self._file.truncate(start)
                raise
            if time.monotonic() - self._synced_s >= FSYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced_s = time.monotonic()
        self._entries[outcome.video] = Entry(start, fingerprint, isinstance(outcome, Failure))

    def count(self, videos: Collection[str]) -> int:
        """Return how many of these clips have an outcome."""
        return sum(video in videos for video in self._entries)

    def outcomes(self, videos: Collection[str]) -> Iterator[AnyOutcome]:
        """Yield the outcomes of these clips, sorted by name."""
        return (parse_outcome(line) for line in self._lines(videos))

    def failures(self, videos: Collection[str]) -> Iterator[Failure]:
        """Yield the failures of these clips, sorted by name."""
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
        """Rename the journal of another question, and restore this one's. Returns a sentence about the former."""
        asked, sentence = json.loads(json.dumps(question)), None
        with suppress(FileNotFoundError):
            with self.path.open("rb") as lines:
                first = lines.readline()
            head = load_line(first) or {}
            if first and head.get(QUESTION) != asked:
                aside = self._aside(head.get(QUESTION) or first.decode(errors="replace"))
                self.path.replace(aside)
                difference = describe_difference(head.get(QUESTION), asked)
                sentence = f"{self.path} {difference}, so it was renamed to {aside.name}"
        if not self.path.exists():
            with suppress(FileNotFoundError):
                self._aside(asked).replace(self.path)
        return sentence

    def _aside(self, question: Any) -> Path:
        """Return the path of a question's journal while another question is asked."""
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
        return self.path.with_name(f"{self.path.stem}.{digest}{self.path.suffix}")

    def _read(self, question: Mapping[str, Any]) -> tuple[dict[str, Entry], bool]:
        """Read the entries of a question. Also returns whether the file contains nothing else."""
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
                if values is None or not is_outcome(values.keys() - {STAMP}):
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
        """Replace the file with one that has only the question and these lines. Returns their new positions."""
        entries = {}
        with atomic_write(self.path) as file:
            file.write(json.dumps({QUESTION: question}).encode() + b"\n")
            if kept:
                with self.path.open("rb") as lines:
                    for video, entry in kept.items():
                        lines.seek(entry.start)
                        entries[video] = entry._replace(start=file.tell())
                        file.write(lines.readline())
        sync_folder(self.path.parent)
        return entries


def describe_difference(question: Any, asked: Mapping[str, Any]) -> str:
    """Describe how the question of a journal differs from the one that is asked."""
    if not isinstance(question, dict):
        return "is not a batch journal"
    names = [name for name in {**question, **asked} if question.get(name) != asked.get(name)]
    return f"was written with other settings ({', '.join(names)})"


def is_outcome(names: Collection[str]) -> bool:
    """Return whether a line with these fields is an outcome, perhaps from an earlier version."""
    return any(fields - ADDED <= set(names) <= fields for fields in FIELDS)


def load_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line as a JSON object. Returns None if it is something else or truncated."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def parse_outcome(line: dict[str, Any]) -> AnyOutcome:
    """Build the outcome from a line's JSON object."""
    line.pop(STAMP, None)
    if "error" in line:
        return Failure(**line)
    line["warnings"] = tuple(line["warnings"])
    if "segments" in line:
        line["segments"] = tuple(Segment(**segment) for segment in line["segments"])
        line["signers"] = tuple(
            ShotBox(shot["start_s"], SignerBox(**shot["box"]) if shot["box"] else None)
            for shot in line.get("signers", ())
        )
        return Timeline(**line)
    line["predictions"] = tuple(Prediction(**prediction) for prediction in line["predictions"])
    if line.get("signer"):
        line["signer"] = SignerBox(**line["signer"])
    return Recognition(**line)
