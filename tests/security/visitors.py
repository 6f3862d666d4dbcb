"""The page as a process, and visitors that send it arbitrary requests."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

# Overrides constants of the page, such as timeouts that would slow a test down.
PATCHED = """
import sys
from asl_triton_ui import security
for name, value in {patches!r}.items():
    assert hasattr(security, name)
    setattr(security, name, value)
from asl_triton.cli.app import main
sys.argv[0] = "asl-triton"
main()
"""
NO_SERVER = "127.0.0.1:9"  # no Triton listens here


@dataclass(frozen=True)
class RunningPage:
    """A running page."""

    host: str
    pid: int
    folder: Path  # its temporary files
    log_path: Path  # its standard error

    @property
    def stderr(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def read_peak_mb(self) -> float:
        """Return the peak memory of the process so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    def read_uploaded_mb(self) -> float:
        """Return the size of all files in its upload folder."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / 1e6


@contextmanager
def run_page(*options: object, server: str = NO_SERVER, **patches: float) -> Iterator[RunningPage]:
    """Run `asl-triton ui` on a free port; `patches` override constants of its `security` module."""
    with tempfile.TemporaryDirectory() as name:
        folder, log_path = Path(name) / "temporary", Path(name) / "stderr"
        folder.mkdir()
        command = [sys.executable, "-c", PATCHED.format(patches=patches), "ui", "--server", server, "--port", "0"]
        command += ["--json", *map(str, options)]
        environment = os.environ | {"TMPDIR": str(folder)}
        with (
            log_path.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
        ):
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, log_path.read_text()
            try:
                yield RunningPage(urllib.parse.urlsplit(json.loads(line)["url"]).netloc, process.pid, folder, log_path)
            finally:
                process.terminate()
                process.wait(60)


class Visitor:
    """Sends requests to a page, like a browser or any other program."""

    def __init__(self, page: RunningPage, login: tuple[str, str] | None = None) -> None:
        self.page = page
        self.cookie = ""
        if login is not None:
            form = urllib.parse.urlencode(dict(zip(("username", "password"), login, strict=True)))
            response = self.request("POST", "/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
            assert response.status == 200, response.text
            cookies = [value.partition(";")[0] for name, value in response.headers if name.lower() == "set-cookie"]
            self.cookie = "; ".join(cookies)

    def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> "PageResponse":
        """Send a request and return the complete response."""
        connection = HTTPConnection(self.page.host, timeout=timeout_s)
        try:
            cookies = {"Cookie": self.cookie} if self.cookie else {}
            connection.request(method, path, body, {**cookies, **(headers or {})})
            return PageResponse.read(connection.getresponse())
        finally:
            connection.close()

    def post(self, path: str, document: Any, headers: Mapping[str, str] | None = None) -> "PageResponse":
        """Send a document as JSON."""
        return self.request("POST", path, json.dumps(document), {"Content-Type": "application/json", **(headers or {})})

    def upload(self, name: str | None, content: bytes) -> "PageResponse":
        """Upload a file like a browser does, or without a file name if `name` is None."""
        disposition = 'form-data; name="files"' + ("" if name is None else f'; filename="{name}"')
        head = f"--cut\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body = head + content + b"\r\n--cut--\r\n"
        return self.request("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=cut"})

    def run_event(self, name: str, data: list[Any], session: str = "session") -> str:
        """Run an event of the page, such as "stream", with these input values, and return the page's messages."""
        event = next(e for e in self.fetch_config()["dependencies"] if [t for t in e["targets"] if t[1] == name])
        body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": None, "trigger_id": None}
        joined = self.post("/gradio_api/queue/join", body)
        assert joined.status == 200, joined.text
        connection = HTTPConnection(self.page.host, timeout=60)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}", headers={"Cookie": self.cookie})
            response = connection.getresponse()
            messages = ""
            while line := response.readline().decode():
                messages += line
                if any(end in line for end in ("process_completed", "process_streaming", "unexpected_error")):
                    break
            return messages
        finally:
            connection.close()

    def fetch_config(self) -> dict[str, Any]:
        """Return the page's components and events."""
        document: dict[str, Any] = json.loads(self.request("GET", "/config").text)
        return document


@dataclass(frozen=True)
class PageResponse:
    """A response of the page."""

    status: int
    text: str
    headers: list[tuple[str, str]]

    @classmethod
    def read(cls, response: HTTPResponse) -> "PageResponse":
        return cls(response.status, response.read().decode(errors="replace"), response.getheaders())
