"""Attacks on the page: pictures, bodies, logins, origins, quotas, and requests that no browser sends."""

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from asl_triton.errors import VideoError
from asl_triton_ui.security import LoginThrottle
from asl_triton_ui.upload_components import FETCHES_NOTHING, decode_picture
from tests.security.visitors import RunningPage, Visitor, run_page

LOGIN, OTHER_LOGIN = ("ada", "lovelace"), ("bob", "marley")
SLIDERS = [50, 0.4, 8, "model"]  # threshold, repeat suppression, stride, signs


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("accounts") / "accounts"
    path.write_text("".join(f"{user}:{password}\n" for user, password in (LOGIN, OTHER_LOGIN)))
    return path


@pytest.fixture(scope="module")
def private_page(accounts: Path) -> Iterator[RunningPage]:
    """Run a page that requires a login."""
    with run_page("--auth-file", accounts) as page:
        yield page


@pytest.fixture(scope="module")
def public_page() -> Iterator[RunningPage]:
    """Run a page without accounts."""
    with run_page() as page:
        yield page


def encode(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def make_png(width: int, height: int) -> bytes:
    """Build a black picture whose file is small."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()

    def build_chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + build_chunk(b"IHDR", head) + build_chunk(b"IDAT", rows) + build_chunk(b"IEND", b"")


# Pictures on the Live tab


def test_huge_pictures_cost_no_memory(public_page: RunningPage) -> None:
    picture = {"url": encode(make_png(13_000, 13_000)), "meta": {"_type": "gradio.FileData"}, "path": "x"}
    visitors = [Visitor(public_page) for _ in range(6)]
    visitors[0].fetch_config()
    before_mb = public_page.read_peak_mb()
    threads = [
        threading.Thread(target=visitor.run_event, args=("stream", [picture, None, *SLIDERS], f"session{number}"))
        for number, visitor in enumerate(visitors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert public_page.read_peak_mb() < before_mb + 100


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_oversized_picture_is_rejected_before_decoding() -> None:
    picture = encode(make_png(13_000, 13_000))
    began_s = time.monotonic()
    with pytest.raises(VideoError, match="has more than 4,000,000 pixels: choose a lower resolution"):
        decode_picture(picture)
    assert time.monotonic() - began_s < 0.5
    with pytest.raises(VideoError, match="has more than 4,000,000 pixels: choose a lower resolution"):
        decode_picture(encode(make_png(2001, 2000)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_browser_picture_formats_are_decoded(kind: str) -> None:
    frame = np.full((240, 320, 3), (200, 100, 50), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(frame).save(file, kind)
    decoded = decode_picture(encode(file.getvalue(), kind.lower()))
    assert decoded.shape == frame.shape and np.abs(decoded.astype(int) - frame).max() < 8


@pytest.mark.parametrize(
    "data_uri",
    [
        "data:image/png;base64,",
        "data:image/png;base64,!!!",
        encode(b"GIF89a" + bytes(100), "gif"),
        encode(make_png(64, 64)[:60]),
        encode(b"\xff\xd8\xff\xe0" + bytes(50), "jpeg"),
        "data:image/png",
    ],
)
def test_invalid_picture_is_rejected(data_uri: str) -> None:
    with pytest.raises(
        VideoError, match="the camera's picture cannot be read: it is damaged, or not JPEG, PNG or WebP"
    ):
        decode_picture(data_uri)


def test_picture_over_2_mb_is_not_decoded() -> None:
    with pytest.raises(VideoError, match="is larger than 2 MB"):
        decode_picture("data:image/png;base64," + "A" * 3_000_000)


def test_camera_picture_is_never_fetched_from_a_url(public_page: RunningPage) -> None:
    requested: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/picture.png"
        for place in ({"path": address}, {"path": "x", "url": address}, {"path": "/etc/passwd"}, {"url": address}):
            picture = {"meta": {"_type": "gradio.FileData"}, **place}
            messages = Visitor(public_page).run_event("stream", [picture, None, *SLIDERS], f"session-{len(str(place))}")
            assert FETCHES_NOTHING in messages or "The page cannot read this" in messages, messages
            assert str(Path.cwd()) not in messages
        server.shutdown()
    assert requested == []
    assert "Traceback" not in public_page.stderr


# Bodies


def encode_chunked(content: bytes) -> bytes:
    """Encode a body with HTTP's chunked transfer encoding."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", "/anything"])
@pytest.mark.parametrize("declared", [True, False])
def test_request_body_without_login_is_not_read(private_page: RunningPage, path: str, declared: bool) -> None:
    """The page answers before any of the 300 MB arrive."""
    before_mb = private_page.read_peak_mb()
    host, port = private_page.host.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        length = "Content-Length: 300000000" if declared else "Transfer-Encoding: chunked"
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: {private_page.host}\r\n{length}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401")
    assert private_page.read_peak_mb() < before_mb + 20


def test_request_body_is_limited(private_page: RunningPage) -> None:
    visitor = Visitor(private_page, LOGIN)
    before_mb = private_page.read_peak_mb()
    large = json.dumps({"data": ["x" * 300_000_000], "fn_index": 0, "session_hash": "s"}).encode()
    host, port = private_page.host.split(":")
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {private_page.host}\r\nCookie: {visitor.cookie}\r\n"
    cases = ((f"Content-Length: {len(large)}", large), ("Transfer-Encoding: chunked", encode_chunked(large)))
    for length, content in cases:
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n{length}\r\n\r\n".encode())
            answer = b""
            with suppress(OSError):  # the page closes the connection early
                connection.sendall(content[: 5_000_000 if "chunked" in length else 0])
            with suppress(OSError):
                while part := connection.recv(10_000):
                    answer += part
        assert answer.startswith(b"HTTP/1.1 413") and b"up to 4,000,000 bytes" in answer
    assert private_page.read_peak_mb() < before_mb + 50


def test_login_form_is_limited(private_page: RunningPage) -> None:
    form = "username=" + "x" * 5000
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert Visitor(private_page).request("POST", "/login", form, headers).status == 413


def test_incomplete_requests_time_out(accounts: Path) -> None:
    with run_page("--auth-file", accounts, PATIENCE_S=1.0, HEAD_TIMEOUT_S=1.0) as page:
        visitor = Visitor(page, LOGIN)
        host, port = page.host.split(":")
        head = f"POST %s HTTP/1.1\r\nHost: {page.host}\r\nCookie: {visitor.cookie}\r\nContent-Type: %s\r\n"
        multipart = "multipart/form-data; boundary=cut"
        cases = {
            b"": b"",
            b"POST /login HT": b"",
            (head % ("/gradio_api/queue/join", "application/json") + "Content-Length: 100\r\n\r\n{").encode(): b"408",
            (head % ("/gradio_api/upload", multipart) + "Content-Length: 900\r\n\r\n--cut").encode(): b"400",
        }
        for sent, status in cases.items():
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(sent)
                received = b""
                while part := connection.recv(10_000):  # until the page closes the connection
                    received += part
            assert received.startswith(b"HTTP/1.1 " + status if status else b""), received
            assert bool(received) == bool(status)
        assert Visitor(page, LOGIN).request("GET", "/").status == 200


# Logins and origins


def test_wrong_logins_are_throttled(accounts: Path) -> None:
    with run_page("--auth-file", accounts) as page:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        tries = [Visitor(page).request("POST", "/login", "username=ada&password=wrong", headers) for _ in range(5)]
        assert [answer.status for answer in tries] == [400, 400, 400, 429, 429]
        assert "too many wrong logins: try again in 1 s" in tries[3].text
        time.sleep(1.1)
        Visitor(page, LOGIN)  # a correct login resets the count
        tries = [Visitor(page).request("POST", "/login", "username=ada&password=wrong", headers) for _ in range(3)]
        assert [answer.status for answer in tries] == [400, 400, 400]


def test_login_attempts_are_counted_per_address() -> None:
    throttle = LoginThrottle()
    assert [throttle.try_now("1.2.3.4") for _ in range(5)] == [0, 0, 0, 1, 1]
    assert throttle.try_now("5.6.7.8") == 0
    throttle.clear("1.2.3.4")
    assert throttle.try_now("1.2.3.4") == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", ""])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_cross_origin_requests_are_refused(public_page: RunningPage, origin: str, method: str) -> None:
    answer = Visitor(public_page).request(method, "/config", None, {"Origin": origin})
    assert (answer.status, "does not accept requests from other pages" in answer.text) == (403, True)


def test_same_origin_requests_are_allowed(public_page: RunningPage) -> None:
    visitor = Visitor(public_page)
    assert visitor.request("GET", "/config", None, {"Origin": f"http://{public_page.host}"}).status == 200
    proxied = {"Origin": "https://signs.example", "X-Forwarded-Host": "signs.example"}
    assert visitor.request("GET", "/config", None, proxied).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api/deep_link",
        "/gradio_api/process_recording",
        "/gradio_api/component_server",
        "/gradio_api/vibe-edit",
        "/monitoring",
    ],
)
def test_unused_gradio_endpoints_are_closed(public_page: RunningPage, path: str) -> None:
    assert {Visitor(public_page).request(method, path).status for method in ("GET", "POST")} == {404}


