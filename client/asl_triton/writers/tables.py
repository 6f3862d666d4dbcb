"""Recognitions as files, one writer per format. A file is complete or not written at all."""

import contextlib
import csv
import importlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asl_triton.extras import require_extra
from asl_triton.files import atomic_write, translate_write_errors
from asl_triton.results import Failure, Recognition, Timeline, to_json_values

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T", Recognition, Timeline, Failure)

ROWS_PER_GROUP = 10_000
COLUMNS = {  # of a recognition, one row per rank, with their types in Arrow
    "video": "string",
    "rank": "int32",
    "gloss": "string",
    "class_id": "int32",
    "confidence": "float64",
    "logit": "float32",
    "unsure": "bool",
    "num_frames": "int32",
    "duration_s": "float64",
    "model": "string",
}
# A spreadsheet computes a cell that begins so; the last four are the first four as East Asian keyboards write them.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
PACKAGES = {"parquet": ("pyarrow", "parquet"), "eaf": ("pympi", "elan")}  # the module and the extra of a format


def check_installed(formats: Iterable[str]) -> None:
    """Check that the packages of these formats are installed.

    Raises:
        AslTritonError: one is not.
    """
    for module, extra in (PACKAGES[name] for name in formats if name in PACKAGES):
        with require_extra(extra):
            importlib.import_module(module)


def iter_rows(recognition: Recognition) -> Iterator[dict[str, Any]]:
    """A recognition as rows of `COLUMNS`, one per rank."""
    for prediction in recognition.predictions:
        yield {
            "video": recognition.video,
            **vars(prediction),
            "unsure": recognition.unsure,
            "num_frames": recognition.num_frames,
            "duration_s": round(recognition.duration_s, 3),
            "model": recognition.model,
        }


def format_csv_rows(columns: Iterable[str], rows: Iterable[Mapping[str, Any]], *, raw: bool = False) -> str:
    """Rows as CSV, without a header; a row may have more than these columns.

    Text that a spreadsheet would compute gets an apostrophe before it, unless `raw`: names of files and glosses are
    other people's (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore")
    writer.writerows(rows if raw else ({key: quote_formula(row[key]) for key in row} for row in rows))
    return text.getvalue()


def quote_formula(value: Any) -> Any:
    """A cell's value, with an apostrophe before text that a spreadsheet would compute."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def format_csv_header(columns: Iterable[str]) -> str:
    """The first line of a CSV file."""
    columns = list(columns)
    return format_csv_rows(columns, [dict(zip(columns, columns, strict=True))])


class Sink(ABC, Generic[T]):
    """A file that outcomes are written to, one by one: a context manager. `path` appears when its block ends well.

    `raw` leaves text in CSV as it is, see `format_csv_rows`.

    Raises:
        AslTritonError: the file cannot be written; the previous file stays.
    """

    def __init__(self, path: Path, *, raw: bool = False) -> None:
        self.path, self.raw = path, raw

    def __enter__(self) -> "Sink[T]":
        with translate_write_errors(self.path), contextlib.ExitStack() as opened:
            self._file = opened.enter_context(atomic_write(self.path))
            self._begin(opened)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with translate_write_errors(self.path):
            self._opened.__exit__(kind, exc, tb)

    def _begin(self, opened: contextlib.ExitStack) -> None:
        """Write what comes first; what `opened` is given is closed before the file is."""

    @abstractmethod
    def write(self, outcome: T) -> None:
        """Add one outcome."""


class LineSink(Sink[T]):
    """A text file."""

    header = ""

    def _begin(self, opened: contextlib.ExitStack) -> None:
        self._file.write(self.header.encode())

    def write(self, outcome: T) -> None:
        """Add one outcome."""
        with translate_write_errors(self.path):
            self._file.write(self.format(outcome).encode("utf-8", "backslashreplace"))

    @abstractmethod
    def format(self, outcome: T) -> str:
        """What the file says about one outcome."""


class TextSink(LineSink[Recognition]):
    """The layout of the earlier project, ASL_Inference: its lines end in CR LF, and the last one has no end."""

    def format(self, recognition: Recognition) -> str:
        """The video, and a line per rank."""
        lines = [f"Video: {recognition.video}"]
        lines += [f"{p.rank}. {p.gloss:<20} ({p.confidence:.2%})" for p in recognition.predictions]
        return ("\r\n\r\n" if self._file.tell() else "") + "\r\n".join(lines)


class CsvSink(LineSink[Recognition]):
    """One row per clip and rank."""

    header = format_csv_header(COLUMNS)

    def format(self, recognition: Recognition) -> str:
        """The rows of a clip."""
        return format_csv_rows(COLUMNS, iter_rows(recognition), raw=self.raw)


class JsonLinesSink(LineSink[T]):
    """One line per clip: the whole `Recognition` or `Failure`."""

    def format(self, outcome: T) -> str:
        """The line of a clip."""
        return json.dumps(to_json_values(outcome)) + "\n"


class ParquetSink(Sink[Recognition]):
    """The rows of the CSV, typed."""

    def _begin(self, opened: contextlib.ExitStack) -> None:
        opened.enter_context(self._write_row_groups())

    @contextlib.contextmanager
    def _write_row_groups(self) -> Iterator[None]:
        with require_extra("parquet"):
            import pyarrow.parquet as pq
        self._writer = pq.ParquetWriter(self._file, build_arrow_schema())
        self._rows: list[dict[str, Any]] = []
        try:
            yield
            self._flush()
            self._writer.close()
        finally:
            self._writer.is_open = False  # or it writes to a closed file when it is garbage-collected

    def write(self, recognition: Recognition) -> None:
        """Add one recognition."""
        self._rows += iter_rows(recognition)
        if len(self._rows) >= ROWS_PER_GROUP:
            with translate_write_errors(self.path):
                self._flush()

    def _flush(self) -> None:
        if self._rows:
            import pyarrow as pa

            self._writer.write_table(pa.Table.from_pylist(self._rows, self._writer.schema))
            self._rows = []


def build_arrow_schema() -> "pa.Schema":
    """`COLUMNS` as Arrow's schema."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])


SINKS: dict[str, type[Sink[Recognition]]] = {
    "txt": TextSink,
    "csv": CsvSink,
    "jsonl": JsonLinesSink,
    "parquet": ParquetSink,
}
