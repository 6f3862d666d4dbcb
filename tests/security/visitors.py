"""A page as a process, and visitors who send it whatever they like."""

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

# Waits of the page that a test does not want to sit out.
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
NOBODY = "127.0.0.1:9"  # where no Triton is


@dataclass(frozen=True)
class RunningPage:
    """A page's process."""

    host: str
    pid: int
    folder: Path  # its temporary files
    said: Path  # its standard error

    @property
    def stderr(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace")

    def peak_mb(self) -> float:
        """The most memory that it has used so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    def uploaded_mb(self) -> float:
        """What lies in its folder of uploads."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files) / 1e6


@contextmanager
def running_page(*options: object, server: str = NOBODY, **patches: float) -> Iterator[RunningPage]:
    """`asl-triton ui` on a free port, for the length of the block; `patches` are constants of its `security`."""
    with tempfile.TemporaryDirectory() as name:
        folder, said = Path(name) / "temporary", Path(name) / "stderr"
        folder.mkdir()
        command = [sys.executable, "-c", PATCHED.format(patches=patches), "ui", "--server", server, "--port", "0"]
        command += ["--json", *map(str, options)]
        environment = os.environ | {"TMPDIR": str(folder)}
        with (
            said.open("wb") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
        ):
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, said.read_text()
            try:
                yield RunningPage(urllib.parse.urlsplit(json.loads(line)["url"]).netloc, process.pid, folder, said)
            finally:
                process.terminate()
                process.wait(60)


class Visitor:
    """Sends requests to a page, as a browser or as anything else."""

    def __init__(self, page: RunningPage, login: tuple[str, str] | None = None) -> None:
        self.page = page
        self.cookie = ""
        if login is not None:
            form = urllib.parse.urlencode(dict(zip(("username", "password"), login, strict=True)))
            answer = self.ask("POST", "/login", form, {"Content-Type": "application/x-www-form-urlencoded"})
            assert answer.status == 200, answer.text
            cookies = [value.partition(";")[0] for name, value in answer.headers if name.lower() == "set-cookie"]
            self.cookie = "; ".join(cookies)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout_s: float = 60
    ) -> "Answer":
        """One request and its whole answer."""
        connection = HTTPConnection(self.page.host, timeout=timeout_s)
        try:
            own = {"Cookie": self.cookie} if self.cookie else {}
            connection.request(method, path, body, {**own, **(headers or {})})
            return Answer.read(connection.getresponse())
        finally:
            connection.close()

    def post(self, path: str, document: Any, headers: Mapping[str, str] | None = None) -> "Answer":
        """A request of JSON."""
        return self.ask("POST", path, json.dumps(document), {"Content-Type": "application/json", **(headers or {})})

    def upload(self, name: str | None, content: bytes) -> "Answer":
        """One file, as a browser uploads it; without a file name if `name` is None."""
        disposition = 'form-data; name="files"' + ("" if name is None else f'; filename="{name}"')
        head = f"--cut\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body = head + content + b"\r\n--cut--\r\n"
        return self.ask("POST", "/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=cut"})

    def run_event(self, name: str, data: list[Any], session: str = "session") -> str:
        """Run the event of that kind on the page, such as "stream", with what its inputs hold: what the page says."""
        event = next(e for e in self.config()["dependencies"] if [t for t in e["targets"] if t[1] == name])
        body = {"data": data, "fn_index": event["id"], "session_hash": session, "event_data": None, "trigger_id": None}
        joined = self.post("/gradio_api/queue/join", body)
        assert joined.status == 200, joined.text
        connection = HTTPConnection(self.page.host, timeout=60)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={session}", headers={"Cookie": self.cookie})
            response = connection.getresponse()
            said = ""
            while line := response.readline().decode():
                said += line
                if any(end in line for end in ("process_completed", "process_streaming", "unexpected_error")):
                    break
            return said
        finally:
            connection.close()

    def config(self) -> dict[str, Any]:
        """The page's components and events."""
        document: dict[str, Any] = json.loads(self.ask("GET", "/config").text)
        return document


@dataclass(frozen=True)
class Answer:
    """What a page answered."""

    status: int
    text: str
    headers: list[tuple[str, str]]

    @classmethod
    def read(cls, response: HTTPResponse) -> "Answer":
        return cls(response.status, response.read().decode(errors="replace"), response.getheaders())
