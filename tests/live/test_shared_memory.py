"""Shared memory with a real Triton: same answers, no leaked regions, and recovery from killed clients and servers."""

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

async def send_forever():
    transport = make_transport(sys.argv[1], shared_memory="shm")
    frames = {"FRAMES__0": np.zeros((1, 64, 224, 224, 3), np.uint8)}
    while True:
        await asyncio.gather(*(transport.infer("small", frames, ["LOGITS__0"]) for _ in range(3)))
        print("answered", flush=True)

asyncio.run(send_forever())
"""


def build_frames(seed: int, num_frames: int = 9) -> Array:
    """Build frames of random noise."""
    return np.random.default_rng(seed).integers(0, 256, (1, num_frames, 224, 224, 3), np.uint8)


async def infer(transport: Transport, frames: Array, model: str = "small") -> bytes:
    """Return the bytes of all outputs of a model."""
    answers = await transport.infer(model, {"FRAMES__0": frames}, OUTPUTS)
    return b"".join(answers[name].tobytes() for name in OUTPUTS)


async def infer_one_by_one(transport: Transport, inputs: list[Array], model: str) -> list[bytes]:
    """Send inputs one after another."""
    return [await infer(transport, frames, model) for frames in inputs]


async def infer_all_at_once(transport: Transport, inputs: list[Array]) -> list[bytes]:
    """Send all inputs at the same time."""
    return list(await asyncio.gather(*(infer(transport, frames) for frames in inputs)))


@contextmanager
def watch_regions(address: str) -> Iterator[Callable[[], dict[str, int]]]:
    """Yield a function that lists our regions registered with a server, and their sizes."""
    with tritonclient.grpc.InferenceServerClient(address) as client:

        def list_regions() -> dict[str, int]:
            response = client.get_system_shared_memory_status(headers=key_headers(address))
            return {name: region.byte_size for name, region in response.regions.items() if name.startswith(PREFIX)}

        yield list_regions


def run_with_transport(
    address: str, send: Callable[[Transport], Coroutine[Any, Any, T]], sharing: Sharing = "shm"
) -> T:
    """Run a coroutine with a new transport, and close it."""

    async def run() -> T:
        transport = make_transport(address, shared_memory=sharing)
        try:
            return await send(transport)
        finally:
            await transport.close()

    return asyncio.run(run())


async def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for something that the server does asynchronously."""
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def wait_for_server(transport: Transport) -> None:
    """Wait until gRPC has reconnected, which it tries periodically."""
    while True:
        with suppress(ServerError):
            await transport.server_version()
            return


def find_named_regions(process_id: int) -> list[Path]:
    """Find the regions of a process that have a name in /dev/shm."""
    return list(FOLDER.glob(f"{PREFIX}*-{process_id}-*"))


def test_answers_are_identical_over_grpc_and_shared_memory(
    small_triton: LocalTriton, mixed_triton: LocalTriton
) -> None:
    classic = np.random.default_rng(0).uniform(-1, 1, (1, 3, 24, 224, 224)).astype(np.float32)
    for triton, model, inputs in (
        (small_triton, "small", [build_frames(n, n) for n in (9, 24, 64)]),
        (mixed_triton, "classic", [classic]),
    ):
        sharings: tuple[Sharing, ...] = ("grpc", "shm", "auto")
        in_messages, *shared = (
            run_with_transport(triton.address, partial(infer_one_by_one, inputs=inputs, model=model), w)
            for w in sharings
        )
        assert shared == [in_messages, in_messages]
        assert len(set(in_messages)) == len(inputs)


def test_one_region_serves_all_requests_and_grows(small_triton: LocalTriton) -> None:
    with watch_regions(small_triton.address) as read_regions:
        before = read_regions()

        async def send(transport: Transport) -> None:
            await infer(transport, build_frames(0))
            (only,) = registered = set(read_regions()) - set(before)
            for seed in range(50):
                await infer(transport, build_frames(seed))
            assert set(read_regions()) - set(before) == registered
            assert find_named_regions(os.getpid()) == []
            await infer(transport, build_frames(0, 40))
            grown = {name: size for name, size in read_regions().items() if name not in before}
            assert list(grown.values()) == [2 * GRAIN] and only not in grown

        run_with_transport(small_triton.address, send)
        assert read_regions() == before
    assert find_named_regions(os.getpid()) == []


def test_requests_at_the_same_time_do_not_mix(small_triton: LocalTriton) -> None:
    inputs = [build_frames(n, 9 + n % 3 * 10) for n in range(16)]
    with watch_regions(small_triton.address) as read_regions:
        before = read_regions()
        one_by_one = run_with_transport(small_triton.address, partial(infer_one_by_one, inputs=inputs, model="small"))
        at_once = run_with_transport(small_triton.address, partial(infer_all_at_once, inputs=inputs))
        assert read_regions() == before
    # Requests of equal length share a batch, which rounds differently.
    one, other = (np.array([np.frombuffer(each[:28], np.float32) for each in got]) for got in (one_by_one, at_once))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert len({each[:28] for each in one_by_one}) == len(inputs)


