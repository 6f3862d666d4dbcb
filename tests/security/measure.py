"""Print what each attack costs: what happened, the peak memory, and the effect on an honest client.

    python -m tests.security.measure [--checkout OTHER] [--only WORD]

Each attack on the page gets its own page, with accounts. Each attack on the service gets its own Triton, and attacks on
the command line run next to one. An honest client sends one request per second before, during and after an attack. The
table counts its lost answers and shows its longest wait, and the time from the start of the attack to the first answer
to a request sent after that. Peak memory is that of the page's process, of Triton and all its processes, or of the
command. `--checkout` measures another working tree, such as an older one.

The row numbers are those of the issue. Some rows have only tests: formulas in spreadsheets (8) and terminals and
logs (9) in `test_cli.py`, and keys in `ps` (4) in `test_service.py` and `test_production.py`.
"""

import argparse
import base64
import io
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from http.client import HTTPConnection
from pathlib import Path

import av
import numpy as np
import PIL.Image
import psutil
import tritonclient.grpc
from tritonclient.grpc import service_pb2

from tests.client.video.test_reader import SDP
from tests.export.formats.test_custom_script import save_script
from tests.networks import save_labels
from tests.security.test_cli import FileWriter
from tests.security.test_page import LOGIN, SLIDERS, make_png
from tests.security.visitors import NO_SERVER, RunningPage, Visitor

MAIN = "import sys; from asl_triton.cli.app import main; sys.argv[0] = 'asl-triton'; sys.exit(main())"
PICTURES, STRANGERS, BODY_BYTES, UPLOADS = 6, 4, 300_000_000, 24
COMMAND_MEMORY_BYTES = 4 * 2**30  # limit, to protect this machine
SETTLE_S, MAX_RECOVERY_S = 2.5, 45.0
COLUMNS = ("row", "attack", "what happened", "peak MB before, after", "asked, lost", "longest wait s", "next answer s")


