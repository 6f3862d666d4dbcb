"""Attacks on a Triton started by `asl-triton serve`, sent without our client."""

import json
import pwd
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from asl_triton.errors import ServerError
from asl_triton.models.served import FRAMES
from asl_triton.transport.shm_region import FOLDER, key_headers
from asl_triton_deploy import local
from asl_triton_deploy.local import LocalTriton, has_one_user
from asl_triton_deploy.readiness import check_answers, is_ready
from asl_triton_deploy.server_flags import CLOSED_KEY_NAME
from asl_triton_deploy.supervisor import SupervisedTriton
from tests.client.videos import clip
from tests.security.visitors import Visitor, run_page

OVERFLOWING = [1, 18014398509481984, 224, 224, 3]  # the number of elements overflows to 0 modulo 2**64
CLIP = [1, 9, 224, 224, 3]
MAX_RECOVERY_S = 60.0
RESTARTED = "so Triton is restarted"
# Brackets nested deeper than Triton's stack, and a tensor larger than any memory: both crash Triton itself.
DEEP = b"[" * 4_000_000
ENORMOUS = [2**40, 9, 224, 224, 3]


@pytest.fixture(scope="module")
def triton(repository: Path) -> Iterator[LocalTriton]:
    with LocalTriton(repository, shared_memory=True) as running:
        yield running


def infer(triton: LocalTriton, shape: list[int], data: list[int] | None = None) -> tuple[int, dict[str, Any]]:
    """Send a request over HTTP; return the status and the response."""
    tensor = {
        "name": FRAMES,
        "datatype": "UINT8",
        "shape": shape,
        "data": [0] * int(np.prod(shape)) if data is None else data,
    }
    address = f"http://{triton.http_address}/v2/models/small/infer"
    request = urllib.request.Request(address, json.dumps({"inputs": [tensor]}).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


def infer_over_grpc(triton: LocalTriton, shape: list[int]) -> None:
    request = service_pb2.ModelInferRequest(model_name="small", raw_input_contents=[b""])
    request.inputs.add(name=FRAMES, datatype="UINT8", shape=shape)
    with tritonclient.grpc.InferenceServerClient(triton.address) as client:
        client._client_stub.ModelInfer(request, timeout=30)


def wait_for_answer(triton: LocalTriton) -> float:
    """Return the seconds until an honest request is answered."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < MAX_RECOVERY_S:
        with suppress(OSError):
            if infer(triton, CLIP)[0] == 200:
                return time.monotonic() - began_s
        time.sleep(0.2)
    raise AssertionError(triton.log_path.read_text())


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_triton_restarts_after_a_request_kills_a_model(triton: LocalTriton, protocol: str) -> None:
    wait_for_answer(triton)
    restarts = triton.log_path.read_text().count(RESTARTED)
    kill_model(triton, protocol)
    until_s = time.monotonic() + MAX_RECOVERY_S
    while triton.log_path.read_text().count(RESTARTED) == restarts:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    wait_for_answer(triton)
    host, port = triton.http_address.split(":")
    check_answers(host, int(port), "small")


@pytest.mark.parametrize("attack", ["deep", "enormous over HTTP", "enormous over gRPC"])
def test_triton_restarts_after_a_request_crashes_it(triton: LocalTriton, attack: str) -> None:
    wait_for_answer(triton)
    restarts = triton.log_path.read_text().count(RESTARTED)
    with suppress(OSError, grpc.RpcError):
        if attack == "deep":
            address = f"http://{triton.http_address}/v2/models/small/infer"
            urllib.request.urlopen(urllib.request.Request(address, DEEP), timeout=30)
        elif attack == "enormous over HTTP":
            infer(triton, ENORMOUS, [])
        else:
            infer_over_grpc(triton, ENORMOUS)
    wait_for_answer(triton)
    host, port = triton.http_address.split(":")
    check_answers(host, int(port), "small")
    if attack != "enormous over gRPC":  # that one is refused
        assert triton.log_path.read_text().count(RESTARTED) == restarts + 1


def kill_model(triton: LocalTriton, protocol: str) -> None:
    """Send a request that kills the model. It is refused, or Triton exits before it answers."""
    if protocol == "HTTP":
        with suppress(OSError):
            assert infer(triton, OVERFLOWING, [])[0] != 200
    else:
        with pytest.raises(Exception, match=r"not healthy|Socket closed|unavailable|Connection reset|refused"):
            infer_over_grpc(triton, OVERFLOWING)


def test_shared_memory_key_survives_a_restart(triton: LocalTriton) -> None:
    wait_for_answer(triton)
    with tritonclient.grpc.InferenceServerClient(triton.address) as client:
        client.get_system_shared_memory_status(headers=key_headers(triton.address))


def test_check_finds_dead_model_although_triton_reports_ready(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's readiness check misses a dead model, so ours runs an inference."""
    monkeypatch.setattr(SupervisedTriton, "watch", lambda _: None)  # so that Triton is not restarted
    with LocalTriton(repository) as triton:
        host, port = triton.http_address.split(":")
        check_answers(host, int(port), "small")
        kill_model(triton, "HTTP")
        assert is_ready(host, int(port))
        with pytest.raises(ServerError, match="small returned an error: Stub process 'small_0_0' is not healthy"):
            check_answers(host, int(port), "small")


@pytest.mark.parametrize("frames", [0, 1, 8, 301])
def test_clip_of_unsupported_length_is_refused(triton: LocalTriton, frames: int) -> None:
    wait_for_answer(triton)
    with tritonclient.grpc.InferenceServerClient(triton.address) as client:
        tensor = tritonclient.grpc.InferInput(FRAMES, [1, frames, 224, 224, 3], "UINT8")
        tensor.set_data_from_numpy(np.zeros((1, frames, 224, 224, 3), np.uint8))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("small", [tensor])
    message = refused.value.message()
    assert message == f"FRAMES__0 has {frames} frames: this model takes 9 to 300"
    assert infer(triton, CLIP)[0] == 200


# Videos on the page, which needs a service behind it


def recognize_on_page(visitor: Visitor, name: str, content: bytes) -> str:
    """Upload a video and recognize it, like an API client; return the page's answer or error."""
    (path,) = json.loads(visitor.upload(name, content).text)
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "small", 3, 0.0]}
    event = json.loads(visitor.post("/gradio_api/call/recognize", body).text)["event_id"]
    return visitor.request("GET", f"/gradio_api/call/recognize/{event}").text


