"""Shared memory with a real Triton: the same answers, nothing left behind, and whoever is killed is survived."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import tritonclient.grpc

from asl_triton.errors import ServerError
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.transport import shm as shared_memory
from asl_triton.transport.base import Array, Transport
from asl_triton.transport.factory import make_transport
from asl_triton.transport.shm import Sharing
from asl_triton.transport.shm_region import FOLDER, GRAIN, PREFIX, key_headers
from asl_triton_deploy.local import LocalTriton
from tests.command_line import asl_triton
from tests.live.conftest import write_clip

T = TypeVar("T")
OUTPUTS = ("LOGITS__0", "STEP_LOGITS__1", "FEATURES__2")
CLIENT = """
import asyncio, sys
import numpy as np
from asl_triton.transport.factory import make_transport

async def ask_for_ever():
    transport = make_transport(sys.argv[1], shared_memory="shm")
    frames = {"FRAMES__0": np.zeros((1, 64, 224, 224, 3), np.uint8)}
    while True:
        await asyncio.gather(*(transport.infer("small", frames, ["LOGITS__0"]) for _ in range(3)))
        print("answered", flush=True)

asyncio.run(ask_for_ever())
"""


def frames_of(seed: int, num_frames: int = 9) -> Array:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, (1, num_frames, 224, 224, 3), np.uint8)


async def answer(transport: Transport, frames: Array, model: str = "small") -> bytes:
    """All that a model says of frames, byte for byte."""
    answers = await transport.infer(model, {"FRAMES__0": frames}, OUTPUTS)
    return b"".join(answers[name].tobytes() for name in OUTPUTS)


async def one_by_one(transport: Transport, inputs: list[Array], model: str) -> list[bytes]:
    """What it says of several."""
    return [await answer(transport, frames, model) for frames in inputs]


async def at_once(transport: Transport, inputs: list[Array]) -> list[bytes]:
    """The same, asked at the same time."""
    return list(await asyncio.gather(*(answer(transport, frames) for frames in inputs)))


@contextmanager
def status_of(address: str) -> Iterator[Callable[[], dict[str, int]]]:
    """Asks a server for the regions of ours that are registered with it, and their sizes."""
    with tritonclient.grpc.InferenceServerClient(address) as client:

        def ask() -> dict[str, int]:
            answer = client.get_system_shared_memory_status(headers=key_headers(address))
            return {name: region.byte_size for name, region in answer.regions.items() if name.startswith(PREFIX)}

        yield ask


def asked(address: str, ask: Callable[[Transport], Coroutine[Any, Any, T]], sharing: Sharing = "shm") -> T:
    """Ask over a transport of one's own."""

    async def go() -> T:
        transport = make_transport(address, shared_memory=sharing)
        try:
            return await ask(transport)
        finally:
            await transport.close()

    return asyncio.run(go())


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what the server does in its own time."""
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def until_there(transport: Transport) -> None:
    """Wait until gRPC has found a server again: it looks now and then."""
    while True:
        with suppress(ServerError):
            await transport.server_version()
            return


def named(process_id: int) -> list[Path]:
    """What of a process has a name in /dev/shm."""
    return list(FOLDER.glob(f"{PREFIX}*-{process_id}-*"))


def test_answers_are_the_same_byte_for_byte(small_triton: LocalTriton, mixed_triton: LocalTriton) -> None:
    classic = np.random.default_rng(0).uniform(-1, 1, (1, 3, 24, 224, 224)).astype(np.float32)
    for triton, model, inputs in (
        (small_triton, "small", [frames_of(n, n) for n in (9, 24, 64)]),
        (mixed_triton, "classic", [classic]),
    ):
        ways: tuple[Sharing, ...] = ("grpc", "shm", "auto")
        in_messages, *shared = (asked(triton.address, partial(one_by_one, inputs=inputs, model=model), w) for w in ways)
        assert shared == [in_messages, in_messages]
        assert len(set(in_messages)) == len(inputs)


def test_one_registration_carries_all_requests_and_grows(small_triton: LocalTriton) -> None:
    with status_of(small_triton.address) as status:
        before = status()

        async def ask(transport: Transport) -> None:
            await answer(transport, frames_of(0))
            (only,) = registered = set(status()) - set(before)
            for seed in range(50):
                await answer(transport, frames_of(seed))
            assert set(status()) - set(before) == registered
            assert named(os.getpid()) == []
            await answer(transport, frames_of(0, 40))
            grown = {name: size for name, size in status().items() if name not in before}
            assert list(grown.values()) == [2 * GRAIN] and only not in grown

        asked(small_triton.address, ask)
        assert status() == before
    assert named(os.getpid()) == []


def test_requests_at_the_same_time_do_not_mix(small_triton: LocalTriton) -> None:
    inputs = [frames_of(n, 9 + n % 3 * 10) for n in range(16)]
    with status_of(small_triton.address) as status:
        before = status()
        alone = asked(small_triton.address, partial(one_by_one, inputs=inputs, model="small"))
        together = asked(small_triton.address, partial(at_once, inputs=inputs))
        assert status() == before
    # Requests of one length share a batch, in which rounding differs.
    one, other = (np.array([np.frombuffer(each[:28], np.float32) for each in got]) for got in (alone, together))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert len({each[:28] for each in alone}) == len(inputs)


def test_region_of_a_request_that_is_too_late_is_given_up(small_triton: LocalTriton) -> None:
    with status_of(small_triton.address) as status:
        before = status()

        async def ask(transport: Any) -> None:
            wanted = await answer(transport, frames_of(1))
            first = set(status()) - set(before)
            transport.transport.timeout_s = 0.05
            with pytest.raises(ServerError, match=r"did not answer within 0.05 s"):
                await answer(transport, frames_of(2, 100))
            transport.transport.timeout_s = 60.0
            late = set(status()) - set(before) - first
            assert len(late) == 1
            for seed in range(3):
                await answer(transport, frames_of(seed, 100))
            assert await answer(transport, frames_of(1)) == wanted
            await until(lambda: not late & set(status()))

        asked(small_triton.address, ask)
        assert status() == before


def test_client_that_was_killed_is_swept_by_the_next(small_triton: LocalTriton) -> None:
    with status_of(small_triton.address) as status:
        before = set(status())
        command = [sys.executable, "-c", CLIENT, small_triton.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert [client.stdout.readline().strip() for _ in range(2)] == ["answered"] * 2
            left = set(status()) - before
            assert len(left) == 3
            assert named(client.pid) == []
            client.kill()
        assert left <= set(status())
        assert named(client.pid) == []

        async def ask(transport: Transport) -> None:
            await answer(transport, frames_of(0))
            await until(lambda: not left & set(status()))

        asked(small_triton.address, ask, "auto")
        assert set(status()) == before


def test_server_that_was_killed_and_started_again_goes_on(small_repository: Path) -> None:
    async def go() -> None:
        first = LocalTriton(small_repository, shared_memory=True).start()
        port = first.address.rpartition(":")[2]
        transport = make_transport(first.address, shared_memory="shm")
        inputs = [frames_of(n) for n in range(3)]
        try:
            wanted = await one_by_one(transport, inputs, "small")
            await at_once(transport, inputs)
            os.kill(first.pid, signal.SIGKILL)
            await asyncio.to_thread(first.stop)
            with (
                LocalTriton(small_repository, grpc_port=int(port), shared_memory=True) as second,
                status_of(second.address) as status,
            ):
                assert status() == {}
                await until_there(transport)
                assert await one_by_one(transport, inputs, "small") == wanted
                await at_once(transport, inputs)
                assert 1 <= len(status()) <= 3
                await transport.close()
                assert status() == {}
        finally:
            await transport.close()
            first.stop()

    asyncio.run(go())


@pytest.fixture
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no server lets us share memory with it, as in production."""
    monkeypatch.setattr(shared_memory, "key_headers", lambda _: {})


