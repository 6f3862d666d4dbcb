"""Starts and stops the page: its port, its upload folder, and its web server."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from starlette.middleware import Middleware

from asl_triton.decoding.factory import warm_up
from asl_triton.errors import AslTritonError
from asl_triton.recognizer.event_loop import run
from asl_triton_ui.options import MB, Address, PageOptions
from asl_triton_ui.security import PatientProtocol, SecurityMiddleware, allow_open_files
from asl_triton_ui.state.server import ServerConnection
from asl_triton_ui.uploads import UploadQuota, make_upload_folder

HERE = Path(__file__).parent
SPARE_STREAMS = 16  # cameras of visitors who wait for a live place
SPARE_EVENTS = 16  # events that Gradio runs at once in addition to clips and cameras


@contextmanager
def run_page(server: ServerConnection, options: PageOptions, address: Address) -> Iterator[str]:
    """Serve the page for the duration of the block; yield its address, which ends in "/".

    Raises:
        AslTritonError: the port is taken or not allowed, or the address is not this machine's.
    """
    port = find_free_port(address)
    with make_upload_folder(60 * options.keep_minutes) as folder:
        warm_up()
        from asl_triton_ui.app import build  # only now, because Gradio reads its file folder on import
        from asl_triton_ui.event_limits import EventLimits
        from asl_triton_ui.theme import theme
        from asl_triton_ui.upload_components import refuse_form_fields

        allow_open_files()
        refuse_form_fields()
        uploads = UploadQuota(
            folder,
            60 * options.keep_minutes,
            max_visitor_bytes=options.max_visitor_bytes,
            max_folder_bytes=options.max_folder_bytes,
            min_free_bytes=options.min_free_mb * MB,
        )
        # Behind a proxy or a tunnel, a request's headers may not contain the page's public address.
        proxy = urlsplit(address.root_path)
        origins = {f"{proxy.scheme}://{proxy.netloc}"} if proxy.netloc else set()
        page = build(server, options)
        page.queue(max_size=None, api_open=False)
        head = build_head(options)
        max_streams = options.max_live + SPARE_STREAMS
        EventLimits(page, max_streams)
        _, local_url, share_url = page.launch(
            server_name=address.host,
            server_port=port,
            root_path=address.root_path,
            share=address.share,
            auth=list(address.auth) or None,
            max_file_size=options.limits.max_bytes,
            max_threads=options.at_once + options.queue_limit + max_streams + SPARE_EVENTS,
            css_paths=HERE / "page.css",
            head=head,
            theme=theme(),
            favicon_path=HERE / "favicon.svg",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            show_error=True,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(SecurityMiddleware, uploads, origins, head)]},
        )
        page.server.config.http_protocol_class = PatientProtocol  # Gradio passes no options to uvicorn
        origins.add((share_url or local_url).rstrip("/"))
        try:
            yield share_url or local_url
        finally:
            page.close(verbose=False)
            run(server.close())


def build_head(options: PageOptions) -> str:
    """Return our part of the page's head: the script, and the size limit that it checks before an upload."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return f"<script>window.aslTriton = {{ maxUploadMb: {options.max_upload_mb} }};\n{script}</script>"


def find_free_port(address: Address) -> int:
    """Return the port to listen on. Checked before anything is built.

    Raises:
        AslTritonError: the port or the host cannot be used.
    """
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except (OSError, OverflowError) as exc:
            raise AslTritonError(explain_start_failure(exc, address)) from exc
        return int(listener.getsockname()[1])


def explain_start_failure(exc: OSError | OverflowError, address: Address) -> str:
    """Explain why the port cannot be used."""
    place = f"port {address.port} on {address.host}"
    if isinstance(exc, OverflowError):
        return f"{address.port} is not a port: pass --port 0 to 65535 (0 takes a free one)"
    if exc.errno == errno.EADDRINUSE:
        return f"{place} is in use, perhaps by another page: stop it, or choose another port (--port; 0 takes any)"
    if exc.errno == errno.EACCES:
        return f"{place} is for administrators only: choose a port above 1023 (--port)"
    if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
        return f"cannot bind to {address.host}: not an address of this machine (--host)"
    return f"cannot bind to {place}: {exc.strerror}"
