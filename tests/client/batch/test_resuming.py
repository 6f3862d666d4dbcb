"""A batch that was stopped, killed or disturbed: what is known stays, what is left is told, and nothing is mixed."""

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
from tests.client.observing import Told
from tests.client.served import described, fake, faking, in_order


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=9)


@pytest.fixture
def clips(clip: Path, tmp_path: Path) -> list[Clip]:
    """Twelve files of the same clip."""
    (tmp_path / "clips").mkdir()
    for number in range(12):
        (tmp_path / "clips" / f"{number:03}.mp4").write_bytes(clip.read_bytes())
    return find_clips(tmp_path / "clips")


def batch(
    clips: Sequence[Clip],
    output: Path,
    transport: FakeTransport | None = None,
    told: Told | None = None,
    while_writing: Callable[[], None] = lambda: None,
    **options: Any,
) -> Summary:
    """Recognize clips one after another, and write `results.jsonl`."""
    asked = transport or fake()

    class Watched(RecognitionBatch):
        def write_outputs(self, outcomes: Iterator[AnyOutcome]) -> tuple[Path, ...]:
            while_writing()
            return super().write_outputs(outcomes)

    run = Watched(clips, output, ["jsonl"], Ranking(), BatchOptions(in_flight=1, **options), told)
    return run.run(lambda: AsyncRecognizer(transport=asked))


def stopping_after(count: int) -> Told:
    """Presses Ctrl-C when so many clips are known."""
    told = Told(lambda outcome: interrupt() if len(told.outcomes) == count else None)
    return told


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def change(clip: Clip) -> None:
    os.utime(clip.path, ns=(1, 1))


@pytest.mark.parametrize("by_content", [False, True])
def test_answers_of_files_that_have_changed_are_left_where_the_run_is_stopped(
    clips: list[Clip], tmp_path: Path, by_content: bool
) -> None:
    batch(clips, tmp_path / "out", by_content=by_content)
    for changed in clips:
        changed.path.write_bytes(changed.path.read_bytes() + b"\0")
    summary = batch(clips, tmp_path / "out", told=stopping_after(3), by_content=by_content)
    assert summary.stopped == "interrupted"
    assert 3 <= summary.recognized <= 5 and summary.not_tried == 12 - summary.recognized
    again = batch(clips, tmp_path / "out", by_content=by_content)
    assert (again.recognized, again.known_before, again.stopped) == (12, summary.recognized, None)


def test_what_failed_is_tried_again_behind_what_was_not_tried(clips: list[Clip], tmp_path: Path) -> None:
    clips[0].path.write_bytes(b"no video")
    assert len(batch(clips[:4], tmp_path / "out").failures) == 1
    told = Told()
    batch(clips, tmp_path / "out", told=told)
    assert [outcome.video for outcome in told.outcomes] == [clip.name for clip in [*clips[4:], clips[0]]]


def test_server_that_is_lost_leaves_only_what_is_right(clips: list[Clip], tmp_path: Path) -> None:
    batch(clips, tmp_path / "out")
    for changed in clips[6:]:
        change(changed)

    def lose(frames: Array) -> Sequence[float]:
        if not frames.any():  # it is asked for its labels
            return in_order(frames)
        transport.models.clear()
        raise ServerError("gone")

    transport = fake(answer=lose)
    summary = batch(clips, tmp_path / "out", transport)
    assert summary.stopped is not None and "went away" in summary.stopped
    assert (summary.recognized, summary.not_tried) == (6, 6)


def test_looking_for_what_has_changed_can_be_stopped(clips: list[Clip], tmp_path: Path) -> None:
    batch(clips, tmp_path / "out", by_content=True)
    told = Told()
    told.skip = lambda count: interrupt()  # type: ignore[method-assign]
    summary = batch(clips, tmp_path / "out", told=told, by_content=True)
    assert summary.known_before < 4
    assert (summary.recognized, summary.not_tried, summary.stopped) == (12, 0, None)


def test_signal_while_results_are_written_lets_them_be_written(clips: list[Clip], tmp_path: Path) -> None:
    told = Told()
    summary = batch(clips, tmp_path / "out", told=told, while_writing=interrupt)
    assert (summary.recognized, summary.stopped) == (12, None)
    assert summary.files == (tmp_path / "out" / "results.jsonl",)
    assert told.sentences == ["SIGINT: writing the results. Press Ctrl-C again to stop at once"]


def test_second_signal_while_results_are_written_leaves_those_of_before(clips: list[Clip], tmp_path: Path) -> None:
    batch(clips[:6], tmp_path / "out")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()

    def interrupt_twice() -> None:
        interrupt()
        interrupt()

    summary = batch(clips, tmp_path / "out", while_writing=interrupt_twice)
    assert summary.stopped == "interrupted twice: stopped at once" and summary.files == ()
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "out")) == [JOURNAL, "results.jsonl"]
    assert batch(clips, tmp_path / "out").known_before == 12


