"""Requests through shared memory: registered once, reused, lost, refused, given up, and never in the way."""

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no such shared memory")

UNIMPLEMENTED, RESTRICTED, HIDDEN, ODD = (
    (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
    (grpc.StatusCode.UNAVAILABLE, "This protocol is restricted, expecting header 'triton-grpc-protocol-asl-triton'"),
    (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/asl-triton-client'"),
    (grpc.StatusCode.UNAVAILABLE, "it is switched off"),
)
SOCKET_CLOSED = (grpc.StatusCode.UNAVAILABLE, "Socket closed")
QUEUE_FULL = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


def mean_of(frames: np.ndarray) -> np.ndarray:
    """Logits that tell of the frames' content."""
    return np.array([frames.mean(), len(frames), 0, 0], np.float32)


@pytest.fixture
def triton() -> Iterator[SharingTriton]:
    with serving(SharingTriton(logits=mean_of)) as served:
        assert isinstance(served, SharingTriton)
        yield served


def filled(value: int, num_frames: int = 9) -> dict[str, np.ndarray]:
    """Frames of one color."""
    return {"FRAMES__0": np.full((1, num_frames, 224, 224, 3), value, np.uint8)}


async def mean(transport: Transport, value: int, num_frames: int = 9) -> tuple[float, float]:
    """What the server says of frames of one color: the color, and their number."""
    logits = (await transport.infer("signs", filled(value, num_frames), ["LOGITS__0"]))["LOGITS__0"][0]
    return float(logits[0]), float(logits[1])


def names_here() -> list[str]:
    """What of ours has a name in /dev/shm."""
    return [path.name for path in FOLDER.glob(f"{PREFIX}*")]


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that is about to happen."""
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def test_one_region_carries_request_after_request(triton: SharingTriton) -> None:
    async def ask(transport: Transport) -> list[tuple[float, float]]:
        answers = [await mean(transport, value) for value in range(50)]
        assert names_here() == []
        assert len(triton.regions) == 1
        return answers

    assert asked(triton.address, ask) == [(value, 9) for value in range(50)]
    assert (triton.registered, len(set(triton.read_from))) == (1, 1)
    assert triton.regions == {}  # unregistered at the end
    assert names_here() == []


def test_requests_under_way_have_a_region_each(triton: SharingTriton) -> None:
    together = threading.Barrier(4, timeout=60)

    def meet(frames: np.ndarray) -> np.ndarray:
        together.wait()
        return mean_of(frames)

    triton.logits = meet

    async def ask(transport: Transport) -> list[tuple[float, float]]:
        return await asyncio.gather(*(mean(transport, value) for value in range(16)))

    assert asked(triton.address, ask, in_flight=4) == [(value, 9) for value in range(16)]
    assert triton.registered == 4


def test_region_grows_in_the_place_of_a_smaller_one(triton: SharingTriton) -> None:
    async def ask(transport: Transport) -> list[int]:
        held = []
        for num_frames in (9, 12, 40, 30):
            assert await mean(transport, 7, num_frames) == (7, num_frames)
            held.append(sum(len(region) for region in triton.regions.values()))
        return held

    assert asked(triton.address, ask) == [GRAIN, GRAIN, 2 * GRAIN, 2 * GRAIN]
    assert triton.registered == 2


def test_only_large_arrays_of_numbers_are_worth_it(triton: SharingTriton) -> None:
    small = {"FRAMES__0": np.zeros((1, 1, 1, 1, LEAST_BYTES - 1), np.uint8)}
    texts = [{"FRAMES__0": np.array([b"x" * 2 * LEAST_BYTES], kind)} for kind in (np.object_, np.bytes_)]

    async def ask(transport: Transport) -> None:
        await transport.infer("signs", small, ["LOGITS__0"])
        for text in texts:
            with pytest.raises(ServerError, match="cannot reshape"):  # which takes none
                await transport.infer("signs", text, ["LOGITS__0"])

    asked(triton.address, ask, shared_memory="shm")
    assert triton.read_from == ["", "", ""]


def test_arrays_keep_their_values_whatever_their_layout(triton: SharingTriton) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 9, 1), np.uint8).T[:, :, ::-1]
    seen = []

    def look(got: np.ndarray) -> np.ndarray:
        seen.append(got.copy())
        return np.zeros(len(GLOSSES), np.float32)

    triton.logits = look
    asked(triton.address, lambda t: t.infer("signs", {"FRAMES__0": frames}, ["LOGITS__0"]))
    np.testing.assert_array_equal(seen, frames)
    assert triton.read_from != [""]


def test_several_arrays_lie_beside_each_other() -> None:
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
def test_server_that_lost_its_regions_gets_them_anew(triton: SharingTriton, resend: bool) -> None:
    async def ask(transport: SharedMemoryTransport) -> int:
        for value in (1, 2, 3):
            assert await asyncio.gather(mean(transport, value), mean(transport, 50)) == [(value, 9), (50, 9)]
            triton.regions.clear()  # as one that was restarted
        return transport.transport.resent

    assert asked(triton.address, ask, resend=resend) == 0
    assert "" not in triton.read_from


def test_server_that_forgets_each_region_is_asked_in_messages(triton: SharingTriton) -> None:
    class Forgetful(dict[str, Any]):
        def __contains__(self, _name: object) -> bool:
            return False

    triton.regions = Forgetful()
    assert asked(triton.address, lambda t: mean(t, 4)) == (4, 9)
    assert (triton.registered, triton.read_from[-1]) == (3, "")
    with pytest.raises(ServerError, match=r"does not accept requests through shared memory \(it keeps losing"):
        asked(triton.address, lambda t: mean(t, 4), shared_memory="shm")


@pytest.mark.parametrize("refuses", [UNIMPLEMENTED, RESTRICTED, HIDDEN], ids=["unknown", "closed", "elsewhere"])
def test_server_that_refuses_is_asked_in_messages(triton: SharingTriton, refuses: tuple[Any, str]) -> None:
    triton.refuses = refuses

    async def ask(transport: Transport) -> list[tuple[float, float]]:
        return await asyncio.gather(*(mean(transport, value) for value in range(5)))

    assert asked(triton.address, ask) == [(value, 9) for value in range(5)]
    assert (triton.tried, set(triton.read_from)) == (1, {""})
    assert names_here() == []


@pytest.mark.parametrize("refuses", [UNIMPLEMENTED, RESTRICTED, HIDDEN], ids=["unknown", "closed", "elsewhere"])
def test_server_that_refuses_is_a_sentence_where_it_must_not(triton: SharingTriton, refuses: tuple[Any, str]) -> None:
    triton.refuses = refuses
    says = r"does not accept requests through shared memory \(.*\): allow it .*ipc=host"

    async def ask(transport: Transport) -> None:
        for _ in range(2):
            with pytest.raises(ServerError, match=says):
                await transport.describe("signs")
            with pytest.raises(ServerError, match=says):
                await mean(transport, 1)
        triton.refuses = None  # it was started again
        assert await mean(transport, 1) == (1, 9)

    asked(triton.address, ask, shared_memory="shm")
    assert triton.read_from != [""]


def test_triton_that_may_crash_by_it_is_asked_in_messages(triton: SharingTriton) -> None:
    triton.version = "2.49.0"
    assert asked(triton.address, lambda t: mean(t, 3)) == (3, 9)
    assert (triton.tried, triton.read_from) == (0, [""])
    with pytest.raises(ServerError, match=r"\(Triton 2.49.0 may crash"):
        asked(triton.address, lambda t: mean(t, 3), shared_memory="shm")


def test_server_that_answers_and_never_takes_a_region_is_left_in_peace(triton: SharingTriton) -> None:
    triton.refuses = ODD

    async def ask(transport: Transport) -> None:
        for value in range(8):
            assert await mean(transport, value) == (value, 9)

    asked(triton.address, ask)
    assert triton.tried == shm.MAX_REFUSALS


def test_nothing_is_registered_where_it_is_not_wanted(triton: SharingTriton) -> None:
    assert asked(triton.address, lambda t: mean(t, 3), shared_memory="grpc") == (3, 9)
    assert triton.tried == 0


def test_metadata_needs_no_region_unless_there_must_be_one(triton: SharingTriton) -> None:
    asked(triton.address, lambda t: t.describe("signs"))
    assert triton.registered == 0

    async def ask(transport: Transport) -> None:
        await transport.describe("signs")
        await transport.describe("signs")
        assert await mean(transport, 2) == (2, 9)

    asked(triton.address, ask, shared_memory="shm")
    assert triton.registered == 1


@pytest.mark.parametrize("address", ["localhost:1,localhost:2", "dns:///triton:8001"])
def test_several_servers_are_asked_in_messages(address: str) -> None:
    make_transport(address)
    with pytest.raises(ServerError, match=r"needs one server, and .* may be several: name a local one, or leave out"):
        make_transport(address, shared_memory="shm")


def test_other_systems_have_none(monkeypatch: pytest.MonkeyPatch, triton: SharingTriton) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ServerError, match="only on Linux"):
        make_transport(triton.address, shared_memory="shm")
    assert asked(triton.address, lambda t: mean(t, 3)) == (3, 9)
    assert triton.tried == 0


def test_server_elsewhere_is_tried_only_if_asked_for() -> None:
    assert shm.unavailable_reason("auto", Endpoints("gpu-box:8001"))
    assert not shm.unavailable_reason("shm", Endpoints("gpu-box:8001"))  # its container may share it


def test_full_disk_sends_messages(
    triton: SharingTriton, disk: tuple[Path, Shrink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shm_region, "FOLDER", disk[0])
    assert asked(triton.address, lambda t: mean(t, 3)) == (3, 9)
    assert (triton.tried, triton.read_from) == (0, [""])
    with pytest.raises(ServerError, match=r"/dev/shm has no room for a request of 1,354,752 bytes \(No space left"):
        asked(triton.address, lambda t: mean(t, 3), shared_memory="shm")
    assert list(disk[0].iterdir()) == []


def test_memory_that_cannot_be_reserved_is_not_written(triton: SharingTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _offset: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def ask(transport: Transport) -> None:
        assert await mean(transport, 3) == (3, 9)
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            assert await mean(transport, 4, 40) == (4, 40)  # in its message
        assert await mean(transport, 5, 40) == (5, 40)

    asked(triton.address, ask)
    assert [bool(name) for name in triton.read_from] == [True, False, True]
    assert names_here() == []


def test_half_of_dev_shm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a container: 64 MiB, of which 40 are free.
    status = os.statvfs_result((4096, 4096, 16384, 10240, 10240, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: status)
    region = Region(8 * 2**20)
    region.unlink()
    region.close()
    with pytest.raises(OSError, match="No space left"):
        Region(8 * 2**20 + 1)


def given_up(triton: SharingTriton, give_up: Callable[[Transport], Awaitable[None]], **options: Any) -> list[int]:
    """Give a request up while the server works on it, then ask again: what the server reads at the end of the first."""
    begun, go_on, read = threading.Event(), threading.Event(), []
    triton.in_use = set()
    content = triton.content

    def hold(request: Any) -> bytes:
        name = request.inputs[0].parameters["shared_memory_region"].string_param
        if not begun.is_set():
            triton.in_use.add(name)
            begun.set()
            assert go_on.wait(60)
            read.append(content(request)[0])
            triton.in_use.remove(name)
        return content(request)

    triton.content = hold  # type: ignore[method-assign]

    async def ask(transport: Transport) -> None:
        try:
            await give_up(transport)
            assert begun.is_set()
            for value in (2, 3):
                assert await mean(transport, value) == (value, 9)
        finally:
            go_on.set()
        await until(lambda: len(triton.regions) == 1)  # the other was given back when nobody read it any more

    asked(triton.address, ask, **options)
    assert triton.regions == {}
    return read


def test_region_of_a_late_request_is_not_written_again(triton: SharingTriton) -> None:
    async def give_up(transport: Transport) -> None:
        with pytest.raises(ServerError, match="did not answer within 1 s"):
            await mean(transport, 1)

    assert given_up(triton, give_up, timeout_s=1) == [1]


def test_region_of_a_cancelled_request_is_not_written_again(triton: SharingTriton) -> None:
    async def give_up(transport: Transport) -> None:
        asking = asyncio.create_task(mean(transport, 1))
        await until(lambda: bool(triton.in_use))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    assert given_up(triton, give_up) == [1]


@pytest.mark.parametrize(("fault", "regions_used"), [(QUEUE_FULL, 1), (SOCKET_CLOSED, 2)], ids=["full", "cut"])
def test_request_that_is_sent_again_keeps_its_region(
    triton: SharingTriton, fault: tuple[Any, str], regions_used: int
) -> None:
    triton.faults = [fault]

    async def ask(transport: SharedMemoryTransport) -> None:
        assert await mean(transport, 1) == (1, 9)
        assert transport.transport.resent == 1
        assert len(set(triton.read_from)) == 1
        # Where the connection broke, the server may still read what it was sent first.
        assert await mean(transport, 2) == (2, 9)

    asked(triton.address, ask)
    assert len(set(triton.read_from)) == regions_used


def test_request_that_is_cancelled_while_it_registers_leaves_nothing(triton: SharingTriton) -> None:
    registering, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        registering.set()
        assert go_on.wait(60)

    triton.on_registered = hold

    async def ask(transport: Transport) -> None:
        asking = asyncio.create_task(mean(transport, 1))
        await until(registering.is_set)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go_on.set()
        assert names_here() == []
        await until(lambda: not triton.regions)
        assert await mean(transport, 2) == (2, 9)

    asked(triton.address, ask)
    assert triton.regions == {}


def test_closing_does_not_wait_for_a_server_that_is_gone(triton: SharingTriton) -> None:
    async def ask() -> None:
        with serving(SharingTriton(logits=mean_of)) as served:
            transport = make_transport(served.address)
            await mean(transport, 1)
        await asyncio.wait_for(transport.close(), 30)

    asyncio.run(ask())


def test_what_dead_processes_left_is_swept(triton: SharingTriton) -> None:
    make = "from asl_triton.transport.shm_region import Region, make_name; print(make_name(), Region(1).name)"
    done = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True)
    dead, named = done.stdout.split()
    assert names_here() == [named]  # killed before it forgot the name
    namespace = str(shm_region.pid_namespace())
    elsewhere = dead.replace(namespace, str(int(namespace) + 1))
    for name in (dead, elsewhere, make_name(), "somebody-elses"):
        triton.regions[name] = None  # type: ignore[assignment]
    before = set(triton.regions)

    async def ask(transport: Transport) -> None:
        await mean(transport, 1)
        await until(lambda: dead not in triton.regions)

    asked(triton.address, ask)
    assert set(triton.regions) == before - {dead}
    assert names_here() == []


def test_who_runs_is_not_swept() -> None:
    pid, namespace = os.getpid(), shm_region.pid_namespace()
    assert not is_stale(make_name())
    assert is_stale(f"{PREFIX}-{namespace}-{pid}-1-ab")  # another one of that number
    assert not is_stale(f"{PREFIX}-{namespace}-1-{read_start_ticks(1)}-ab")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        started = read_start_ticks(ended.pid)
        ended.kill()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # and nobody has collected it
        assert is_stale(f"{PREFIX}-{namespace}-{ended.pid}-{started}-ab")


def test_key_goes_to_the_server_of_this_user_on_that_port(triton: SharingTriton, tmp_path: Path) -> None:
    port = int(triton.address.rpartition(":")[2])
    files = [FOLDER / f"asl-triton-{name}-{port}.key" for name in ("old", "new", "open")]
    try:
        leave_key("asl-triton-old", port, "one of a server that was killed")
        os.utime(files[0], (1, 1))
        leave_key("asl-triton-new", port, "secret")
        files[2].write_text("anybody may have written this")
        files[2].chmod(0o644)
        assert key_headers(triton.address) == {KEY_HEADER: "secret"}
        assert key_headers("unix:/run/triton.sock") == key_headers(f"127.0.0.1:{port}0") == {}
        asked(triton.address, lambda t: mean(t, 1))
        assert triton.keys == ["secret"]
        asked(f"127.0.0.1:{port}", lambda t: t.infer("signs", FRAMES, ["LOGITS__0"]))
        assert all(set(metadata) & {KEY_HEADER} == set() for metadata in triton.asked)
        assert asked(f"0.0.0.0:{port}", lambda t: mean(t, 1), shared_memory="shm") == (1, 9)  # may be anybody's
        assert (triton.registered, len(triton.keys)) == (3, 2)
    finally:
        for file in files:
            file.unlink(missing_ok=True)
