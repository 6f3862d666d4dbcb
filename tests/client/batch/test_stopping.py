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
from tests.client.batch.runs import Mortal, batch, left, lines, named
from tests.client.observing import Told
from tests.client.served import Stuck, fake, faking, in_order


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small clip, which batches hold under many names."""
    return videos.clip(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=9)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_control_c_finishes_what_is_under_way_and_writes_it(tmp_path: Path, clip: Path) -> None:
    told = Told(lambda outcome: interrupt() if len(told.outcomes) == 3 else None)
    summary = batch(fake(), named(clip, 100), tmp_path, told=told)
    assert summary.stopped == "interrupted"
    assert 3 <= summary.recognized <= 3 + 2 * 4 and summary.failures == ()  # four at once
    assert summary.not_tried == 100 - summary.recognized
    assert len(lines(tmp_path / "results.jsonl")) == summary.recognized
    assert left(tmp_path) == ["results.jsonl"]
    assert any("SIGINT: finishing the" in sentence and "Press Ctrl-C again" in sentence for sentence in told.sentences)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_sigterm_is_a_control_c(tmp_path: Path, clip: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    told = Told(lambda outcome: signal.raise_signal(signal.SIGTERM) if len(told.outcomes) == 3 else None)
    summary = batch(fake(), named(clip, 100), tmp_path, told=told)
    assert summary.stopped == "interrupted" and 3 <= summary.recognized <= 3 + 2 * 4
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_second_control_c_stops_at_once_and_what_is_known_stays(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    transport = faking(Stuck)
    assert isinstance(transport, Stuck)
    asked: list[int] = []

    def come() -> None:
        asked.append(1)
        if len(asked) == 2:
            interrupt()
            asyncio.get_running_loop().call_later(0.05, interrupt)

    transport.come = come
    first = batch(fake(), named(clip, 3), tmp_path / "known")
    (tmp_path / "known" / "results.jsonl").write_text("of an earlier run")
    summary = batch(transport, named(clip, 100), tmp_path / "known")
    assert summary.stopped == "interrupted twice: stopped at once" and summary.files == ()
    assert (first.recognized, summary.recognized, summary.known_before, summary.not_tried) == (3, 3, 3, 97)
    assert (tmp_path / "known" / "results.jsonl").read_text() == "of an earlier run"
    asked.clear()
    with pytest.raises(KeyboardInterrupt, match="at once"):
        batch(transport, named(clip, 100), tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert left(tmp_path) == ["known", "results.jsonl"]


def test_control_c_while_the_server_is_away_leaves_the_results_of_before(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "results.jsonl").write_text("of an earlier run")
    told = Told()
    told.say = lambda sentence: interrupt() if "is down" in sentence else None  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="interrupted"):
        batch(faking(Mortal), named(clip, 100), tmp_path, wait_s=60, told=told)
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run"
    assert left(tmp_path) == ["results.jsonl"]


def test_second_control_c_while_long_clips_are_decoded_ends_well(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "long.mp4", num_frames=3000, size="64x64")
    asked: list[int] = []

    def answer(tensor: Array) -> Sequence[float]:
        asked.append(1)
        if len(asked) in (4, 6):
            interrupt()
        return in_order(tensor)

    with pytest.raises(KeyboardInterrupt):
        batch(fake(PRESETS["bsl1k"], answer), named(path, 8), tmp_path / "out", clips_at_once=8)
    assert len(asked) < 100
