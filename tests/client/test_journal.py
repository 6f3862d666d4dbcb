"""Outcomes on disk as soon as they are known."""

from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.journal import AnyOutcome, Failure, Journal
from asl_triton.predictions import Prediction, Recognition
from asl_triton.timeline import Segment, Timeline
from tests.client.conftest import Shrink


def recognition(video: str) -> Recognition:
    predictions = (Prediction(1, "thank you", 3, 0.625, 0.5), Prediction(2, 'a "b", c\n', 1, 1e-9, -20.7))
    return Recognition(video, "signs", predictions, True, 25, 1.04, 2, 0.1, 0.2, ("cut off", "other"))


def test_outcomes_come_back_as_they_were_by_the_names_of_their_clips(tmp_path: Path) -> None:
    segment = Segment("thank you", 3, 0.5, 1.25, 0.75, 1.0)
    outcomes: list[AnyOutcome] = [
        recognition("c.mp4"), Timeline("film.mp4", "signs", (segment, segment), 900, 36.0, 27, 0.1, 0.2, ("cut off",)),
        Timeline("nothing.mp4", "signs", (), 900, 36.0, 27, 0.1, 0.2),
        Failure("b.mp4", "it is empty: 🤟"), recognition("a.mp4"), recognition("\udcff.mp4"),
    ]  # fmt: skip
    with Journal(tmp_path / "new" / "journal.jsonl") as journal:
        for outcome in outcomes:
            journal.append(outcome)
        assert len(journal) == 6
        assert list(journal.outcomes()) == sorted(outcomes, key=lambda outcome: outcome.video)
        journal.append(Failure("a.mp4", "a second of the same name"))
        assert [outcome.video for outcome in journal.outcomes()][:2] == ["a.mp4", "a.mp4"]


def test_outcome_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(Failure("a.mp4", "empty"))
        assert (tmp_path / "journal.jsonl").read_text() == '{"video": "a.mp4", "error": "empty", "rejected": false}\n'
    assert journal.path.exists()
    journal.discard()
    assert not journal.path.exists()


def test_full_disk_leaves_whole_lines(disk: tuple[Path, Shrink]) -> None:
    folder, shrink = disk
    with Journal(folder / "journal.jsonl") as journal:
        journal.append(recognition("first.mp4"))
        with shrink(8192), pytest.raises(AslTritonError, match=r"cannot write .*journal.jsonl: .*\. Make room"):
            for n in range(100):
                journal.append(recognition(f"{n:03}.mp4"))
        known = [outcome.video for outcome in journal.outcomes()]
        assert known == [f"{n:03}.mp4" for n in range(len(known) - 1)] + ["first.mp4"]
        assert 5 < len(known) < 100
        assert journal.path.read_bytes().count(b"\n") == len(known) and journal.path.read_bytes().endswith(b"}\n")
        journal.append(recognition("room again.mp4"))
        assert len(list(journal.outcomes())) == len(known) + 1


def test_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(AslTritonError, match="Choose another folder with --output"), Journal(folder / "journal"):
            pass
