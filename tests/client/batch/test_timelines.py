"""Batches of long videos: one timeline per video, written as soon as it is known, and kept on an early end."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import webvtt

from asl_triton.batch.journal import JOURNAL
from asl_triton.batch.runner import BatchOptions, Summary
from asl_triton.batch.timelines import TimelineBatch, TimelineOptions, choose_output_stems
from asl_triton.errors import AslTritonError, LabelsError
from asl_triton.postprocessing.segmentation import Segmentation
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import Failure, Timeline
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.discovery import Clip, find_clips
from asl_triton.writers.timelines import TIMELINES
from tests.client import videos
from tests.client.conftest import Shrink
from tests.client.observing import RecordingObserver
from tests.client.served import bright, fake_steps


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with one sign."""
    return videos.levels(tmp_path_factory.mktemp("clip") / "clip.mkv", [60] * 24 + [190] * 30 + [60] * 26)


def run_batch(
    transport: FakeTransport,
    clips: Sequence[Clip],
    output: Path,
    formats: Sequence[str] = ("csv",),
    timeline_options: TimelineOptions | None = None,
    *,
    on_outcome: Callable[[Timeline | Failure], None] = lambda outcome: None,
    observer: RecordingObserver | None = None,
    clips_at_once: int = 2,
) -> Summary:
    def recognizer() -> AsyncRecognizer:
        return AsyncRecognizer(transport=transport)

    timeline_options = timeline_options or TimelineOptions()
    options, observer = BatchOptions(in_flight=clips_at_once), observer or RecordingObserver(on_outcome)
    return TimelineBatch(clips, output, formats, timeline_options, options, observer).run(recognizer)


def make_clips(path: Path, *names: str) -> list[Clip]:
    return [Clip(path, name) for name in names]


def list_results(output: Path) -> list[str]:
    """List the files for users, without the lock and the journal."""
    files = (path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith(".") and name != JOURNAL)


