"""Options that several commands share, word for word."""

from pathlib import Path
from typing import Annotated

import typer

from asl_triton.recognizer.upload import Send
from asl_triton.transport.shm import Sharing

RepositoryOption = Annotated[Path, typer.Option(help="The model repository: what Triton serves.")]
ServerOption = Annotated[
    str,
    typer.Option(
        "--server", envvar="ASL_TRITON_SERVER", help="Triton's gRPC address: host:port; several with commas between."
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Which model to ask. Not needed where only one is served.")
]
TlsOption = Annotated[bool, typer.Option("--tls", help="Speak TLS, trusting this machine's authorities.")]
TlsCaOption = Annotated[
    Path | None,
    typer.Option("--tls-ca", envvar="ASL_TRITON_TLS_CA", help="Speak TLS, trusting this authority (PEM)."),
]
TlsCertOption = Annotated[
    Path | None,
    typer.Option("--tls-cert", envvar="ASL_TRITON_TLS_CERT", help="Our certificate, for mutual TLS (PEM)."),
]
TlsKeyOption = Annotated[
    Path | None,
    typer.Option("--tls-key", envvar="ASL_TRITON_TLS_KEY", help="The certificate's private key (PEM)."),
]
TlsServerNameOption = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name",
        envvar="ASL_TRITON_TLS_SERVER_NAME",
        help="The name in the servers' certificates, where they are reached by another.",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option("--api-key", envvar="ASL_TRITON_API_KEY", help="Sent as the header triton-grpc-protocol-api-key."),
]
SendOption = Annotated[
    Send,
    typer.Option(
        help="What goes to the server: cropped `frames`; the `video` file, which recognize_sign decodes there; or "
        "`auto`: the file where the server takes it and it is smaller than its frames."
    ),
]
TransportOption = Annotated[
    Sharing,
    typer.Option(
        "--transport",
        help="How frames reach a server on this machine: by `shm`, memory that both share; in `grpc` messages; or "
        "`auto`: shared memory where the server allows it.",
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for one answer.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LocalOption = Annotated[
    bool, typer.Option("--local", help="Start a Triton on --repository for the length of this command.")
]
