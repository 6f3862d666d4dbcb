"""The journal of a batch: one line per clip, on disk as soon as its outcome is known, read again by the next run."""

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
PARTS = "journal"  # the folder of a journal in a bucket
LOCK = ".journal.lock"
FSYNC_EVERY_S = 1.0
QUESTION, STAMP = "question", "stamp"  # keys
# Of a line. Lines of other versions are ignored, like those that were cut off.
FIELDS = tuple({field.name for field in dataclasses.fields(kind)} for kind in (Recognition, Timeline, Failure))
ADDED = {"signer", "signers", "lost_frames"}  # which lines of earlier versions do not have


class Entry(NamedTuple):
    """Where the last line about a clip starts, the fingerprint of its file, and whether it is a failure."""

    start: int
    fingerprint: FileFingerprint | None
    is_failure: bool


class Journal:
    """The outcomes of all runs in a folder, one line each, in the order they come. One run at a time holds it.

    The first line is the question that was asked of each clip: `begin` keeps what is known of the same question. The
    journals of other questions are renamed, and used again when their question is asked. Of several lines about a clip
    the last counts. Lines are written whole: what a full disk cuts off is taken back, what `kill -9` or a power failure
    cut off is ignored when the file is read. Lines reach the disk itself about once a second, and when the block ends.
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
        """Open the journal for a question, which must be JSON values; `fresh` forgets what is known of it.

        Returns a sentence if the journal of another question, or whatever else had its name, was renamed.

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

    @property
    def address(self) -> str:
        """Where it is, for messages."""
        return str(self.path)

    def fingerprint(self, video: str) -> FileFingerprint | None:
        """The fingerprint of a clip's file when it was recognized; None if it was not."""
        entry = self._entries.get(video)
        return None if entry is None or entry.is_failure else entry.fingerprint

    def has_failed(self, video: str) -> bool:
        """Whether the last outcome of a clip is a failure."""
        entry = self._entries.get(video)
        return entry is not None and entry.is_failure

    def forget(self, video: str) -> None:
        """Forget a clip whose file has changed. Its line stays, and is read by the next run."""
        del self._entries[video]

    def append(self, outcome: AnyOutcome, fingerprint: FileFingerprint | None = None) -> None:
        """Write one outcome, with the fingerprint that its file had before it was read.

        Raises:
            AslTritonError: the disk is full or gone. Earlier lines stay whole.
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
        """What is known of these clips, sorted by name."""
        return (parse_outcome(line) for line in self._lines(videos))

    def failures(self, videos: Collection[str]) -> Iterator[Failure]:
        """The failures among them, sorted by name."""
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
        """Rename the journal of another question, and rename this one's back; returns a sentence about the first."""
        asked, sentence = json.loads(json.dumps(question)), None
        with suppress(FileNotFoundError):
            with self.path.open("rb") as lines:
                first = lines.readline()
            head = load_line(first) or {}
            if first and head.get(QUESTION) != asked:
                aside = self._aside(head.get(QUESTION) or first.decode(errors="replace"))
                self.path.replace(aside)
                sentence = f"{self.path} {describe_difference(head.get(QUESTION), asked)}: it is {aside.name} now"
        if not self.path.exists():
            with suppress(FileNotFoundError):
                self._aside(asked).replace(self.path)
        return sentence

    def _aside(self, question: Any) -> Path:
        """The path of a question's journal while another question is asked."""
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()[:8]
        return self.path.with_name(f"{self.path.stem}.{digest}{self.path.suffix}")

    def _read(self, question: Mapping[str, Any]) -> tuple[dict[str, Entry], bool]:
        """The entries about a question, and whether the file contains nothing else."""
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
        """Replace the file by one with the question and these lines alone; returns where they are now."""
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
    """Say how the question of a journal differs from the one that is asked."""
    if not isinstance(question, dict):
        return "is not the journal of a batch"
    names = [name for name in {**question, **asked} if question.get(name) != asked.get(name)]
    return f"is of another question ({', '.join(names)})"


def is_outcome(names: Collection[str]) -> bool:
    """Whether a line with these fields is an outcome, perhaps of an earlier version."""
    return any(fields - ADDED <= set(names) <= fields for fields in FIELDS)


def load_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None if it is something else, or was cut off."""
    try:
        values = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def parse_outcome(line: dict[str, Any]) -> AnyOutcome:
    """The outcome of a line's JSON object."""
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
