"""More attacks on the page: events, connections, uploads and pictures that no browser sends."""

import gzip
import io
import json
import resource
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import PIL.Image
import pytest

from asl_triton.errors import VideoError
from asl_triton_ui import security
from asl_triton_ui.event_limits import MAX_EVENTS, MAX_GUIDE_CHARS, MAX_TEXT_CHARS, find_longest_text
from asl_triton_ui.security import PatientProtocol
from asl_triton_ui.upload_components import FETCHES_NOTHING, NOT_A_FILE, decode_picture
from tests.security.test_page import LOGIN, OTHER_LOGIN, SLIDERS, encode
from tests.security.visitors import PageResponse, RunningPage, Visitor, run_page

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """Run a page that requires a login."""
    accounts = tmp_path_factory.mktemp("accounts") / "accounts"
    accounts.write_text("".join(f"{user}:{password}\n" for user, password in (LOGIN, OTHER_LOGIN)))
    with run_page("--auth-file", accounts, "--max-upload-mb", 20) as running:
        yield running


def send_raw(page: RunningPage, sent: bytes, *, source: str = "127.0.0.1", timeout_s: float = 20) -> bytes:
    """Send raw bytes to a page, and return what it sends until it closes the connection."""
    host, port = page.host.split(":")
    received = []
    with socket.create_connection((host, int(port)), timeout=timeout_s, source_address=(source, 0)) as connection:
        try:
            connection.sendall(sent)
            while part := connection.recv(1_000_000):
                received.append(part)
        except OSError:  # the page closed the connection early
            pass
    return b"".join(received)


def find_event(visitor: Visitor, name: str) -> int:
    """Return the ID of an event by its trigger, such as "stream", or by its API name."""
    events = visitor.fetch_config()["dependencies"]
    return next(e["id"] for e in events if e["api_name"] == name or [t for t in e["targets"] if t[1] == name])


def join_queue(visitor: Visitor, event: int, data: list[object], session: str) -> PageResponse:
    return visitor.post("/gradio_api/queue/join", {"data": data, "fn_index": event, "session_hash": session})


def time_honest_request(visitor: Visitor) -> float:
    """Return the seconds until an honest visitor gets an answer."""
    began_s = time.monotonic()
    event = json.loads(visitor.post("/gradio_api/call/recognize", {"data": [None, "", 3, 0.0]}).text)["event_id"]
    assert "there is no clip" in visitor.request("GET", f"/gradio_api/call/recognize/{event}").text
    return time.monotonic() - began_s


# Events


def test_cameras_of_one_visitor_leave_room_for_others(page: RunningPage) -> None:
    visitor, honest = Visitor(page, LOGIN), Visitor(page, OTHER_LOGIN)
    event = find_event(visitor, "stream")
    statuses = [join_queue(visitor, event, [None, None, *SLIDERS], f"camera{number}").status for number in range(45)]
    assert (statuses.count(200), statuses.count(503)) == (20, 25)  # --max-live plus 16
    assert time_honest_request(honest) < 10


def test_unread_answers_are_limited(page: RunningPage) -> None:
    visitor, honest = Visitor(page, LOGIN), Visitor(page, OTHER_LOGIN)
    event = find_event(visitor, "recognize")
    statuses = [
        join_queue(visitor, event, [None, "", 3, 0.0], f"session{number}").status for number in range(MAX_EVENTS + 20)
    ]
    assert statuses[0] == 200 and statuses[-1] == 503
    assert time_honest_request(honest) < 10


@pytest.mark.parametrize("place", ["model", "session"])
def test_long_texts_are_not_kept(page: RunningPage, place: str) -> None:
    visitor = Visitor(page, LOGIN)
    event = find_event(visitor, "recognize")
    long = "m" * 3_900_000
    before_mb = page.read_peak_mb()
    model, session = (long, "s") if place == "model" else ("", long)
    for _ in range(20):
        answer = join_queue(visitor, event, [None, model, 3, 0.0], session)
        assert answer.status == 400 and len(answer.text) < 200
    assert page.read_peak_mb() < before_mb + 60


@pytest.mark.parametrize("field", ["clip-frame", "teach-clip-frame"])
def test_guide_picture_is_limited(page: RunningPage, field: str) -> None:
    visitor = Visitor(page, OTHER_LOGIN)  # LOGIN has used up its requests
    config = visitor.fetch_config()
    component = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == field)
    event = next(e["id"] for e in config["dependencies"] if [component, "change"] in [[*t] for t in e["targets"]])
    assert join_queue(visitor, event, ["d" * MAX_GUIDE_CHARS, None], "guided").status == 200
    answer = join_queue(visitor, event, ["d" * (MAX_GUIDE_CHARS + 1), None], "guided")
    assert answer.status == 400 and f"more than {MAX_GUIDE_CHARS:,} characters" in answer.text