def test_server_that_allows_none_is_asked_in_messages(
    small_triton: LocalTriton, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    caplog.set_level("DEBUG", shared_memory.__name__)
    with Recognizer(small_triton.address) as recognizer:
        sharing = recognizer.recognize(clip)
        assert caplog.text == ""
    request.getfixturevalue("without_key")
    with Recognizer(small_triton.address) as recognizer:
        assert recognizer.recognize(clip).predictions == sharing.predictions
    assert "does not accept requests through shared memory (This protocol is restricted" in caplog.text


def test_server_that_allows_none_is_a_sentence_where_it_must(
    small_triton: LocalTriton, without_key: None, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled = tmp_path / "labeled"
    (labeled / "book").mkdir(parents=True)
    (clips / "a.mp4").rename(labeled / "book" / "a.mp4")
    for command in (["bench"], ["evaluate", labeled], ["watch", clips / "b.mp4"]):
        output = [] if command[0] == "watch" else ["--output", tmp_path / "out"]
        done = asl_triton(capsys, *command, *output, "--server", small_triton.address, "--transport", "shm")
        assert done.code == 1, done.told
        assert "does not accept requests through shared memory" in done.told
        assert "leave out --transport shm" in done.told
    assert not (tmp_path / "out").exists()


def test_commands_take_the_way_they_are_told(
    small_triton: LocalTriton, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "labeled" / "book" / "a.mp4")
    command = ["evaluate", tmp_path / "labeled", "--output", tmp_path / "out", "--server", small_triton.address]
    registered = []
    register = tritonclient.grpc.aio.InferenceServerClient.register_system_shared_memory

    async def count(*arguments: object, **options: object) -> None:
        registered.append(arguments)
        await register(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tritonclient.grpc.aio.InferenceServerClient, "register_system_shared_memory", count)
        for options, are in (([], True), (["--transport", "shm"], True), (["--transport", "grpc"], False)):
            registered.clear()
            done = asl_triton(capsys, *command, *options)
            assert done.code == 0, done.told
            assert bool(registered) is are