@pytest.mark.parametrize(("names", "expected"), [
    (("a.mp4", "b.mov"), ("a", "b")),
    (("x/a.mp4", "y/a.mp4"), ("x/a", "y/a")),
    (("a.mp4", "a.mov", "b.mp4"), ("a.mp4", "a.mov", "b")),
    (("a.mp4", "A.mov"), ("a.mp4", "A.mov")),
    (("a.mp4", "a.mov", "a.mp4.avi"), ("a.mp4", "a.mov", "a.mp4.avi")),
    (("errors.mp4", "journal.mp4", "x/errors.mp4"), ("errors.mp4", "journal.mp4", "x/errors")),
    (("a", "a.mp4"), ("a", "a.mp4")),
    (("two.words.here.mp4",), ("two.words.here",)),
], ids=str)  # fmt: skip
def test_no_two_clips_share_an_output_file(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    chosen = choose_output_stems(names)
    assert tuple(chosen[name] for name in names) == expected
    assert len({stem.casefold() for stem in chosen.values()}) == len(names)


def test_output_folders_mirror_the_clip_folders(tmp_path: Path, clip: Path) -> None:
    folder, output = tmp_path / "clips", tmp_path / "out"
    for name in ("a.mkv", "a.mp4", "deeper/still/b.mkv", "c.mkv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(clip.read_bytes())
    observer = RecordingObserver()
    summary = run_batch(
        fake_steps(bright),
        find_clips(folder),
        output,
        tuple(TIMELINES),
        observer=observer,
    )
    stems = ("a.mkv", "a.mp4", "c", "deeper/still/b")
    assert list_results(output) == sorted(f"{stem}.{name}" for stem in stems for name in TIMELINES)
    assert [path.relative_to(output).as_posix() for path in summary.files] == [
        f"{stem}.{name}" for stem in stems for name in TIMELINES
    ]
    assert (summary.recognized, summary.failures, summary.not_tried, summary.stopped) == (4, (), 0, None)
    (caption,) = webvtt.read(output / "deeper" / "still" / "b.vtt")
    assert caption.text == "book"
    line = json.loads((output / "a.mkv.jsonl").read_text())
    assert (line["video"], line["gloss"], line["start_s"]) == ("a.mkv", "book", pytest.approx(0.96, abs=0.17))
    assert all(share[-1] == 1 for share in observer.shares.values()) and len(observer.shares) == 4


def test_timeline_options_reach_the_model(tmp_path: Path, clip: Path) -> None:
    transport = fake_steps(bright)
    options = TimelineOptions(Segmentation(0.999), ["book"], window=32, stride=16)
    run_batch(transport, make_clips(clip, "a.mkv"), tmp_path, timeline_options=options)
    assert {inputs["FRAMES__0"][1] for _, inputs in transport.calls} == {24, 30, 26}
    assert (tmp_path / "a.csv").read_text().count("\n") == 1


def test_failed_clip_does_not_stop_the_others(tmp_path: Path, clip: Path) -> None:
    folder, output = tmp_path / "clips", tmp_path / "out"
    folder.mkdir()
    (folder / "good.mkv").write_bytes(clip.read_bytes())
    (folder / "bad.mp4").write_bytes(videos.TEXT)
    outcomes: list[Timeline | Failure] = []
    summary = run_batch(fake_steps(bright), find_clips(folder), output, ("vtt",), on_outcome=outcomes.append)
    assert summary.recognized == 1 and [failure.video for failure in summary.failures] == ["bad.mp4"]
    assert "cannot be read as a video" in summary.failures[0].error
    assert list_results(output) == ["errors.jsonl", "good.vtt"] and summary.files[-1] == output / "errors.jsonl"
    assert {type(outcome) for outcome in outcomes} >= {Failure} and len(outcomes) == 2


@pytest.mark.parametrize(("options", "error", "message"), [
    (TimelineOptions(vocabulary=["cat"]), LabelsError, "does not know 1 of the 1 glosses"),
    (TimelineOptions(window=8), AslTritonError, "--window 8 is out of range"),
    (TimelineOptions(window=10, stride=11), AslTritonError, "--stride 11 is out of range"),
], ids=["vocabulary", "window", "stride"])  # fmt: skip
def test_invalid_option_is_reported_before_any_clip(
    tmp_path: Path, clip: Path, options: TimelineOptions, error: type[AslTritonError], message: str
) -> None:
    transport = fake_steps(bright)
    with pytest.raises(error, match=message):
        run_batch(transport, make_clips(clip, "a.mkv"), tmp_path, timeline_options=options)
    assert transport.calls == [] and list_results(tmp_path) == []


def test_files_are_written_before_the_batch_ends(tmp_path: Path, clip: Path) -> None:
    names = [f"{n}.mkv" for n in range(4)]
    counts = []
    run_batch(
        fake_steps(bright),
        make_clips(clip, *names),
        tmp_path,
        on_outcome=lambda outcome: counts.append(len(list_results(tmp_path))),
        clips_at_once=1,
    )
    assert counts == [1, 2, 3, 4]


def test_ctrl_c_keeps_known_timelines(tmp_path: Path, clip: Path) -> None:
    outcomes: list[Timeline | Failure] = []

    def interrupt(outcome: Timeline | Failure) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 2:
            signal.raise_signal(signal.SIGINT)

    names = [f"{n}.mkv" for n in range(40)]
    summary = run_batch(fake_steps(bright), make_clips(clip, *names), tmp_path, on_outcome=interrupt, clips_at_once=1)
    assert summary.stopped == "interrupted"
    assert 2 <= summary.recognized < 40 and summary.not_tried == 40 - summary.recognized
    assert len(list_results(tmp_path)) == len(summary.files) == summary.recognized


def test_lost_server_stops_the_batch_and_known_timelines_are_written(tmp_path: Path, clip: Path) -> None:
    requests: list[int] = []

    def answer(frames: Array) -> Array:
        requests.append(1)
        if len(requests) > 8:
            del transport.models["signs"]
            raise AslTritonError("the server is shutting down")
        return bright(frames)

    transport = fake_steps(answer)
    summary = run_batch(transport, make_clips(clip, *(f"{n}.mkv" for n in range(9))), tmp_path, clips_at_once=1)
    assert summary.stopped is not None and "went away" in summary.stopped
    assert 1 <= summary.recognized == len(list_results(tmp_path)) < 9


def test_full_disk_stops_the_batch_and_the_next_run_resumes(disk: tuple[Path, Shrink], clip: Path) -> None:
    folder, shrink = disk
    clips = make_clips(clip, *(f"{n}.mkv" for n in range(40)))
    with shrink(16 * 4096):
        summary = run_batch(fake_steps(bright), clips, folder, tuple(TIMELINES))
    assert summary.stopped is not None and "No space left" in summary.stopped
    assert 1 <= summary.recognized < 40 and summary.failures == ()
    _question, *known = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    assert all(timeline["segments"][0]["gloss"] == "book" for timeline in known) and len(known) == summary.recognized
    for timeline in known:
        assert all((folder / timeline["video"]).with_suffix(f".{name}").exists() for name in TIMELINES)
    assert not list(folder.rglob("*.part"))
    observer = RecordingObserver()
    again = run_batch(fake_steps(bright), clips[:10], folder, ("csv",), observer=observer)
    assert again.recognized == 10 and again.known_before == min(summary.recognized, 10) == observer.skipped


def test_missing_files_of_a_known_timeline_are_written(tmp_path: Path, clip: Path) -> None:
    transport = fake_steps(bright)
    run_batch(transport, make_clips(clip, "a.mkv", "b.mkv"), tmp_path, ("csv",))
    num_calls = len(transport.calls)
    (tmp_path / "b.csv").unlink()
    summary = run_batch(transport, make_clips(clip, "a.mkv", "b.mkv"), tmp_path, ("csv", "vtt"))
    assert list_results(tmp_path) == ["a.csv", "a.vtt", "b.csv", "b.vtt"] and len(summary.files) == 4
    assert len(transport.calls) == num_calls
    options = TimelineOptions(window=32, stride=16)
    assert run_batch(transport, make_clips(clip, "a.mkv"), tmp_path, timeline_options=options).known_before == 0


@pytest.mark.parametrize("name", ["a", "deeper"])
def test_unwritable_output_is_a_clear_error(tmp_path: Path, clip: Path, name: str) -> None:
    (tmp_path / "deeper").touch()
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(AslTritonError, match=f"cannot write {tmp_path / name}.*Choose another|choose another --output"):
        run_batch(fake_steps(bright), make_clips(clip, "a.mkv" if name == "a" else "deeper/b.mkv"), tmp_path)
