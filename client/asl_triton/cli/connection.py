"""The connection options of commands, and the connection that they configure."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from asl_triton.cli.options import ModelOption, RepositoryOption
from asl_triton.extras import require_extra
from asl_triton.models.served import ServedModel
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.upload import Send
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.transport.base import Transport
from asl_triton.transport.endpoints import DEFAULT_SERVER
from asl_triton.transport.factory import make_transport
from asl_triton.transport.security import Security
from asl_triton.transport.shm import Sharing
from asl_triton.transport.triton_grpc import DEFAULT_TIMEOUT_S

Command = Callable[..., None]
OptionGroup = Literal["server", "local", "send", "transport", "model", "dictionary"]


@dataclass
class Connection:
    """Which server a command uses, and how. Each field is an option of commands decorated with `with_connection`.

    Raises:
        AslTritonError: the options for `Security` are invalid, or the dictionary could not be loaded.
    """

    server: Annotated[
        str,
        typer.Option(
            envvar="ASL_TRITON_SERVER", help="Triton's gRPC address, host:port. Separate several with commas."
        ),
    ] = DEFAULT_SERVER
    tls: Annotated[bool, typer.Option("--tls", help="Use TLS and trust this machine's certificate authorities.")] = (
        False
    )
    tls_ca: Annotated[
        Path | None,
        typer.Option(envvar="ASL_TRITON_TLS_CA", help="Use TLS and trust this certificate authority (PEM)."),
    ] = None
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="ASL_TRITON_TLS_CERT", help="The client certificate, for mutual TLS (PEM).")
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option(envvar="ASL_TRITON_TLS_KEY", help="The client certificate's private key (PEM).")
    ] = None
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            envvar="ASL_TRITON_TLS_SERVER_NAME",
            help="The name in the servers' certificates, if it differs from the address.",
        ),
    ] = None
    api_key: Annotated[
        str | None, typer.Option(envvar="ASL_TRITON_API_KEY", help="Sent as the header triton-grpc-protocol-api-key.")
    ] = field(default=None, repr=False)
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one answer.")] = DEFAULT_TIMEOUT_S
    local: Annotated[
        bool, typer.Option("--local", help="Start a Triton on --repository and stop it when this command ends.")
    ] = False
    repository: RepositoryOption = Path("model_repository")
    send: Annotated[
        Send,
        typer.Option(
            help="What to send: cropped `frames`, or the `video` file, which recognize_sign decodes on the server. "
            "`auto` sends the file if the server accepts it and it is smaller than its frames."
        ),
    ] = "frames"
    transport: Annotated[
        Sharing,
        typer.Option(
            help="How to send frames to a server on this machine: in shared memory (`shm`) or in `grpc` messages. "
            "`auto` uses shared memory if the server allows it."
        ),
    ] = "auto"
    model: ModelOption = None
    dictionary: Annotated[
        Path | None, typer.Option(help="Recognize the signs in this file, which `asl-triton teach` creates.")
    ] = None
    with_vocabulary: Annotated[
        bool, typer.Option("--with-vocabulary", help="With --dictionary: rank the model's own glosses as well.")
    ] = False
    security: Security = field(init=False)
    signs: SignDictionary | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.security = Security(self.tls, self.tls_ca, self.tls_cert, self.tls_key, self.api_key, self.tls_server_name)
        if self.with_vocabulary and self.dictionary is None:
            raise typer.BadParameter("it requires --dictionary", param_hint="--with-vocabulary")
        self.signs = SignDictionary.load(self.dictionary) if self.dictionary else None

    @contextmanager
    def address(self) -> Iterator[str]:
        """Yield the server's address. With `local`, start a Triton that runs until the block ends."""
        if not self.local:
            yield self.server
            return
        with require_extra("serve"):
            from asl_triton_deploy.local import LocalTriton
        insists = True if self.transport == "shm" else None
        with LocalTriton(self.repository, recognize_sign=self.send != "frames", shared_memory=insists) as triton:
            yield triton.address

    def make_transport(self, address: str, in_flight: int, *, resend: bool = True) -> Transport:
        """Return a transport to an address. The arguments are those of `transport.factory.make_transport`."""
        return make_transport(
            address,
            security=self.security,
            timeout_s=self.timeout,
            in_flight=in_flight,
            resend=resend,
            shared_memory=self.transport,
        )

    def make_recognizer(self, address: str, in_flight: int, *, resend: bool = True, **options: Any) -> AsyncRecognizer:
        """Return a recognizer for the model at an address. Further options are those of `AsyncRecognizer`."""
        transport = self.make_transport(address, in_flight, resend=resend)
        return AsyncRecognizer(
            model=self.model,
            send=self.send,
            in_flight=in_flight,
            transport=transport,
            dictionary=self.signs,
            with_vocabulary=self.with_vocabulary,
            **options,
        )

    async def read_model(self, address: str) -> ServedModel:
        """Read the contract of the model at an address."""
        async with self.make_recognizer(address, in_flight=1) as recognizer:
            return await recognizer.model()


def with_connection(*groups: OptionGroup, timeout_s: float = DEFAULT_TIMEOUT_S) -> Callable[[Command], Command]:
    """Replace a command's parameter `connection` with options, and pass it the `Connection` that they configure.

    The options come in the order of `groups`. "server" adds the address, TLS, API key and timeout; "local" adds --local
    and --repository; "dictionary" adds --dictionary and --with-vocabulary; any other group adds the option of that
    name. Typer reads the new signature.
    """
    members = {
        "server": ("server", "tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "api_key", "timeout"),
        "local": ("local", "repository"),
        "dictionary": ("dictionary", "with_vocabulary"),
    }
    names = [name for group in groups for name in members.get(group, (group,))]
    fields = {field.name: field for field in dataclasses.fields(Connection)}
    defaults = {name: fields[name].default for name in names} | {"timeout": timeout_s}
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=fields[name].type)
        for name in names
    ]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            connection = Connection(**{name: values.pop(name) for name in names})
            command(connection=connection, **values)

        own = list(inspect.signature(command).parameters.values())
        place = [parameter.name for parameter in own].index("connection")
        own[place : place + 1] = options
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = inspect.Signature(keyword_only, return_annotation=None)  # type: ignore[attr-defined]
        return run

    return decorate
