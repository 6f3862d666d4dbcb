"""Clips in flight together: one that crashes the server, and connections that break."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asl_triton.batch import workers
from asl_triton.batch.runner import BatchOptions, RecognitionBatch, Summary
from asl_triton.batch.workers import MAX_BREAKS
from asl_triton.errors import ConnectionLostError, ServerError
from asl_triton.postprocessing.ranking import Ranking
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.base import Array
from asl_triton.transport.fake import FakeTransport
from asl_triton.transport.triton_grpc import GrpcTransport
from asl_triton.video.discovery import Clip
from tests.client import videos
from tests.client.asking import FRAMES, asked
from tests.client.grpc_server import Triton, serving
from tests.client.observing import RecordingObserver
from tests.client.served import fake, faking, in_order
from tests.live.faults.bad_network import BadNetwork

DEADLY, HARMLESS = 190, 60  # levels of gray


@dataclass
class CrashingServer(FakeTransport):
    """A server that is back 0.1 s after each crash."""

    crash_times_s: list[float] = field(default_factory=list)

    def raise_if_down(self) -> None:
        if self.crash_times_s and time.monotonic() < self.crash_times_s[-1] + 0.1:
            raise ConnectionLostError("Socket closed")

    async def server_version(self) -> str:
        self.raise_if_down()
        return "fake"


def test_clip_that_crashes_the_server_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(frames: Array) -> Sequence[float]:
        transport.raise_if_down()
        if frames.mean() > 150:
            transport.crash_times_s.append(time.monotonic())
        transport.raise_if_down()
        return in_order(frames)

    monkeypatch.setattr(workers, "RECONNECT_S", (0.0, 0.0))

    transport = faking(CrashingServer, answer=answer)
    assert isinstance(transport, CrashingServer)
    deadly, harmless = (videos.levels(tmp_path / f"{level}.mkv", [level] * 9) for level in (DEADLY, HARMLESS))
    clips = [Clip(deadly if n == 5 else harmless, f"{n:03}.mkv") for n in range(40)]
    summary = run_batch(transport, clips, tmp_path / "out", in_flight=8)
    (failure,) = summary.failures
    assert failure.video == "005.mkv" and "the server went away each of the 3 times" in failure.error
    assert summary.recognized == 39 and len(transport.crash_times_s) == 3


@pytest.mark.parametrize("num_broken", [MAX_BREAKS - 1, MAX_BREAKS])
def test_broken_connection_is_not_a_lost_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_broken: int
) -> None:
    monkeypatch.setattr(workers, "RECONNECT_S", (0.0, 0.0))
    breaks = iter(range(num_broken))

    def answer(frames: Array) -> Sequence[float]:
        if frames.any() and next(breaks, None) is not None:
            raise ConnectionLostError("Connection reset by peer")
        return in_order(frames)

    observer = RecordingObserver()
    harmless = videos.levels(tmp_path / "h.mkv", [HARMLESS] * 9)
    clips = [Clip(harmless, f"{n:03}.mkv") for n in range(3)]
    summary = run_batch(fake(answer=answer), clips, tmp_path / "out", in_flight=1, observer=observer)
    assert observer.sentences == []
    if num_broken < MAX_BREAKS:
        assert (summary.recognized, summary.failures) == (3, ())
    else:
        assert summary.recognized == 2 and "the connection broke each of the 10 times" in summary.failures[0].error


@dataclass
class Interrupted(FakeTransport):
    """Loses its first two requests in one outage. The second one times out after the server is back."""

    back: asyncio.Event = field(default_factory=asyncio.Event)
    num_requests: int = 0

    async def server_version(self) -> str:
        if self.num_requests and not self.back.is_set():
            raise ServerError("no answer")
        return "fake"

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        priority: int = 0,
        parameters: Mapping[str, str] | None = None,
    ) -> dict[str, Array]:
        self.num_requests += 1
        if self.num_requests == 1:
            while self.num_requests < 2:
                await asyncio.sleep(0.01)
            raise ServerError("did not answer within 2 s")
        if self.num_requests == 2:
            await self.back.wait()
            await asyncio.sleep(0.1)
            raise ServerError("did not answer within 2 s")
        return await super().infer(model, inputs, outputs, priority, parameters)

    def say(self, sentence: str) -> None:
        """Come back as soon as the batch says that it is waiting."""
        self.back.set()


def test_request_lost_in_an_outage_that_is_over_is_sent_again(tmp_path: Path) -> None:
    transport = faking(Interrupted)
    assert isinstance(transport, Interrupted)
    observer = RecordingObserver()
    observer.say = transport.say  # type: ignore[method-assign]
    harmless = videos.levels(tmp_path / "h.mkv", [HARMLESS] * 9)
    summary = run_batch(
        transport, [Clip(harmless, f"{n:03}.mkv") for n in range(2)], tmp_path / "out", in_flight=2, observer=observer
    )
    assert (summary.recognized, summary.failures, transport.num_requests) == (2, (), 4)


def run_batch(
    transport: FakeTransport, clips: list[Clip], output: Path, in_flight: int, observer: RecordingObserver | None = None
) -> Summary:
    run = RecognitionBatch(clips, output, ["jsonl"], Ranking(), BatchOptions(60, in_flight=in_flight), observer)
    return run.run(lambda: AsyncRecognizer(transport=transport, in_flight=in_flight))


def test_reconnection_is_noticed_even_if_no_request_was_lost() -> None:
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
