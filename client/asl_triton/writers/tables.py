"""Writes recognitions to files, with one class per format. A file is either complete or not written at all."""

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
COLUMNS = {  # of a recognition, with their Arrow types; one row per rank
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
# Spreadsheets run cells that start with these as formulas. The last four are the full-width forms of the first four.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
PACKAGES = {"parquet": ("pyarrow", "parquet"), "eaf": ("pympi", "elan")}  # the module and the extra of a format


def check_installed(formats: Iterable[str]) -> None:
    """Check that the packages of these formats are installed.

    Raises:
        AslTritonError: a package is not installed.
    """
    for module, extra in (PACKAGES[name] for name in formats if name in PACKAGES):
        with require_extra(extra):
            importlib.import_module(module)


def iter_rows(recognition: Recognition) -> Iterator[dict[str, Any]]:
    """Yield a recognition as rows of `COLUMNS`, one per rank."""
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
    """Format rows as CSV, without a header. Rows may have additional columns, which are left out.

    Unless `raw`, text that a spreadsheet would run as a formula gets a leading apostrophe, since file names and glosses
    may come from others (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore")
    writer.writerows(rows if raw else ({key: quote_formula(row[key]) for key in row} for row in rows))
    return text.getvalue()


def quote_formula(value: Any) -> Any:
    """Add an apostrophe before text that a spreadsheet would run as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def format_csv_header(columns: Iterable[str]) -> str:
    """Return the header line of a CSV file."""
    columns = list(columns)
    return format_csv_rows(columns, [dict(zip(columns, columns, strict=True))])


class Sink(ABC, Generic[T]):
    """A context manager that writes outcomes to a file, one by one. `path` appears if the block ends without an error.

    `raw` leaves text in CSV unchanged; see `format_csv_rows`.

    Raises:
        AslTritonError: the file could not be written. The previous file is kept.
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
        """Write the start of the file. Anything pushed on `opened` is closed before the file."""

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
        """Format one outcome as text for the file."""


class TextSink(LineSink[Recognition]):
    """The layout of the earlier project, ASL_Inference. Lines end in CR LF, except the last one."""

    def format(self, recognition: Recognition) -> str:
        """Format the video's name and one line per rank."""
        lines = [f"Video: {recognition.video}"]
        lines += [f"{p.rank}. {p.gloss:<20} ({p.confidence:.2%})" for p in recognition.predictions]
        return ("\r\n\r\n" if self._file.tell() else "") + "\r\n".join(lines)


class CsvSink(LineSink[Recognition]):
    """One row per clip and rank."""

    header = format_csv_header(COLUMNS)

    def format(self, recognition: Recognition) -> str:
        """Format the rows of a clip."""
        return format_csv_rows(COLUMNS, iter_rows(recognition), raw=self.raw)


class JsonLinesSink(LineSink[T]):
    """One line per clip: the whole `Recognition` or `Failure`."""

    def format(self, outcome: T) -> str:
        """Format the line of a clip."""
        return json.dumps(to_json_values(outcome)) + "\n"


class ParquetSink(Sink[Recognition]):
    """The same rows as in CSV, with types."""

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
            self._writer.is_open = False  # otherwise it writes to a closed file when garbage-collected

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
    """Return `COLUMNS` as an Arrow schema."""
    import pyarrow as pa

    return pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])


SINKS: dict[str, type[Sink[Recognition]]] = {
    "txt": TextSink,
    "csv": CsvSink,
    "jsonl": JsonLinesSink,
    "parquet": ParquetSink,
}
