"""A real HTTP server on this machine that misbehaves on demand."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mmap import mmap


@dataclass
class Served:
    """One file and how it is served."""

    content: bytes | mmap
    etag: str | None = '"v1"'
    takes_ranges: bool = True
    content_type: str = "application/octet-stream"
    status: int = 200
    location: str | None = None
    cuts: list[int] = field(default_factory=list)  # bytes after which the next requests are cut off, one each
    stall_after: int | None = None  # bytes after which a request stalls until the server stops


@dataclass
class FileServer:
    """The served files, and (path, Range header) of every request."""

    url: str
    files: dict[str, Served] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def get_ranges(self, path: str) -> list[str | None]:
        """Return the Range headers of the requests for a path."""
        return [range_header for name, range_header in self.requests if name == path]


@contextmanager
def serve_files() -> Iterator[FileServer]:
    """Serve on a free port of 127.0.0.1 for the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            range_header = self.headers["Range"]
            state.requests.append((self.path, range_header))
            served = state.files.get(self.path, Served(b"nothing here", status=404, content_type="text/html"))
            content, start, stop = served.content, 0, len(served.content)
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", range_header or "")
            is_part = found is not None and served.status == 200 and served.takes_ranges
            if found is not None and is_part and self.headers["If-Range"] in (None, served.etag):
                start = int(found[1])
                stop = min(int(found[2]) + 1, stop) if found[2] else stop
            # `bytes=0-` asks for the whole file, which is answered with 200.
            is_part = is_part and found is not None and (start > 0 or bool(found[2]))
            if start >= len(content) > 0 and start:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if is_part else served.status)
            if is_part:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            if served.location:
                self.send_header("Location", served.location)
            if served.etag:
                self.send_header("ETag", served.etag)
            self.send_header("Content-Type", served.content_type)
            self.send_header("Content-Length", str(stop - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            if served.cuts:
                stop = min(stop, start + served.cuts.pop(0))
            if served.stall_after is not None:
                self.wfile.write(content[start : served.stall_after])
                self.wfile.flush()
                state.ending.wait(30)
                return
            self.wfile.write(content[start:stop])

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client disconnected

    with Server(("127.0.0.1", 0), Handler) as server:
        state = FileServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            state.ending.set()
            server.shutdown()
            thread.join()
