"""The journal of a batch on a cluster: Parquet files of some clips each, as Ray writes them, read again here."""

import dataclasses
import hashlib
import heapq
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from asl_triton.batch.journal import PARTS, parse_outcome
from asl_triton.batch.ray.storage import Folder, StoredClip, translate_storage_errors
from asl_triton.errors import AslTritonError
from asl_triton.results import AnyOutcome, Failure, Outcome

QUESTION = "question.json"
READERS = 32  # parts that are read at once: a bucket takes its time for each
KEYS = ["video", "stamp", "run", "failed"]
ROWS = pa.schema(
    [
        ("video", pa.string()),
        ("stamp", pa.string()),  # of the clip's file, before it was read
        ("run", pa.int32()),  # of several rows about a clip, that of the last run counts
        ("failed", pa.bool_()),
        ("outcome", pa.string()),  # JSON
    ]
)


def row(clip: StoredClip, outcome: Outcome, run: int) -> dict[str, Any]:
    """What is written of one clip."""
    return {
        "video": clip.name,
        "stamp": clip.stamp,
        "run": run,
        "failed": isinstance(outcome, Failure),
        "outcome": json.dumps(dataclasses.asdict(outcome)),
    }


class LatestRow(NamedTuple):
    """The last row about a clip: in which run it was written, of which file, and whether it is a failure."""

    run: int
    stamp: str
    failed: bool


class ParquetJournal:
    """What the runs of a folder have answered to one question, below `OUTPUT/journal/<question's hash>/`.

    A part is written by one of Ray's tasks, and never changed. One that is torn, because its writer was killed, counts
    for nothing and is deleted. Answers to other questions stay where they are.
    """

    def __init__(self, output: Folder, question: Mapping[str, Any]) -> None:
        self._question = json.dumps(question, sort_keys=True, indent=1)
        self.folder = output.join(PARTS, hashlib.sha256(self._question.encode()).hexdigest()[:16])
        self.run = 1
        self._newest: dict[str, LatestRow] = {}
        self._firsts: dict[str, str | None] = {}  # of each part, the first clip by name, if it has any

    def begin(self, *, anew: bool = False) -> None:
        """Read what is known; with `anew` nothing is, and what was is deleted.

        Raises:
            AslTritonError: it cannot be read or written.
        """
        if anew:
            self._delete()
        self.folder.write(QUESTION, self._question.encode())
        self.look()
        self.run = max((newest.run for newest in self._newest.values()), default=0) + 1

    def look(self) -> None:
        """Take up the parts that were written since.

        Raises:
            AslTritonError: one cannot be read.
        """
        new = [part for part in self._parts() if part not in self._firsts]
        with ThreadPoolExecutor(READERS) as readers:
            for part, keys in zip(new, readers.map(lambda part: self._read(part, KEYS), new), strict=True):
                self._firsts[part] = min(keys["video"].to_pylist(), default=None)
                for video, stamp, run, failed in zip(*(keys[key].to_pylist() for key in KEYS), strict=True):
                    if video not in self._newest or run >= self._newest[video].run:
                        self._newest[video] = LatestRow(run, stamp, failed)

    def knows(self, clip: StoredClip) -> bool:
        """Whether a clip was recognized when its file was what it is now."""
        newest = self._newest.get(clip.name)
        return newest is not None and newest.stamp == clip.stamp and not newest.failed

    def outcomes(self, clips: Iterable[StoredClip]) -> Iterator[AnyOutcome]:
        """The last that is known of these clips as their files are now, by their names.

        Parts are read in the order of their first clips, and what is not their turn yet waits: of one run they follow
        each other, so that few rows are held.
        """
        stamps = {clip.name: clip.stamp for clip in clips}
        waiting: list[tuple[str, int, str, str]] = []
        last = ""
        for first, rows in self._rows():
            for one in rows:
                heapq.heappush(waiting, (one["video"], -one["run"], one["stamp"], one["outcome"]))
            while waiting and (first is None or waiting[0][0] < first):
                video, _, stamp, outcome = heapq.heappop(waiting)
                if video != last and stamp == stamps.get(video):
                    yield parse_outcome(json.loads(outcome))
                last = video

    def _rows(self) -> Iterator[tuple[str | None, list[dict[str, Any]]]]:
        """The rows of each part, and the first clip of the one that follows; some parts are read ahead."""
        parts = sorted((first, part) for part, first in self._firsts.items() if first is not None)
        firsts = [first for first, _ in parts[1:]]
        ahead: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(READERS) as readers:
            for place in range(len(parts)):
                while len(ahead) < READERS and place + len(ahead) < len(parts):
                    ahead.append(readers.submit(self._read, parts[place + len(ahead)][1], None))
                yield (firsts[place] if place < len(firsts) else None), ahead.popleft().result().to_pylist()

    def _parts(self) -> list[str]:
        """The files of rows, as their file system calls them."""
        file_system, path = self.folder.opened()
        with translate_storage_errors(f"cannot read {self.folder.address}", "Choose another folder with --output"):
            file_system.invalidate_cache()
            return sorted(str(part) for part in file_system.find(path) if str(part).endswith(".parquet"))

    def _read(self, part: str, columns: list[str] | None) -> pa.Table:
        file_system, _ = self.folder.opened()
        try:
            with file_system.open(part, "rb") as file:
                return pq.read_table(file, columns=columns)
        except pa.ArrowInvalid:  # it has no end
            with suppress(FileNotFoundError):
                file_system.rm_file(part)
            return ROWS.empty_table()
        except Exception as exc:  # each file system has its own
            raise AslTritonError(f"cannot read {part}: {exc}. Choose another folder with --output") from exc

    def _delete(self) -> None:
        file_system, path = self.folder.opened()
        with translate_storage_errors(f"cannot delete {self.folder.address}", "Choose another folder with --output"):
            if file_system.exists(path):
                file_system.rm(path, recursive=True)
