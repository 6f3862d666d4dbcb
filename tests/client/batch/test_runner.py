"""Batches of clips: finding them, recognizing several at once, ordered results, and nothing lost on an early end."""

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
from tests.client.batch.runs import DyingServer, list_results, make_clips, read_lines, read_video_names, run_batch
from tests.client.conftest import Shrink, limited
from tests.client.observing import RecordingObserver
from tests.client.served import GLOSSES, LastFirst, answering, described, fake, faking, in_order

WLASL = PRESETS["wlasl"]
FORMATS = ("txt", "csv", "jsonl", "parquet")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small clip that batches list under many names."""
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


def test_single_file_is_a_batch(tmp_path: Path) -> None:
    (tmp_path / "clip.whatever").touch()
    assert find_clips(tmp_path / "clip.whatever") == [Clip(tmp_path / "clip.whatever", "clip.whatever")]


@pytest.mark.parametrize(("name", "message"), [
    ("", "there is no video"), ("nowhere", "there is no folder"), ("nope.mp4", "there is no file"),
])  # fmt: skip
def test_missing_clips_are_a_clear_error(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        find_clips(tmp_path / name)


def test_folder_without_videos_lists_what_it_contains(tmp_path: Path) -> None:
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
def test_name_is_shown_on_one_line(name: bytes, shown: str) -> None:
    assert format_name(os.fsdecode(name)) == shown


def test_every_format_lists_all_clips_in_name_order(tmp_path: Path, clip: Path) -> None:
    summary = run_batch(faking(LastFirst), make_clips(clip, 12), tmp_path, FORMATS, Ranking(top_k=2))
    names = [f"{n:03}.mp4" for n in range(12)]
    assert (summary.recognized, summary.failures, summary.not_tried, summary.stopped) == (12, (), 0, None)
    assert summary.files == tuple(tmp_path / f"results.{name}" for name in FORMATS)
    assert list_results(tmp_path) == sorted(f"results.{name}" for name in FORMATS)
    assert read_video_names(tmp_path / "results.jsonl") == names
    text = (tmp_path / "results.txt").read_bytes().decode()
    assert [block.split("\r\n")[0] for block in text.split("\r\n\r\n")] == [f"Video: {name}" for name in names]
    with (tmp_path / "results.csv").open(encoding="utf-8", newline="") as file:
        assert [row["video"] for row in csv.DictReader(file)] == [name for name in names for _ in range(2)]
    assert pq.read_table(tmp_path / "results.parquet")["rank"].to_pylist() == [1, 2] * 12


def test_results_do_not_depend_on_the_order_of_answers(tmp_path: Path, clip: Path) -> None:
    finished: list[str] = []
    clips = make_clips(clip, 8)
    run_batch(
        faking(LastFirst), clips, tmp_path / "a", FORMATS, on_outcome=lambda outcome: finished.append(outcome.video)
    )
    run_batch(fake(), clips, tmp_path / "b", FORMATS, clips_at_once=1)
    assert finished != sorted(finished) and sorted(finished) == [f"{n:03}.mp4" for n in range(8)]
    for name in ("txt", "csv", "parquet"):  # jsonl lines also include timings
        assert (tmp_path / "a" / f"results.{name}").read_bytes() == (tmp_path / "b" / f"results.{name}").read_bytes()


def test_unreadable_clip_is_a_failure_and_the_others_are_written(tmp_path: Path, clip: Path) -> None:
    clips = make_clips(clip, 5)
    clips[1] = Clip(tmp_path / "nowhere.mp4", "nowhere.mp4")
    (tmp_path / "text.mp4").write_bytes(videos.TEXT)
    clips[3] = Clip(tmp_path / "text.mp4", "🤟.mp4")
    output = tmp_path / "out"
    summary = run_batch(fake(), clips, output)
    assert (summary.recognized, summary.not_tried, summary.stopped) == (3, 0, None)
    assert [failure.video for failure in summary.failures] == ["nowhere.mp4", "🤟.mp4"]
    assert summary.files[-1] == output / "errors.jsonl"
    assert read_lines(output / "errors.jsonl") == [
        {"video": f.video, "error": f.error, "rejected": False} for f in summary.failures
    ]
    assert "there is no file nowhere.mp4" in summary.failures[0].error
    assert read_video_names(output / "results.jsonl") == ["000.mp4", "002.mp4", "004.mp4"]
    assert run_batch(fake(), make_clips(clip, 1), output).failures == ()
    assert list_results(output) == ["results.jsonl"]  # the errors were from the first run


def test_refused_request_is_a_failure(tmp_path: Path, clip: Path) -> None:
    answers = iter([None, None, ContractError("out of range"), ServerError("one replica is stuck"), None])

    def answer(tensor: Array) -> Sequence[float]:
        if (error := next(answers)) is not None:
            raise error
        return in_order(tensor)

    summary = run_batch(fake(WLASL, answer), make_clips(clip, 4), tmp_path, clips_at_once=1)
    assert summary.failures == (Failure("001.mp4", "out of range"), Failure("002.mp4", "one replica is stuck"))
    assert read_video_names(tmp_path / "results.jsonl") == ["000.mp4", "003.mp4"]


@pytest.mark.parametrize("clips_at_once", [1, 4])
def test_lost_server_stops_the_batch_and_known_outcomes_are_written(
    tmp_path: Path, clip: Path, clips_at_once: int
) -> None:
    transport = faking(DyingServer)
    assert isinstance(transport, DyingServer)
    transport.num_answers = 5
    summary = run_batch(transport, make_clips(clip, 100), tmp_path, clips_at_once=clips_at_once)
    assert summary.stopped is not None and "went away" in summary.stopped
    assert 1 <= summary.recognized <= 5
    assert summary.recognized + summary.not_tried == 100
    assert len(read_lines(tmp_path / "results.jsonl")) == summary.recognized
    assert list_results(tmp_path) == ["results.jsonl"]


def test_unreachable_server_keeps_earlier_results(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    with pytest.raises(ServerError, match="no server answers"):
        run_batch(faking(DyingServer), make_clips(clip, 3), tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert list_results(tmp_path) == ["results.jsonl"]


def test_unknown_vocabulary_is_reported_before_any_clip(tmp_path: Path, clip: Path) -> None:
    transport = fake()
    with pytest.raises(LabelsError, match="does not know 1 of the 1 glosses"):
        run_batch(transport, make_clips(clip, 3), tmp_path, ranking=Ranking(vocabulary=["cat"]))
    assert transport.calls == []


def copy_clip(clip: Path, folder: Path, count: int) -> list[Clip]:
    """Write `count` copies of one clip."""
    folder.mkdir(exist_ok=True)
    for n in range(count):
        (folder / f"{n:03}.mp4").write_bytes(clip.read_bytes())
    return find_clips(folder)


def test_same_command_again_recognizes_only_missing_or_changed_clips(tmp_path: Path, clip: Path) -> None:
    clips, output = copy_clip(clip, tmp_path / "clips", 6), tmp_path / "out"
    clips[1].path.write_bytes(b"")
    first = run_batch(fake(), clips, output, FORMATS)
    assert (first.recognized, len(first.failures), first.known_before) == (5, 1, 0)
    first_results = {name: (output / f"results.{name}").read_bytes() for name in FORMATS}

    observer = RecordingObserver()
    clips[1].path.write_bytes(clip.read_bytes())  # failed clips are retried
    os.utime(clips[3].path, ns=(1, 1))  # and so are changed ones
    again = run_batch(fake(), clips, output, FORMATS, observer=observer)
    assert (again.recognized, again.failures, again.known_before) == (6, (), 4)
    assert sorted(outcome.video for outcome in observer.outcomes) == ["001.mp4", "003.mp4"] and observer.skipped == 4
    assert read_video_names(output / "results.jsonl") == [f"{n:03}.mp4" for n in range(6)]
    assert list_results(output) == sorted(f"results.{name}" for name in FORMATS)
    assert (output / "results.txt").read_bytes() != first_results["txt"]

    transport, results = fake(), {name: (output / f"results.{name}").read_bytes() for name in FORMATS}
    last = run_batch(transport, clips, output, FORMATS)
    assert (last.recognized, last.known_before, len(transport.calls)) == (6, 6, 0)
    assert {name: (output / f"results.{name}").read_bytes() for name in FORMATS} == results


def test_removed_clips_are_left_out_and_still_known_when_they_return(tmp_path: Path, clip: Path) -> None:
    clips, output = copy_clip(clip, tmp_path / "clips", 4), tmp_path / "out"
    run_batch(fake(), clips, output)
    fewer = run_batch(fake(), clips[:2], output)
    assert (fewer.recognized, fewer.known_before) == (2, 2)
    assert read_video_names(output / "results.jsonl") == ["000.mp4", "001.mp4"]
    assert run_batch(fake(), clips, output).known_before == 4


@pytest.mark.parametrize(
    "ranking", [Ranking(top_k=2), Ranking(vocabulary=["book", "help"]), Ranking(min_confidence=0.9)]
)
def test_another_question_starts_over(tmp_path: Path, clip: Path, ranking: Ranking) -> None:
    clips, output = copy_clip(clip, tmp_path / "clips", 3), tmp_path / "out"
    run_batch(fake(), clips, output)
    other = run_batch(fake(), clips, output, ranking=ranking)
    assert (other.recognized, other.known_before) == (3, 0)
    # The format is not part of the question.
    assert run_batch(fake(), clips, output, ["csv"], ranking).known_before == 3
    assert run_batch(fake(PRESETS["asl-inference"]), clips, output, ranking=ranking).known_before == 0


def test_model_threshold_is_part_of_the_question(tmp_path: Path, clip: Path) -> None:
    def run(min_confidence: float | None = None, requested: float | None = None) -> tuple[int, list[object]]:
        parameters = ModelCard(caveat="an example", min_confidence=min_confidence).to_parameters()
        transport = FakeTransport({"signs": described(**parameters)}, GLOSSES, answering(in_order))
        summary = run_batch(transport, make_clips(clip, 1), tmp_path, ranking=Ranking(min_confidence=requested))
        return summary.known_before, [line["unsure"] for line in read_lines(tmp_path / "results.jsonl")]

    assert run() == (0, [None])
    question = json.loads((tmp_path / JOURNAL).read_text().splitlines()[0])["question"]
    assert question["min_confidence"] == 0.0 and "caveat" not in question  # as earlier versions wrote it
    assert run(min_confidence=0.6) == (0, [True])
    assert run(min_confidence=0.6) == (1, [True])
    assert run(requested=0.6) == (1, [True])  # the same question
    assert run(min_confidence=0.4) == (0, [False])
    assert run() == (1, [None])


def test_fresh_recognizes_every_clip_again(tmp_path: Path, clip: Path) -> None:
    clips = copy_clip(clip, tmp_path / "clips", 3)
    run_batch(fake(), clips, tmp_path / "out")
    transport = fake()
    run = RecognitionBatch(clips, tmp_path / "out", ["csv"], Ranking(), BatchOptions(fresh=True))
    summary = run.run(lambda: AsyncRecognizer(transport=transport))
    assert (summary.recognized, summary.known_before, len(transport.calls)) == (3, 0, 3)


def test_by_content_detects_changes_by_hash(tmp_path: Path, clip: Path) -> None:
    clips, output = copy_clip(clip, tmp_path / "clips", 3), tmp_path / "out"

    def count_known() -> int:
        run = RecognitionBatch(clips, output, ["csv"], Ranking(), BatchOptions(by_content=True))
        return run.run(lambda: AsyncRecognizer(transport=fake())).known_before

    assert count_known() == 0
    os.utime(clips[0].path, ns=(1, 1))
    assert count_known() == 3
    other = bytearray(clip.read_bytes())
    status = clips[1].path.stat()
    other[-1] ^= 1
    clips[1].path.write_bytes(other)
    os.utime(clips[1].path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert count_known() == 2


def test_two_runs_do_not_share_a_folder(tmp_path: Path, clip: Path) -> None:
    messages: list[str] = []

    def start_another_run(_outcome: Outcome) -> None:
        with pytest.raises(AslTritonError) as raised, Journal(tmp_path):
            pass
        messages.append(str(raised.value))

    run_batch(fake(), make_clips(clip, 2), tmp_path, on_outcome=start_another_run)
    assert len(messages) == 2
    assert f"another run is writing to {tmp_path}: process {os.getpid()} on " in messages[0]
    with Journal(tmp_path):
        pass  # free again


@dataclass
class RestartingServer(FakeTransport):
    """A server that goes down at its third inference and is back after `away_for` failed calls of `describe`."""

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


def test_batch_waits_for_a_server_to_come_back(tmp_path: Path, clip: Path) -> None:
    observer = RecordingObserver()
    summary = run_batch(faking(RestartingServer), make_clips(clip, 20), tmp_path, wait_s=60, observer=observer)
    assert (summary.recognized, summary.failures, summary.stopped) == (20, (), None)
    assert observer.sentences[0].startswith("fake:8001 is down: waiting up to 60 s for it")
    assert observer.sentences[-1].startswith("fake:8001 is back after")


def test_server_that_comes_back_with_another_model_stops_the_run(tmp_path: Path, clip: Path) -> None:
    transport = faking(RestartingServer)
    observer = RecordingObserver()
    other = described(PRESETS["wlasl"], **{"asl_triton.checkpoint_sha256": "another"})
    observer.say = lambda sentence: transport.models.update(signs=other)  # type: ignore[method-assign]
    summary = run_batch(transport, make_clips(clip, 20), tmp_path, wait_s=60, observer=observer, clips_at_once=1)
    assert summary.stopped is not None and "came back with a different signs" in summary.stopped
    assert summary.recognized == 2


@dataclass
class BusyServer(FakeTransport):
    """A server that accepts one request in three."""

    num_requests: int = 0

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.num_requests += 1
        if self.num_requests % 3:
            raise BusyError("signs on fake:8001 is too busy")
        return await super().infer(model, inputs, outputs, priority, parameters)


def test_rejected_requests_are_retried(tmp_path: Path, clip: Path) -> None:
    summary = run_batch(faking(BusyServer), make_clips(clip, 4), tmp_path, wait_s=60)
    assert (summary.recognized, summary.failures, summary.rejected) == (4, (), 0)


def test_rejection_is_a_failure_without_waiting(tmp_path: Path, clip: Path) -> None:
    summary = run_batch(faking(BusyServer), make_clips(clip, 6), tmp_path, clips_at_once=1)
    assert (summary.recognized, summary.rejected) == (2, 4)


def test_clip_that_crashes_the_server_every_time_is_a_failure(tmp_path: Path, clip: Path) -> None:
    deadly = videos.levels(tmp_path / "deadly.mkv", [190] * 12)

    @dataclass
    class CrashingServer(FakeTransport):
        dead: bool = False

        async def server_version(self) -> str:
            if self.dead:
                self.dead = False  # someone restarts it
                raise ServerError("it is away")
            return "fake"

    def answer(tensor: Array) -> Sequence[float]:
        if tensor.mean() > 150:
            transport.dead = True  # type: ignore[attr-defined]
            raise ServerError("Socket closed")
        return in_order(tensor)

    transport = faking(CrashingServer, WLASL, answer)
    clips = [*make_clips(clip, 3), Clip(deadly, "deadly.mkv"), *make_clips(clip, 3, "z")]
    summary = run_batch(transport, clips, tmp_path / "out", wait_s=60, clips_at_once=1)
    assert summary.recognized == 6
    (failure,) = summary.failures
    assert failure.video == "deadly.mkv" and "went away each of the 3 times" in failure.error


def test_too_many_failures_stop_the_run(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(videos.TEXT)
    clips = [*make_clips(clip, 4), *make_clips(tmp_path / "bad.mp4", 50, "bad")]
    summary = run_batch(fake(), clips, tmp_path / "out", max_failures=5, clips_at_once=1)
    assert summary.stopped is not None and summary.stopped.startswith("5 clips have failed, as many as --max-failures")
    assert (summary.recognized, len(summary.failures), summary.not_tried) == (4, 5, 45)


@pytest.mark.parametrize("name", FORMATS)
def test_full_disk_at_the_last_write_loses_nothing(disk: tuple[Path, Shrink], clip: Path, name: str) -> None:
    folder, shrink = disk
    results = folder / f"results.{name}"
    results.write_text("of an earlier run")
    journal = folder / "journal.jsonl"
    clips = make_clips(clip, 12)
    outcomes: list[Outcome] = []
    full = contextlib.ExitStack()

    def fill_disk_at_the_end(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == len(clips):
            full.enter_context(shrink(0))

    with full, pytest.raises(AslTritonError) as raised:
        run_batch(fake(), clips, folder, [name], on_outcome=fill_disk_at_the_end)
    assert f"cannot write {results}" in str(raised.value)
    assert f"The 12 outcomes so far are in {journal}" in str(raised.value)
    assert results.read_text() == "of an earlier run"
    assert {line["video"] for line in read_lines(journal)[1:]} == {clip.name for clip in clips}


def test_disk_that_fills_up_stops_the_batch(disk: tuple[Path, Shrink], clip: Path) -> None:
    folder, shrink = disk
    if shrink is limited:
        pytest.skip("a per-file limit leaves room for the results, and only root can mount a small disk")
    with shrink(8192), pytest.raises(AslTritonError, match=r"The \d+ outcomes so far are in .*journal.jsonl"):
        run_batch(fake(), make_clips(clip, 100), folder)
    assert 1 <= len(read_lines(folder / "journal.jsonl")) - 1 < 100
    assert list_results(folder) == []


def test_unwritable_output_is_reported_before_any_request(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "file").touch()
    transport = fake()
    with pytest.raises(AslTritonError, match="Choose another folder with --output"):
        run_batch(transport, make_clips(clip, 3), tmp_path / "file" / "out")
    assert transport.calls == []


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path, clip: Path) -> None:
    def measure_peak(count: int) -> int:
        transport = fake()
        transport.calls = DiscardingList()
        tracemalloc.start()
        # One clip at a time: otherwise the number held at once is up to chance.
        run_batch(transport, make_clips(clip, count), tmp_path, ("csv",), clips_at_once=1)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = measure_peak(10), measure_peak(100)
    assert many < 3 * few  # frames of one or two clips at a time; a hundred would take 50 times as much


class DiscardingList(list):  # type: ignore[type-arg]
    """A list that discards what is appended."""

    def append(self, _item: object) -> None:
        return None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_file_whose_name_is_not_utf8_is_recognized(tmp_path: Path, clip: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(clip.read_bytes())
    (tmp_path / os.fsdecode(b"\xfe.mp4")).write_bytes(b"")
    summary = run_batch(fake(), find_clips(tmp_path), tmp_path / "out", FORMATS)
    assert read_video_names(tmp_path / "out" / "results.jsonl") == [r"\xff.mp4"]
    assert summary.failures == (Failure(r"\xfe.mp4", r"\xfe.mp4 is empty (0 bytes): copy or record it again"),)
