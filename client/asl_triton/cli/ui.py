"""`asl-triton ui`: the web page."""

import dataclasses
import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from asl_triton.cli.connection import Connection, with_connection
from asl_triton.cli.options import JsonOption
from asl_triton.cli.terminal import Console
from asl_triton.extras import require_extra
from asl_triton.files import check_writable
from asl_triton.transport.base import Transport


@with_connection("dictionary", "model", "local", "server")
def ui(
    host: Annotated[
        str, typer.Option(help="The address to bind to. Anything but 127.0.0.1 lets other machines in; set --auth.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The page's port; 0 for a free one.")] = 7860,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="USER:PASSWORD",
            envvar="ASL_TRITON_UI_AUTH",
            help="Require this login. Other users of this machine can see command lines, so prefer the variable.",
        ),
    ] = None,
    auth_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Require one of the logins in this file, one user:password per line."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="/PREFIX", help="The path under which a proxy serves the page.")
    ] = "",
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="Let anyone in through a Gradio tunnel. Clips then pass through Gradio's servers."
        ),
    ] = False,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="The largest upload, in MB.")] = 200,
    max_minutes: Annotated[float, typer.Option(min=0.1, help="The longest video, in minutes.")] = 10.0,
    max_clips: Annotated[int, typer.Option(min=1, help="How many clips one visitor may send at once.")] = 200,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="How many visitors' clips to recognize at once.")] = 4,
    max_live: Annotated[int, typer.Option(min=1, help="How many visitors may sign live at the same time.")] = 4,
    queue: Annotated[
        int, typer.Option(min=0, help="How many more may wait. Others are asked to come back later.")
    ] = 32,
    max_visitor_mb: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="5 x --max-upload-mb",
            help="The disk space for one visitor's uploads, in MB. A visitor is a login or else an address.",
        ),
    ] = None,
    max_folder_mb: Annotated[
        int | None,
        typer.Option(
            min=1, show_default="15 x --max-upload-mb", help="The disk space for all visitors' uploads, in MB."
        ),
    ] = None,
    min_free_mb: Annotated[int, typer.Option(min=0, help="How much disk space to keep free, in MB.")] = 500,
    decode_timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds that a decoder may take to open a video, and to decode each window."),
    ] = 15.0,
    visitors_teach: Annotated[
        bool,
        typer.Option(
            "--visitors-teach",
            help="With --dictionary: let all visitors add signs to the file and remove them. By default they only use "
            "them. Do not change the file by other means while the page runs.",
        ),
    ] = False,
    *,
    connection: Connection,
    as_json: JsonOption = False,
) -> None:
    """Serve a web page for a running server until Ctrl-C: upload, record or sign live, and see the glosses.

    If the server is down, the page waits for it. Uploads stay on this machine and are deleted within the hour.
    Without --dictionary, each visitor can teach signs that nobody else sees. They stay in memory until 50 minutes after
    their last use, and can be downloaded.

        asl-triton ui --local --open
        asl-triton ui --server gpu-box:8001 --host 0.0.0.0 --auth-file accounts.txt --root-path /signs
    """
    with require_extra("ui"):
        from asl_triton_ui.launching import run_page
        from asl_triton_ui.options import Address, PageOptions, read_auth
        from asl_triton_ui.state.server import ServerConnection

    if visitors_teach and connection.dictionary is None:
        raise typer.BadParameter("needs --dictionary", param_hint="--visitors-teach")
    if visitors_teach and connection.dictionary is not None:
        check_writable(connection.dictionary.absolute().parent)
    options = PageOptions(
        max_upload_mb,
        max_minutes,
        max_clips,
        queue,
        at_once,
        max_live,
        max_visitor_mb=max_visitor_mb,
        max_folder_mb=max_folder_mb,
        min_free_mb=min_free_mb,
        decode_timeout_s=decode_timeout,
        dictionary=connection.dictionary,
        with_vocabulary=connection.with_vocabulary,
        visitors_teach=visitors_teach,
    )
    page = Address(host, port, root_path, share, read_auth(auth, auth_file))
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    with connection.address() as address:

        def connect(in_flight: int, timeout_s: float) -> Transport:
            return dataclasses.replace(connection, timeout=timeout_s).make_transport(address, in_flight)

        triton = ServerConnection(
            connect,
            timeout_s=connection.timeout,
            at_once=at_once,
            limits=options.limits,
            only=connection.model,
            decode_timeout_s=options.decode_timeout_s,
        )
        with run_page(triton, options, page) as url:
            if as_json:
                typer.echo(json.dumps({"url": url, "server": triton.address}))
            else:
                typer.echo(f"The page is at {url} and uses the server at {triton.address}. Press Ctrl-C to stop.")
                if page.is_open and not page.auth:
                    warning = "Other machines can use this page without logging in: see --auth."
                    Console(stderr=True).print(warning, style="bold yellow")
            if open_browser:
                typer.launch(url)
            try:
                while not stopped.wait(1.0):  # a wait without a timeout would block Ctrl-C
                    pass
            except KeyboardInterrupt:
                pass
