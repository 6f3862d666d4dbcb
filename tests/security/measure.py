"""What a stranger's requests cost, before and after: peak memory, and how long an honest visitor waits.

    python -m tests.security.measure [--checkout OTHER]

Each attack meets a page of its own, with accounts, or a service of its own. An honest visitor or caller asks it once a
second meanwhile: how many answers were lost, and the longest wait. `--checkout` measures another working tree, such as
an older one.
"""

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

from tests.security.test_page import LOGIN, SLIDERS, make_png
from tests.security.visitors import NOBODY, RunningPage, Visitor

PAGE = "import sys; from asl_triton.cli.app import main; sys.argv[0] = 'asl-triton'; main()"
PICTURES, STRANGERS, BODY_BYTES, UPLOADS = 6, 4, 300_000_000, 24


def run_together(count: int, act: Callable[[int], object]) -> None:
    """Call `act` with each number below `count`, in threads at the same time."""
    threads = [threading.Thread(target=act, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)


def send_pictures(page: RunningPage, visitor: Visitor) -> str:
    """Six pictures of 13,000 x 13,000 on the tab Live."""
    url = f"data:image/png;base64,{base64.b64encode(make_png(13_000, 13_000)).decode()}"
    data = [{"url": url, "path": "x"}, None, *SLIDERS]
    run_together(PICTURES, lambda number: visitor.run_event("stream", data, f"live{number}"))
    return f"{PICTURES} pictures of 169 megapixels"


def send_bodies(page: RunningPage, visitor: Visitor) -> str:
    """Four JSON bodies of 300 MB, by strangers."""
    statuses: list[str] = []

    def send(number: int) -> None:
        host, port = page.host.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: {page.host}\r\nContent-Type: application/json\r\n"
            with suppress(OSError):
                connection.sendall(f"{head}Content-Length: {BODY_BYTES}\r\n\r\n".encode() + b'{"data": ["')
                for _ in range(BODY_BYTES // 1_000_000):  # and a little more, which nobody reads
                    connection.sendall(b"x" * 1_000_000)
            with suppress(OSError):
                statuses.append(connection.recv(100).split(b"\r\n")[0].decode())

    run_together(STRANGERS, send)
    return f"{STRANGERS} bodies of 300 MB without a login: {', '.join(sorted(set(statuses))) or 'closed'}"


def fill_disk(page: RunningPage, visitor: Visitor) -> str:
    """24 uploads of 20 MB, by one login."""
    statuses = [visitor.upload(f"{number}.mp4", bytes([number]) * 19_000_000).status for number in range(UPLOADS)]
    return f"{UPLOADS} uploads of 19 MB: {statuses.count(200)} taken, {page.uploaded_mb():.0f} MB kept"


def guess_passwords(page: RunningPage, visitor: Visitor) -> str:
    """As many wrong logins as go into ten seconds."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    until_s, statuses = time.monotonic() + 10, []
    while time.monotonic() < until_s:
        statuses.append(visitor.ask("POST", "/login", "username=ada&password=wrong", headers).status)
    return f"{statuses.count(400)} passwords tried in 10 s"


ATTACKS: list[Callable[[RunningPage, Visitor], str]] = [send_pictures, send_bodies, fill_disk, guess_passwords]


def measure(attack: Callable[[RunningPage, Visitor], str], checkout: Path) -> None:
    """One attack, with an honest visitor beside it."""
    with tempfile.TemporaryDirectory() as name:
        folder, said = Path(name) / "temporary", Path(name) / "stderr"
        folder.mkdir()
        accounts = Path(name) / "accounts"
        accounts.write_text(":".join(LOGIN) + "\n")
        command = [sys.executable, "-c", PAGE, "ui", "--server", NOBODY, "--port", "0", "--json"]
        command += ["--auth-file", str(accounts), "--max-upload-mb", "20"]
        packages = os.pathsep.join(str(checkout / place) for place in ("client", "export", "deploy", "ui"))
        environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": packages}
        with (
            said.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
        ):
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            page = RunningPage(urllib.parse.urlsplit(url).netloc, process.pid, folder, said)
            visitor, honest = Visitor(page, LOGIN), Visitor(page, LOGIN)
            visitor.config()
            waits_s: list[float] = []
            lost: list[str] = []
            over = threading.Event()

            def ask() -> None:
                while not over.wait(1.0):
                    began_s = time.monotonic()
                    try:
                        answer = honest.ask("GET", "/config", timeout_s=60)
                        if answer.status != 200:
                            lost.append(str(answer.status))
                    except OSError as exc:
                        lost.append(str(exc))
                    waits_s.append(time.monotonic() - began_s)

            asking = threading.Thread(target=ask)
            asking.start()
            before_mb, began_s = page.peak_mb(), time.monotonic()
            what = attack(page, visitor)
            took_s = time.monotonic() - began_s
            time.sleep(2.5)
            over.set()
            asking.join()
            print(
                f"{what}; {took_s:.1f} s; peak memory {before_mb:.0f} -> {page.peak_mb():.0f} MB; honest visitor: "
                f"{len(waits_s)} asked, {len(lost)} lost, longest wait {max(waits_s):.2f} s",
                flush=True,
            )
            process.terminate()
            process.wait(60)


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
    with LocalTriton(Path(name) / "served") as triton:
        print(json.dumps(triton.http_address), flush=True)
        sys.stdin.read()
"""


def ask_service(address: str, shape: list[int], data: list[int]) -> int:
    """One request for a clip: its status."""
    given = {"name": "FRAMES__0", "datatype": "UINT8", "shape": shape, "data": data}
    connection = HTTPConnection(address, timeout=30)
    try:
        connection.request("POST", "/v2/models/small/infer", json.dumps({"inputs": [given]}))
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def measure_service(checkout: Path) -> None:
    """One request that kills a model, then half a minute of honest ones, one a second."""
    packages = os.pathsep.join(str(checkout / place) for place in ("client", "export", "deploy", "."))
    command = [sys.executable, "-c", SERVICE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": packages}
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        address = json.loads(process.stdout.readline())
        clip = [0] * (9 * 224 * 224 * 3)
        assert ask_service(address, [1, 9, 224, 224, 3], clip) == 200
        killed_s = time.monotonic()
        with suppress(OSError):
            ask_service(address, [1, 18014398509481984, 224, 224, 3], [])
        answered_s: list[float] = []
        lost = 0
        for _ in range(30):
            try:
                status = ask_service(address, [1, 9, 224, 224, 3], clip)
            except OSError:
                status = 0
            if status == 200:
                answered_s.append(time.monotonic() - killed_s)
            else:
                lost += 1
            time.sleep(1)
        first = f"{answered_s[0]:.1f} s" if answered_s else "never"
        print(
            f"a request that kills a model; honest caller: 30 asked, {lost} lost, next answer after {first}", flush=True
        )
        process.stdin.close()
        process.wait(60)


def main() -> None:
    """Measure each attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[2])
    checkout = parser.parse_args().checkout
    for attack in ATTACKS:
        measure(attack, checkout)
    measure_service(checkout)


if __name__ == "__main__":
    main()