def run_together(count: int, act: Callable[[int], object]) -> None:
    """Call `act` with each number below `count`, in threads at the same time."""
    threads = [threading.Thread(target=act, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)


@dataclass
class HonestClient:
    """Sends a request once per second, in a thread."""

    send: Callable[[], bool]
    requests: list[tuple[float, float, bool]] = field(default_factory=list)  # start, duration, whether answered
    over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def sending(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()

    def _run(self) -> None:
        while not self.over.wait(1.0):
            began_s = time.monotonic()
            is_answered = False
            with suppress(OSError, ValueError, KeyError):
                is_answered = self.send()
            self.requests.append((began_s, time.monotonic() - began_s, is_answered))

    def find_answer(self, after_s: float) -> float | None:
        """Return the seconds from a moment to the first answer to a later request."""
        ends = [
            began_s + took_s for began_s, took_s, is_answered in self.requests if is_answered and began_s >= after_s
        ]
        return min(ends) - after_s if ends else None


@dataclass
class MemoryWatch:
    """Peak memory of a process and its descendants."""

    root: psutil.Process
    peak_mb: float = 0.0

    def read(self) -> float:
        used = 0
        for process in [self.root, *self.root.children(recursive=True)]:
            with suppress(psutil.Error):
                used += process.memory_full_info().pss
        self.peak_mb = max(self.peak_mb, used / 1e6)
        return used / 1e6

    @contextmanager
    def watching(self) -> Iterator[None]:
        over = threading.Event()

        def run() -> None:
            while not over.wait(0.2):
                with suppress(psutil.Error):
                    self.read()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def measure(row: str, attack: str, root: int, honest: HonestClient, act: Callable[[], str]) -> None:
    """Run an attack next to an honest client, and print its row."""
    watch = MemoryWatch(psutil.Process(root))
    before_mb = watch.read()
    with watch.watching(), honest.sending():
        time.sleep(SETTLE_S)
        began_s = time.monotonic()
        outcome = act()
        took_s = time.monotonic() - began_s
        until_s = time.monotonic() + MAX_RECOVERY_S
        while honest.find_answer(began_s) is None and time.monotonic() < until_s:
            time.sleep(0.1)
        time.sleep(SETTLE_S)
    lost = sum(not is_answered for *_, is_answered in honest.requests)
    longest_s = max(waited_s for _, waited_s, _ in honest.requests)
    next_s = honest.find_answer(began_s)
    memory = f"{before_mb:,.0f}, {watch.peak_mb:,.0f}"
    back = "never" if next_s is None else f"{next_s:.1f}"
    cells = (
        row,
        attack,
        f"{outcome} ({took_s:.1f} s)",
        memory,
        f"{len(honest.requests)}, {lost}",
        f"{longest_s:.2f}",
        back,
    )
    print(f"| {' | '.join(cells)} |", flush=True)


# The page


def find_event(visitor: Visitor, name: str) -> int:
    events = visitor.fetch_config()["dependencies"]
    return next(e["id"] for e in events if e["api_name"] == name or [t for t in e["targets"] if t[1] == name])


def join(visitor: Visitor, event: int, data: Sequence[object], session: str) -> int:
    body = {"data": data, "fn_index": event, "session_hash": session}
    return visitor.post("/gradio_api/queue/join", body).status


def format_counts(statuses: list[int]) -> str:
    return ", ".join(f"{statuses.count(status)} x {status}" for status in sorted(set(statuses)))


def send_pictures(page: RunningPage, visitor: Visitor) -> str:
    url = f"data:image/png;base64,{base64.b64encode(make_png(13_000, 13_000)).decode()}"
    data = [{"url": url, "path": "x"}, None, *SLIDERS]
    run_together(PICTURES, lambda number: visitor.run_event("stream", data, f"live{number}"))
    return "no place, so none decoded" if page.read_peak_mb() < 1000 else "decoded"


def open_cameras(page: RunningPage, visitor: Visitor) -> str:
    event = find_event(visitor, "stream")
    return format_counts([join(visitor, event, [None, None, *SLIDERS], f"camera{number}") for number in range(45)])


def send_bodies(page: RunningPage, visitor: Visitor) -> str:
    statuses: list[str] = []

    def send(number: int) -> None:
        host, port = page.host.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {page.host}\r\nContent-Type: application/json\r\n"
            with suppress(OSError):
                connection.sendall(f"{head}Content-Length: {BODY_BYTES}\r\n\r\n".encode() + b'{"data": ["')
                for _ in range(BODY_BYTES // 1_000_000):  # a little more than declared
                    connection.sendall(b"x" * 1_000_000)
            with suppress(OSError):
                statuses.append(connection.recv(100).split(b"\r\n")[0].decode())

    run_together(STRANGERS, send)
    return ", ".join(sorted(set(statuses))) or "closed"


def guess_passwords(page: RunningPage, visitor: Visitor) -> str:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    until_s, statuses = time.monotonic() + 10, []
    while time.monotonic() < until_s:
        statuses.append(visitor.request("POST", "/login", "username=ada&password=wrong", headers).status)
    return f"{statuses.count(400)} passwords tried"


def send_incomplete_requests(page: RunningPage, visitor: Visitor) -> str:
    host, port = page.host.split(":")
    address = (host, int(port))
    connections = [socket.create_connection(address, timeout=5, source_address=("127.0.0.2", 0)) for _ in range(1500)]
    for number, connection in enumerate(connections):
        with suppress(OSError):
            connection.sendall(b"POST /login HT" if number % 2 else b"")
    time.sleep(5)
    errors = page.stderr.count("Too many open files")
    for connection in connections:
        connection.close()
    return f"{errors} times out of files, {len(page.stderr) / 1e6:.1f} MB of log"


def send_texts(page: RunningPage, visitor: Visitor) -> str:
    (path,) = json.loads(visitor.upload("clip.mp4", b"clip").text)
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "m" * 3_900_000, 3, 0.0]
    event = find_event(visitor, "recognize")
    return format_counts([join(visitor, event, data, f"session{number}") for number in range(100)])


def send_values(page: RunningPage, visitor: Visitor) -> str:
    event = find_event(visitor, "stream")
    data = [{str(number): 1 for number in range(300_000)}, None, *SLIDERS]
    return format_counts([join(visitor, event, data, f"session{number}") for number in range(10)])


def fill_disk(page: RunningPage, visitor: Visitor) -> str:
    statuses = [visitor.upload(f"{number}.mp4", bytes([number]) * 19_000_000).status for number in range(UPLOADS)]
    return f"{statuses.count(200)} taken, {page.read_uploaded_mb():.0f} MB kept"


def send_field(page: RunningPage, visitor: Visitor) -> str:
    body = b'--cut\r\nContent-Disposition: form-data; name="files"\r\n\r\n' + b"y" * 19_000_000 + b"\r\n--cut--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    return format_counts([visitor.request("POST", "/gradio_api/upload", body, headers).status for _ in range(5)])


ON_PAGE: list[tuple[str, str, Callable[[RunningPage, Visitor], str]]] = [
    ("2", "6 pictures of 13,000 x 13,000", send_pictures),
    ("2", "45 cameras of one visitor", open_cameras),
    ("3", "4 bodies of 300 MB, no login", send_bodies),
    ("3", "wrong passwords for 10 s", guess_passwords),
    ("3", "1,500 idle and half-sent requests", send_incomplete_requests),
    ("3", "100 events with 4 MB of text, answers unread", send_texts),
    ("3", "10 events of 300,000 values", send_values),
    ("7", "24 uploads of 19 MB, one login", fill_disk),
    ("7", "5 form fields of 19 MB", send_field),
]


@contextmanager
def run_page(checkout: Path, *options: str, server: str = NO_SERVER) -> Iterator[RunningPage]:
    """Run the page of a checkout, with accounts and the common limit of 1,024 open files."""
    with tempfile.TemporaryDirectory() as name:
        folder, log_path, accounts = Path(name) / "temporary", Path(name) / "stderr", Path(name) / "accounts"
        folder.mkdir()
        accounts.write_text(":".join(LOGIN) + "\n")
        command = [sys.executable, "-c", MAIN, "ui", "--server", server, "--port", "0", "--json"]
        command += ["--auth-file", str(accounts), *options]
        environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": find_packages(checkout)}
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with (
            log_path.open("wb") as stderr,
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard)),
            ) as process,
        ):
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            try:
                yield RunningPage(urllib.parse.urlsplit(url).netloc, process.pid, folder, log_path)
            finally:
                process.terminate()
                process.wait(60)


