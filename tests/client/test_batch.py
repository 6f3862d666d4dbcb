"""Many clips: found, recognised side by side, written in order, and nothing lost when something ends it early."""

import contextlib
import csv
import json
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from asl_triton.batch import Clip, Outcome, Summary, find_clips, printable, run
from asl_triton.errors import AslTritonError, ContractError, LabelsError, ServerError, VideoError
from asl_triton.journal import Failure
from asl_triton.predictions import Ranking
from asl_triton.presets import PRESETS
from asl_triton.recognizer import AsyncRecognizer
from asl_triton.transport import Array, FakeTransport
from tests.client import videos
from tests.client.conftest import Shrink, limited
from tests.client.served import LastFirst, fake, faking, in_order

WLASL = PRESETS["wlasl"]
FORMATS = ("txt", "csv", "jsonl", "parquet")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small clip, to be asked about under many names."""
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=9)


def named(path: Path, count: int, prefix: str = "") -> list[Clip]:
    return [Clip(path, f"{prefix}{n:03}.mp4") for n in range(count)]


def batch(
    transport: FakeTransport,
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str] = ("jsonl",),
    ranking: Ranking | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    clips_at_once: int = 4,
) -> Summary:
    def recognizer() -> AsyncRecognizer:
        return AsyncRecognizer(transport=transport, in_flight=clips_at_once)

    ranking = ranking or Ranking()
    return run(recognizer, clips, output, formats, ranking, clips_at_once=clips_at_once, on_outcome=on_outcome)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def videos_of(path: Path) -> list[object]:
    return [line["video"] for line in lines(path)]


def left(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir())


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


@pytest.mark.parametrize(("name", "says"), [("", "there is no video"), ("nowhere", "there is no folder")])
def test_nothing_to_do_is_a_sentence(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(VideoError, match=says):
        find_clips(tmp_path / name)


@pytest.mark.parametrize(("name", "shown"), [
    (b"plain.mp4", "plain.mp4"), ("🤟 été.mp4".encode(), "🤟 été.mp4"), (b"not \xff UTF-8.mp4", r"not \xff UTF-8.mp4"),
    (b"new\nline.mp4", r"new\x0aline.mp4"), (b"\x1b[31mred.mp4", r"\x1b[31mred.mp4"),
])  # fmt: skip
def test_name_is_text_on_one_line(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown


def test_every_format_has_every_clip_in_the_order_of_the_names(tmp_path: Path, clip: Path) -> None:
    summary = batch(faking(LastFirst), named(clip, 12), tmp_path, FORMATS, Ranking(top_k=2))
    names = [f"{n:03}.mp4" for n in range(12)]
    assert (summary.recognised, summary.failures, summary.not_tried, summary.stopped) == (12, (), 0, None)
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
    assert (summary.recognised, summary.not_tried, summary.stopped) == (3, 0, None)
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


@dataclass
class Mortal(FakeTransport):
    """A server that goes away after so many answers."""

    answers: int = 0
    given: list[str] = field(default_factory=list)

    def _live(self, what: str) -> None:
        if what == "infer":
            self.given.append(what)
        if len(self.given) > self.answers:
            raise ServerError("no server answers at fake:8001")

    async def server_version(self) -> str:
        self._live("version")
        return "fake"

    async def infer(self, model: str, inputs: object, outputs: object, priority: int = 0) -> dict[str, Array]:
        self._live("infer")
        return await super().infer(model, inputs, outputs, priority)  # type: ignore[arg-type]


@pytest.mark.parametrize("clips_at_once", [1, 4])
def test_server_that_goes_away_stops_the_batch_and_what_is_known_is_written(
    tmp_path: Path, clip: Path, clips_at_once: int
) -> None:
    transport = faking(Mortal)
    assert isinstance(transport, Mortal)
    transport.answers = 5
    summary = batch(transport, named(clip, 100), tmp_path, clips_at_once=clips_at_once)
    assert summary.stopped is not None and "went away" in summary.stopped
    assert 1 <= summary.recognised <= 5
    assert summary.recognised + summary.not_tried == 100
    assert len(lines(tmp_path / "results.jsonl")) == summary.recognised
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


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_control_c_writes_what_is_known(tmp_path: Path, clip: Path) -> None:
    told: list[Outcome] = []

    def tell(outcome: Outcome) -> None:
        told.append(outcome)
        if len(told) == 3:
            interrupt()

    summary = batch(fake(), named(clip, 100), tmp_path, on_outcome=tell)
    assert summary.stopped == "interrupted"
    assert 3 <= summary.recognised < 100
    assert summary.not_tried == 100 - summary.recognised
    assert len(lines(tmp_path / "results.jsonl")) == summary.recognised
    assert left(tmp_path) == ["results.jsonl"]


def test_control_c_before_the_first_outcome_leaves_the_results_of_before(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    asked: list[int] = []

    def answer(tensor: Array) -> Sequence[float]:
        asked.append(1)
        if len(asked) == 2:  # the first asks for the labels
            interrupt()
        return in_order(tensor)

    with pytest.raises(KeyboardInterrupt):
        batch(fake(WLASL, answer), named(clip, 100), tmp_path, clips_at_once=1)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert left(tmp_path) == ["results.jsonl"]


def test_control_c_while_long_clips_are_decoded_ends_well(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "long.mp4", num_frames=3000, size="64x64")
    asked: list[int] = []

    def answer(tensor: Array) -> Sequence[float]:
        asked.append(1)
        if len(asked) == 4:
            interrupt()
        return in_order(tensor)

    with pytest.raises(KeyboardInterrupt):
        batch(fake(PRESETS["bsl1k"], answer), named(path, 8), tmp_path / "out", clips_at_once=8)
    assert len(asked) < 100


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
    assert {line["video"] for line in lines(journal)} == {clip.name for clip in clips}


def test_disk_that_fills_on_the_way_stops_the_batch(disk: tuple[Path, Shrink], clip: Path) -> None:
    folder, shrink = disk
    if shrink is limited:
        pytest.skip("a limit on each file leaves room for the results: only root may mount a small disk")
    with shrink(8192), pytest.raises(AslTritonError, match=r"The \d+ outcomes so far are in .*journal.jsonl"):
        batch(fake(), named(clip, 100), folder)
    assert 1 <= len(lines(folder / "journal.jsonl")) < 100
    assert left(folder) == ["journal.jsonl"]


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
        batch(transport, named(clip, count), tmp_path, ("csv",))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(10), peak(100)
    assert many < 1.5 * few + 2**20


class Forgetful(list):  # type: ignore[type-arg]
    """A list that keeps nothing."""

    def append(self, _item: object) -> None:
        return None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names")
def test_file_whose_name_is_not_text_is_recognised(tmp_path: Path, clip: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(clip.read_bytes())
    (tmp_path / os.fsdecode(b"\xfe.mp4")).write_bytes(b"")
    summary = batch(fake(), find_clips(tmp_path), tmp_path / "out", FORMATS)
    assert videos_of(tmp_path / "out" / "results.jsonl") == [r"\xff.mp4"]
    assert summary.failures == (Failure(r"\xfe.mp4", r"\xfe.mp4 is empty (0 bytes): copy or record it again"),)
