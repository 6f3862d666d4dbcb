"""Many clips: found, recognized side by side, written in order, and nothing lost when something ends it early."""

import contextlib
import csv
import json
import os
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from asl_triton.batch.journal import JOURNAL, Journal
from asl_triton.batch.runner import BatchOptions, RecognitionBatch
from asl_triton.errors import (
    AslTritonError,
    BusyError,
    ConnectionLostError,
    ContractError,
    LabelsError,
    ServerError,
    VideoError,
)
from asl_triton.models.card import ModelCard
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Outcome
from asl_triton.transport.base import Array, ModelDescription
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.discovery import Clip, find_clips, format_name
from tests.client import videos
from tests.client.batch.runs import Mortal, batch, left, lines, named, videos_of
from tests.client.conftest import Shrink, limited
from tests.client.observing import Told
from tests.client.served import GLOSSES, LastFirst, answering, described, fake, faking, in_order

WLASL = PRESETS["wlasl"]
FORMATS = ("txt", "csv", "jsonl", "parquet")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small clip, to be asked about under many names."""
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=9)


@pytest.mark.parametrize(("glob", "found"), [
    (None, ["A.MP4", "a.avi", "b.mkv", "b/c.webm", "b/d/e.m4v", "z.mov"]),
    ("*.mp4", []),
    ("*.mkv", ["b.mkv"]),
    ("b/*", ["b/c.webm", "b/d/e.m4v", "b/notes.txt"]),
    ("*.txt", ["b/notes.txt"]),
])  # fmt: skip
def test_clips_are_found_by_extension_or_pattern_in_all_folders(
    tmp_path: Path, glob: str | None, found: list[str]
) -> None:
    for name in ("z.mov", "A.MP4", "a.avi", "b/c.webm", "b/d/e.m4v", "b/notes.txt", "b.mkv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for hidden in (".h.mp4", ".cache/h.mp4", "b/.h.mp4", "folder.mp4/x.text"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).touch()
    if found:
        clips = find_clips(tmp_path, glob)
        assert [clip.name for clip in clips] == found
        assert [clip.path for clip in clips] == [tmp_path / name for name in found]
    else:
        with pytest.raises(VideoError, match=r"no file that matches '\*.mp4' in"):
            find_clips(tmp_path, glob)


def test_one_file_is_a_batch_too(tmp_path: Path) -> None:
    (tmp_path / "clip.whatever").touch()
    assert find_clips(tmp_path / "clip.whatever") == [Clip(tmp_path / "clip.whatever", "clip.whatever")]


@pytest.mark.parametrize(("name", "says"), [
    ("", "there is no video"), ("nowhere", "there is no folder"), ("nope.mp4", "there is no file"),
])  # fmt: skip
def test_nothing_to_do_is_a_sentence(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(VideoError, match=says):
        find_clips(tmp_path / name)


def test_folder_without_videos_names_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(VideoError, match=r"there is no video .* found only photo\.jpg$"):
        find_clips(tmp_path)
    for number in range(6):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(VideoError, match=r"found only 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 2 more$"):
        find_clips(tmp_path)


@pytest.mark.parametrize(("name", "shown"), [
    (b"plain.mp4", "plain.mp4"), ("🤟 été.mp4".encode(), "🤟 été.mp4"), (b"not \xff UTF-8.mp4", r"not \xff UTF-8.mp4"),
    (b"new\nline.mp4", r"new\x0aline.mp4"), (b"\x1b[31mred.mp4", r"\x1b[31mred.mp4"),
])  # fmt: skip
def test_name_is_text_on_one_line(name: bytes, shown: str) -> None:
    assert format_name(os.fsdecode(name)) == shown


def test_every_format_has_every_clip_in_the_order_of_the_names(tmp_path: Path, clip: Path) -> None:
    summary = batch(faking(LastFirst), named(clip, 12), tmp_path, FORMATS, Ranking(top_k=2))
    names = [f"{n:03}.mp4" for n in range(12)]
    assert (summary.recognized, summary.failures, summary.not_tried, summary.stopped) == (12, (), 0, None)
    assert summary.files == tuple(tmp_path / f"results.{name}" for name in FORMATS)
    assert left(tmp_path) == sorted(f"results.{name}" for name in FORMATS)
    assert videos_of(tmp_path / "results.jsonl") == names
    text = (tmp_path / "results.txt").read_bytes().decode()
    assert [block.split("\r\n")[0] for block in text.split("\r\n\r\n")] == [f"Video: {name}" for name in names]
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["video"] for row in csv.DictReader(file)] == [name for name in names for _ in range(2)]
    assert pq.read_table(tmp_path / "results.parquet")["rank"].to_pylist() == [1, 2] * 12


def test_order_of_the_answers_does_not_matter(tmp_path: Path, clip: Path) -> None:
    told: list[str] = []
    clips = named(clip, 8)
    batch(faking(LastFirst), clips, tmp_path / "a", FORMATS, on_outcome=lambda outcome: told.append(outcome.video))
    batch(fake(), clips, tmp_path / "b", FORMATS, clips_at_once=1)
    assert told != sorted(told) and sorted(told) == [f"{n:03}.mp4" for n in range(8)]
    for name in ("txt", "csv", "parquet"):  # the lines of jsonl also say how long each clip took
        assert (tmp_path / "a" / f"results.{name}").read_bytes() == (tmp_path / "b" / f"results.{name}").read_bytes()


def test_clip_that_cannot_be_read_is_a_failure_and_the_others_are_written(tmp_path: Path, clip: Path) -> None:
    clips = named(clip, 5)
    clips[1] = Clip(tmp_path / "nowhere.mp4", "nowhere.mp4")
    (tmp_path / "text.mp4").write_bytes(videos.TEXT)
    clips[3] = Clip(tmp_path / "text.mp4", "🤟.mp4")
    output = tmp_path / "out"
    summary = batch(fake(), clips, output)
    assert (summary.recognized, summary.not_tried, summary.stopped) == (3, 0, None)
    assert [failure.video for failure in summary.failures] == ["nowhere.mp4", "🤟.mp4"]
    assert summary.files[-1] == output / "errors.jsonl"
    assert lines(output / "errors.jsonl") == [
        {"video": f.video, "error": f.error, "rejected": False} for f in summary.failures
    ]
    assert "there is no file nowhere.mp4" in summary.failures[0].error
    assert videos_of(output / "results.jsonl") == ["000.mp4", "002.mp4", "004.mp4"]
    assert batch(fake(), named(clip, 1), output).failures == ()
    assert left(output) == ["results.jsonl"]  # the errors were of the run before


def test_request_that_the_server_refuses_is_a_failure(tmp_path: Path, clip: Path) -> None:
    answers = iter([None, None, ContractError("out of range"), ServerError("one replica is stuck"), None])

    def answer(tensor: Array) -> Sequence[float]:
        if (error := next(answers)) is not None:
            raise error
        return in_order(tensor)

    summary = batch(fake(WLASL, answer), named(clip, 4), tmp_path, clips_at_once=1)
    assert summary.failures == (Failure("001.mp4", "out of range"), Failure("002.mp4", "one replica is stuck"))
    assert videos_of(tmp_path / "results.jsonl") == ["000.mp4", "003.mp4"]


@pytest.mark.parametrize("clips_at_once", [1, 4])
def test_server_that_goes_away_stops_the_batch_and_what_is_known_is_written(
    tmp_path: Path, clip: Path, clips_at_once: int
) -> None:
    transport = faking(Mortal)
    assert isinstance(transport, Mortal)
    transport.answers = 5
    summary = batch(transport, named(clip, 100), tmp_path, clips_at_once=clips_at_once)
    assert summary.stopped is not None and "went away" in summary.stopped
    assert 1 <= summary.recognized <= 5
    assert summary.recognized + summary.not_tried == 100
    assert len(lines(tmp_path / "results.jsonl")) == summary.recognized
    assert left(tmp_path) == ["results.jsonl"]


def test_server_that_is_away_leaves_the_results_of_before(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    with pytest.raises(ServerError, match="no server answers"):
        batch(faking(Mortal), named(clip, 3), tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert left(tmp_path) == ["results.jsonl"]


def test_vocabulary_that_does_not_fit_is_told_before_any_clip(tmp_path: Path, clip: Path) -> None:
    transport = fake()
    with pytest.raises(LabelsError, match="does not know 1 of the 1 glosses"):
        batch(transport, named(clip, 3), tmp_path, ranking=Ranking(vocabulary=["cat"]))
    assert transport.calls == []


def copies(clip: Path, folder: Path, count: int) -> list[Clip]:
    """So many files of the same clip."""
    folder.mkdir(exist_ok=True)
    for n in range(count):
        (folder / f"{n:03}.mp4").write_bytes(clip.read_bytes())
    return find_clips(folder)


def test_same_command_again_does_what_is_missing_or_has_changed(tmp_path: Path, clip: Path) -> None:
    clips, output = copies(clip, tmp_path / "clips", 6), tmp_path / "out"
    clips[1].path.write_bytes(b"")
    first = batch(fake(), clips, output, FORMATS)
    assert (first.recognized, len(first.failures), first.known_before) == (5, 1, 0)
    of_first = {name: (output / f"results.{name}").read_bytes() for name in FORMATS}

    told = Told()
    clips[1].path.write_bytes(clip.read_bytes())  # what failed is tried again
    os.utime(clips[3].path, ns=(1, 1))  # what has changed, too
    again = batch(fake(), clips, output, FORMATS, told=told)
    assert (again.recognized, again.failures, again.known_before) == (6, (), 4)
    assert sorted(outcome.video for outcome in told.outcomes) == ["001.mp4", "003.mp4"] and told.skipped == 4
    assert videos_of(output / "results.jsonl") == [f"{n:03}.mp4" for n in range(6)]
    assert left(output) == sorted(f"results.{name}" for name in FORMATS)
    assert (output / "results.txt").read_bytes() != of_first["txt"]

    transport, whole = fake(), {name: (output / f"results.{name}").read_bytes() for name in FORMATS}
    nothing = batch(transport, clips, output, FORMATS)
    assert (nothing.recognized, nothing.known_before, len(transport.calls)) == (6, 6, 0)
    assert {name: (output / f"results.{name}").read_bytes() for name in FORMATS} == whole


def test_clips_that_are_gone_are_left_out_and_come_back_known(tmp_path: Path, clip: Path) -> None:
    clips, output = copies(clip, tmp_path / "clips", 4), tmp_path / "out"
    batch(fake(), clips, output)
    fewer = batch(fake(), clips[:2], output)
    assert (fewer.recognized, fewer.known_before) == (2, 2)
    assert videos_of(output / "results.jsonl") == ["000.mp4", "001.mp4"]
    assert batch(fake(), clips, output).known_before == 4


@pytest.mark.parametrize(
    "ranking", [Ranking(top_k=2), Ranking(vocabulary=["book", "help"]), Ranking(min_confidence=0.9)]
)
def test_another_question_begins_anew(tmp_path: Path, clip: Path, ranking: Ranking) -> None:
    clips, output = copies(clip, tmp_path / "clips", 3), tmp_path / "out"
    batch(fake(), clips, output)
    other = batch(fake(), clips, output, ranking=ranking)
    assert (other.recognized, other.known_before) == (3, 0)
    assert batch(fake(), clips, output, ["csv"], ranking).known_before == 3  # another format is no other question
    assert batch(fake(PRESETS["asl-inference"]), clips, output, ranking=ranking).known_before == 0


def test_models_own_threshold_is_a_part_of_the_question(tmp_path: Path, clip: Path) -> None:
    def ask(min_confidence: float | None = None, asked: float | None = None) -> tuple[int, list[object]]:
        parameters = ModelCard(caveat="an example", min_confidence=min_confidence).to_parameters()
        transport = FakeTransport({"signs": described(**parameters)}, GLOSSES, answering(in_order))
        known = batch(transport, named(clip, 1), tmp_path, ranking=Ranking(min_confidence=asked)).known_before
        return known, [line["unsure"] for line in lines(tmp_path / "results.jsonl")]

    assert ask() == (0, [None])
    question = json.loads((tmp_path / JOURNAL).read_text().splitlines()[0])["question"]
    assert question["min_confidence"] == 0.0 and "caveat" not in question  # as earlier versions wrote it
    assert ask(min_confidence=0.6) == (0, [True])
    assert ask(min_confidence=0.6) == (1, [True])
    assert ask(asked=0.6) == (1, [True])  # the same question
    assert ask(min_confidence=0.4) == (0, [False])
    assert ask() == (1, [None])


def test_anew_asks_about_all(tmp_path: Path, clip: Path) -> None:
    clips = copies(clip, tmp_path / "clips", 3)
    batch(fake(), clips, tmp_path / "out")
    transport = fake()
    run = RecognitionBatch(clips, tmp_path / "out", ["csv"], Ranking(), BatchOptions(fresh=True))
    summary = run.run(lambda: AsyncRecognizer(transport=transport))
    assert (summary.recognized, summary.known_before, len(transport.calls)) == (3, 0, 3)


def test_content_tells_changes_where_that_is_wanted(tmp_path: Path, clip: Path) -> None:
    clips, output = copies(clip, tmp_path / "clips", 3), tmp_path / "out"

    def known_before() -> int:
        run = RecognitionBatch(clips, output, ["csv"], Ranking(), BatchOptions(by_content=True))
        return run.run(lambda: AsyncRecognizer(transport=fake())).known_before

    assert known_before() == 0
    os.utime(clips[0].path, ns=(1, 1))
    assert known_before() == 3
    other = bytearray(clip.read_bytes())
    status = clips[1].path.stat()
    other[-1] ^= 1
    clips[1].path.write_bytes(other)
    os.utime(clips[1].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_before() == 2


def test_two_runs_do_not_share_a_folder(tmp_path: Path, clip: Path) -> None:
    refused: list[str] = []

    def begin_another(_outcome: Outcome) -> None:
        with pytest.raises(AslTritonError) as raised, Journal(tmp_path):
            pass
        refused.append(str(raised.value))

    batch(fake(), named(clip, 2), tmp_path, on_outcome=begin_another)
    assert len(refused) == 2
    assert f"another run is writing to {tmp_path}: process {os.getpid()} on " in refused[0]
    with Journal(tmp_path):
        pass  # free again


@dataclass
class Returning(FakeTransport):
    """A server that is away from its third inference on, for so many questions whether it is there."""

    away_for: int = 3
    inferences: int = 0

    async def server_version(self) -> str:
        return "fake"

    async def describe(self, model: str) -> ModelDescription:
        if self.inferences == 3 and self.away_for > 0:
            self.away_for -= 1
            raise ServerError("it is away")
        return await super().describe(model)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        if self.inferences < 3:
            self.inferences += 1
        if self.inferences == 3 and self.away_for > 0:
            raise ConnectionLostError("it is away")
        return await super().infer(model, inputs, outputs, priority, parameters)


def test_server_that_comes_back_is_waited_for(tmp_path: Path, clip: Path) -> None:
    told = Told()
    summary = batch(faking(Returning), named(clip, 20), tmp_path, wait_s=60, told=told)
    assert (summary.recognized, summary.failures, summary.stopped) == (20, (), None)
    assert told.sentences[0].startswith("fake:8001 is down: waiting up to 60 s for it")
    assert told.sentences[-1].startswith("fake:8001 is back after")


def test_server_that_comes_back_as_another_stops_the_run(tmp_path: Path, clip: Path) -> None:
    transport = faking(Returning)
    told = Told()
    other = described(PRESETS["wlasl"], **{"asl_triton.checkpoint_sha256": "another"})
    told.say = lambda sentence: transport.models.update(signs=other)  # type: ignore[method-assign]
    summary = batch(transport, named(clip, 20), tmp_path, wait_s=60, told=told, clips_at_once=1)
    assert summary.stopped is not None and "came back with a different signs" in summary.stopped
    assert summary.recognized == 2


@dataclass
class Full(FakeTransport):
    """Has room for one request in three."""

    asked: int = 0

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.asked += 1
        if self.asked % 3:
            raise BusyError("signs on fake:8001 is too busy")
        return await super().infer(model, inputs, outputs, priority, parameters)


def test_server_without_room_is_asked_again(tmp_path: Path, clip: Path) -> None:
    summary = batch(faking(Full), named(clip, 4), tmp_path, wait_s=60)
    assert (summary.recognized, summary.failures, summary.rejected) == (4, (), 0)


def test_without_patience_a_refusal_is_a_failure(tmp_path: Path, clip: Path) -> None:
    summary = batch(faking(Full), named(clip, 6), tmp_path, clips_at_once=1)
    assert (summary.recognized, summary.rejected) == (2, 4)


def test_clip_that_takes_the_server_along_each_time_is_a_failure(tmp_path: Path, clip: Path) -> None:
    deadly = videos.levels(tmp_path / "deadly.mkv", [190] * 12)

    @dataclass
    class Fragile(FakeTransport):
        dead: bool = False

        async def server_version(self) -> str:
            if self.dead:
                self.dead = False  # somebody starts it again
                raise ServerError("it is away")
            return "fake"

    def answer(tensor: Array) -> Sequence[float]:
        if tensor.mean() > 150:
            transport.dead = True  # type: ignore[attr-defined]
            raise ServerError("Socket closed")
        return in_order(tensor)

    transport = faking(Fragile, WLASL, answer)
    clips = [*named(clip, 3), Clip(deadly, "deadly.mkv"), *named(clip, 3, "z")]
    summary = batch(transport, clips, tmp_path / "out", wait_s=60, clips_at_once=1)
    assert summary.recognized == 6
    (failure,) = summary.failures
    assert failure.video == "deadly.mkv" and "went away each of the 3 times" in failure.error


def test_too_many_failures_stop_the_run(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(videos.TEXT)
    clips = [*named(clip, 4), *named(tmp_path / "bad.mp4", 50, "bad")]
    summary = batch(fake(), clips, tmp_path / "out", max_failures=5, clips_at_once=1)
    assert summary.stopped is not None and summary.stopped.startswith("5 clips have failed, as many as --max-failures")
    assert (summary.recognized, len(summary.failures), summary.not_tried) == (4, 5, 45)


@pytest.mark.parametrize("name", FORMATS)
def test_full_disk_at_the_last_write_loses_nothing(disk: tuple[Path, Shrink], clip: Path, name: str) -> None:
    folder, shrink = disk
    results = folder / f"results.{name}"
    results.write_text("of an earlier run")
    journal = folder / "journal.jsonl"
    clips = named(clip, 12)
    told: list[Outcome] = []
    full = contextlib.ExitStack()

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        if len(told) == len(clips):
            full.enter_context(shrink(0))

    with full, pytest.raises(AslTritonError) as raised:
        batch(fake(), clips, folder, [name], on_outcome=tell)
    assert f"cannot write {results}" in str(raised.value)
    assert f"The 12 outcomes so far are in {journal}" in str(raised.value)
    assert results.read_text() == "of an earlier run"
    assert {line["video"] for line in lines(journal)[1:]} == {clip.name for clip in clips}


def test_disk_that_fills_on_the_way_stops_the_batch(disk: tuple[Path, Shrink], clip: Path) -> None:
    folder, shrink = disk
    if shrink is limited:
        pytest.skip("a limit on each file leaves room for the results: only root may mount a small disk")
    with shrink(8192), pytest.raises(AslTritonError, match=r"The \d+ outcomes so far are in .*journal.jsonl"):
        batch(fake(), named(clip, 100), folder)
    assert 1 <= len(lines(folder / "journal.jsonl")) - 1 < 100
    assert left(folder) == []


def test_output_that_cannot_be_written_is_told_before_the_server_is_asked(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "file").touch()
    transport = fake()
    with pytest.raises(AslTritonError, match="Choose another folder with --output"):
        batch(transport, named(clip, 3), tmp_path / "file" / "out")
    assert transport.calls == []


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path, clip: Path) -> None:
    def peak(count: int) -> int:
        transport = fake()
        transport.calls = Forgetful()
        tracemalloc.start()
        batch(transport, named(clip, count), tmp_path, ("csv",), clips_at_once=1)  # or chance says how many are held
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(10), peak(100)
    assert many < 3 * few  # one or two clips' frames at a time, as chance has it; a hundred would be 50 times as many


class Forgetful(list):  # type: ignore[type-arg]
    """A list that keeps nothing."""

    def append(self, _item: object) -> None:
        return None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_file_whose_name_is_not_text_is_recognized(tmp_path: Path, clip: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(clip.read_bytes())
    (tmp_path / os.fsdecode(b"\xfe.mp4")).write_bytes(b"")
    summary = batch(fake(), find_clips(tmp_path), tmp_path / "out", FORMATS)
    assert videos_of(tmp_path / "out" / "results.jsonl") == [r"\xff.mp4"]
    assert summary.failures == (Failure(r"\xfe.mp4", r"\xfe.mp4 is empty (0 bytes): copy or record it again"),)
