"""The journal writes each outcome to disk at once, and the next run reads it back."""

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.batch.journal import JOURNAL, Journal
from asl_triton.errors import AslTritonError
from asl_triton.results import AnyOutcome, Failure, Prediction, Recognition, Segment, ShotBox, SignerBox, Timeline
from asl_triton.video.discovery import FileFingerprint
from tests.client.conftest import Shrink

QUESTION = {"model": "signs", "top_k": 10, "vocabulary": None}
STAMP = FileFingerprint(1234, 1_700_000_000_123_456_789)


def make_recognition(video: str) -> Recognition:
    predictions = (Prediction(1, "thank you", 3, 0.625, 0.5), Prediction(2, 'a "b", c\n', 1, 1e-9, -20.7))
    return Recognition(video, "signs", predictions, True, 25, 1.04, 2, 0.1, 0.2, ("cut off", "other"))


def read_all(journal: Journal) -> list[AnyOutcome]:
    return list(journal.outcomes(journal._entries))


SHOTS = (ShotBox(0.0, SignerBox(0.1, 0.0, 0.9, 1.0, "face", 0.667)), ShotBox(12.4, None))


def test_outcomes_are_read_back_unchanged_and_sorted_by_clip(tmp_path: Path) -> None:
    segment = Segment("thank you", 3, 0.5, 1.25, 0.75, 1.0)
    outcomes: list[AnyOutcome] = [
        make_recognition("c.mp4"),
        Timeline("film.mp4", "signs", (segment, segment), 900, 36.0, 27, 0.1, 0.2, ("cut off",)),
        Timeline("nothing.mp4", "signs", (), 900, 36.0, 27, 0.1, 0.2),
        Timeline("shots.mp4", "signs", (segment,), 900, 36.0, 27, 0.1, 0.2, signers=SHOTS),
        replace(make_recognition("boxed.mp4"), signer=SignerBox(0.1, 0.0, 0.9, 1.0, "dataset", 0.5)),
        replace(make_recognition("unjudged.mp4"), unsure=None),
        Failure("b.mp4", "it is empty: 🤟"), make_recognition("a.mp4"), make_recognition("\udcff.mp4"),
    ]  # fmt: skip
    by_name = sorted(outcomes, key=lambda outcome: outcome.video)
    with Journal(tmp_path / "new") as journal:
        journal.begin(QUESTION)
        for outcome in outcomes:
            journal.append(outcome, STAMP)
        assert read_all(journal) == by_name
        assert list(journal.outcomes({"a.mp4", "b.mp4", "d.mp4"})) == by_name[:2]
        assert list(journal.failures({"a.mp4", "b.mp4"})) == [outcomes[6]]
        assert journal.count({"a.mp4", "b.mp4", "d.mp4"}) == 2
    with Journal(tmp_path / "new") as journal:
        journal.begin(QUESTION)
        assert read_all(journal) == by_name


def test_outcome_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        journal.append(Failure("a.mp4", "empty"), FileFingerprint(0, 5, "abc"))
        assert [json.loads(line) for line in journal.path.read_text().splitlines()] == [
            {"question": QUESTION}, {"stamp": [0, 5, "abc"], "video": "a.mp4", "error": "empty", "rejected": False},
        ]  # fmt: skip