def test_longest_text_is_found_at_any_depth() -> None:
    assert find_longest_text([1, None, {"a": ["bb", {"cccc": "d"}]}]) == 4
    assert find_longest_text([]) == 0
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert find_longest_text(deep) == 0
    assert MAX_TEXT_CHARS > 4096  # the longest possible path


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"data":[{' + b",".join(b'"%d":1' % number for number in range(300_000)) + b"}]}", 413),
        (b'{"data":' + b"[" * 1_900_000 + b"]" * 1_900_000 + b"}", 413),
        (b'{"data":[' + b"9" * 3_900_000 + b"]}", 400),
        (b'{"data":[],"fn_index":9999,"session_hash":"s"}', 400),
        (b'{"data":[],"fn_index":-1,"session_hash":"s"}', 400),
        (b'{"data":[],"fn_index":0,"session_hash":{"a":1}}', 422),
        (b"[]", 422),
    ],
    ids=["many values", "deep", "long number", "no such event", "negative event", "odd session", "no object"],
)
def test_malformed_json_is_refused_quickly(page: RunningPage, body: bytes, status: int) -> None:
    began_s = time.monotonic()
    assert Visitor(page, LOGIN).request("POST", "/gradio_api/queue/join", body, JSON).status == status
    assert time.monotonic() - began_s < 5
    assert "Traceback" not in page.stderr


# Requests


