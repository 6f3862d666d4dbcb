"""The journal of a batch on Ray: on this machine, in a bucket, and with parts written by earlier versions."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asl_triton.batch.journal import JOURNAL, PARTS, Journal
from asl_triton.batch.ray import journal as stored_journal
from asl_triton.batch.ray.journal import StoredJournal
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.errors import AslTritonError
from asl_triton.results import AnyOutcome, Failure, Outcome, Prediction, Recognition
from asl_triton.video.discovery import FileFingerprint

QUESTION = {"model": "small", "top_k": 10}
FOLDER = "journal/de31480135f6cdce"  # for QUESTION
EARLIER_VERSION = Path(__file__).parents[2] / "live" / "earlier_version"
PART_NUMBERS = itertools.count()


def make_clip(name: str, stamp: str = "1") -> StoredClip:
    return StoredClip(Path(name), name, name, FileFingerprint(1, 0, stamp))


def make_recognition(name: str, gloss: str = "book") -> Recognition:
    return Recognition(name, "small", (Prediction(1, gloss, 0, 0.9, 2.2),), False, 20, 0.8, 1, 0.1, 0.2, ("cut off",))


@pytest.fixture(params=["here", "elsewhere"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """The folder for results, on this machine or in a bucket."""
    if request.param == "here":
        yield Folder.parse(str(tmp_path / "results"))
        return
    yield (bucket := Folder("memory://glosses"))
    bucket.delete()


def record_run(
    output: Folder, *outcomes: Outcome, stamp: str = "1", question: dict[str, Any] | None = None, fresh: bool = False
) -> str | None:
    """Record the outcomes of one run; returns the warning from `begin`."""
    with StoredJournal(output, [make_clip(outcome.video, stamp) for outcome in outcomes]) as journal:
        warning = journal.begin(question or QUESTION, fresh=fresh)
        for outcome in outcomes:
            journal.append(outcome, make_clip(outcome.video, stamp).fingerprint)
            journal.flush()
        return warning


def read_outcomes(output: Folder, *clips: StoredClip, question: dict[str, Any] | None = None) -> list[AnyOutcome]:
    """Read the outcomes that the next run finds for these clips, as their files are now."""
    with StoredJournal(output, clips) as journal:
        journal.begin(question or QUESTION)
        for clip in clips:
            before = journal.fingerprint(clip.name)
            if before is not None and not before.is_same(clip.fingerprint):
                journal.forget(clip.name)
        return list(journal.outcomes({clip.name for clip in clips}))


def list_files(output: Folder) -> list[str]:
    _, root = output.open()
    return sorted(key.removeprefix(root).lstrip("/") for key in output.list())


def write_parquet(output: Folder, rows: list[tuple[Outcome, str, int]]) -> str:
    """Write a part as earlier versions did, from rows of outcome, file stamp and run number; returns its path."""
    name = f"{next(PART_NUMBERS):04}.parquet"
    table = pa.Table.from_pylist(
        [
            {
                "video": outcome.video,
                "stamp": stamp,
                "run": run,
                "failed": isinstance(outcome, Failure),
                "outcome": json.dumps(dataclasses.asdict(outcome)),
            }
            for outcome, stamp, run in rows
        ]
    )
    pq.write_table(table, sink := pa.BufferOutputStream())
    output.join(FOLDER).write(name, sink.getvalue().to_pybytes())
    return f"{FOLDER}/{name}"


def test_next_run_knows_earlier_outcomes(output: Folder) -> None:
    outcomes = [make_recognition("a.mp4"), Failure("b.mp4", "it is empty")]
    record_run(output, *outcomes)
    assert read_outcomes(output, *map(make_clip, ("a.mp4", "b.mp4", "c.mp4"))) == outcomes
    with StoredJournal(output, []) as journal:
        journal.begin(QUESTION)
        assert journal.has_failed("b.mp4") and not journal.has_failed("a.mp4")


def test_journal_on_this_machine_is_shared_with_the_local_engine(tmp_path: Path) -> None:
    output = Folder.parse(str(tmp_path))
    record_run(output, make_recognition("a.mp4"))
    assert list_files(output) == [JOURNAL]
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        assert list(journal.outcomes({"a.mp4"})) == [make_recognition("a.mp4")]
        journal.append(make_recognition("b.mp4"), make_clip("b.mp4").fingerprint)
    assert read_outcomes(output, make_clip("a.mp4"), make_clip("b.mp4")) == [
        make_recognition("a.mp4"),
        make_recognition("b.mp4"),
    ]


def test_journal_in_a_bucket_consists_of_immutable_parts() -> None:
    output = Folder("memory://glosses")
    try:
        record_run(output, make_recognition("a.mp4"), make_recognition("b.mp4"))
        before = {key: output.open()[0].cat_file(key) for key in output.list()}
        record_run(output, make_recognition("c.mp4"))
        record_run(output)
        after = {key: output.open()[0].cat_file(key) for key in output.list()}
        assert {key: after[key] for key in before} == before
        names = [key.rpartition("/")[2] for key in after]
        assert sorted(name[:14] for name in names) == [
            "000001-000000-",
            "000001-000001-",
            "000002-000000-",
            "question.json",
        ]
        assert [json.loads(data)["video"] for key, data in sorted(after.items()) if key.endswith(".jsonl")] == [
            "a.mp4", "b.mp4", "c.mp4",
        ]  # fmt: skip
        assert len(read_outcomes(output, *map(make_clip, ("a.mp4", "b.mp4", "c.mp4")))) == 3
    finally:
        output.delete()


def test_failed_flush_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Folder("memory://glosses")
    try:
        with StoredJournal(output, []) as journal:
            journal.begin(QUESTION)
            journal.append(make_recognition("a.mp4"), make_clip("a.mp4").fingerprint)
            with monkeypatch.context() as patch:
                patch.setattr(type(output.open()[0]), "pipe_file", lambda *arguments: 1 / 0)
                with pytest.raises(AslTritonError, match=r"cannot write to memory://glosses/journal/"):
                    journal.flush()
            journal.append(make_recognition("b.mp4"), make_clip("b.mp4").fingerprint)
        assert read_outcomes(output, make_clip("a.mp4"), make_clip("b.mp4")) == [
            make_recognition("a.mp4"),
            make_recognition("b.mp4"),
        ]
    finally:
        output.delete()


def test_changed_file_is_forgotten(output: Folder) -> None:
    record_run(output, make_recognition("a.mp4"))
    assert read_outcomes(output, make_clip("a.mp4", "2")) == []


def test_latest_run_wins(output: Folder) -> None:
    record_run(output, make_recognition("a.mp4", "old"), stamp="1")
    record_run(output, make_recognition("a.mp4", "new"), stamp="2")
    assert read_outcomes(output, make_clip("a.mp4", "2")) == [make_recognition("a.mp4", "new")]
    assert read_outcomes(output, make_clip("a.mp4", "1")) == []


def test_clip_that_failed_after_a_recognition_is_retried(output: Folder) -> None:
    record_run(output, make_recognition("a.mp4"))
    record_run(output, Failure("a.mp4", "too slow"))
    with StoredJournal(output, [make_clip("a.mp4")]) as journal:
        journal.begin(QUESTION)
        assert journal.fingerprint("a.mp4") is None


def test_outcomes_are_unique_and_sorted_by_name(output: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_journal, "READERS", 2)
    names = [f"{n:03}.mp4" for n in range(20)]
    for number, step in enumerate((7, 3, 1), start=1):
        record_run(output, *(make_recognition(name, str(number)) for name in names[::-step]))
    record_run(output, *(make_recognition(name, "4") for name in names[8:12]))  # as when a block is handed out again
    outcomes = read_outcomes(output, *map(make_clip, names))
    assert [outcome.video for outcome in outcomes] == names
    assert {outcome.gloss for outcome in outcomes} == {"3", "4"}  # type: ignore[union-attr]


def test_deleted_clips_are_left_out(output: Folder) -> None:
    record_run(output, make_recognition("a.mp4"), make_recognition("b.mp4"))
    assert read_outcomes(output, make_clip("b.mp4")) == [make_recognition("b.mp4")]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_part_is_ignored_and_kept(share: float) -> None:
    output = Folder("memory://glosses")
    try:
        record_run(output, make_recognition("a.mp4"), make_recognition("b.mp4"))
        file_system, _ = output.open()
        *_, part, _question = sorted(output.list())
        data = file_system.cat_file(part)[: int(share * len(file_system.cat_file(part)))]
        file_system.pipe_file(part, data)
        assert read_outcomes(output, make_clip("a.mp4"), make_clip("b.mp4")) == [make_recognition("a.mp4")]
        record_run(output, make_recognition("c.mp4"))
        assert read_outcomes(output, make_clip("a.mp4"), make_clip("c.mp4")) == [
            make_recognition("a.mp4"),
            make_recognition("c.mp4"),
        ]
        assert file_system.cat_file(part) == data
    finally:
        output.delete()


def test_another_question_starts_over_and_keeps_earlier_answers(output: Folder) -> None:
    record_run(output, make_recognition("a.mp4"))
    other = {**QUESTION, "top_k": 5}
    assert read_outcomes(output, make_clip("a.mp4"), question=other) == []
    assert read_outcomes(output, make_clip("a.mp4")) == [make_recognition("a.mp4")]
    if output.path is None:
        file_system, _ = output.open()
        top_ks = [
            json.loads(file_system.cat_file(key))["top_k"] for key in output.list() if key.endswith("question.json")
        ]
        assert sorted(top_ks) == [5, 10]


def test_fresh_discards_known_outcomes(output: Folder) -> None:
    record_run(output, make_recognition("a.mp4"))
    part = write_parquet(output, [(make_recognition("b.mp4"), "1", 1)])
    record_run(output, fresh=True)
    assert read_outcomes(output, make_clip("a.mp4"), make_clip("b.mp4")) == []
    assert part not in list_files(output)


def test_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AslTritonError, match="cannot write to"):
        record_run(Folder.parse(str(tmp_path / "file")))


# Parquet parts of earlier versions


def test_parquet_parts_are_read_but_the_journal_takes_precedence(output: Folder) -> None:
    write_parquet(output, [(make_recognition("a.mp4"), "1", 1), (Failure("b.mp4", "it is empty"), "1", 1)])
    assert read_outcomes(output, make_clip("a.mp4"), make_clip("b.mp4")) == [
        make_recognition("a.mp4"),
        Failure("b.mp4", "it is empty"),
    ]
    record_run(output, make_recognition("b.mp4", "new"))
    write_parquet(output, [(make_recognition("b.mp4", "old"), "1", 9)])
    assert read_outcomes(output, make_clip("a.mp4"), make_clip("b.mp4")) == [
        make_recognition("a.mp4"),
        make_recognition("b.mp4", "new"),
    ]


def test_latest_run_in_parquet_parts_wins_in_any_order(output: Folder) -> None:
    write_parquet(output, [(make_recognition("a.mp4", "new"), "2", 2)])
    write_parquet(output, [(make_recognition("a.mp4", "old"), "1", 1)])
    assert read_outcomes(output, make_clip("a.mp4", "1")) == []
    assert read_outcomes(output, make_clip("a.mp4", "2")) == [make_recognition("a.mp4", "new")]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_parquet_part_is_reported_and_kept(output: Folder, share: float) -> None:
    write_parquet(output, [(make_recognition("a.mp4"), "1", 1)])
    part = write_parquet(output, [(make_recognition("b.mp4"), "1", 1)])
    file_system, root = output.open()
    data = file_system.cat_file(f"{root}/{part}")
    file_system.pipe_file(f"{root}/{part}", data[: int(share * len(data))])
    with StoredJournal(output, [make_clip("a.mp4"), make_clip("b.mp4")]) as journal:
        warning = journal.begin(QUESTION)
        assert list(journal.outcomes({"a.mp4", "b.mp4"})) == [make_recognition("a.mp4")]
    assert warning is not None and warning.endswith(f"{part} is not a complete Parquet file: ignored")
    assert part in list_files(output)


@pytest.mark.parametrize(("results", "versions"), [
    ("ray_results", {}),
    ("bucket_results", {
        "book.mp4": '"325312ebabc450911728b6c78f629b48"', "sub/hello.mp4": '"49bc3ddf73325265287fba31f3530363"',
        "text.mp4": '"e2046b21ae21b58ad0e3f56cc2c9ec25"',
    }),
])  # fmt: skip
def test_parts_written_by_version_0_1_0_are_read(results: str, versions: dict[str, str], output: Folder) -> None:
    """Commit 9f94336 wrote both, from clips in a folder and from the same clips in a bucket."""
    lines = [json.loads(line) for line in (EARLIER_VERSION / "results" / JOURNAL).read_text().splitlines()]
    clips = []
    for line in lines[1:]:
        size, mtime_ns, _ = line["stamp"]
        version = versions.get(line["video"])
        stamp = FileFingerprint(size, 0, f"{size} {version}") if version else FileFingerprint(size, mtime_ns)
        clips.append(StoredClip(Path(line["video"]), line["video"], line["video"], stamp))
    for path in (EARLIER_VERSION / results / PARTS).rglob("*.*"):
        output.join(PARTS, path.parent.name).write(path.name, path.read_bytes())
    with StoredJournal(output, clips) as journal:
        assert journal.begin(lines[0]["question"]) is None
        outcomes = list(journal.outcomes({clip.name for clip in clips}))
        assert all(before == clip.fingerprint for clip in clips if (before := journal.fingerprint(clip.name)))
    for outcome, line in zip(outcomes, sorted(lines[1:], key=lambda line: line["video"]), strict=True):
        assert (outcome.video, type(outcome)) == (line["video"], Failure if "error" in line else Recognition)
        if isinstance(outcome, Recognition):
            assert [prediction.gloss for prediction in outcome.predictions] == [
                prediction["gloss"] for prediction in line["predictions"]
            ]
