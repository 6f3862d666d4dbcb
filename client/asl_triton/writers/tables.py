"""One writer a format. A file is written beside its name and renamed when whole: the one before stays till then."""

import contextlib
import csv
import dataclasses
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from asl_triton.files import translate_write_errors
from asl_triton.results import Failure, Recognition, Timeline

T = TypeVar("T", Recognition, Timeline, Failure)

ROWS_A_GROUP = 10_000
COLUMNS = pa.schema(
    [
        ("video", pa.string()),
        ("rank", pa.int32()),
        ("gloss", pa.string()),
        ("class_id", pa.int32()),
        ("confidence", pa.float64()),
        ("logit", pa.float32()),
        ("unsure", pa.bool_()),
        ("num_frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("model", pa.string()),
    ]
)


def iter_rows(recognition: Recognition) -> Iterator[dict[str, Any]]:
    """A recognition as rows of `COLUMNS`, one a rank."""
    for prediction in recognition.predictions:
        yield {
            "video": recognition.video,
            **dataclasses.asdict(prediction),
            "unsure": recognition.unsure,
            "num_frames": recognition.num_frames,
            "duration_s": round(recognition.duration_s, 3),
            "model": recognition.model,
        }


class Sink(ABC, Generic[T]):
    """A file of recognitions, a timeline or failures: a context manager that puts it in place when its block ends well.

    Raises:
        AslTritonError: the file cannot be written; none is left under its name but the one before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.part")

    def __enter__(self) -> "Sink[T]":
        with translate_write_errors(self.path):
            self._open(self._partial)
        return self

    def write(self, outcome: T) -> None:
        """Add one."""
        with translate_write_errors(self.path):
            self._write(outcome)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                with translate_write_errors(self.path):
                    self._close()
                    with self._partial.open("rb+") as file:  # or a power failure may leave an empty file in its place
                        os.fsync(file.fileno())
                    self._partial.replace(self.path)
        finally:
            with contextlib.suppress(OSError):  # the disk is full, and the file not wanted
                self._abandon()
            self._partial.unlink(missing_ok=True)

    @abstractmethod
    def _open(self, path: Path) -> None: ...

    @abstractmethod
    def _write(self, outcome: T) -> None: ...

    @abstractmethod
    def _close(self) -> None:
        """Write what is left, and close the file."""

    @abstractmethod
    def _abandon(self) -> None:
        """Close the file if it is open, whole or not."""


class LineSink(Sink[T]):
    """A sink of text."""

    def _open(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")

    def _close(self) -> None:
        self._file.close()

    def _abandon(self) -> None:
        self._file.close()


class TextSink(LineSink[Recognition]):
    """The layout of the earlier project, ASL_Inference: its lines end in CR LF, and the last one has no end."""

    def _open(self, path: Path) -> None:
        super()._open(path)
        self._first = True

    def _write(self, recognition: Recognition) -> None:
        lines = [f"Video: {recognition.video}"]
        lines += [f"{p.rank}. {p.gloss:<20} ({p.confidence:.2%})" for p in recognition.predictions]
        self._file.write(("" if self._first else "\r\n\r\n") + "\r\n".join(lines))
        self._first = False


class CsvSink(LineSink[Recognition]):
    """A row a clip and rank."""

    def _open(self, path: Path) -> None:
        super()._open(path)
        self._rows = csv.DictWriter(self._file, COLUMNS.names)
        self._rows.writeheader()

    def _write(self, recognition: Recognition) -> None:
        self._rows.writerows(iter_rows(recognition))


class JsonLinesSink(LineSink[T]):
    """A line a clip: the whole `Recognition`, or `Failure`."""

    def _write(self, outcome: T) -> None:
        self._file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")


class ParquetSink(Sink[Recognition]):
    """The rows of the CSV, typed."""

    def _open(self, path: Path) -> None:
        self._file = path.open("wb")  # not Arrow's own, which takes UTF-8 names alone
        self._writer = pq.ParquetWriter(self._file, COLUMNS)
        self._rows: list[dict[str, Any]] = []

    def _write(self, recognition: Recognition) -> None:
        self._rows += iter_rows(recognition)
        if len(self._rows) >= ROWS_A_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, COLUMNS))
        self._rows = []

    def _close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()
        self._file.close()

    def _abandon(self) -> None:
        self._writer.is_open = False  # or it would write on when it is deleted
        self._file.close()


SINKS: dict[str, type[Sink[Recognition]]] = {
    "txt": TextSink,
    "csv": CsvSink,
    "jsonl": JsonLinesSink,
    "parquet": ParquetSink,
}
