"""The journal of a batch on a cluster. It also works in buckets, where files only support whole writes."""

import hashlib
import io
import json
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asl_triton.batch.journal import PARTS, QUESTION, Journal, parse_outcome
from asl_triton.batch.ray.storage import Folder, StoredClip, translate_storage_errors
from asl_triton.files import translate_write_errors

QUESTION_FILE = "question.json"
PART_NAME = re.compile(r"/\d{6}-\d{6}-\w+\.jsonl$")
READERS = 32  # parts read at once, because each request to a bucket takes a while


class StoredJournal(Journal):
    """The journal of a run whose results go to `output`.

    On this machine it is `OUTPUT/journal.jsonl`, so each engine can resume the other's runs. Buckets do not support
    appending to a file. For a bucket, lines are written to a temporary folder, and `flush` uploads the new ones as a
    part `OUTPUT/journal/<hash of the question>/<run>-<number>-<random>.jsonl`, which never changes.

    Parquet parts, which earlier versions wrote to such a folder in both cases, are still read. Parts are only deleted
    for a fresh start. Damaged parts are ignored.
    """

    def __init__(self, output: Folder, clips: Sequence[StoredClip]) -> None:
        self._temporary = None if output.path else tempfile.TemporaryDirectory(prefix="asl-triton-")
        super().__init__(Path(self._temporary.name) if self._temporary else Path(output.address))
        self._output, self._clips = output, clips
        self._parts = output.join(PARTS)
        self._prefix = ""
        self._num_uploads = self._uploaded_bytes = 0

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self.flush()
        finally:
            super().__exit__(kind, exc, tb)
            if self._temporary is not None:
                self._temporary.cleanup()

    @property
    def address(self) -> str:
        return str(self.path) if self._temporary is None else self._parts.address

    def begin(self, question: Mapping[str, Any], *, fresh: bool = False) -> str | None:
        """Open the journal as `Journal.begin` does, with the parts. The sentence also names ignored parts."""
        text = json.dumps(question, sort_keys=True, indent=1)
        self._parts = self._output.join(PARTS, hashlib.sha256(text.encode()).hexdigest()[:16])
        if fresh:
            self._parts.delete()
        parts = self._parts.list()
        if self._temporary is not None:
            self._parts.write(QUESTION_FILE, text.encode())
            self._download([part for part in parts if PART_NAME.search(part)], question)
        sentences = [super().begin(question, fresh=fresh)]
        self._uploaded_bytes = self.path.stat().st_size
        sentences += self._import([part for part in parts if part.endswith(".parquet")])
        return ". ".join(filter(None, sentences)) or None

    def flush(self) -> None:
        """Upload the lines added since the last flush, if the journal is in a bucket.

        Raises:
            AslTritonError: the lines could not be uploaded.
        """
        if self._temporary is None or self._file is None:
            return
        with translate_write_errors(self.path), self.path.open("rb") as lines:
            lines.seek(self._uploaded_bytes)
            data = lines.read()
        if data:
            self._parts.write(f"{self._prefix}-{self._num_uploads:06}-{secrets.token_hex(4)}.jsonl", data)
            self._num_uploads += 1
            self._uploaded_bytes += len(data)

    def _download(self, parts: Sequence[str], question: Mapping[str, Any]) -> None:
        """Write the local file from all parts, oldest first, because a clip's last line counts."""
        parts = sorted(parts, key=lambda part: part.rpartition("/")[2])
        last_run = parts[-1].rpartition("/")[2].partition("-")[0] if parts else "0"
        self._prefix = f"{int(last_run) + 1:06}"
        with translate_write_errors(self.path), self.path.open("wb") as lines:
            lines.write(json.dumps({QUESTION: question}).encode() + b"\n")
            for data in self._read_parts(parts):
                lines.write(data if data.endswith(b"\n") else data + b"\n")

    def _import(self, parts: Sequence[str]) -> list[str]:
        """Add outcomes of unchanged clips that are only in Parquet parts. Returns sentences about unreadable parts."""
        unknown = {clip.name: clip.fingerprint for clip in self._clips if clip.name not in self._entries}
        latest: dict[str, dict[str, Any]] = {}
        unreadable = []
        for part, data in zip(parts, self._read_parts(parts), strict=True):
            try:
                rows = pq.read_table(io.BytesIO(data)).to_pylist()
            except pa.ArrowInvalid:
                unreadable.append(f"{part} is not a complete Parquet file: ignored")
                continue
            for row in rows:
                if row["video"] in unknown and row["run"] >= latest.get(row["video"], row)["run"]:
                    latest[row["video"]] = row
        for video, row in latest.items():
            now = unknown[video]
            if row["stamp"] == (now.content_id or f"{now.size} {now.mtime_ns}"):
                self.append(parse_outcome(json.loads(row["outcome"])), now)
        return unreadable

    def _read_parts(self, parts: Sequence[str]) -> Iterator[bytes]:
        file_system, _ = self._parts.open()
        with (
            translate_storage_errors(f"cannot read {self._parts.address}", "Choose another folder with --output"),
            ThreadPoolExecutor(READERS) as readers,
        ):
            for start in range(0, len(parts), READERS):
                yield from readers.map(file_system.cat_file, parts[start : start + READERS])
