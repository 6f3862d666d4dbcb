"""Clips side by side, and one of them that takes the server along; connections that break."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asl_triton.batch import workers
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.batch.workers import MAX_BREAKS
from asl_triton.errors import ConnectionLostError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.transport.triton_grpc import GrpcTransport
from asl_triton.video.discovery import Clip
from tests.client import videos
from tests.client.asking import FRAMES, asked
from tests.client.grpc_server import Triton, serving
from tests.client.observing import Told
from tests.client.served import fake, faking, in_order
from tests.live.faults.bad_network import BadNetwork

DEADLY, HARMLESS = 190, 60  # levels of gray


@dataclass
class Fragile(FakeTransport):
    """Is started again a moment after each of its deaths."""

    deaths: list[float] = field(default_factory=list)

    def live(self) -> None:
        if self.deaths and time.monotonic() < self.deaths[-1] + 0.1:
            raise ConnectionLostError("Socket closed")

    async def server_version(self) -> str:
        self.live()
        return "fake"


def test_clip_that_takes_the_server_along_takes_no_other_clip_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(frames: Array) -> Sequence[float]:
        transport.live()
        if frames.mean() > 150:
            transport.deaths.append(time.monotonic())
        transport.live()
        return in_order(frames)

    monkeypatch.setattr(workers, "RECONNECT_S", (0.0, 0.0))

    transport = faking(Fragile, answer=answer)
    assert isinstance(transport, Fragile)
    deadly, harmless = (videos.levels(tmp_path / f"{level}.mkv", [level] * 9) for level in (DEADLY, HARMLESS))
    clips = [Clip(deadly if n == 5 else harmless, f"{n:03}.mkv") for n in range(40)]
    summary = batch(transport, clips, tmp_path / "out", in_flight=8)
    (failure,) = summary.failures
    assert failure.video == "005.mkv" and "the server went away each of the 3 times" in failure.error
    assert summary.recognized == 39 and len(transport.deaths) == 3


@pytest.mark.parametrize("num_broken", [MAX_BREAKS - 1, MAX_BREAKS])
def test_connection_that_breaks_is_no_server_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_broken: int
) -> None:
    monkeypatch.setattr(workers, "RECONNECT_S", (0.0, 0.0))
    breaks = iter(range(num_broken))

    def answer(frames: Array) -> Sequence[float]:
        if frames.any() and next(breaks, None) is not None:
            raise ConnectionLostError("Connection reset by peer")
        return in_order(frames)

    told = Told()
    harmless = videos.levels(tmp_path / "h.mkv", [HARMLESS] * 9)
    clips = [Clip(harmless, f"{n:03}.mkv") for n in range(3)]
    summary = batch(fake(answer=answer), clips, tmp_path / "out", in_flight=1, told=told)
    assert told.sentences == []
    if num_broken < MAX_BREAKS:
        assert (summary.recognized, summary.failures) == (3, ())
    else:
        assert summary.recognized == 2 and "the connection broke each of the 10 times" in summary.failures[0].error


def batch(
    transport: FakeTransport, clips: list[Clip], output: Path, in_flight: int, told: Told | None = None
) -> Summary:
    run = RecognitionBatch(clips, output, ["jsonl"], Ranking(), BatchOptions(60, in_flight=in_flight), told)
    return run.run(lambda: AsyncRecognizer(transport=transport, in_flight=in_flight))


def test_connection_that_is_made_anew_is_noticed_though_no_request_was_lost() -> None:
    with serving(Triton()) as first, serving(Triton()) as second, BadNetwork(first.address) as network:

        async def ask(transport: GrpcTransport) -> tuple[int, int, int]:
            await transport.watch()
            await transport.infer("signs", FRAMES, ["LOGITS__0"])
            before = transport.connection_epoch
            network.target = second.address
            network.cut()
            while not second.asked:
                await transport.infer("signs", FRAMES, ["LOGITS__0"])
            return before, transport.connection_epoch, transport.resent

        before, after, resent = asked(network.address, ask, shared_memory="grpc")
    assert after > before and after > resent
    assert first.asked and second.asked