def test_what_killed_runs_have_left_is_written_over(clips: list[Clip], tmp_path: Path) -> None:
    output = tmp_path / "out"
    batch(clips[:6], output)
    (output / "results.jsonl").write_text('{"video": "000.mp4", "predic')  # as by a program that is not ours
    for name in (".results.jsonl.part", ".journal.jsonl.part", ".journal.lock"):
        (output / name).write_bytes(b"half of i")
    with (output / JOURNAL).open("ab") as journal:
        journal.write(b'{"stamp": [1, 2, null], "video": "00')
    summary = batch(clips, output)
    assert (summary.recognized, summary.known_before) == (12, 6)
    assert (output / "results.jsonl").read_bytes().count(b"}\n") == 12
    assert sorted(os.listdir(output)) == [JOURNAL, "results.jsonl"]


def test_clip_that_is_deleted_meanwhile_is_a_failure(clips: list[Clip], tmp_path: Path) -> None:
    told = Told(lambda outcome: clips[9].path.unlink(missing_ok=True))
    summary = batch(clips, tmp_path / "out", told=told)
    (failure,) = summary.failures
    assert failure.video == "009.mp4" and "there is no file" in failure.error
    assert summary.recognized == 11


def test_folder_that_is_deleted_meanwhile_is_a_sentence(clips: list[Clip], tmp_path: Path) -> None:
    told = Told(lambda outcome: shutil.rmtree(tmp_path / "out", ignore_errors=True))
    with pytest.raises(AslTritonError, match=r"cannot write .*results\.jsonl: No such file or directory"):
        batch(clips, tmp_path / "out", told=told)
    assert batch(clips, tmp_path / "out").recognized == 12


def test_clip_that_is_replaced_while_it_is_read_is_asked_about_again(clips: list[Clip], tmp_path: Path) -> None:
    def replace(frames: Array) -> Sequence[float]:
        clips[0].path.write_bytes(clips[0].path.read_bytes() + b"\0")
        return in_order(frames)

    assert batch(clips[:1], tmp_path / "out", fake(answer=replace)).recognized == 1
    again = batch(clips[:1], tmp_path / "out")
    assert (again.recognized, again.known_before) == (1, 0)
    assert batch(clips[:1], tmp_path / "out").known_before == 1


def test_clock_that_jumps_back_loses_nothing(clips: list[Clip], tmp_path: Path) -> None:
    for future in clips[:6]:
        os.utime(future.path, (2**33, 2**33))  # the year 2242
    for past in clips[6:]:
        os.utime(past.path, (0, 0))
    assert batch(clips, tmp_path / "out").recognized == 12
    assert batch(clips, tmp_path / "out").known_before == 12


def test_results_within_the_folder_of_clips_are_no_clips(clips: list[Clip], tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    for _ in range(2):
        assert batch(find_clips(folder), folder / "results").recognized == 12
        assert batch(find_clips(folder), folder).recognized == 12


@dataclass
class Balanced(FakeTransport):
    """A balancer that passes on to another server from its fourth request on, which had to be sent again."""

    num_asked: int = 0
    moves_silently: bool = False

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.num_asked += 1
        if self.num_asked == 4:
            self.models["signs"] = described(PRESETS["wlasl"], **{"asl_triton.checkpoint_sha256": "another"})
            self.connection_epoch += not self.moves_silently
        return await super().infer(model, inputs, outputs, priority, parameters)


def test_answer_of_another_server_behind_a_balancer_is_not_kept(clips: list[Clip], tmp_path: Path) -> None:
    summary = batch(clips, tmp_path / "out", faking(Balanced), wait_s=60)
    assert summary.stopped is not None and "came back with a different signs" in summary.stopped
    assert (summary.recognized, summary.not_tried) == (3, 9)


def test_server_that_was_exchanged_silently_is_told_of_at_the_latest_at_the_end(
    clips: list[Clip], tmp_path: Path
) -> None:
    transport = faking(Balanced)
    assert isinstance(transport, Balanced)
    transport.moves_silently = True
    summary = batch(clips, tmp_path / "out", transport)
    assert summary.stopped is not None and "came back with a different signs" in summary.stopped
    assert batch(clips, tmp_path / "out", transport).known_before == 0


def test_requests_that_were_sent_again_to_the_same_server_are_no_matter(clips: list[Clip], tmp_path: Path) -> None:
    def lose_one(frames: Array) -> Sequence[float]:
        transport.connection_epoch += 1
        if transport.connection_epoch % 5 == 3:
            raise ConnectionLostError("Socket closed")
        return in_order(frames)

    transport = fake(answer=lose_one)
    summary = batch(clips, tmp_path / "out", transport, wait_s=60)
    assert (summary.recognized, summary.failures, summary.stopped) == (12, (), None)