def find_packages(checkout: Path) -> str:
    return os.pathsep.join(str(checkout / place) for place in ("client", "export", "deploy", "ui", "."))


def request_page(visitor: Visitor) -> bool:
    """Send an event that the page answers without a server; return whether it did."""
    body = {"data": [None, "", 3, 0.0]}
    event = json.loads(visitor.post("/gradio_api/call/recognize", body).text)["event_id"]
    return "there is no clip" in visitor.request("GET", f"/gradio_api/call/recognize/{event}").text


def measure_page(checkout: Path, only: str) -> None:
    """Measure the attacks on a page without a Triton."""
    for row, name, attack in ON_PAGE:
        if only in name:
            with run_page(checkout, "--max-upload-mb", "20") as page:
                visitor, honest = Visitor(page, LOGIN), Visitor(page, LOGIN)
                visitor.fetch_config()
                client = HonestClient(lambda honest=honest: request_page(honest))  # type: ignore[misc]
                measure(row, name, page.pid, client, lambda: attack(page, visitor))  # noqa: B023


# The service

SERVICE = """
import json, sys, tempfile
from pathlib import Path
from asl_triton.presets import PRESETS
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.networks import GLOSSES, save_checkpoint

with tempfile.TemporaryDirectory() as name:
    checkpoint = load_checkpoint(save_checkpoint(Path(name) / "small.pt"))
    export_model(checkpoint, GLOSSES, PRESETS["wlasl"], Path(name) / "served", "small")
    with LocalTriton(Path(name) / "served", recognize_sign=True) as triton:
        print(json.dumps([triton.http_address, triton.address, triton.supervisor_pid]), flush=True)
        sys.stdin.read()
"""


