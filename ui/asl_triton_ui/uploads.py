"""What visitors upload: in a private folder of this process, deleted in time, and served to nobody else."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SWEEP_EVERY_S = 60.0
# What Gradio offers and a page needs not: fetching any address of the net, and a session as a link.
API = "/gradio_api"
CLOSED = (f"{API}/file=http", f"{API}/file/http", f"{API}/proxy", f"{API}/deep_link", "/monitoring")
# The page loads nothing from elsewhere, and no other page may show it in a frame.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


@contextmanager
def make_upload_folder(keep_s: float) -> Iterator[Path]:
    """A folder that only this user can read, where Gradio keeps all files of the page for the length of the block.

    What is older than `keep_s` is deleted, uploads that were broken off among it. Build the page inside the block:
    Gradio reads where its files go when a component is made.
    """
    names = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")
    before = {name: os.environ.get(name) for name in names}
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="asl-triton-ui-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        os.environ.update(dict.fromkeys(names, str(folder)))
        sweeper = threading.Thread(target=sweep_periodically, args=(folder, keep_s, over), name="sweep", daemon=True)
        sweeper.start()
        try:
            yield folder
        finally:
            over.set()
            for variable, value in before.items():
                os.environ.pop(variable, None)
                if value is not None:
                    os.environ[variable] = value


def sweep_periodically(folder: Path, keep_s: float, over: threading.Event) -> None:
    """Sweep now and then until `over`."""
    while not over.wait(min(SWEEP_EVERY_S, keep_s / 2)):
        sweep(folder, keep_s)


def sweep(folder: Path, keep_s: float) -> None:
    """Delete the files that came longer than `keep_s` ago, and the folders that are empty then."""
    oldest = time.time() - keep_s
    for parent, folders, files in os.walk(folder, topdown=False):
        for file in files:
            with suppress(OSError):
                # When the file came here, whatever its own time says.
                if os.lstat(path := os.path.join(parent, file)).st_ctime < oldest:
                    os.unlink(path)
        for name in folders:
            with suppress(OSError):
                # One that was made just now waits for its file.
                if os.lstat(path := os.path.join(parent, name)).st_mtime < oldest:
                    os.rmdir(path)


class SecurityMiddleware:
    """ASGI middleware: closes routes of Gradio that no page needs, and has browsers load nothing foreign."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"].startswith(CLOSED):
            await send({"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not found\n"})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)
