"""The page's door: pictures, bodies, logins, origins, quotas, and what no visitor's browser would send."""

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
from tests.security.visitors import RunningPage, Visitor, running_page

LOGIN, OTHER_LOGIN = ("ada", "lovelace"), ("bob", "marley")
SLIDERS = [50, 0.4, 8, "model"]  # threshold, repeat suppression, stride, signs


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("accounts") / "accounts"
    path.write_text("".join(f"{user}:{password}\n" for user, password in (LOGIN, OTHER_LOGIN)))
    return path


@pytest.fixture(scope="module")
def closed_page(accounts: Path) -> Iterator[RunningPage]:
    """A page that asks who one is."""
    with running_page("--auth-file", accounts) as page:
        yield page


@pytest.fixture(scope="module")
def open_page() -> Iterator[RunningPage]:
    """A page for everybody."""
    with running_page() as page:
        yield page


def encode(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def make_png(width: int, height: int) -> bytes:
    """A black picture, small as a file."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(height)) + packer.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# Pictures on the tab Live


def test_huge_pictures_cost_no_memory(open_page: RunningPage) -> None:
    picture = {"url": encode(make_png(13_000, 13_000)), "meta": {"_type": "gradio.FileData"}, "path": "x"}
    visitors = [Visitor(open_page) for _ in range(6)]
    visitors[0].config()
    before_mb = open_page.peak_mb()
    sending = [
        threading.Thread(target=visitor.run_event, args=("stream", [picture, None, *SLIDERS], f"session{number}"))
        for number, visitor in enumerate(visitors)
    ]
    for thread in sending:
        thread.start()
    for thread in sending:
        thread.join(60)
    assert open_page.peak_mb() < before_mb + 100


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_size_is_read_before_a_picture_is_decoded() -> None:
    picture = encode(make_png(13_000, 13_000))
    began_s = time.monotonic()
    with pytest.raises(VideoError, match="has more than 4,000,000 pixels: choose a lower resolution"):
        decode_picture(picture)
    assert time.monotonic() - began_s < 0.5
    with pytest.raises(VideoError, match="has more than 4,000,000 pixels: choose a lower resolution"):
        decode_picture(encode(make_png(2001, 2000)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_of_browsers_are_read(kind: str) -> None:
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
def test_what_is_no_picture_is_a_sentence(data_uri: str) -> None:
    with pytest.raises(
        VideoError, match="the camera's picture cannot be read: it is damaged, or not JPEG, PNG or WebP"
    ):
        decode_picture(data_uri)


def test_picture_of_many_bytes_is_not_even_unpacked() -> None:
    with pytest.raises(VideoError, match="is larger than 2 MB"):
        decode_picture("data:image/png;base64," + "A" * 3_000_000)


def test_camera_fetches_no_address(open_page: RunningPage) -> None:
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/picture.png"
        for place in ({"path": address}, {"path": "x", "url": address}, {"path": "/etc/passwd"}, {"url": address}):
            picture = {"meta": {"_type": "gradio.FileData"}, **place}
            said = Visitor(open_page).run_event("stream", [picture, None, *SLIDERS], f"session-{len(str(place))}")
            assert FETCHES_NOTHING in said or "The page cannot read this" in said, said
            assert str(Path.cwd()) not in said
        server.shutdown()
    assert asked == []
    assert "Traceback" not in open_page.stderr


# Bodies


def chunk(content: bytes) -> bytes:
    """As HTTP sends what has no declared length."""
    return f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", "/anything"])
@pytest.mark.parametrize("declared", [True, False])
def test_strangers_bodies_are_not_read(closed_page: RunningPage, path: str, declared: bool) -> None:
    """300 MB, of which the answer comes before the rest is sent."""
    before_mb = closed_page.peak_mb()
    host, port = closed_page.host.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as stranger:
        length = "Content-Length: 300000000" if declared else "Transfer-Encoding: chunked"
        stranger.sendall(f"POST {path} HTTP/1.1\r\nHost: {closed_page.host}\r\n{length}\r\n\r\n".encode())
        assert stranger.recv(1000).startswith(b"HTTP/1.1 401")
    assert closed_page.peak_mb() < before_mb + 20


def test_body_of_a_visitor_is_bounded(closed_page: RunningPage) -> None:
    visitor = Visitor(closed_page, LOGIN)
    before_mb = closed_page.peak_mb()
    large = json.dumps({"data": ["x" * 300_000_000], "fn_index": 0, "session_hash": "s"}).encode()
    host, port = closed_page.host.split(":")
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {closed_page.host}\r\nCookie: {visitor.cookie}\r\n"
    for length, content in ((f"Content-Length: {len(large)}", large), ("Transfer-Encoding: chunked", chunk(large))):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(f"{head}Content-Type: application/json\r\n{length}\r\n\r\n".encode())
            answer = b""
            with suppress(OSError):  # closed while more is being sent, or before all of that is read
                connection.sendall(content[: 5_000_000 if "chunked" in length else 0])
            with suppress(OSError):
                while part := connection.recv(10_000):
                    answer += part
        assert answer.startswith(b"HTTP/1.1 413") and b"up to 4,000,000 bytes" in answer
    assert closed_page.peak_mb() < before_mb + 50


def test_login_form_is_small(closed_page: RunningPage) -> None:
    form = "username=" + "x" * 5000
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert Visitor(closed_page).ask("POST", "/login", form, headers).status == 413


def test_half_sent_requests_end(accounts: Path) -> None:
    with running_page("--auth-file", accounts, PATIENCE_S=1.0, HEAD_TIMEOUT_S=1.0) as page:
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
            with socket.create_connection((host, int(port)), timeout=20) as stranger:
                stranger.sendall(sent)
                received = b""
                while part := stranger.recv(10_000):  # until the page closes the connection
                    received += part
            assert received.startswith(b"HTTP/1.1 " + status if status else b""), received
            assert bool(received) == bool(status)
        assert Visitor(page, LOGIN).ask("GET", "/").status == 200


# Logins and origins


def test_wrong_logins_are_slowed(accounts: Path) -> None:
    with running_page("--auth-file", accounts) as page:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        tries = [Visitor(page).ask("POST", "/login", "username=ada&password=wrong", headers) for _ in range(5)]
        assert [answer.status for answer in tries] == [400, 400, 400, 429, 429]
        assert "too many wrong logins: try again in 1 s" in tries[3].text
        time.sleep(1.1)
        Visitor(page, LOGIN)  # the right one is let in, and what was wrong is forgotten
        tries = [Visitor(page).ask("POST", "/login", "username=ada&password=wrong", headers) for _ in range(3)]
        assert [answer.status for answer in tries] == [400, 400, 400]


def test_waits_grow_and_are_each_addresss_own() -> None:
    throttle = LoginThrottle()
    assert [throttle.try_now("1.2.3.4") for _ in range(5)] == [0, 0, 0, 1, 1]
    assert throttle.try_now("5.6.7.8") == 0
    throttle.clear("1.2.3.4")
    assert throttle.try_now("1.2.3.4") == 0


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", ""])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_foreign_pages_are_refused(open_page: RunningPage, origin: str, method: str) -> None:
    answer = Visitor(open_page).ask(method, "/config", None, {"Origin": origin})
    assert (answer.status, "does not accept requests from other pages" in answer.text) == (403, True)


def test_own_page_is_not_foreign(open_page: RunningPage) -> None:
    visitor = Visitor(open_page)
    assert visitor.ask("GET", "/config", None, {"Origin": f"http://{open_page.host}"}).status == 200
    proxied = {"Origin": "https://signs.example", "X-Forwarded-Host": "signs.example"}
    assert visitor.ask("GET", "/config", None, proxied).status == 200


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
def test_doors_of_gradio_that_no_page_needs_are_closed(open_page: RunningPage, path: str) -> None:
    assert {Visitor(open_page).ask(method, path).status for method in ("GET", "POST")} == {404}


# Quotas


def test_visitors_uploads_are_bounded_and_so_are_all(accounts: Path) -> None:
    limits = ("--max-upload-mb", 20, "--max-visitor-mb", 50, "--max-folder-mb", 80)
    with running_page("--auth-file", accounts, *limits) as page:
        ada, bob = Visitor(page, LOGIN), Visitor(page, OTHER_LOGIN)
        statuses = [ada.upload(f"{number}.mp4", bytes([number]) * 19_000_000).status for number in range(4)]
        assert statuses == [200, 200, 413, 413]
        assert "up to 50 MB of uploads per visitor, and yours are used up" in ada.upload("5.mp4", b"5").text
        assert page.uploaded_mb() < 50
        statuses = [bob.upload(f"{number}.mp4", bytes([9 - number]) * 19_000_000).status for number in range(2)]
        assert statuses == [200, 413]
        assert "of uploads for all visitors" in bob.upload("5.mp4", b"5").text
        assert page.uploaded_mb() < 80
        assert bob.ask("GET", "/config").status == 200


def test_disk_is_not_filled(accounts: Path) -> None:
    with running_page("--min-free-mb", 10**9) as page:
        answer = Visitor(page).upload("clip.mp4", b"clip")
        assert (answer.status, "disk is nearly full" in answer.text) == (413, True)
        assert page.uploaded_mb() == 0


# What no browser sends


def test_upload_without_a_name_is_a_sentence(open_page: RunningPage) -> None:
    for path in ("/gradio_api/upload", "/gradio_api/upload?upload_id=1"):
        body = b'--cut\r\nContent-Disposition: form-data; name="files"\r\n\r\nclip\r\n--cut--\r\n'
        answer = Visitor(open_page).ask("POST", path, body, {"Content-Type": "multipart/form-data; boundary=cut"})
        assert (answer.status, "each with a name" in answer.text) == (400, True), answer
    assert "Traceback" not in open_page.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "fifty", None, [1]])
def test_number_that_is_none_is_a_sentence(open_page: RunningPage, value: object) -> None:
    said = Visitor(open_page).run_event("stream", [None, None, value, 0.4, 8, "model"], f"session-{value}")
    assert "Threshold in percent must be a number." in said
    assert "Traceback" not in open_page.stderr