@dataclass(frozen=True)
class RunningService:
    """A Triton with one small model and `recognize_sign`."""

    http: str
    grpc: str
    supervisor: int
    checkout: Path

    def post(self, body: bytes, timeout_s: float = 30) -> int:
        connection = HTTPConnection(self.http, timeout=timeout_s)
        try:
            connection.request("POST", "/v2/models/small/infer", body)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    def infer(self, shape: list[int], data: list[int] | None = None) -> str:
        """Return the status of a request, or the error of the connection."""
        values = [0] * int(np.prod(shape)) if data is None else data
        tensor = {"name": "FRAMES__0", "datatype": "UINT8", "shape": shape, "data": values}
        return self.attempt(lambda: self.post(json.dumps({"inputs": [tensor]}).encode()))

    def infer_over_grpc(self, shape: list[int]) -> str:
        request = service_pb2.ModelInferRequest(model_name="small", raw_input_contents=[b""])
        request.inputs.add(name="FRAMES__0", datatype="UINT8", shape=shape)
        with tritonclient.grpc.InferenceServerClient(self.grpc) as client:
            return self.attempt(lambda: client._client_stub.ModelInfer(request, timeout=30))

    def recognize(self, video: bytes) -> str:
        tensor = tritonclient.grpc.InferInput("VIDEO", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([video], dtype=object))
        with tritonclient.grpc.InferenceServerClient(self.grpc) as client:
            return self.attempt(lambda: client.infer("recognize_sign", [tensor], client_timeout=90))

    def attempt(self, act: Callable[[], object]) -> str:
        try:
            done = act()
        except Exception as exc:  # clients raise various types
            details = getattr(exc, "details", None) or getattr(exc, "message", None)
            return str(details() if details else exc).splitlines()[0][:110]
        return str(done) if isinstance(done, int) else "answered"


def send_sdp_lists(service: RunningService) -> str:
    video = struct.pack(">I4s4sI", 20, b"ftyp", b"jp2 ", 0) + b"jp2 " + SDP
    outcomes: list[str] = []
    run_together(16, lambda _: outcomes.append(service.recognize(video)))
    return outcomes[0]


def send_growing_video(service: RunningService) -> str:
    return service.recognize(build_growing_avi())


def build_growing_avi() -> bytes:
    """Build an MJPEG video that declares 64 x 64 pixels but grows to 12,000 x 12,000."""
    pictures = []
    for side in (64, 12_000):
        file = io.BytesIO()
        PIL.Image.new("RGB", (side, side)).save(file, "JPEG")
        pictures += [file.getvalue()] * (30 if side == 64 else 4)
    file = io.BytesIO()
    with av.open(file, "w", "avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            container.mux(packet)
    return file.getvalue()


def send_boxes(service: RunningService) -> str:
    """Send 200 MB of empty boxes to a page in front of this service. The honest client calls the service."""
    boxes = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + struct.pack(">I4s", 8, b"free") * 24_000_000
    with run_page(service.checkout, server=service.grpc) as page:
        visitor = Visitor(page, LOGIN)
        (path,) = json.loads(visitor.upload("boxes.mp4", boxes).text)
        body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "small", 3, 0.0]}
        began_s = time.monotonic()
        event = json.loads(visitor.post("/gradio_api/call/recognize", body).text)["event_id"]
        messages = visitor.request("GET", f"/gradio_api/call/recognize/{event}", timeout_s=120).text
        error = json.loads(messages.rpartition("data: ")[2])["error"]
        return f"{error[:100]}; its place was held for {time.monotonic() - began_s:.1f} s"


def run_command(service: RunningService, *arguments: object) -> str:
    """Run `asl-triton` with these arguments; return how it ended and its peak memory."""
    limits = (COMMAND_MEMORY_BYTES, COMMAND_MEMORY_BYTES)
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    with (
        tempfile.TemporaryDirectory() as name,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=name,
            env=os.environ | {"PYTHONPATH": find_packages(service.checkout), "COLUMNS": "300"},
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limits),
        ) as process,
    ):
        watch = MemoryWatch(psutil.Process(process.pid))
        with watch.watching():
            lines = process.communicate(timeout=300)[0].strip().splitlines() or [""]
    return f"exit {process.returncode}: {lines[-1][:110]}; the command's peak is {watch.peak_mb:,.0f} MB"


