"""The page's door behind the head of a request: events, files and connections as no browser sends them."""

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
from tests.security.visitors import Answer, RunningPage, Visitor, running_page

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPage]:
    """A page that asks who one is."""
    accounts = tmp_path_factory.mktemp("accounts") / "accounts"
    accounts.write_text("".join(f"{user}:{password}\n" for user, password in (LOGIN, OTHER_LOGIN)))
    with running_page("--auth-file", accounts, "--max-upload-mb", 20) as running:
        yield running


def exchange(page: RunningPage, sent: bytes, *, source: str = "127.0.0.1", timeout_s: float = 20) -> bytes:
    """Bytes to a page, and what comes back until it closes the connection."""
    host, port = page.host.split(":")
    received = []
    with socket.create_connection((host, int(port)), timeout=timeout_s, source_address=(source, 0)) as connection:
        try:
            connection.sendall(sent)
            while part := connection.recv(1_000_000):
                received.append(part)
        except OSError:  # it was closed while more was being sent
            pass
    return b"".join(received)


def find_event(visitor: Visitor, name: str) -> int:
    """The number of the event of that kind, such as "stream", or with that name in the API."""
    events = visitor.config()["dependencies"]
    return next(e["id"] for e in events if e["api_name"] == name or [t for t in e["targets"] if t[1] == name])


def join(visitor: Visitor, event: int, data: list[object], session: str) -> Answer:
    return visitor.post("/gradio_api/queue/join", {"data": data, "fn_index": event, "session_hash": session})


def ask_honestly(visitor: Visitor) -> float:
    """Seconds until an event of an honest visitor is answered."""
    began_s = time.monotonic()
    event = json.loads(visitor.post("/gradio_api/call/recognize", {"data": [None, "", 3, 0.0]}).text)["event_id"]
    assert "there is no clip" in visitor.ask("GET", f"/gradio_api/call/recognize/{event}").text
    return time.monotonic() - began_s


# Events


def test_cameras_of_one_visitor_leave_room_for_others(page: RunningPage) -> None:
    visitor, honest = Visitor(page, LOGIN), Visitor(page, OTHER_LOGIN)
    event = find_event(visitor, "stream")
    statuses = [join(visitor, event, [None, None, *SLIDERS], f"camera{number}").status for number in range(45)]
    assert (statuses.count(200), statuses.count(503)) == (20, 25)  # --max-live and sixteen more
    assert ask_honestly(honest) < 10


def test_answers_that_nobody_fetches_are_few(page: RunningPage) -> None:
    visitor, honest = Visitor(page, LOGIN), Visitor(page, OTHER_LOGIN)
    event = find_event(visitor, "recognize")
    statuses = [
        join(visitor, event, [None, "", 3, 0.0], f"session{number}").status for number in range(MAX_EVENTS + 20)
    ]
    assert statuses[0] == 200 and statuses[-1] == 503
    assert ask_honestly(honest) < 10


@pytest.mark.parametrize("place", ["model", "session"])
def test_long_texts_are_not_kept(page: RunningPage, place: str) -> None:
    visitor = Visitor(page, LOGIN)
    event = find_event(visitor, "recognize")
    long = "m" * 3_900_000
    before_mb = page.peak_mb()
    model, session = (long, "s") if place == "model" else ("", long)
    for _ in range(20):
        answer = join(visitor, event, [None, model, 3, 0.0], session)
        assert answer.status == 400 and len(answer.text) < 200
    assert page.peak_mb() < before_mb + 60


@pytest.mark.parametrize("field", ["clip-frame", "teach-clip-frame"])
def test_picture_before_a_recording_is_small(page: RunningPage, field: str) -> None:
    visitor = Visitor(page, OTHER_LOGIN)  # LOGIN has no requests left
    config = visitor.config()
    component = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == field)
    event = next(e["id"] for e in config["dependencies"] if [component, "change"] in [[*t] for t in e["targets"]])
    assert join(visitor, event, ["d" * MAX_GUIDE_CHARS, None], "guided").status == 200
    answer = join(visitor, event, ["d" * (MAX_GUIDE_CHARS + 1), None], "guided")
    assert answer.status == 400 and f"more than {MAX_GUIDE_CHARS:,} characters" in answer.text


def test_longest_text_is_found_wherever_it_is() -> None:
    assert find_longest_text([1, None, {"a": ["bb", {"cccc": "d"}]}]) == 4
    assert find_longest_text([]) == 0
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert find_longest_text(deep) == 0
    assert MAX_TEXT_CHARS > 4096  # the longest path


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
def test_odd_json_is_refused_quickly(page: RunningPage, body: bytes, status: int) -> None:
    began_s = time.monotonic()
    assert Visitor(page, LOGIN).ask("POST", "/gradio_api/queue/join", body, JSON).status == status
    assert time.monotonic() - began_s < 5
    assert "Traceback" not in page.stderr


# Requests


