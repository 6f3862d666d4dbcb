"""Triton's production flags: `triton.flags`, filled in with what an operator sets."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from jinja2 import Environment, StrictUndefined, TemplateError

from asl_triton.errors import AslTritonError
from asl_triton_deploy.server_flags import CLOSED_KEY_NAME
from asl_triton_deploy.triton_binary import has_gpu

Tls = Literal["mutual", "server", "off"]
Version = tuple[int, int]

FLAGS = Path(__file__).with_name("triton.flags")
# NVIDIA's container 26.11: the critical fixes of its security bulletins came in 25.07 to 26.07.
MINIMUM_TRITON: Version = (2, 75)
# Shorter than a client's deadline, longer than any clip takes. deploy/ gives the container ten seconds more.
EXIT_TIMEOUT_S = 45
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,}")


@dataclass(frozen=True)
class Settings:
    """What differs between two Tritons in production; `triton.flags` says the rest.

    `api_key` opens what our client reads before it asks (metadata, configuration, statistics), and inference too
    where `key_for_inference` is set. `health_key` opens inference over HTTP for the health check. `tls_folder` holds
    tls.crt, tls.key and, for mutual TLS, ca.crt.
    """

    repositories: tuple[Path, ...]
    api_key: str = field(repr=False)
    key_for_inference: bool = False
    tls: Tls = "mutual"
    tls_folder: Path = Path("/etc/asl-triton/tls")
    address: str = "0.0.0.0"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    exit_timeout_s: int = EXIT_TIMEOUT_S
    on_gpu: bool = field(default_factory=has_gpu)
    otlp_url: str = ""
    trace_rate: int = 100
    health_key: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)

    def __post_init__(self) -> None:
        if not KEY.fullmatch(self.api_key):
            raise AslTritonError(
                "ASL_TRITON_API_KEY is missing or no key: it has 16 letters, digits or signs of ._~+/=- at least. "
                "`openssl rand -hex 32` makes one"
            )
        if self.otlp_url and not re.fullmatch(r"https?://\S+", self.otlp_url):
            raise AslTritonError(
                f"ASL_TRITON_OTLP_URL is {self.otlp_url!r}: set it to a collector's, such as "
                "http://collector:4318/v1/traces, or to nothing"
            )
        if self.tls not in get_args(Tls):
            raise AslTritonError(f"ASL_TRITON_TLS is {self.tls!r}: set it to {', '.join(get_args(Tls))}")
        wanted = {"mutual": ("tls.crt", "tls.key", "ca.crt"), "server": ("tls.crt", "tls.key"), "off": ()}[self.tls]
        for name in wanted:
            if not (self.tls_folder / name).is_file():
                raise AslTritonError(
                    f"ASL_TRITON_TLS is {self.tls!r}, and there is no {self.tls_folder / name}: mount the certificate "
                    "there (tls.crt, tls.key, ca.crt), or set ASL_TRITON_TLS=off where a gateway speaks TLS"
                )

    @classmethod
    def from_environment(cls, variables: Mapping[str, str], repositories: tuple[Path, ...]) -> "Settings":
        """What the operator set, as ASL_TRITON_*; names that are not set take the defaults above.

        Raises AslTritonError for a value that cannot be used.
        """
        return cls(
            repositories=repositories,
            api_key=variables.get("ASL_TRITON_API_KEY", ""),
            key_for_inference=_switch(variables, "ASL_TRITON_KEY_FOR_INFERENCE"),
            tls=cast(Tls, variables.get("ASL_TRITON_TLS") or "mutual"),
            tls_folder=Path(variables.get("ASL_TRITON_TLS_FOLDER") or cls.tls_folder),
            otlp_url=variables.get("ASL_TRITON_OTLP_URL", ""),
            trace_rate=_count(variables, "ASL_TRITON_TRACE_RATE", cls.trace_rate),
        )


def triton_flags(settings: Settings, triton: Version = MINIMUM_TRITON, path: Path = FLAGS) -> list[str]:
    """The flags for a Triton of version `triton`; one that is older than a flag does not get it.

    Raises AslTritonError when the file of flags cannot be read or filled in.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    names = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    try:
        text = environment.from_string(path.read_text(encoding="utf-8")).render(
            names, triton=triton, closed=f"{CLOSED_KEY_NAME}={secrets.token_hex(32)}"
        )
    except (OSError, UnicodeDecodeError, TemplateError) as exc:
        raise AslTritonError(f"the file of Triton's flags, {path}, cannot be used: {exc}") from exc
    lines = [line.strip() for line in text.splitlines()]
    flags = [line for line in lines if line and not line.startswith("#")]
    for flag in flags:
        if not re.fullmatch(r"--[a-z0-9-]+(=\S+)?", flag):
            raise AslTritonError(f"the file of Triton's flags, {path}, has a line that is no flag: {flag!r}")
    return flags


def _switch(variables: Mapping[str, str], name: str) -> bool:
    value = variables.get(name) or "false"
    if value not in ("true", "false"):
        raise AslTritonError(f"{name} is {value!r}: set it to true or false")
    return value == "true"


def _count(variables: Mapping[str, str], name: str, default: int) -> int:
    value = variables.get(name) or str(default)
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise AslTritonError(f"{name} is {value!r}: set it to a whole number above 0")
    return int(value)