def export_code(service: RunningService) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_script(folder / "net.pt", FileWriter(folder / "owned"))
        save_labels(folder / "labels.txt")
        options = ("--labels", folder / "labels.txt", "--preset", "wlasl")
        outcome = run_command(service, "export", "--torchscript", folder / "net.pt", *options)
        return f"a file was {'' if (folder / 'owned').exists() else 'not '}written; {outcome}"


def export_device(service: RunningService) -> str:
    return run_command(service, "export", "/dev/zero", "--labels", "/dev/null")


def export_many(service: RunningService) -> str:
    with tempfile.TemporaryDirectory() as name:
        tensor = '"t%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        header = ("{" + ",".join(tensor % number for number in range(1_000_000)) + "}").encode()
        path = Path(name) / "many.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        return run_command(service, "export", path, "--labels", "/dev/null")


def send_lengths(service: RunningService) -> str:
    outcomes = {}
    with tritonclient.grpc.InferenceServerClient(service.grpc) as client:
        for frames in (3000, 1, 0):
            tensor = tritonclient.grpc.InferInput("FRAMES__0", [1, frames, 224, 224, 3], "UINT8")
            tensor.set_data_from_numpy(np.zeros((1, frames, 224, 224, 3), np.uint8))
            outcomes[frames] = service.attempt(lambda tensor=tensor: client.infer("small", [tensor]))  # type: ignore[misc]
    return "; ".join(f"{frames}: {outcome[:60]}" for frames, outcome in outcomes.items())


CLIP = [1, 9, 224, 224, 3]
OVERFLOWING, ENORMOUS = [1, 18014398509481984, 224, 224, 3], [2**40, 9, 224, 224, 3]
ON_SERVICE: list[tuple[str, str, Callable[[RunningService], str]]] = [
    ("1", "impossible shape over HTTP", lambda service: service.infer(OVERFLOWING, [])),
    ("1", "impossible shape over gRPC", lambda service: service.infer_over_grpc(OVERFLOWING)),
    ("1", "a tensor of 2^40 clips", lambda service: service.infer(ENORMOUS, [])),
    ("1", "JSON nested 4,000,000 deep", lambda service: service.attempt(lambda: service.post(b"[" * 4_000_000))),
    ("5", "16 SDP descriptions to recognize_sign", send_sdp_lists),
    ("6", "AVI that grows to 12,000 x 12,000", send_growing_video),
    ("7", "192 MB of empty boxes on the page", send_boxes),
    ("10", "TorchScript with code", export_code),
    ("11", "export /dev/zero", export_device),
    ("11", "safetensors of a million tensors", export_many),
    ("11", "3,000, 1 and 0 frames", send_lengths),
]


def measure_service(checkout: Path, only: str) -> None:
    """Measure the attacks on the service and the command line. Each gets its own Triton, as some never recover."""
    for row, name, attack in ON_SERVICE:
        if only in name:
            with run_service(checkout) as service:
                assert service.infer(CLIP) == "200"
                client = HonestClient(lambda service=service: service.infer(CLIP) == "200")  # type: ignore[misc]
                measure(row, name, service.supervisor, client, lambda: attack(service))  # noqa: B023


@contextmanager
def run_service(checkout: Path) -> Iterator[RunningService]:
    """Run the service of a checkout."""
    command = [sys.executable, "-c", SERVICE]
    environment = os.environ | {"PYTHONPATH": find_packages(checkout)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        http, grpc, supervisor = json.loads(process.stdout.readline())
        try:
            yield RunningService(http, grpc, supervisor, checkout)
        finally:
            process.stdin.close()
            process.wait(60)


def main() -> None:
    """Measure each attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--only", default="", help="measure only attacks whose name contains this text")
    arguments = parser.parse_args()
    for cells in (COLUMNS, ("---",) * len(COLUMNS)):
        print(f"| {' | '.join(cells)} |", flush=True)
    measure_page(arguments.checkout, arguments.only)
    measure_service(arguments.checkout, arguments.only)


if __name__ == "__main__":
    main()