def test_compressed_body_is_not_unpacked(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    before_mb = page.peak_mb()
    packed = gzip.compress(b'{"data":["' + b"x" * 100_000_000 + b'"]}')
    headers = {**JSON, "Content-Encoding": "gzip"}
    assert visitor.ask("POST", "/gradio_api/queue/join", packed, headers).status == 400
    assert page.peak_mb() < before_mb + 20


def test_pipelined_requests_are_answered_in_order(page: RunningPage) -> None:
    request = f"GET /robots.txt HTTP/1.1\r\nHost: {page.host}\r\n"
    sent = f"{request}\r\n" * 199 + f"{request}Connection: close\r\n\r\n"
    assert exchange(page, sent.encode()).count(b"HTTP/1.1 200 OK") == 200


def test_long_head_is_refused(page: RunningPage) -> None:
    before_mb = page.peak_mb()
    exchange(page, b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000_000 + b"\r\n\r\n")
    assert page.peak_mb() < before_mb + 20
    assert Visitor(page, LOGIN).ask("GET", "/config").status == 200


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/upload", "/"])
def test_sockets_of_other_pages_are_refused(page: RunningPage, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: {page.host}\r\nOrigin: https://evil.example\r\nSec-WebSocket-Version: 13\r\n"
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade, close\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    assert exchange(page, (head + upgrade).encode()).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/heartbeat/s", "/gradio_api/queue/data?session_hash=s", "/gradio_api/stream/s/1/1/playlist.m3u8"],
)
def test_strangers_hold_no_stream_open(page: RunningPage, path: str) -> None:
    answer = Visitor(page).ask("GET", path, timeout_s=5)
    assert (answer.status, "log in first" in answer.text) == (401, True)


def test_idle_connections_of_one_address_leave_room_for_others(tmp_path: Path) -> None:
    """As many as Gradio alone has files for; the page begins with 1,024, as many systems have it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this machine allows few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        with running_page() as page:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
            host, port = page.host.split(":")
            idle = [
                socket.create_connection((host, int(port)), timeout=5, source_address=("127.0.0.2", 0))
                for _ in range(1500)
            ]
            began_s = time.monotonic()
            assert Visitor(page).ask("GET", "/config").status == 200
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
def test_proxies_have_more_connections(
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


def test_field_of_a_form_is_not_kept(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    before_mb = page.peak_mb()
    body = b'--cut\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + b"y" * 19_000_000 + b"\r\n--cut--\r\n"
    answer = visitor.ask("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=cut"})
    assert (answer.status, answer.text) == (400, NOT_A_FILE)
    assert page.peak_mb() < before_mb + 30


@pytest.mark.parametrize(
    "head", [b"X" * 9_000_000, b"X: " + b"y" * 9_000_000 + b"\r\n\r\n", b"X: y\r\n" * 1_000_000 + b"\r\n"]
)
def test_endless_head_of_a_part_is_not_kept(page: RunningPage, head: bytes) -> None:
    visitor = Visitor(page, LOGIN)
    before_mb = page.peak_mb()
    body = b"--cut\r\n" + head + b"\r\n--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    assert visitor.ask("POST", "/gradio_api/upload", body, headers).status in (400, 413)
    assert page.peak_mb() < before_mb + 20


def test_uploads_stay_in_their_folder(page: RunningPage) -> None:
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
def test_files_of_the_machine_are_not_served(page: RunningPage, path: str) -> None:
    assert Visitor(page, LOGIN).ask("GET", f"/gradio_api/file={path}").status == 403


def test_only_own_uploads_of_the_folder_are_served(page: RunningPage) -> None:
    visitor = Visitor(page, LOGIN)
    (path,) = json.loads(visitor.upload("clip.mp4", b"clip").text)
    assert visitor.ask("GET", f"/gradio_api/file={path}").text == "clip"
    for place in (Path(path).parent, Path(path).parents[1], f"{path}/..", f"{path}/../../../../../../../etc/passwd"):
        assert visitor.ask("GET", f"/gradio_api/file={place}").status == 403
    for ranges in ("0-0," * 9000 + "0-0", "a-b", "9" * 30 + "-"):
        answer = visitor.ask("GET", f"/gradio_api/file={path}", None, {"Range": f"bytes={ranges}"})
        assert answer.status in (400, 416, 500) and len(answer.text) < 200
    assert "Traceback" not in page.stderr


def test_clip_is_a_file_that_was_uploaded_and_nothing_else(page: RunningPage) -> None:
    asked: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
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
            said = visitor.ask("GET", f"/gradio_api/call/recognize/{event}").text
            assert FETCHES_NOTHING in said or "The page cannot read this" in said, (file, said)
        server.shutdown()
    assert asked == []
    assert "Traceback" not in page.stderr


# Pictures


def png(extra: bytes, rows: bytes = b"\0" * (961 * 240)) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 320, 240, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def test_jpeg_of_many_scans_is_refused() -> None:
    """Each scan is decoded over the whole picture: 2 MB of them took minutes."""
    file = io.BytesIO()
    PIL.Image.new("L", (2000, 1990)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    assert decode_picture(encode(whole, "jpeg")).shape == (1990, 2000, 3)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    began_s = time.monotonic()
    with pytest.raises(VideoError, match="has more than 100 scans"):
        decode_picture(encode(whole[:-2] + scan * 100_000 + b"\xff\xd9", "jpeg"))
    assert time.monotonic() - began_s < 1


@pytest.mark.parametrize("kind", ["profile", "text", "pixels", "animation", "exif", "animated WebP"])
def test_what_is_packed_in_a_picture_costs_little(kind: str) -> None:
    bomb = zlib.compress(bytes(300_000_000), 9)
    file = io.BytesIO()
    if kind == "exif":
        entries = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x07\0\xff\xff\xff\x7f\0\0\0\0" * 5000
        PIL.Image.new("RGB", (320, 240)).save(file, "JPEG", exif=entries)
    elif kind == "animated WebP":
        frames = [PIL.Image.new("RGB", (320, 240), (number, 0, 0)) for number in range(200)]
        frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    pictures = {
        "profile": png(chunk(b"iCCP", b"x\0\0" + bomb)),
        "text": png(chunk(b"zTXt", b"x\0\0" + bomb)),
        "pixels": png(b"", bytes(300_000_000)),
        "animation": png(chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    }
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.monotonic()
    try:
        assert decode_picture(encode(pictures.get(kind, file.getvalue()))).shape == (240, 320, 3)
    except VideoError as exc:
        assert "the camera's picture cannot be read" in str(exc)
    assert time.monotonic() - began_s < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before_kb + 100_000