def test_region_of_a_timed_out_request_is_released(small_triton: LocalTriton) -> None:
    with watch_regions(small_triton.address) as read_regions:
        before = read_regions()

        async def send(transport: Any) -> None:
            wanted = await infer(transport, build_frames(1))
            first = set(read_regions()) - set(before)
            transport.transport.timeout_s = 0.05
            with pytest.raises(ServerError, match=r"did not answer within 0.05 s"):
                await infer(transport, build_frames(2, 100))
            transport.transport.timeout_s = 60.0
            late = set(read_regions()) - set(before) - first
            assert len(late) == 1
            for seed in range(3):
                await infer(transport, build_frames(seed, 100))
            assert await infer(transport, build_frames(1)) == wanted
            await wait_until(lambda: not late & set(read_regions()))

        run_with_transport(small_triton.address, send)
        assert read_regions() == before


def test_regions_of_a_killed_client_are_released_by_the_next_one(small_triton: LocalTriton) -> None:
    with watch_regions(small_triton.address) as read_regions:
        before = set(read_regions())
        command = [sys.executable, "-c", CLIENT, small_triton.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert [client.stdout.readline().strip() for _ in range(2)] == ["answered"] * 2
            left_over = set(read_regions()) - before
            assert len(left_over) == 3
            assert find_named_regions(client.pid) == []
            client.kill()
        assert left_over <= set(read_regions())
        assert find_named_regions(client.pid) == []

        async def send(transport: Transport) -> None:
            await infer(transport, build_frames(0))
            await wait_until(lambda: not left_over & set(read_regions()))

        run_with_transport(small_triton.address, send, "auto")
        assert set(read_regions()) == before


def test_client_survives_a_killed_and_restarted_server(small_repository: Path) -> None:
    async def run() -> None:
        first = LocalTriton(small_repository, shared_memory=True).start()
        port = first.address.rpartition(":")[2]
        transport = make_transport(first.address, shared_memory="shm")
        inputs = [build_frames(n) for n in range(3)]
        try:
            wanted = await infer_one_by_one(transport, inputs, "small")
            await infer_all_at_once(transport, inputs)
            os.kill(first.pid, signal.SIGKILL)
            await asyncio.to_thread(first.stop)
            with (
                LocalTriton(small_repository, grpc_port=int(port), shared_memory=True) as second,
                watch_regions(second.address) as read_regions,
            ):
                assert read_regions() == {}
                await wait_for_server(transport)
                assert await infer_one_by_one(transport, inputs, "small") == wanted
                await infer_all_at_once(transport, inputs)
                assert 1 <= len(read_regions()) <= 3
                await transport.close()
                assert read_regions() == {}
        finally:
            await transport.close()
            first.stop()

    asyncio.run(run())


@pytest.fixture
def deny_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make servers deny shared memory from now on, as in production."""
    monkeypatch.setattr(shared_memory, "key_headers", lambda _: {})


def test_client_falls_back_to_grpc_if_the_server_denies_shared_memory(
    small_triton: LocalTriton, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    caplog.set_level("DEBUG", shared_memory.__name__)
    with Recognizer(small_triton.address) as recognizer:
        sharing = recognizer.recognize(clip)
        assert caplog.text == ""
    request.getfixturevalue("deny_shared_memory")
    with Recognizer(small_triton.address) as recognizer:
        assert recognizer.recognize(clip).predictions == sharing.predictions
    assert "does not accept requests through shared memory (This protocol is restricted" in caplog.text


def test_denied_shared_memory_is_an_error_if_it_was_requested(
    small_triton: LocalTriton, deny_shared_memory: None, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labeled = tmp_path / "labeled"
    (labeled / "book").mkdir(parents=True)
    (clips / "a.mp4").rename(labeled / "book" / "a.mp4")
    for command in (["bench"], ["evaluate", labeled], ["watch", clips / "b.mp4"]):
        output = [] if command[0] == "watch" else ["--output", tmp_path / "out"]
        done = asl_triton(capsys, *command, *output, "--server", small_triton.address, "--transport", "shm")
        assert done.code == 1, done.output
        assert "does not accept requests through shared memory" in done.output
        assert "leave out --transport shm" in done.output
    assert not (tmp_path / "out").exists()


def test_commands_use_the_requested_transport(
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
        for options, is_registered in (([], True), (["--transport", "shm"], True), (["--transport", "grpc"], False)):
            registered.clear()
            done = asl_triton(capsys, *command, *options)
            assert done.code == 0, done.output
            assert bool(registered) is is_registered
