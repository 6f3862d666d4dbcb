"""Where the servers are: `host:port`, several of them with commas between, or a name that stands for all of them."""

import logging
import re
import socket
from dataclasses import dataclass

from asl_triton.errors import ServerError

DEFAULT_SERVER = "localhost:8001"
ONE = re.compile(r"(?!https?:)[^\s,]+:\d+|unix:[^\s,]+")
ONE_OF_SEVERAL = re.compile(r"(\[[\da-fA-F:.]+\]|[^\s,:/\[\]]+):(\d+)")
LITERAL = re.compile(r"[\d.]+|localhost")  # has no other address
THIS_MACHINE = re.compile(r"(localhost|127\.[\d.]+|\[::1\]):\d+|unix:.+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoints:
    """The servers that `text` names, in any of three ways. gRPC asks several in turn, and leaves out those that are
    away.

    - `host:port`: every address that the host's name has, such as that of a headless Service or of Compose's replicas.
      gRPC looks it up again when a connection ends. `dns://server/host:port` asks that name server.
    - `host:port,host:port`: each of these. Their names are looked up once, when the connection is made.
    - `unix:PATH`: that one.

    Raises:
        ServerError: it is none of them.
    """

    text: str

    def __post_init__(self) -> None:
        parts = self.text.split(",")
        if len(parts) == 1 and not ONE.fullmatch(self.text):
            raise ServerError(
                f"{self.text!r} is no server's address: name host:port, such as {DEFAULT_SERVER} (--server)"
            )
        for part in parts if len(parts) > 1 else ():
            if not ONE_OF_SEVERAL.fullmatch(part):
                raise ServerError(
                    f"{part!r} is no server's address among several: name each as host:port, with commas between and "
                    f"no spaces, such as gpu1:8001,gpu2:8001 (--server)"
                )

    @property
    def are_listed(self) -> bool:
        """Whether they are several, named one by one."""
        return "," in self.text

    @property
    def may_be_several(self) -> bool:
        """Whether another server may answer what one refuses: a name may stand for many."""
        if self.are_listed or self.text.startswith("dns:"):
            return True
        named = ONE_OF_SEVERAL.fullmatch(self.text)
        return named is not None and not (named[1].startswith("[") or LITERAL.fullmatch(named[1]))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of a list, each once."""
        return tuple(dict.fromkeys(host for host, _ in self._listed()))

    @property
    def are_on_this_machine(self) -> bool:
        """Whether the way to them is one within this machine; it may be a tunnel's or a container's all the same."""
        return all(THIS_MACHINE.fullmatch(part) for part in self.text.split(","))

    def target(self) -> str:
        """What gRPC is told to connect to. Looks up the names of a list, which takes as long as that takes.

        Raises:
            ServerError: nobody knows any of the names, or they mix IPv4 with IPv6.
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
            raise ServerError(f"nobody knows an address of {' or '.join(unknown)}: name other servers (--server)")
        for host in unknown:
            log.warning("nobody knows an address of %s: the other servers are asked without it", host)
        if all(found.values()):
            raise ServerError(
                f"the servers of {self.text} mix IPv4 with IPv6, which gRPC does not: name them all in one (--server)"
            )
        family, addresses = ("ipv4", found["ipv4"]) if found["ipv4"] else ("ipv6", found["ipv6"])
        return f"{family}:{','.join(dict.fromkeys(addresses))}"

    def _listed(self) -> list[tuple[str, str]]:
        return ONE_OF_SEVERAL.findall(self.text) if self.are_listed else []


def resolve(host: str, port: int) -> tuple[str, list[str]] | None:
    """Where a host listens: IPv4 where it has that, as gRPC writes it; None where nobody knows it."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    ipv4 = [f"{address[0]}:{port}" for family, *_, address in found if family == socket.AF_INET]
    ipv6 = [f"[{address[0]}]:{port}" for family, *_, address in found if family == socket.AF_INET6]
    return ("ipv4", ipv4) if ipv4 else ("ipv6", ipv6)
