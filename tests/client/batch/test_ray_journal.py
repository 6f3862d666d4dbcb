"""The journal of a batch on a cluster: in a bucket as on this machine, and with the parts of earlier versions."""

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
FOLDER = "journal/de31480135f6cdce"  # of that question
EARLIER = Path(__file__).parents[2] / "live" / "earlier_version"
NUMBERS = itertools.count()


def clip(name: str, stamp: str = "1") -> StoredClip:
    return StoredClip(Path(name), name, name, FileFingerprint(1, 0, stamp))


def recognized(name: str, gloss: str = "book") -> Recognition:
    return Recognition(name, "small", (Prediction(1, gloss, 0, 0.9, 2.2),), False, 20, 0.8, 1, 0.1, 0.2, ("cut off",))


@pytest.fixture(params=["here", "elsewhere"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    """Where results go: a folder of this machine, or as a bucket is."""
    if request.param == "here":
        yield Folder.parse(str(tmp_path / "results"))
        return
    yield (elsewhere := Folder("memory://glosses"))
    elsewhere.delete()


def run(
    output: Folder, *outcomes: Outcome, stamp: str = "1", question: dict[str, Any] | None = None, fresh: bool = False
) -> str | None:
    """A run that has these outcomes; returns what it says."""
    with StoredJournal(output, [clip(outcome.video, stamp) for outcome in outcomes]) as journal:
        said = journal.begin(question or QUESTION, fresh=fresh)
        for outcome in outcomes:
            journal.append(outcome, clip(outcome.video, stamp).fingerprint)
            journal.flush()
        return said


def known(output: Folder, *clips: StoredClip, question: dict[str, Any] | None = None) -> list[AnyOutcome]:
    """What the next run knows of these clips as they are now."""
    with StoredJournal(output, clips) as journal:
        journal.begin(question or QUESTION)
        for one in clips:
            before = journal.fingerprint(one.name)
            if before is not None and not before.is_same(one.fingerprint):
                journal.forget(one.name)
        return list(journal.outcomes({one.name for one in clips}))


def files_in(output: Folder) -> list[str]:
    _, root = output.open()
    return sorted(key.removeprefix(root).lstrip("/") for key in output.list())


def write_parquet(output: Folder, rows: list[tuple[Outcome, str, int]]) -> str:
    """A part of an earlier version: outcomes with the stamps of their files and the numbers of their runs."""
    name = f"{next(NUMBERS):04}.parquet"
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


def test_next_run_knows_what_was_recognized(output: Folder) -> None:
    outcomes = [recognized("a.mp4"), Failure("b.mp4", "it is empty")]
    run(output, *outcomes)
    assert known(output, *map(clip, ("a.mp4", "b.mp4", "c.mp4"))) == outcomes
    with StoredJournal(output, []) as journal:
        journal.begin(QUESTION)
        assert journal.has_failed("b.mp4") and not journal.has_failed("a.mp4")


def test_journal_on_this_machine_is_that_of_the_local_engine(tmp_path: Path) -> None:
    output = Folder.parse(str(tmp_path))
    run(output, recognized("a.mp4"))
    assert files_in(output) == [JOURNAL]
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        assert list(journal.outcomes({"a.mp4"})) == [recognized("a.mp4")]
        journal.append(recognized("b.mp4"), clip("b.mp4").fingerprint)
    assert known(output, clip("a.mp4"), clip("b.mp4")) == [recognized("a.mp4"), recognized("b.mp4")]


def test_journal_elsewhere_is_parts_that_never_change() -> None:
    output = Folder("memory://glosses")
    try:
        run(output, recognized("a.mp4"), recognized("b.mp4"))
        before = {key: output.open()[0].cat_file(key) for key in output.list()}
        run(output, recognized("c.mp4"))
        run(output)
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
        assert len(known(output, *map(clip, ("a.mp4", "b.mp4", "c.mp4")))) == 3
    finally:
        output.delete()


def test_flush_that_failed_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Folder("memory://glosses")
    try:
        with StoredJournal(output, []) as journal:
            journal.begin(QUESTION)
            journal.append(recognized("a.mp4"), clip("a.mp4").fingerprint)
            with monkeypatch.context() as patch:
                patch.setattr(type(output.open()[0]), "pipe_file", lambda *arguments: 1 / 0)
                with pytest.raises(AslTritonError, match=r"cannot write to memory://glosses/journal/"):
                    journal.flush()
            journal.append(recognized("b.mp4"), clip("b.mp4").fingerprint)
        assert known(output, clip("a.mp4"), clip("b.mp4")) == [recognized("a.mp4"), recognized("b.mp4")]
    finally:
        output.delete()


def test_changed_file_is_not_known(output: Folder) -> None:
    run(output, recognized("a.mp4"))
    assert known(output, clip("a.mp4", "2")) == []


def test_last_run_counts(output: Folder) -> None:
    run(output, recognized("a.mp4", "old"), stamp="1")
    run(output, recognized("a.mp4", "new"), stamp="2")
    assert known(output, clip("a.mp4", "2")) == [recognized("a.mp4", "new")]
    assert known(output, clip("a.mp4", "1")) == []


def test_failure_after_a_recognition_is_asked_about_again(output: Folder) -> None:
    run(output, recognized("a.mp4"))
    run(output, Failure("a.mp4", "too slow"))
    with StoredJournal(output, [clip("a.mp4")]) as journal:
        journal.begin(QUESTION)
        assert journal.fingerprint("a.mp4") is None


def test_outcomes_come_once_and_by_name(output: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_journal, "READERS", 2)
    names = [f"{n:03}.mp4" for n in range(20)]
    for number, step in enumerate((7, 3, 1), start=1):
        run(output, *(recognized(name, str(number)) for name in names[::-step]))
    run(output, *(recognized(name, "4") for name in names[8:12]))  # of a block that was handed out again
    outcomes = known(output, *map(clip, names))
    assert [outcome.video for outcome in outcomes] == names
    assert {outcome.gloss for outcome in outcomes} == {"3", "4"}  # type: ignore[union-attr]


def test_clips_that_are_no_longer_there_are_left_out(output: Folder) -> None:
    run(output, recognized("a.mp4"), recognized("b.mp4"))
    assert known(output, clip("b.mp4")) == [recognized("b.mp4")]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_torn_part_counts_for_nothing_and_stays(share: float) -> None:
    output = Folder("memory://glosses")
    try:
        run(output, recognized("a.mp4"), recognized("b.mp4"))
        file_system, _ = output.open()
        *_, part, _question = sorted(output.list())
        data = file_system.cat_file(part)[: int(share * len(file_system.cat_file(part)))]
        file_system.pipe_file(part, data)
        assert known(output, clip("a.mp4"), clip("b.mp4")) == [recognized("a.mp4")]
        run(output, recognized("c.mp4"))
        assert known(output, clip("a.mp4"), clip("c.mp4")) == [recognized("a.mp4"), recognized("c.mp4")]
        assert file_system.cat_file(part) == data
    finally:
        output.delete()


def test_another_question_begins_anew_and_keeps_the_other_s_answers(output: Folder) -> None:
    run(output, recognized("a.mp4"))
    other = {**QUESTION, "top_k": 5}
    assert known(output, clip("a.mp4"), question=other) == []
    assert known(output, clip("a.mp4")) == [recognized("a.mp4")]
    if output.path is None:
        file_system, _ = output.open()
        asked = [
            json.loads(file_system.cat_file(key))["top_k"] for key in output.list() if key.endswith("question.json")
        ]
        assert sorted(asked) == [5, 10]


def test_fresh_forgets_what_is_known(output: Folder) -> None:
    run(output, recognized("a.mp4"))
    part = write_parquet(output, [(recognized("b.mp4"), "1", 1)])
    run(output, fresh=True)
    assert known(output, clip("a.mp4"), clip("b.mp4")) == []
    assert part not in files_in(output)


def test_folder_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AslTritonError, match="cannot write to"):
        run(Folder.parse(str(tmp_path / "file")))


# Parquet parts of earlier versions


def test_parquet_parts_are_known_and_what_the_journal_knows_counts_more(output: Folder) -> None:
    write_parquet(output, [(recognized("a.mp4"), "1", 1), (Failure("b.mp4", "it is empty"), "1", 1)])
    assert known(output, clip("a.mp4"), clip("b.mp4")) == [recognized("a.mp4"), Failure("b.mp4", "it is empty")]
    run(output, recognized("b.mp4", "new"))
    write_parquet(output, [(recognized("b.mp4", "old"), "1", 9)])
    assert known(output, clip("a.mp4"), clip("b.mp4")) == [recognized("a.mp4"), recognized("b.mp4", "new")]


def test_last_run_of_parquet_parts_counts_whatever_their_order(output: Folder) -> None:
    write_parquet(output, [(recognized("a.mp4", "new"), "2", 2)])
    write_parquet(output, [(recognized("a.mp4", "old"), "1", 1)])
    assert known(output, clip("a.mp4", "1")) == []
    assert known(output, clip("a.mp4", "2")) == [recognized("a.mp4", "new")]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_torn_parquet_part_is_told_of_and_stays(output: Folder, share: float) -> None:
    write_parquet(output, [(recognized("a.mp4"), "1", 1)])
    part = write_parquet(output, [(recognized("b.mp4"), "1", 1)])
    file_system, root = output.open()
    data = file_system.cat_file(f"{root}/{part}")
    file_system.pipe_file(f"{root}/{part}", data[: int(share * len(data))])
    with StoredJournal(output, [clip("a.mp4"), clip("b.mp4")]) as journal:
        said = journal.begin(QUESTION)
        assert list(journal.outcomes({"a.mp4", "b.mp4"})) == [recognized("a.mp4")]
    assert said is not None and said.endswith(f"{part} is not a complete Parquet file: ignored")
    assert part in files_in(output)


@pytest.mark.parametrize(("results", "versions"), [
    ("ray_results", {}),
    ("bucket_results", {
        "book.mp4": '"325312ebabc450911728b6c78f629b48"', "sub/hello.mp4": '"49bc3ddf73325265287fba31f3530363"',
        "text.mp4": '"e2046b21ae21b58ad0e3f56cc2c9ec25"',
    }),
])  # fmt: skip
def test_parts_that_version_0_1_0_wrote_are_known(results: str, versions: dict[str, str], output: Folder) -> None:
    """Both were written by commit 9f94336: from clips in a folder, and from the same clips in a bucket."""
    lines = [json.loads(line) for line in (EARLIER / "results" / JOURNAL).read_text().splitlines()]
    clips = []
    for line in lines[1:]:
        size, mtime_ns, _ = line["stamp"]
        version = versions.get(line["video"])
        stamp = FileFingerprint(size, 0, f"{size} {version}") if version else FileFingerprint(size, mtime_ns)
        clips.append(StoredClip(Path(line["video"]), line["video"], line["video"], stamp))
    for path in (EARLIER / results / PARTS).rglob("*.*"):
        output.join(PARTS, path.parent.name).write(path.name, path.read_bytes())
    with StoredJournal(output, clips) as journal:
        assert journal.begin(lines[0]["question"]) is None
        outcomes = list(journal.outcomes({one.name for one in clips}))
        assert all(before == one.fingerprint for one in clips if (before := journal.fingerprint(one.name)))
    for outcome, line in zip(outcomes, sorted(lines[1:], key=lambda line: line["video"]), strict=True):
        assert (outcome.video, type(outcome)) == (line["video"], Failure if "error" in line else Recognition)
        if isinstance(outcome, Recognition):
            assert [one.gloss for one in outcome.predictions] == [one["gloss"] for one in line["predictions"]]