def test_compressed_body_is_not_decompressed(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    before_mb = page.read_peak_mb()
    packed = gzip.compress(b'{"data":["' + b"x" * 100_000_000 + b'"]}')
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert visitor.request("POST", "/gradio_api/queue/join", packed, headers).status == 400
    assert page.read_peak_mb() < before_mb + 20


def test_pipelined_requests_are_answered_in_order(page: RunningPage) -> None:
    request = f"GET /robots.txt HTTP/1.1\r\nHost: {page.host}\r\n"
    sent = f"{request}\r\n" * 199 + f"{request}Connection: close\r\n\r\n"
    assert send_raw(page, sent.encode()).count(b"HTTP/1.1 200 OK") == 200


def test_long_header_is_refused(page: RunningPage) -> None:
    before_mb = page.read_peak_mb()
    send_raw(page, b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000_000 + b"\r\n\r\n")
    assert page.read_peak_mb() < before_mb + 20
    assert Visitor(page, LOGIN).request("GET", "/config").status == 200


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/"])
def test_cross_origin_websockets_are_refused(page: RunningPage, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: {page.host}\r\nOrigin: https://evil.example\r\nSec-WebSocket-Version: 13\r\n"
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert send_raw(page, (head + upgrade).encode()).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/heartbeat/s", "/gradio_api/queue/data?session_hash=s", "/gradio_api/stream/s/1/1/playlist.m3u8"],
)
def test_streams_require_a_login(page: RunningPage, path: str) -> None:
    answer = Visitor(page).request("GET", path, timeout_s=5)
    assert (answer.status, "log in first" in answer.text) == (401, True)


def test_idle_connections_of_one_address_leave_room_for_others(tmp_path: Path) -> None:
    """The page starts with a limit of 1,024 open files, the default of many systems."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this machine allows few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with run_page() as page:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
            host, port = page.host.split(":")
            idle = [
                socket.create_connection((host, int(port)), timeout=5, source_address=("127.0.0.2", 0))
                for _ in range(1500)
            ]
            began_s = time.monotonic()
            assert Visitor(page).request("GET", "/config").status == 200
            assert time.monotonic() - began_s < 5
            assert page.stderr == ""
            open_files = len(list(Path(f"/proc/{page.pid}/fd").iterdir()))
            assert open_files < security.MAX_ADDRESS_CONNECTIONS + 100
            for connection in idle:
                connection.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("address", "variables", "others", "is_refused"),
    [
        ("10.0.0.1", {}, 501, True),
        ("10.0.0.1", {}, 499, False),
        ("127.0.0.1", {}, 1500, False),
        ("10.0.0.1", {"FORWARDED_ALLOW_IPS": "10.0.0.1"}, 1500, False),
        ("127.0.0.1", {}, 2001, True),
    ],
)
def test_proxies_may_open_more_connections(
    address: str, variables: dict[str, str], others: int, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(security.resource, "getrlimit", lambda _: (10_000, 10_000))
    connection = SimpleNamespace(client=(address, 1))
    connection.connections = [connection] * others
    assert PatientProtocol._is_one_too_many(connection) is is_refused  # type: ignore[arg-type]


# Uploads and files


def test_form_field_is_refused_and_not_kept(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    before_mb = page.read_peak_mb()
    body = b'--cut\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + b"y" * 19_000_000 + b"\r\n--cut--\r\n"
    answer = visitor.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=cut"})
    assert (answer.status, answer.text) == (400, NOT_A_FILE)
    assert page.read_peak_mb() < before_mb + 30


@pytest.mark.parametrize(
    "head", [b"X" * 9_000_000, b"X: " + b"y" * 9_000_000 + b"\r\n\r\n", b"X: y\r\n" * 1_000_000 + b"\r\n"]
)
def test_long_part_header_is_not_kept(page: RunningPage, head: bytes) -> None:
    visitor = Visitor(page, LOGIN)
    before_mb = page.read_peak_mb()
    body = b"--cut\r\n" + head + b"\r\n--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    assert visitor.request("POST", "/gradio_api/upload", body, headers).status in (400, 413)
    assert page.read_peak_mb() < before_mb + 20


def test_uploads_stay_in_the_upload_folder(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    for name in ("../../../../evil.mp4", "/etc/cron.d/evil", "a/../../evil", "..\\..\\evil", "\x00evil", "." * 300):
        (path,) = json.loads(visitor.upload(name, b"evil").text)
        assert Path(path).resolve().is_relative_to(page.folder) and Path(path).is_file()
    assert not list(page.folder.parent.glob("*evil*"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "../../../../etc/passwd",
        "SECURITY.md",
        "/proc/self/environ",
        "file:///etc/passwd",
        "HTTP://127.0.0.1:1/",
        "%20http://127.0.0.1:1/",
        "//127.0.0.1/x",
        "%00",
        ".",
    ],
)
def test_other_files_of_the_machine_are_not_served(page: RunningPage, path: str) -> None:
    assert Visitor(page, LOGIN).request("GET", f"/gradio_api/file={path}").status == 403


def test_only_uploaded_files_are_served(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    (path,) = json.loads(visitor.upload("clip.mp4", b"clip").text)
    assert visitor.request("GET", f"/gradio_api/file={path}").text == "clip"
    for place in (Path(path).parent, Path(path).parents[1], f"{path}/..", f"{path}/../../../../../../../etc/passwd"):
        assert visitor.request("GET", f"/gradio_api/file={place}").status == 403
    for ranges in ("0-0," * 9000 + "0-0", "a-b", "9" * 30 + "-"):
        answer = visitor.request("GET", f"/gradio_api/file={path}", None, {"Range": f"bytes={ranges}"})
        assert answer.status in (400, 416, 500) and len(answer.text) < 200
    assert "Traceback" not in page.stderr


def test_clip_must_be_an_uploaded_file(page: RunningPage) -> None:
    requested: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    visitor = Visitor(page, OTHER_LOGIN)
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}/clip.mp4"
        places = [f"http://{address}", f"HTTP://{address}", f" http://{address}", f"//{address}", f"ftp://{address}"]
        places += [f"hf://{address}", f"tcp://{address}", "data:video/mp4;base64,AAAA", "file:///etc/passwd", ""]
        places += ["/etc/passwd", "/proc/self/environ", "README.md", "concat:/etc/passwd", "\x00"]
        files = [{"path": place} for place in places] + [{"path": "x", "url": place} for place in places]
        for file in files:
            body = {"data": [{**file, "meta": {"_type": "gradio.FileData"}}, "", 3, 0.0]}
            event = json.loads(visitor.post("/gradio_api/call/recognize", body).text)["event_id"]
            messages = visitor.request("GET", f"/gradio_api/call/recognize/{event}").text
            assert FETCHES_NOTHING in messages or "The page cannot read this" in messages, (file, messages)
        server.shutdown()
    assert requested == []
    assert "Traceback" not in page.stderr


# Pictures


def build_png(extra: bytes, rows: bytes = b"\0" * (961 * 240)) -> bytes:
    head = build_png_chunk(b"IHDR", struct.pack(">IIBBBBB", 320, 240, 8, 2, 0, 0, 0))
    content = build_png_chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + head + extra + content + build_png_chunk(b"IEND", b"")


def build_png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_jpeg_with_many_scans_is_refused() -> None:
    """Each scan is a pass over the whole picture, so 2 MB of scans took minutes to decode."""
    file = io.BytesIO()
    PIL.Image.new("L", (2000, 1990)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    assert decode_picture(encode(jpeg, "jpeg")).shape == (1990, 2000, 3)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    began_s = time.monotonic()
    with pytest.raises(VideoError, match="has more than 100 scans"):
        decode_picture(encode(jpeg[:-2] + scan * 100_000 + b"\xff\xd9", "jpeg"))
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("kind", ["profile", "text", "pixels", "animation", "exif", "animated WebP"])
def test_decompression_bomb_in_a_picture_is_cheap(kind: str) -> None:
    bomb = zlib.compress(bytes(300_000_000), 9)
    file = io.BytesIO()
    if kind == "exif":
        entries = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x07\0\xff\xff\xff\x7f\0\0\0\0" * 5000
        PIL.Image.new("RGB", (320, 240)).save(file, "JPEG", exif=entries)
    elif kind == "animated WebP":
        frames = [PIL.Image.new("RGB", (320, 240), (number, 0, 0)) for number in range(200)]
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    pictures = {
        "profile": build_png(build_png_chunk(b"iCCP", b"x\0\0" + bomb)),
        "text": build_png(build_png_chunk(b"zTXt", b"x\0\0" + bomb)),
        "pixels": build_png(b"", bytes(300_000_000)),
        "animation": build_png(build_png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    }
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.monotonic()
    try:
        assert decode_picture(encode(pictures.get(kind, file.getvalue()))).shape == (240, 320, 3)
    except VideoError as exc:
        assert "the camera's picture cannot be read" in str(exc)
    assert time.monotonic() - began_s < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before_kb + 100_000