def test_endless_video_blocks_other_visitors_only_until_the_time_limit(triton: LocalTriton, tmp_path: Path) -> None:
    wait_for_answer(triton)
    head = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    boxes = head + struct.pack(">I4s", 8, b"free") * 12_000_000
    good = clip(tmp_path / "good.mp4").read_bytes()
    options = ("--decode-timeout", 2, "--at-once", 1)
    with run_page(*options, server=triton.address) as page:
        visitor, honest = Visitor(page), Visitor(page)
        assert '"predictions"' in recognize_on_page(honest, "good.mp4", good)
        slow = threading.Thread(target=recognize_on_page, args=(visitor, "boxes.mp4", boxes))
        slow.start()
        time.sleep(1)
        began_s = time.monotonic()
        assert '"predictions"' in recognize_on_page(honest, "good.mp4", good)
        assert time.monotonic() - began_s < 40  # a hung decoder gets ten times its limit, and at least 30 s
        slow.join()


# Keys that every user can read


def read_command_line(triton: LocalTriton) -> list[str]:
    """Read what every user of this machine can see in `ps`."""
    return Path(f"/proc/{triton.pid}/cmdline").read_bytes().decode().split("\0")


def find_flag(command_line: list[str], part: str) -> tuple[str, str]:
    """Return the header and key of a restricted protocol."""
    flag = next(flag for flag in command_line if "restricted" in flag and part in flag)
    name, _, key = flag.partition(":")[2].partition("=")
    return name, key


def call_raw_grpc(address: str, header: str, key: str) -> bytes:
    """Request the status of shared memory with an arbitrary header. gRPC's clients refuse to send some."""

    def encode_literal(name: str, value: str) -> bytes:
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    def encode_frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
        return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content

    host, port = address.split(":")
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/SystemSharedMemoryStatus",
        ":authority": address,
        "te": "trailers",  # codespell:ignore te
        "content-type": "application/grpc",
        header: key,
    }
    head = b"".join(encode_literal(name, value) for name, value in fields.items())
    received = b""
    with socket.create_connection((host, int(port)), timeout=3) as connection:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + encode_frame(4, 0, 0, b"")
        connection.sendall(preface + encode_frame(1, 4, 1, head) + encode_frame(0, 1, 1, b"\0\0\0\0\0"))
        try:
            while b"grpc-status" not in received and (part := connection.recv(10_000)):
                received += part
        except TimeoutError:
            pass
    return received


def call_raw_http(address: str, header: str, key: str) -> bytes:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"GET /v2/systemsharedmemory/status HTTP/1.1\r\nHost: x\r\n{header}: {key}\r\n\r\n".encode())
        return connection.recv(1000)


def test_key_visible_in_ps_does_not_open_closed_endpoints(repository: Path) -> None:
    left = set(FOLDER.glob("asl-triton-*.key"))  # by servers that were killed
    with LocalTriton(repository, shared_memory=False) as triton:
        name, key = find_flag(read_command_line(triton), "shared-memory")
        assert name == CLOSED_KEY_NAME and len(key) > 16
        assert set(FOLDER.glob(f"asl-triton-*-{triton.address.split(':')[1]}.key")) <= left
        assert b"grpc-status\x010" not in call_raw_grpc(triton.address, f"triton-grpc-protocol-{name}", key)
        assert call_raw_http(triton.http_address, name, key).startswith(b"HTTP/1.1 403")
        first, _, rest = name.partition(":")
        assert call_raw_http(triton.http_address, first, f"{rest}:{key}").startswith(b"HTTP/1.1 403")
        assert infer(triton, CLIP)[0] == 200


def test_shared_memory_key_is_readable_by_local_users(triton: LocalTriton) -> None:
    """So shared memory is off if there are other users. Also proves that `call_raw_grpc` works."""
    wait_for_answer(triton)
    name, key = find_flag(read_current_command_line(triton), "shared-memory")
    assert b"grpc-status\x010" in call_raw_grpc(triton.address, f"triton-grpc-protocol-{name}", key)


def read_current_command_line(triton: LocalTriton) -> list[str]:
    """Read the command line of the current Triton, which may have been restarted."""
    children = Path(f"/proc/{triton.supervisor_pid}/task/{triton.supervisor_pid}/children").read_text().split()
    return Path(f"/proc/{children[0]}/cmdline").read_bytes().decode().split("\0")


def test_shared_memory_is_off_if_other_users_can_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_account(name: str, uid: int, shell: str) -> pwd.struct_passwd:
        return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", shell))

    alone = [build_account("root", 0, "/bin/bash"), build_account("daemon", 1, "/usr/sbin/nologin")]
    alone += [build_account("nobody", 65534, "/usr/sbin/nologin"), build_account("service", 1001, "/bin/false")]
    monkeypatch.setattr(local.pwd, "getpwall", lambda: alone)
    assert has_one_user()
    monkeypatch.setattr(local.pwd, "getpwall", lambda: [*alone, build_account("ada", 1002, "/bin/bash")])
    assert not has_one_user()
