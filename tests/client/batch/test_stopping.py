"""Ctrl-C and SIGTERM in a batch: clips in flight are finished, results are written, and earlier ones survive."""

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from asl_triton.presets import PRESETS
from asl_triton.transport.base import Array
from tests.client import videos
from tests.client.batch.runs import DyingServer, list_results, make_clips, read_lines, run_batch
from tests.client.observing import RecordingObserver
from tests.client.served import Stuck, fake, faking, in_order


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small clip that batches list under many names."""
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=9)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_finishes_clips_in_flight_and_writes_results(tmp_path: Path, clip: Path) -> None:
    observer = RecordingObserver(lambda outcome: interrupt() if len(observer.outcomes) == 3 else None)
    summary = run_batch(fake(), make_clips(clip, 100), tmp_path, observer=observer)
    assert summary.stopped == "interrupted"
    assert 3 <= summary.recognized <= 3 + 2 * 4 and summary.failures == ()  # four in flight
    assert summary.not_tried == 100 - summary.recognized
    assert len(read_lines(tmp_path / "results.jsonl")) == summary.recognized
    assert list_results(tmp_path) == ["results.jsonl"]
    assert any(
        "SIGINT: finishing the" in sentence and "Press Ctrl-C again" in sentence for sentence in observer.sentences
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_sigterm_works_like_ctrl_c(tmp_path: Path, clip: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    observer = RecordingObserver(
        lambda outcome: signal.raise_signal(signal.SIGTERM) if len(observer.outcomes) == 3 else None
    )
    summary = run_batch(fake(), make_clips(clip, 100), tmp_path, observer=observer)
    assert summary.stopped == "interrupted" and 3 <= summary.recognized <= 3 + 2 * 4
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_second_ctrl_c_stops_at_once_and_keeps_known_outcomes(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    transport = faking(Stuck)
    assert isinstance(transport, Stuck)
    requests: list[int] = []

    def interrupt_twice() -> None:
        requests.append(1)
        if len(requests) == 2:
            interrupt()
            asyncio.get_running_loop().call_later(0.05, interrupt)

    transport.come = interrupt_twice
    first = run_batch(fake(), make_clips(clip, 3), tmp_path / "known")
    (tmp_path / "known" / "results.jsonl").write_text("of an earlier run")
    summary = run_batch(transport, make_clips(clip, 100), tmp_path / "known")
    assert summary.stopped == "interrupted twice: stopped at once" and summary.files == ()
    assert (first.recognized, summary.recognized, summary.known_before, summary.not_tried) == (3, 3, 3, 97)
    assert (tmp_path / "known" / "results.jsonl").read_text() == "of an earlier run"
    requests.clear()
    with pytest.raises(KeyboardInterrupt, match="at once"):
        run_batch(transport, make_clips(clip, 100), tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert list_results(tmp_path) == ["known", "results.jsonl"]


def test_ctrl_c_while_the_server_is_down_keeps_earlier_results(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    observer = RecordingObserver()
    observer.say = lambda sentence: interrupt() if "is down" in sentence else None  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="interrupted"):
        run_batch(faking(DyingServer), make_clips(clip, 100), tmp_path, wait_s=60, observer=observer)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert list_results(tmp_path) == ["results.jsonl"]


def test_second_ctrl_c_while_long_clips_are_decoded_exits_cleanly(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "long.mp4", num_frames=3000, size="64x64")
    requests: list[int] = []

    def answer(tensor: Array) -> Sequence[float]:
        requests.append(1)
        if len(requests) in (4, 6):
            interrupt()
        return in_order(tensor)

    with pytest.raises(KeyboardInterrupt):
        run_batch(fake(PRESETS["bsl1k"], answer), make_clips(path, 8), tmp_path / "out", clips_at_once=8)
    assert len(requests) < 100
