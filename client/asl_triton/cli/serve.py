"""`asl-triton serve`: a real Triton on this machine, without Docker."""

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from asl_triton.cli.terminal import Console, echo
from asl_triton.extras import require_extra


def serve(
    repository: Annotated[
        Path, typer.Option(help="The model repository to serve: a folder with one subfolder per model.")
    ] = Path("model_repository"),
    host: Annotated[
        str,
        typer.Option(help="The address to bind to. Anything but 127.0.0.1 lets other machines in, without encryption."),
    ] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="The port for gRPC, which our clients use; 0 for a free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="The port for HTTP and health checks; 0 for a free one.")] = 8000,
    metrics_port: Annotated[int, typer.Option(help="The port for Prometheus; 0 for a free one.")] = 8002,
    log: Annotated[
        Path | None, typer.Option(help="The file for Triton's log.", show_default="one in ~/.local/state/asl-triton")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Load only this model; may be given several times.", show_default="all")
    ] = None,
    recognize_sign: Annotated[
        bool, typer.Option(help="Also serve recognize_sign and recognize_sign_stream, which take whole videos.")
    ] = True,
    shared_memory: Annotated[
        bool | None,
        typer.Option(
            show_default="on if this machine has no other users",
            help="Let your own clients share memory with Triton. The key for it is on Triton's command line, which "
            "every user of this machine can read.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the models to load.", min=1)] = 120.0,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Return once Triton is ready and leave it running. Only one can run this way."),
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the Triton that --detach started.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON, for programs.")] = False,
) -> None:
    """Run a real Triton on this machine, without Docker, until Ctrl-C.

    It runs the `tritonserver` on PATH or, if there is none, the one that the extra `serve` installs. Use the latter for
    development only, because it predates many security fixes. For production, use NVIDIA's container, 26.11 or newer.

    Example: asl-triton serve --repository model_repository --model wlasl --detach
    """
    with require_extra("serve"):
        from asl_triton_deploy import detached
        from asl_triton_deploy.local import LocalTriton

    # Answers go to standard output, everything else to standard error.
    messages = Console(stderr=True)
    if stop:
        stopped = detached.stop_detached()
        if as_json:
            print(json.dumps({"stopped": stopped is not None}))
        else:
            print(f"Stopped the Triton at {stopped.address}." if stopped else "No detached Triton is running.")
        return
    if log is None and grpc_port:
        log = detached.state_folder() / f"triton-{grpc_port}.log"
    server = LocalTriton(
        repository,
        host=host,
        grpc_port=grpc_port or None,
        http_port=http_port or None,
        metrics_port=metrics_port or None,
        log_path=log,
        startup_timeout_s=timeout,
        models=model or None,
        recognize_sign=recognize_sign,
        shared_memory=shared_memory,
    )
    if detach:
        with messages.status("Starting Triton"):
            running = detached.detach(server)
        _show(asdict(running), as_json)
        _warn(messages, server.from_wheel, server.is_open)
        return
    # Handle SIGTERM like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with messages.status("Starting Triton"):
            server.start()
        _show(asdict(detached.describe(server)), as_json)
        _warn(messages, server.from_wheel, server.is_open)
        server.wait()
    except KeyboardInterrupt:
        messages.print("Stopping Triton.")
    finally:
        server.stop()


def _show(running: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({key: value for key, value in running.items() if key != "started"}), flush=True)
    else:
        print(f"gRPC     {running['address']}")
        print(f"HTTP     http://{running['http_address']}")
        print(f"metrics  http://{running['metrics_address']}/metrics")
        echo(f"models   {', '.join(running['models'])}")
        print(f"log      {running['log']}", flush=True)


def _warn(messages: Console, from_wheel: bool, is_open: bool) -> None:
    if from_wheel:
        messages.print(
            "Use this Triton for development only, because it predates many security fixes. "
            "For production, use NVIDIA's container, 26.11 or newer.",
            style="dim",
        )
    if is_open:
        messages.print("Other machines can use this server without logging in.", style="bold yellow")