def test_last_line_of_a_clip_wins(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        for outcome in (Failure("a.mp4", "busy"), make_recognition("b.mp4"), make_recognition("a.mp4")):
            journal.append(outcome, STAMP)
        assert read_all(journal) == [make_recognition("a.mp4"), make_recognition("b.mp4")]
        assert journal.fingerprint("a.mp4") == STAMP
        journal.append(Failure("a.mp4", "changed"), FileFingerprint(1, 1))
        assert journal.fingerprint("a.mp4") is None
        assert list(journal.failures({"a.mp4"})) == [Failure("a.mp4", "changed")]
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        assert read_all(journal) == [Failure("a.mp4", "changed"), make_recognition("b.mp4")]
        assert journal.path.read_bytes().count(b"\n") == 3  # superseded lines are gone


@pytest.mark.parametrize("end", [
    b"", b"{}\n", b"[1]\n", b'{"stamp": [1234, 17', b'{"stamp": null', bytes(4096), b"\x00" * 10 + b"\n",
    b'{"stamp": null, "video": "c.mp4", "error": "of another version", "new": 1}\n',
], ids=repr)  # fmt: skip
def test_damaged_line_does_not_affect_the_others(tmp_path: Path, end: bytes) -> None:
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        journal.append(make_recognition("a.mp4"), STAMP)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(end)
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        journal.append(make_recognition("b.mp4"), STAMP)
        assert read_all(journal) == [make_recognition("a.mp4"), make_recognition("b.mp4")]
    assert [json.loads(line).get("video") for line in (tmp_path / JOURNAL).read_bytes().splitlines()] == [
        None, "a.mp4", "b.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("head", [b"", b"no journal\n", b"{}\n", b'{"question": {"model": "other"}}\n', b'{"question"'])
def test_journal_that_does_not_match_the_question_is_renamed(tmp_path: Path, head: bytes) -> None:
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        journal.append(make_recognition("a.mp4"), STAMP)
    lines = (tmp_path / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / JOURNAL).write_bytes(head + lines[1])
    with Journal(tmp_path) as journal:
        warning = journal.begin(QUESTION)
        assert read_all(journal) == [] and journal.fingerprint("a.mp4") is None
    assert json.loads((tmp_path / JOURNAL).read_bytes()) == {"question": QUESTION}
    (renamed,) = set(os.listdir(tmp_path)) - {JOURNAL}
    assert warning is not None and warning.endswith(f", so it was renamed to {renamed}")
    assert (tmp_path / renamed).read_bytes() == head + lines[1]


def test_earlier_question_finds_its_journal_again(tmp_path: Path) -> None:
    warnings = []
    for top_k, video in ((10, "a.mp4"), (3, "b.mp4"), (10, "c.mp4"), (3, "d.mp4")):
        with Journal(tmp_path) as journal:
            warnings.append(journal.begin({**QUESTION, "top_k": top_k}))
            journal.append(make_recognition(video), STAMP)
    assert [journal.fingerprint(video) is not None for video in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")] == [
        False,
        True,
    ] * 2
    assert warnings[0] is None
    renamed = f"{tmp_path / JOURNAL} was written with other settings (top_k), so it was renamed to journal."
    assert all(renamed in str(warning) for warning in warnings[1:])
    assert len(os.listdir(tmp_path)) == 2


def test_full_disk_leaves_only_complete_lines(disk: tuple[Path, Shrink]) -> None:
    folder, shrink = disk
    with Journal(folder) as journal:
        journal.begin(QUESTION)
        journal.append(make_recognition("first.mp4"))
        with shrink(8192), pytest.raises(AslTritonError, match=r"cannot write .*journal.jsonl: .*\. Make room"):
            for n in range(100):
                journal.append(make_recognition(f"{n:03}.mp4"))
        recorded = [outcome.video for outcome in read_all(journal)]
        assert recorded == [f"{n:03}.mp4" for n in range(len(recorded) - 1)] + ["first.mp4"]
        assert 5 < len(recorded) < 100
        assert journal.path.read_bytes().count(b"\n") == len(recorded) + 1 and journal.path.read_bytes().endswith(
            b"}\n"
        )
        journal.append(make_recognition("room again.mp4"))
        assert len(read_all(journal)) == len(recorded) + 1


def test_full_disk_at_the_start_keeps_the_existing_journal(disk: tuple[Path, Shrink]) -> None:
    folder, shrink = disk
    with Journal(folder) as journal:
        journal.begin(QUESTION)
        for n in range(40):
            journal.append(make_recognition(f"{n:03}.mp4"))
    with (folder / JOURNAL).open("ab") as file:
        file.write(b"torn")
    before = (folder / JOURNAL).read_bytes()
    with shrink(4096), pytest.raises(AslTritonError, match="Make room"), Journal(folder) as journal:
        journal.begin(QUESTION)
    assert (folder / JOURNAL).read_bytes() == before and not list(folder.glob("*.part"))


def test_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(AslTritonError, match="Choose another folder with --output"), Journal(folder):
            pass


def test_lines_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """Earlier versions wrote no signer box."""
    values = dataclasses.asdict(make_recognition("a.mp4"))
    del values["signer"]
    lines = [{"question": QUESTION}, {"stamp": None, **values}, {"stamp": None, **values, "video": "b.mp4", "extra": 1}]
    (tmp_path / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(tmp_path) as journal:
        journal.begin(QUESTION)
        assert read_all(journal) == [make_recognition("a.mp4")]
