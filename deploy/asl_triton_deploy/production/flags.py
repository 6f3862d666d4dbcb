"""Triton's production flags: `triton.flags`, filled in with the operator's settings."""

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
# NVIDIA's container 26.11. The critical fixes in its security bulletins were released in 25.07 to 26.07.
MINIMUM_TRITON: Version = (2, 75)
# Shorter than a client's deadline, longer than any clip takes. deploy/ gives the container another ten seconds.
EXIT_TIMEOUT_S = 45
KEY = re.compile(r"[A-Za-z0-9._~+/=-]{16,}")


@dataclass(frozen=True)
class Settings:
    """The operator's settings for Triton in production. Everything else is in `triton.flags`.

    `api_key` allows the calls that our client makes before inference (metadata, configuration, statistics). With
    `key_for_inference`, inference requires it too. `health_key` allows the health check to run inference over HTTP.
    `tls_folder` contains tls.crt, tls.key and, for mutual TLS, ca.crt.
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
                "ASL_TRITON_API_KEY is missing or invalid: a key has at least 16 letters, digits or characters from "
                "._~+/=-. `openssl rand -hex 32` makes one"
            )
        if self.otlp_url and not re.fullmatch(r"https?://\S+", self.otlp_url):
            raise AslTritonError(
                f"ASL_TRITON_OTLP_URL is {self.otlp_url!r}: set it to a collector's URL, such as "
                "http://collector:4318/v1/traces, or leave it empty"
            )
        if self.tls not in get_args(Tls):
            raise AslTritonError(f"ASL_TRITON_TLS is {self.tls!r}: set it to one of {', '.join(get_args(Tls))}")
        wanted = {"mutual": ("tls.crt", "tls.key", "ca.crt"), "server": ("tls.crt", "tls.key"), "off": ()}[self.tls]
        for name in wanted:
            if not (self.tls_folder / name).is_file():
                raise AslTritonError(
                    f"ASL_TRITON_TLS is {self.tls!r}, but there is no {self.tls_folder / name}: mount the certificate "
                    "there (tls.crt, tls.key, ca.crt), or set ASL_TRITON_TLS=off if a gateway terminates TLS"
                )

    @classmethod
    def from_environment(cls, variables: Mapping[str, str], repositories: tuple[Path, ...]) -> "Settings":
        """Read the operator's settings from ASL_TRITON_*. Variables that are not set have the defaults above.

        Raises:
            AslTritonError: a value is invalid.
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
    """Return the flags for version `triton` of Triton, without those that it does not have yet.

    Raises:
        AslTritonError: the flag file cannot be read or filled in.
    """
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    names = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    try:
        text = environment.from_string(path.read_text(encoding="utf-8")).render(
            names, triton=triton, closed=f"{CLOSED_KEY_NAME}={secrets.token_hex(32)}"
        )
    except (OSError, UnicodeDecodeError, TemplateError) as exc:
        raise AslTritonError(f"cannot use the flag file {path}: {exc}") from exc
    lines = [line.strip() for line in text.splitlines()]
    flags = [line for line in lines if line and not line.startswith("#")]
    for flag in flags:
        if not re.fullmatch(r"--[a-z0-9-]+(=\S+)?", flag):
            raise AslTritonError(f"the flag file {path} has a line that is not a flag: {flag!r}")
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
