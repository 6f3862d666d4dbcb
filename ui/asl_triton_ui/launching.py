"""Starting the page: its port, its folder, its server of the web; and stopping it."""

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
SPARE_STREAMS = 16  # cameras of visitors who wait for a place among those that are live
SPARE_EVENTS = 16  # that Gradio runs at once besides clips and cameras


@contextmanager
def run_page(server: ServerConnection, options: PageOptions, address: Address) -> Iterator[str]:
    """The page, for the length of the block: its address, which ends in "/".

    Raises:
        AslTritonError: the port is taken or not allowed, or the address is not this machine's.
    """
    port = find_free_port(address)
    with make_upload_folder(60 * options.keep_minutes) as folder:
        warm_up()
        from asl_triton_ui.app import build  # only now: Gradio reads when it is imported where files go
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
        # Addresses of the page that a request's own head may not show: behind a proxy, or over a tunnel.
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
        page.server.config.http_protocol_class = PatientProtocol  # Gradio passes uvicorn no options
        origins.add((share_url or local_url).rstrip("/"))
        try:
            yield share_url or local_url
        finally:
            page.close(verbose=False)
            run(server.close())


def build_head(options: PageOptions) -> str:
    """What the page's head holds besides Gradio's: our script, and the limit that it checks before an upload."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return f"<script>window.aslTriton = {{ maxUploadMb: {options.max_upload_mb} }};\n{script}</script>"


def find_free_port(address: Address) -> int:
    """The port to listen on, checked before anything is built."""
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except (OSError, OverflowError) as exc:
            raise AslTritonError(explain_start_failure(exc, address)) from exc
        return int(listener.getsockname()[1])


def explain_start_failure(exc: OSError | OverflowError, address: Address) -> str:
    """The sentence for a port that cannot be had."""
    place = f"port {address.port} on {address.host}"
    if isinstance(exc, OverflowError):
        return f"{address.port} is not a port: give one between 0 and 65535 (--port), 0 for a free one"
    if exc.errno == errno.EADDRINUSE:
        return f"{place} is in use, perhaps by another page: stop that, or give another (--port, 0 for a free one)"
    if exc.errno == errno.EACCES:
        return f"{place} is for administrators only: give one above 1023 (--port)"
    if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
        return f"cannot bind to {address.host}: not an address of this machine (--host)"
    return f"cannot bind to {place}: {exc.strerror}"
