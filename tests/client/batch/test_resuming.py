"""Batches that were stopped, killed or disturbed: known outcomes stay, the rest is counted, and models never mix."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asl_triton.batch.journal import JOURNAL
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.errors import AslTritonError, ConnectionLostError, ServerError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import AnyOutcome
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.video.discovery import Clip, find_clips
from tests.client import videos
from tests.client.observing import RecordingObserver
from tests.client.served import described, fake, faking, in_order


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=9)


@pytest.fixture
def clips(clip: Path, tmp_path: Path) -> list[Clip]:
    """Twelve copies of one clip."""
    (tmp_path / "clips").mkdir()
    for number in range(12):
        (tmp_path / "clips" / f"{number:03}.mp4").write_bytes(clip.read_bytes())
    return find_clips(tmp_path / "clips")


def run_batch(
    clips: Sequence[Clip],
    output: Path,
    transport: FakeTransport | None = None,
    observer: RecordingObserver | None = None,
    while_writing: Callable[[], None] = lambda: None,
    **options: Any,
) -> Summary:
    """Recognize clips one at a time and write `results.jsonl`."""
    server = transport or fake()

    class HookedBatch(RecognitionBatch):
        def write_outputs(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path, ...]:
            while_writing()
            return super().write_outputs(outcomes)

    run = HookedBatch(clips, output, ["jsonl"], Ranking(), BatchOptions(in_flight=1, **options), observer)
    return run.run(lambda: AsyncRecognizer(transport=server))


def interrupt_after(count: int) -> RecordingObserver:
    """Return an observer that presses Ctrl-C after `count` outcomes."""
    observer = RecordingObserver(lambda outcome: interrupt() if len(observer.outcomes) == count else None)
    return observer


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def mark_changed(clip: Clip) -> None:
    os.utime(clip.path, ns=(1, 1))


@pytest.mark.parametrize("by_content", [False, True])
def test_stopped_run_drops_answers_for_changed_files(clips: list[Clip], tmp_path: Path, by_content: bool) -> None:
    run_batch(clips, tmp_path / "out", by_content=by_content)
    for changed in clips:
        changed.path.write_bytes(changed.path.read_bytes() + b"\0")
    summary = run_batch(clips, tmp_path / "out", observer=interrupt_after(3), by_content=by_content)
    assert summary.stopped == "interrupted"
    assert 3 <= summary.recognized <= 5 and summary.not_tried == 12 - summary.recognized
    again = run_batch(clips, tmp_path / "out", by_content=by_content)
    assert (again.recognized, again.known_before, again.stopped) == (12, summary.recognized, None)


def test_failed_clips_are_retried_after_untried_ones(clips: list[Clip], tmp_path: Path) -> None:
    clips[0].path.write_bytes(b"no video")
    assert len(run_batch(clips[:4], tmp_path / "out").failures) == 1
    observer = RecordingObserver()
    run_batch(clips, tmp_path / "out", observer=observer)
    assert [outcome.video for outcome in observer.outcomes] == [clip.name for clip in [*clips[4:], clips[0]]]


def test_lost_server_leaves_no_answers_for_changed_files(clips: list[Clip], tmp_path: Path) -> None:
    run_batch(clips, tmp_path / "out")
    for changed in clips[6:]:
        mark_changed(changed)

    def lose(frames: Array) -> Sequence[float]:
        if not frames.any():  # the request for the labels
            return in_order(frames)
        transport.models.clear()
        raise ServerError("gone")

    transport = fake(answer=lose)
    summary = run_batch(clips, tmp_path / "out", transport)
    assert summary.stopped is not None and "went away" in summary.stopped
    assert (summary.recognized, summary.not_tried) == (6, 6)


def test_search_for_changed_files_can_be_interrupted(clips: list[Clip], tmp_path: Path) -> None:
    run_batch(clips, tmp_path / "out", by_content=True)
    observer = RecordingObserver()
    observer.skip = lambda count: interrupt()  # type: ignore[method-assign]
    summary = run_batch(clips, tmp_path / "out", observer=observer, by_content=True)
    assert summary.known_before < 4
    assert (summary.recognized, summary.not_tried, summary.stopped) == (12, 0, None)


def test_signal_while_writing_results_lets_the_write_finish(clips: list[Clip], tmp_path: Path) -> None:
    observer = RecordingObserver()
    summary = run_batch(clips, tmp_path / "out", observer=observer, while_writing=interrupt)
    assert (summary.recognized, summary.stopped) == (12, None)
    assert summary.files == (tmp_path / "out" / "results.jsonl",)
    assert observer.sentences == ["SIGINT: writing the results. Press Ctrl-C again to stop at once"]


def test_second_signal_while_writing_results_keeps_earlier_ones(clips: list[Clip], tmp_path: Path) -> None:
    run_batch(clips[:6], tmp_path / "out")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()

    def interrupt_twice() -> None:
        interrupt()
        interrupt()

    summary = run_batch(clips, tmp_path / "out", while_writing=interrupt_twice)
    assert summary.stopped == "interrupted twice: stopped at once" and summary.files == ()
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "out")) == [JOURNAL, "results.jsonl"]
    assert run_batch(clips, tmp_path / "out").known_before == 12


def test_leftovers_of_killed_runs_are_overwritten(clips: list[Clip], tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_batch(clips[:6], output)
    (output / "results.jsonl").write_text('{"video": "000.mp4", "predic')  # as if another program had written it
    for name in (".results.jsonl.part", ".journal.jsonl.part", ".journal.lock"):
        (output / name).write_bytes(b"half of i")
    with (output / JOURNAL).open("ab") as journal:
        journal.write(b'{"stamp": [1, 2, null], "video": "00')
    summary = run_batch(clips, output)
    assert (summary.recognized, summary.known_before) == (12, 6)
    assert (output / "results.jsonl").read_bytes().count(b"}\n") == 12
    assert sorted(os.listdir(output)) == [JOURNAL, "results.jsonl"]


def test_clip_deleted_during_the_run_is_a_failure(clips: list[Clip], tmp_path: Path) -> None:
    observer = RecordingObserver(lambda outcome: clips[9].path.unlink(missing_ok=True))
    summary = run_batch(clips, tmp_path / "out", observer=observer)
    (failure,) = summary.failures
    assert failure.video == "009.mp4" and "there is no file" in failure.error
    assert summary.recognized == 11


def test_output_deleted_during_the_run_is_a_clear_error(clips: list[Clip], tmp_path: Path) -> None:
    observer = RecordingObserver(lambda outcome: shutil.rmtree(tmp_path / "out", ignore_errors=True))
    with pytest.raises(AslTritonError, match=r"cannot write .*results\.jsonl: No such file or directory"):
        run_batch(clips, tmp_path / "out", observer=observer)
    assert run_batch(clips, tmp_path / "out").recognized == 12


def test_clip_replaced_while_being_read_is_recognized_again(clips: list[Clip], tmp_path: Path) -> None:
    def replace(frames: Array) -> Sequence[float]:
        clips[0].path.write_bytes(clips[0].path.read_bytes() + b"\0")
        return in_order(frames)

    assert run_batch(clips[:1], tmp_path / "out", fake(answer=replace)).recognized == 1
    again = run_batch(clips[:1], tmp_path / "out")
    assert (again.recognized, again.known_before) == (1, 0)
    assert run_batch(clips[:1], tmp_path / "out").known_before == 1


def test_file_times_far_in_the_future_or_past_are_accepted(clips: list[Clip], tmp_path: Path) -> None:
    for future in clips[:6]:
        os.utime(future.path, (2**33, 2**33))  # the year 2242
    for past in clips[6:]:
        os.utime(past.path, (0, 0))
    assert run_batch(clips, tmp_path / "out").recognized == 12
    assert run_batch(clips, tmp_path / "out").known_before == 12


def test_results_inside_the_clip_folder_are_not_clips(clips: list[Clip], tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for _ in range(2):
        assert run_batch(find_clips(folder), folder / "results").recognized == 12
        assert run_batch(find_clips(folder), folder).recognized == 12


@dataclass
class LoadBalancer(FakeTransport):
    """Switches to another server at the fourth request, over a new connection unless `moves_silently`."""

    num_requests: int = 0
    moves_silently: bool = False

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.num_requests += 1
        if self.num_requests == 4:
            self.models["signs"] = described(PRESETS["wlasl"], **{"asl_triton.checkpoint_sha256": "another"})
            self.connection_epoch += not self.moves_silently
        return await super().infer(model, inputs, outputs, priority, parameters)


def test_answer_from_another_server_behind_a_balancer_is_discarded(clips: list[Clip], tmp_path: Path) -> None:
    summary = run_batch(clips, tmp_path / "out", faking(LoadBalancer), wait_s=60)
    assert summary.stopped is not None and "came back with a different signs" in summary.stopped
    assert (summary.recognized, summary.not_tried) == (3, 9)


def test_silently_replaced_server_is_noticed_by_the_end_of_the_run(clips: list[Clip], tmp_path: Path) -> None:
    transport = faking(LoadBalancer)
    assert isinstance(transport, LoadBalancer)
    transport.moves_silently = True
    summary = run_batch(clips, tmp_path / "out", transport)
    assert summary.stopped is not None and "came back with a different signs" in summary.stopped
    assert run_batch(clips, tmp_path / "out", transport).known_before == 0


def test_requests_resent_to_the_same_server_do_not_stop_the_run(clips: list[Clip], tmp_path: Path) -> None:
    def lose_one(frames: Array) -> Sequence[float]:
        transport.connection_epoch += 1
        if transport.connection_epoch % 5 == 3:
            raise ConnectionLostError("Socket closed")
        return in_order(frames)

    transport = fake(answer=lose_one)
    summary = run_batch(clips, tmp_path / "out", transport, wait_s=60)
    assert (summary.recognized, summary.failures, summary.stopped) == (12, (), None)
