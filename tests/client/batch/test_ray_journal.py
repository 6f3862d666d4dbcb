"""The journal of a batch on a cluster: what of its parts counts, and in which order it is told."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asl_triton.batch.ray import journal as cluster_journal
from asl_triton.batch.ray.journal import ROWS, ParquetJournal, row
from asl_triton.batch.ray.storage import Folder, StoredClip
from asl_triton.errors import AslTritonError
from asl_triton.results import Failure, Prediction, Recognition

QUESTION = {"model": "small", "top_k": 10}
NUMBERS = itertools.count()


def clip(name: str, stamp: str = "1") -> StoredClip:
    return StoredClip(Path(name), name, name, stamp, 1)


def recognized(name: str, gloss: str = "book") -> Recognition:
    return Recognition(name, "small", (Prediction(1, gloss, 0, 0.9, 2.2),), False, 20, 0.8, 1, 0.1, 0.2, ("cut off",))


@pytest.fixture
def output(tmp_path: Path) -> Folder:
    return Folder.of(str(tmp_path / "results"))


@pytest.fixture
def journal(output: Folder) -> ParquetJournal:
    begun = ParquetJournal(output, QUESTION)
    begun.begin()
    return begun


def write(journal: ParquetJournal, rows: list[dict[str, Any]]) -> Path:
    """A part, as one of Ray's tasks writes it."""
    assert journal.folder.path is not None
    part = journal.folder.path / f"{next(NUMBERS):04}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, ROWS), part)
    return part


def again(output: Folder, question: dict[str, Any] | None = None, anew: bool = False) -> ParquetJournal:
    """The next run."""
    journal = ParquetJournal(output, question or QUESTION)
    journal.begin(anew=anew)
    return journal


def test_next_run_knows_what_was_recognized(journal: ParquetJournal, output: Folder) -> None:
    outcomes = [recognized("a.mp4"), Failure("b.mp4", "it is empty")]
    write(journal, [row(clip(outcome.video), outcome, journal.run) for outcome in outcomes])
    after = again(output)
    assert (journal.run, after.run) == (1, 2)
    assert [after.knows(clip(name)) for name in ("a.mp4", "b.mp4", "c.mp4")] == [True, False, False]
    assert list(after.outcomes([clip("a.mp4"), clip("b.mp4")])) == outcomes


def test_changed_file_is_not_known(journal: ParquetJournal, output: Folder) -> None:
    write(journal, [row(clip("a.mp4"), recognized("a.mp4"), 1)])
    changed = clip("a.mp4", "2")
    assert not again(output).knows(changed)
    assert list(again(output).outcomes([changed])) == []


def test_last_run_counts_whatever_the_order_of_the_parts(journal: ParquetJournal, output: Folder) -> None:
    write(journal, [row(clip("a.mp4", "2"), recognized("a.mp4", "new"), 2)])
    write(journal, [row(clip("a.mp4", "1"), recognized("a.mp4", "old"), 1)])
    after = again(output)
    assert after.run == 3
    assert after.knows(clip("a.mp4", "2")) and not after.knows(clip("a.mp4", "1"))
    assert [outcome.gloss for outcome in after.outcomes([clip("a.mp4", "2")])] == ["new"]  # type: ignore[union-attr]


def test_failure_after_a_recognition_is_asked_about_again(journal: ParquetJournal, output: Folder) -> None:
    write(journal, [row(clip("a.mp4"), recognized("a.mp4"), 1)])
    write(journal, [row(clip("a.mp4"), Failure("a.mp4", "too slow"), 2)])
    assert not again(output).knows(clip("a.mp4"))


def test_outcomes_come_once_and_by_name_from_parts_that_overlap(
    journal: ParquetJournal, output: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_journal, "READERS", 2)
    names = [f"{n:03}.mp4" for n in range(100)]
    for run, step in enumerate((7, 3, 1), start=1):
        for start in range(0, 100, 10):
            some = names[start : start + 10][::-step]
            write(journal, [row(clip(name), recognized(name, str(run)), run) for name in some])
    write(journal, [row(clip(name), recognized(name, "3"), 3) for name in names[40:60]])  # a block that was retried
    outcomes = list(again(output).outcomes(map(clip, names)))
    assert [outcome.video for outcome in outcomes] == names
    assert {outcome.gloss for outcome in outcomes} == {"3"}  # type: ignore[union-attr]


def test_clips_that_are_no_longer_there_are_left_out(journal: ParquetJournal, output: Folder) -> None:
    write(journal, [row(clip(name), recognized(name), 1) for name in ("a.mp4", "b.mp4")])
    assert [outcome.video for outcome in again(output).outcomes([clip("b.mp4")])] == ["b.mp4"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_torn_part_counts_for_nothing_and_goes(journal: ParquetJournal, output: Folder, share: float) -> None:
    write(journal, [row(clip("a.mp4"), recognized("a.mp4"), 1)])
    part = write(journal, [row(clip("b.mp4"), recognized("b.mp4"), 1)])
    part.write_bytes(part.read_bytes()[: int(part.stat().st_size * share)])
    after = again(output)
    assert [after.knows(clip(name)) for name in ("a.mp4", "b.mp4")] == [True, False]
    assert not part.exists()
    assert [outcome.video for outcome in after.outcomes([clip("a.mp4"), clip("b.mp4")])] == ["a.mp4"]


def test_parts_that_were_written_since_are_taken_up(journal: ParquetJournal) -> None:
    write(journal, [row(clip("a.mp4"), recognized("a.mp4"), 1)])
    assert not journal.knows(clip("a.mp4"))
    journal.look()
    assert journal.knows(clip("a.mp4"))


def test_another_question_begins_anew_and_keeps_the_other_s_answers(journal: ParquetJournal, output: Folder) -> None:
    write(journal, [row(clip("a.mp4"), recognized("a.mp4"), 1)])
    assert not again(output, {**QUESTION, "top_k": 5}).knows(clip("a.mp4"))
    assert again(output).knows(clip("a.mp4"))
    assert output.path is not None
    asked = [json.loads(path.read_text())["top_k"] for path in output.path.glob("journal/*/question.json")]
    assert sorted(asked) == [5, 10]


def test_fresh_forgets_what_is_known(journal: ParquetJournal, output: Folder) -> None:
    part = write(journal, [row(clip("a.mp4"), recognized("a.mp4"), 1)])
    assert not again(output, anew=True).knows(clip("a.mp4"))
    assert not part.exists()


def test_folder_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AslTritonError, match="cannot write to"):
        again(Folder.of(str(tmp_path / "file")))
