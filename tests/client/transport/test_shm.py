"""Requests through shared memory: regions are reused, lost, refused and abandoned, and messages are the fallback."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from asl_triton.errors import ServerError
from asl_triton.processes import read_start_ticks
from asl_triton.transport import shm, shm_region
from asl_triton.transport.base import Transport
from asl_triton.transport.endpoints import Endpoints
from asl_triton.transport.factory import make_transport
from asl_triton.transport.shm import LEAST_BYTES, SharedMemoryTransport
from asl_triton.transport.shm_region import (
    FOLDER,
    GRAIN,
    KEY_HEADER,
    PREFIX,
    Region,
    is_stale,
    key_headers,
    leave_key,
    make_name,
)
from tests.client.asking import FRAMES, asked
from tests.client.conftest import Shrink
from tests.client.grpc_server import GLOSSES, serving
from tests.client.shared_server import SharingTriton

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shared memory of other systems differs")

UNIMPLEMENTED, RESTRICTED, HIDDEN, ODD = (
    (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
    (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-asl-triton'"),
    (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/asl-triton-client'"),
    (grpc.StatusCode.UNAVAILABLE, "it is switched off"),
)
SOCKET_CLOSED = (grpc.StatusCode.UNAVAILABLE, "Socket closed")
QUEUE_FULL = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


def describe_frames(frames: np.ndarray) -> np.ndarray:
    """Return logits that identify the frames: their mean and their number."""
    return np.array([frames.mean(), len(frames), 0, 0], np.float32)


@pytest.fixture
def triton() -> Iterator[SharingTriton]:
    with serving(SharingTriton(logits=describe_frames)) as served:
        assert isinstance(served, SharingTriton)
        yield served


def fill_frames(value: int, num_frames: int = 9) -> dict[str, np.ndarray]:
    """Build frames of one color."""
    return {"FRAMES__0": np.full((1, num_frames, 224, 224, 3), value, np.uint8)}


async def send_color(transport: Transport, value: int, num_frames: int = 9) -> tuple[float, float]:
    """Send frames of one color and return the color and number of frames that the server saw."""
    logits = (await transport.infer("signs", fill_frames(value, num_frames), ["LOGITS__0"]))["LOGITS__0"][0]
    return float(logits[0]), float(logits[1])


def list_region_names() -> list[str]:
    """Return the names of our regions in /dev/shm."""
    return [path.name for path in FOLDER.glob(f"{PREFIX}*")]


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the condition was not met in time")


def test_one_region_is_reused_for_all_requests(triton: SharingTriton) -> None:
    async def ask(transport: Transport) -> list[tuple[float, float]]:
        answers = [await send_color(transport, value) for value in range(50)]
        assert list_region_names() == []
        assert len(triton.regions) == 1
        return answers

    assert asked(triton.address, ask) == [(value, 9) for value in range(50)]
    assert (triton.num_registered, len(set(triton.read_from))) == (1, 1)
    assert triton.regions == {}  # unregistered at the end
    assert list_region_names() == []


def test_concurrent_requests_have_a_region_each(triton: SharingTriton) -> None:
    together = threading.Barrier(4, timeout=60)

    def meet(frames: np.ndarray) -> np.ndarray:
        together.wait()
        return describe_frames(frames)

    triton.logits = meet

    async def ask(transport: Transport) -> list[tuple[float, float]]:
        return await asyncio.gather(*(send_color(transport, value) for value in range(16)))

    assert asked(triton.address, ask, in_flight=4) == [(value, 9) for value in range(16)]
    assert triton.num_registered == 4


def test_larger_region_replaces_a_smaller_one(triton: SharingTriton) -> None:
    async def ask(transport: Transport) -> list[int]:
        num_bytes = []
        for num_frames in (9, 12, 40, 30):
            assert await send_color(transport, 7, num_frames) == (7, num_frames)
            num_bytes.append(sum(len(region) for region in triton.regions.values()))
        return num_bytes

    assert asked(triton.address, ask) == [GRAIN, GRAIN, 2 * GRAIN, 2 * GRAIN]
    assert triton.num_registered == 2


def test_only_large_numeric_arrays_use_shared_memory(triton: SharingTriton) -> None:
    small = {"FRAMES__0": np.zeros((1, 1, 1, 1, LEAST_BYTES - 1), np.uint8)}
    texts = [{"FRAMES__0": np.array([b"x" * 2 * LEAST_BYTES], kind)} for kind in (np.object_, np.bytes_)]

    async def ask(transport: Transport) -> None:
        await transport.infer("signs", small, ["LOGITS__0"])
        for text in texts:
            with pytest.raises(ServerError, match="cannot reshape"):  # the server does not accept text
                await transport.infer("signs", text, ["LOGITS__0"])

    asked(triton.address, ask, shared_memory="shm")
    assert triton.read_from == ["", "", ""]


def test_arrays_of_any_layout_keep_their_values(triton: SharingTriton) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 9, 1), np.uint8).T[:, :, ::-1]
    seen = []

    def look(got: np.ndarray) -> np.ndarray:
        seen.append(got.copy())
        return np.zeros(len(GLOSSES), np.float32)

    triton.logits = look
    asked(triton.address, lambda t: t.infer("signs", {"FRAMES__0": frames}, ["LOGITS__0"]))
    np.testing.assert_array_equal(seen, frames)
    assert triton.read_from != [""]


def test_several_arrays_share_a_region() -> None:
    arrays = {"a": np.arange(5, dtype=np.uint8), "b": np.linspace(0, 1, 7, dtype=np.float64), "c": np.array(3.5)}
    region = Region(shm_region.size_for(arrays))
    try:
        offsets = {name: array.offset for name, array in region.write(arrays).items()}
        assert offsets == {"a": 0, "b": 64, "c": 128}
        content = (FOLDER / region.name).read_bytes()
        for name, array in arrays.items():
            assert content[offsets[name] : offsets[name] + array.nbytes] == array.tobytes()
        assert (FOLDER / region.name).stat().st_mode & 0o777 == 0o600
    finally:
        region.unlink()
        region.close()


@pytest.mark.parametrize("resend", [True, False])
def test_lost_regions_are_registered_again(triton: SharingTriton, resend: bool) -> None:
    async def ask(transport: SharedMemoryTransport) -> int:
        for value in (1, 2, 3):
            assert await asyncio.gather(send_color(transport, value), send_color(transport, 50)) == [
                (value, 9),
                (50, 9),
            ]
            triton.regions.clear()  # as after a restart
        return transport.transport.resent

    assert asked(triton.address, ask, resend=resend) == 0
    assert "" not in triton.read_from


def test_server_that_keeps_losing_regions_gets_messages(triton: SharingTriton) -> None:
    class ForgetfulDict(dict[str, Any]):
        def __contains__(self, _name: object) -> bool:
            return False

    triton.regions = ForgetfulDict()
    assert asked(triton.address, lambda t: send_color(t, 4)) == (4, 9)
    assert (triton.num_registered, triton.read_from[-1]) == (3, "")
    with pytest.raises(ServerError, match=r"does not accept requests through shared memory \(it keeps losing"):
        asked(triton.address, lambda t: send_color(t, 4), shared_memory="shm")


@pytest.mark.parametrize("refusal", [UNIMPLEMENTED, RESTRICTED, HIDDEN], ids=["unknown", "closed", "elsewhere"])
def test_server_that_refuses_regions_gets_messages(triton: SharingTriton, refusal: tuple[Any, str]) -> None:
    triton.refusal = refusal

    async def ask(transport: Transport) -> list[tuple[float, float]]:
        return await asyncio.gather(*(send_color(transport, value) for value in range(5)))

    assert asked(triton.address, ask) == [(value, 9) for value in range(5)]
    assert (triton.num_attempts, set(triton.read_from)) == (1, {""})
    assert list_region_names() == []


@pytest.mark.parametrize("refusal", [UNIMPLEMENTED, RESTRICTED, HIDDEN], ids=["unknown", "closed", "elsewhere"])
def test_refusal_is_an_error_if_shared_memory_is_required(triton: SharingTriton, refusal: tuple[Any, str]) -> None:
    triton.refusal = refusal
    says = r"does not accept requests through shared memory \(.*\): allow it .*ipc=host"

    async def ask(transport: Transport) -> None:
        for _ in range(2):
            with pytest.raises(ServerError, match=says):
                await transport.describe("signs")
            with pytest.raises(ServerError, match=says):
                await send_color(transport, 1)
        triton.refusal = None  # as after a restart
        assert await send_color(transport, 1) == (1, 9)

    asked(triton.address, ask, shared_memory="shm")
    assert triton.read_from != [""]


def test_triton_version_that_may_crash_gets_messages(triton: SharingTriton) -> None:
    triton.version = "2.49.0"
    assert asked(triton.address, lambda t: send_color(t, 3)) == (3, 9)
    assert (triton.num_attempts, triton.read_from) == (0, [""])
    with pytest.raises(ServerError, match=r"\(Triton 2.49.0 may crash"):
        asked(triton.address, lambda t: send_color(t, 3), shared_memory="shm")


def test_registration_stops_after_repeated_refusals(triton: SharingTriton) -> None:
    triton.refusal = ODD

    async def ask(transport: Transport) -> None:
        for value in range(8):
            assert await send_color(transport, value) == (value, 9)

    asked(triton.address, ask)
    assert triton.num_attempts == shm.MAX_REFUSALS


def test_shared_memory_can_be_turned_off(triton: SharingTriton) -> None:
    assert asked(triton.address, lambda t: send_color(t, 3), shared_memory="grpc") == (3, 9)
    assert triton.num_attempts == 0


def test_metadata_needs_no_region_unless_shared_memory_is_required(triton: SharingTriton) -> None:
    asked(triton.address, lambda t: t.describe("signs"))
    assert triton.num_registered == 0

    async def ask(transport: Transport) -> None:
        await transport.describe("signs")
        await transport.describe("signs")
        assert await send_color(transport, 2) == (2, 9)

    asked(triton.address, ask, shared_memory="shm")
    assert triton.num_registered == 1


@pytest.mark.parametrize("address", ["localhost:1,localhost:2", "dns:///triton:8001"])
def test_several_servers_get_messages(address: str) -> None:
    make_transport(address)
    with pytest.raises(ServerError, match=r"needs one server, and .* may be several: name a local one, or leave out"):
        make_transport(address, shared_memory="shm")


def test_other_systems_have_no_shared_memory(monkeypatch: pytest.MonkeyPatch, triton: SharingTriton) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ServerError, match="only on Linux"):
        make_transport(triton.address, shared_memory="shm")
    assert asked(triton.address, lambda t: send_color(t, 3)) == (3, 9)
    assert triton.num_attempts == 0


def test_remote_server_is_tried_only_on_request() -> None:
    assert shm.unavailable_reason("auto", Endpoints("gpu-box:8001"))
    assert not shm.unavailable_reason("shm", Endpoints("gpu-box:8001"))  # its container may share our memory


def test_full_disk_falls_back_to_messages(
    triton: SharingTriton, disk: tuple[Path, Shrink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_region, "FOLDER", disk[0])
    assert asked(triton.address, lambda t: send_color(t, 3)) == (3, 9)
    assert (triton.num_attempts, triton.read_from) == (0, [""])
    with pytest.raises(ServerError, match=r"/dev/shm has no room for a request of 1,354,752 bytes \(No space left"):
        asked(triton.address, lambda t: send_color(t, 3), shared_memory="shm")
    assert list(disk[0].iterdir()) == []


def test_memory_that_cannot_be_reserved_is_not_written(triton: SharingTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def ask(transport: Transport) -> None:
        assert await send_color(transport, 3) == (3, 9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            assert await send_color(transport, 4, 40) == (4, 40)  # sent in a message
        assert await send_color(transport, 5, 40) == (5, 40)

    asked(triton.address, ask)
    assert [bool(name) for name in triton.read_from] == [True, False, True]
    assert list_region_names() == []


def test_half_of_dev_shm_is_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a container: 64 MiB, 40 of them free.
    status = os.statvfs_result((4096, 4096, 16384, 10240, 10240, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    region = Region(8 * 2**20)
    region.unlink()
    region.close()
    with pytest.raises(OSError, match="No space left"):
        Region(8 * 2**20 + 1)


def abandon_request(
    triton: SharingTriton, give_up: Callable[[Transport], Awaitable[None]], **options: Any
) -> list[int]:
    """Abandon a request while the server works on it, then send more.

    Return what the server reads at the end of the abandoned request.
    """
    started, proceed, read = threading.Event(), threading.Event(), []
    triton.in_use = set()
    read_input = triton.read_input

    def hold(request: Any) -> bytes:
        name = request.inputs[0].parameters["shared_memory_region"].string_param
        if not started.is_set():
            triton.in_use.add(name)
            started.set()
            assert proceed.wait(60)
            read.append(read_input(request)[0])
            triton.in_use.remove(name)
        return read_input(request)

    triton.read_input = hold  # type: ignore[method-assign]

    async def ask(transport: Transport) -> None:
        try:
            await give_up(transport)
            assert started.is_set()
            for value in (2, 3):
                assert await send_color(transport, value) == (value, 9)
        finally:
            proceed.set()
        await wait_until(lambda: len(triton.regions) == 1)  # the other one is unregistered when no longer in use

    asked(triton.address, ask, **options)
    assert triton.regions == {}
    return read


def test_region_of_a_timed_out_request_is_not_reused(triton: SharingTriton) -> None:
    async def give_up(transport: Transport) -> None:
        with pytest.raises(ServerError, match="did not answer within 1 s"):
            await send_color(transport, 1)

    assert abandon_request(triton, give_up, timeout_s=1) == [1]


def test_region_of_a_canceled_request_is_not_reused(triton: SharingTriton) -> None:
    async def give_up(transport: Transport) -> None:
        asking = asyncio.create_task(send_color(transport, 1))
        await wait_until(lambda: bool(triton.in_use))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    assert abandon_request(triton, give_up) == [1]


@pytest.mark.parametrize(("fault", "regions_used"), [(QUEUE_FULL, 1), (SOCKET_CLOSED, 2)], ids=["full", "cut"])
def test_retried_request_keeps_its_region(triton: SharingTriton, fault: tuple[Any, str], regions_used: int) -> None:
    triton.faults = [fault]

    async def ask(transport: SharedMemoryTransport) -> None:
        assert await send_color(transport, 1) == (1, 9)
        assert transport.transport.resent == 1
        assert len(set(triton.read_from)) == 1
        # If the connection broke, the server may still be reading the first request.
        assert await send_color(transport, 2) == (2, 9)

    asked(triton.address, ask)
    assert len(set(triton.read_from)) == regions_used


def test_request_canceled_during_registration_leaves_no_region(triton: SharingTriton) -> None:
    registering, proceed = threading.Event(), threading.Event()

    def hold() -> None:
        registering.set()
        assert proceed.wait(60)

    triton.on_registered = hold

    async def ask(transport: Transport) -> None:
        asking = asyncio.create_task(send_color(transport, 1))
        await wait_until(registering.is_set)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        proceed.set()
        assert list_region_names() == []
        await wait_until(lambda: not triton.regions)
        assert await send_color(transport, 2) == (2, 9)

    asked(triton.address, ask)
    assert triton.regions == {}


def test_closing_does_not_wait_for_a_stopped_server(triton: SharingTriton) -> None:
    async def ask() -> None:
        with serving(SharingTriton(logits=describe_frames)) as served:
            transport = make_transport(served.address)
            await send_color(transport, 1)
        await asyncio.wait_for(transport.close(), 30)

    asyncio.run(ask())


def test_leftovers_of_dead_processes_are_removed(triton: SharingTriton) -> None:
    make = "from asl_triton.transport.shm_region import Region, make_name; print(make_name(), Region(1).name)"
    done = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    dead, named = done.stdout.split()
    assert list_region_names() == [named]  # the process ended without unlinking its region
    namespace = str(shm_region.pid_namespace())
    elsewhere = dead.replace(namespace, str(int(namespace) + 1))
    for name in (dead, elsewhere, make_name(), "somebody-elses"):
        triton.regions[name] = None  # type: ignore[assignment]
    before = set(triton.regions)

    async def ask(transport: Transport) -> None:
        await send_color(transport, 1)
        await wait_until(lambda: dead not in triton.regions)

    asked(triton.address, ask)
    assert set(triton.regions) == before - {dead}
    assert list_region_names() == []


def test_regions_of_running_processes_are_kept() -> None:
    pid, namespace = os.getpid(), shm_region.pid_namespace()
    assert not is_stale(make_name())
    assert is_stale(f"{PREFIX}-{namespace}-{pid}-1-ab")  # another process with the same PID
    assert not is_stale(f"{PREFIX}-{namespace}-1-{read_start_ticks(1)}-ab")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        started = read_start_ticks(ended.pid)
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now
        assert is_stale(f"{PREFIX}-{namespace}-{ended.pid}-{started}-ab")


def test_key_is_sent_only_to_this_users_server_on_that_port(triton: SharingTriton, tmp_path: Path) -> None:
    port = int(triton.address.rpartition(":")[2])
    files = [FOLDER / f"asl-triton-{name}-{port}.key" for name in ("old", "new", "open")]
    try:
        leave_key("asl-triton-old", port, "of a killed server")
        os.utime(files[0], (1, 1))
        leave_key("asl-triton-new", port, "secret")
        files[2].write_text("anyone may have written this")
        files[2].chmod(0o644)
        assert key_headers(triton.address) == {KEY_HEADER: "secret"}
        assert key_headers("unix:/run/triton.sock") == key_headers(f"127.0.0.1:{port}0") == {}
        asked(triton.address, lambda t: send_color(t, 1))
        assert triton.keys == ["secret"]
        asked(f"127.0.0.1:{port}", lambda t: t.infer("signs", FRAMES, ["LOGITS__0"]))
        assert all(set(metadata) & {KEY_HEADER} == set() for metadata in triton.asked)
        # 0.0.0.0 may be anyone's server, so it gets no key.
        assert asked(f"0.0.0.0:{port}", lambda t: send_color(t, 1), shared_memory="shm") == (1, 9)
        assert (triton.num_registered, len(triton.keys)) == (3, 2)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