# Quotas


def test_uploads_are_limited_per_visitor_and_in_total(accounts: Path) -> None:
    limits = ("--max-upload-mb", 20, "--max-visitor-mb", 50, "--max-folder-mb", 80)
    with run_page("--auth-file", accounts, *limits) as page:
        ada, bob = Visitor(page, LOGIN), Visitor(page, OTHER_LOGIN)
        statuses = [ada.upload(f"{number}.mp4", bytes([number]) * 19_000_000).status for number in range(4)]
        assert statuses == [200, 200, 413, 413]
        assert "up to 50 MB of uploads per visitor, and yours are used up" in ada.upload("5.mp4", b"5").text
        assert page.read_uploaded_mb() < 50
        statuses = [bob.upload(f"{number}.mp4", bytes([9 - number]) * 19_000_000).status for number in range(2)]
        assert statuses == [200, 413]
        assert "of uploads for all visitors" in bob.upload("5.mp4", b"5").text
        assert page.read_uploaded_mb() < 80
        assert bob.request("GET", "/config").status == 200


def test_upload_is_refused_when_the_disk_is_nearly_full(accounts: Path) -> None:
    with run_page("--min-free-mb", 10**9) as page:
        answer = Visitor(page).upload("clip.mp4", b"clip")
        assert (answer.status, "disk is nearly full" in answer.text) == (413, True)
        assert page.read_uploaded_mb() == 0


# Requests that no browser sends


def test_upload_without_a_file_name_is_refused(public_page: RunningPage) -> None:
    for path in ("/gradio_api/upload", "/gradio_api/upload?upload_id=1"):
        body = b'--cut\r\nContent-Disposition: form-data; name="files"\r\n\r\nclip\r\n--cut--\r\n'
        answer = Visitor(public_page).request("POST", path, body, {"Content-Type": "multipart/form-data; boundary=cut"})
        assert (answer.status, "each with a name" in answer.text) == (400, True), answer
    assert "Traceback" not in public_page.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "fifty", None, [1]])
def test_invalid_number_is_refused(public_page: RunningPage, value: object) -> None:
    messages = Visitor(public_page).run_event("stream", [None, None, value, 0.4, 8, "model"], f"session-{value}")
    assert "Threshold in percent must be a number." in messages
    assert "Traceback" not in public_page.stderr
