"""A network camera: an HTTP server that streams Motion JPEG or video files and can be interrupted."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np

BOUNDARY = "frame"


class NetworkCamera:
    """Serves the JPEG `pictures` in a loop at `/mjpeg`, at `frame_rate`, and the files of `folder`.

    By default each frame is one gray level brighter than the last.

    While `is_away` is set, it rejects new connections and drops open ones. While `is_silent` is set, it sends nothing
    but stays connected. If `cut_after` is set, the next file is cut off after this many bytes.
    """

    def __init__(
        self, folder: Path | None = None, frame_rate: float = 25.0, pictures: Sequence[bytes] | None = None
    ) -> None:
        self.folder, self.frame_rate = folder, frame_rate
        self.pictures = pictures or [jpeg(np.full((48, 64, 3), level, np.uint8)) for level in range(200)]
        self.is_away, self.is_silent = threading.Event(), threading.Event()
        self.cut_after: int | None = None
        self.num_connections = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """The address as `host:port`."""
        return f"127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator["NetworkCamera"]:
        """Serve within the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self.is_away.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.num_connections += 1
                if camera.is_away.is_set():
                    return
                try:
                    if self.path.startswith("/mjpeg"):
                        self.stream()
                    else:
                        self.file()
                except (BrokenPipeError, ConnectionResetError):
                    return  # the viewer has left

            def stream(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
                self.end_headers()
                for picture in cycle(camera.pictures):
                    if camera.is_away.wait(1 / camera.frame_rate):
                        return
                    if camera.is_silent.is_set():
                        continue
                    head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                    self.wfile.write(head.encode() + picture + b"\r\n")

            def file(self) -> None:
                path = (camera.folder or Path("/nowhere")) / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                content = path.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                cut, camera.cut_after = camera.cut_after, None
                self.wfile.write(content[:cut])

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        return Handler


def jpeg(image_bgr: np.ndarray) -> bytes:
    """Encode a frame as JPEG."""
    return cv2.imencode(".jpg", image_bgr)[1].tobytes()


def wait_until(condition: object, seconds: float = 10.0) -> None:
    """Wait until `condition()` is true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met within {seconds} s"
        time.sleep(0.01)
