"""Server addresses: one `host:port`, several separated by commas, or one name that resolves to several servers."""

import logging
import re
import socket
from dataclasses import dataclass

from asl_triton.errors import ServerError

DEFAULT_SERVER = "localhost:8001"
ONE = re.compile(r"(?!https?:)[^\s,]+:\d+|unix:[^\s,]+")
ONE_OF_SEVERAL = re.compile(r"(\[[\da-fA-F:.]+\]|[^\s,:/\[\]]+):(\d+)")
LITERAL = re.compile(r"[\d.]+|localhost")  # always a single address
THIS_MACHINE = re.compile(r"(localhost|127\.[\d.]+|\[::1\]):\d+|unix:.+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoints:
    """The servers that `text` names, in one of three forms. gRPC sends to several in turn and skips unreachable ones.

    - `host:port`: all addresses of the host, for example those of a headless Service or of Compose's replicas. gRPC
      resolves the name again when a connection ends. `dns://server/host:port` uses that name server.
    - `host:port,host:port`: each of these servers. Their names are resolved once, when connecting.
    - `unix:PATH`: a socket.

    Raises:
        ServerError: `text` is none of these.
    """

    text: str

    def __post_init__(self) -> None:
        parts = self.text.split(",")
        if len(parts) == 1 and not ONE.fullmatch(self.text):
            raise ServerError(
                f"{self.text!r} is not a server address: use host:port, such as {DEFAULT_SERVER} (--server)"
            )
        for part in parts if len(parts) > 1 else ():
            if not ONE_OF_SEVERAL.fullmatch(part):
                raise ServerError(
                    f"{part!r} is not a server address: write several as host:port, separated by commas without "
                    f"spaces, such as gpu1:8001,gpu2:8001 (--server)"
                )

    @property
    def are_listed(self) -> bool:
        """Whether several servers are listed."""
        return "," in self.text

    @property
    def may_be_several(self) -> bool:
        """Whether another server may answer a request that one refuses, since a name may resolve to several."""
        if self.are_listed or self.text.startswith("dns:"):
            return True
        named = ONE_OF_SEVERAL.fullmatch(self.text)
        return named is not None and not (named[1].startswith("[") or LITERAL.fullmatch(named[1]))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of a list, without duplicates."""
        return tuple(dict.fromkeys(host for host, _ in self._listed()))

    @property
    def are_on_this_machine(self) -> bool:
        """Whether all addresses are this machine's. A tunnel or a container may still be listening there."""
        return all(THIS_MACHINE.fullmatch(part) for part in self.text.split(","))

    def target(self) -> str:
        """Return the target for gRPC. Resolves the names of a list, which may take seconds.

        Raises:
            ServerError: no name can be resolved, or the addresses mix IPv4 and IPv6.
        """
        if not self.are_listed:
            return self.text
        found: dict[str, list[str]] = {"ipv4": [], "ipv6": []}
        unknown = []
        for host, port in self._listed():
            known = resolve(host, int(port))
            if known is None:
                unknown.append(host)
            else:
                found[known[0]] += known[1]
        if unknown and not any(found.values()):
            raise ServerError(f"cannot resolve host {' or '.join(unknown)}: check --server")
        for host in unknown:
            log.warning("cannot resolve host %s: continuing with the other servers", host)
        if all(found.values()):
            raise ServerError(
                f"{self.text} mixes IPv4 with IPv6, which gRPC does not support: use one of the two (--server)"
            )
        family, addresses = ("ipv4", found["ipv4"]) if found["ipv4"] else ("ipv6", found["ipv6"])
        return f"{family}:{','.join(dict.fromkeys(addresses))}"

    def _listed(self) -> list[tuple[str, str]]:
        return ONE_OF_SEVERAL.findall(self.text) if self.are_listed else []


def resolve(host: str, port: int) -> tuple[str, list[str]] | None:
    """Resolve a host to a family and addresses in gRPC's notation, IPv4 if it has any. Returns None on failure."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    ipv4 = [f"{address[0]}:{port}" for family, *_, address in found if family == socket.AF_INET]
    ipv6 = [f"[{address[0]}]:{port}" for family, *_, address in found if family == socket.AF_INET6]
    return ("ipv4", ipv4) if ipv4 else ("ipv6", ipv6)
