"""Several servers, given as a list or one DNS name: requests take turns, and a server that goes away is skipped."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from dnslib import QTYPE, RR, A
from dnslib.dns import DNSRecord
from dnslib.server import BaseResolver, DNSServer

from asl_triton.errors import BusyError, ServerError
from asl_triton.transport.endpoints import DEFAULT_SERVER, Endpoints
from asl_triton.transport.retry import TRIES, TRIES_OF_SEVERAL
from asl_triton.transport.triton_grpc import GrpcTransport
from tests.client.asking import FRAMES, asked, infer_logits, read_version
from tests.client.grpc_server import Triton, serving

STOPPING = (grpc.StatusCode.UNAVAILABLE, "Server is stopping, scheduler for model has stopped accepting new requests")
UNLOADED = (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'signs' has no available versions")
NOT_STARTED = (grpc.StatusCode.CANCELLED, "CANCELLED")


@pytest.fixture
def pair() -> Iterator[tuple[Triton, Triton]]:
    with serving(Triton()) as first, serving(Triton()) as second:
        yield first, second


async def infer_repeatedly(transport: GrpcTransport, times: int = 24) -> int:
    """Send one request to wait for the connections, then `times` at once. Return how many of those are answered."""
    await transport.infer("signs", FRAMES, ["LOGITS__0"])
    return len(await asyncio.gather(*(transport.infer("signs", FRAMES, ["LOGITS__0"]) for _ in range(times))))


@pytest.mark.parametrize("text", ["", "localhost", "http://localhost:8000", "a b:1", "localhost:port", ":"])
def test_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(ServerError, match=f"is not a server address: use host:port, such as {DEFAULT_SERVER}"):
        GrpcTransport(text)


@pytest.mark.parametrize("text", ["a:1,", "a:1,b", "a:1, b:2", "a:1,http://b:2", "dns:///a:1,b:1", "a:1,unix:/b"])
def test_invalid_list_of_addresses_is_rejected(text: str) -> None:
    with pytest.raises(
        ServerError, match="is not a server address: write several as host:port, separated by commas without spaces"
    ):
        GrpcTransport(text)


@pytest.mark.parametrize(("text", "several", "on_this_machine"), [
    ("[::1]:8001", False, True), ("10.0.0.1:8001", False, False), ("localhost:8001", False, True),
    ("dns:///triton:8001", True, False), ("triton-headless.asl-triton.svc:8001", True, False),
    ("unix:/run/triton.sock", False, True), ("localhost:1,127.0.0.1:2", True, True),
    ("localhost:1,gpu:1", True, False), ("[fe80::1]:8001,[fe80::2]:8001", True, False),
])  # fmt: skip
def test_every_kind_of_address_is_accepted(text: str, several: bool, on_this_machine: bool) -> None:
    addresses = GrpcTransport(text).addresses
    assert (addresses.may_be_several, addresses.are_on_this_machine) == (several, on_this_machine)


@pytest.mark.parametrize(("text", "target"), [
    ("gpu:8001", "gpu:8001"),
    ("127.0.0.1:1,localhost:2,127.0.0.1:1", "ipv4:127.0.0.1:1,127.0.0.1:2"),
    ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
])  # fmt: skip
def test_host_names_in_a_list_are_resolved(text: str, target: str) -> None:
    assert Endpoints(text).target() == target


def test_unknown_host_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    assert Endpoints("no-such-host.invalid:1,127.0.0.1:2").target() == "ipv4:127.0.0.1:2"
    assert "cannot resolve host no-such-host.invalid" in caplog.text


@pytest.mark.parametrize(("text", "says"), [
    ("no-such-host.invalid:1,nor-this.invalid:2", "cannot resolve host no-such-host.invalid or nor-this"),
    ("127.0.0.1:1,[::1]:2", "mixes IPv4 with IPv6"),
])  # fmt: skip
def test_list_without_usable_addresses_is_reported(text: str, says: str) -> None:
    for ask in (read_version, infer_logits):
        with pytest.raises(ServerError, match=says):
            ask(text)


def test_servers_of_a_list_take_turns(pair: tuple[Triton, Triton]) -> None:
    first, second = pair
    assert asked(f"{first.address},{second.address}", infer_repeatedly) == 24
    assert min(len(first.asked), len(second.asked)) >= 10


@contextmanager
def run_name_server(name: str, addresses: list[str]) -> Iterator[str]:
    """Run a DNS server that resolves the name to these addresses. Yield the server's address."""

    class Resolver(BaseResolver):
        def resolve(self, request: DNSRecord, handler: object) -> DNSRecord:
            reply = request.reply()
            if str(request.q.qname) == f"{name}." and request.q.qtype == QTYPE.A:
                for address in addresses:
                    reply.add_answer(RR(name, QTYPE.A, rdata=A(address)))
            return reply

    server = DNSServer(Resolver(), address="127.0.0.1", port=0)
    try:
        server.start_thread()
        yield f"127.0.0.1:{server.server.server_address[1]}"
    finally:
        server.server.shutdown()
        server.server.server_close()


def test_addresses_of_a_name_take_turns() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]
    hosts = ["127.0.0.2", "127.0.0.3"]
    with ExitStack() as stack:
        first, second = (stack.enter_context(serving(Triton(), address=f"{host}:{port}")) for host in hosts)
        names = stack.enter_context(run_name_server("triton.test", hosts))
        assert asked(f"dns://{names}/triton.test:{port}", infer_repeatedly) == 24
    assert min(len(first.asked), len(second.asked)) >= 10


def test_unreachable_server_is_skipped(pair: tuple[Triton, Triton]) -> None:
    first, _ = pair
    assert asked(f"{first.address},127.0.0.1:1", infer_repeatedly) == 24
    assert len(first.asked) == 25


@pytest.mark.parametrize("fault", [STOPPING, UNLOADED, NOT_STARTED], ids=["stopping", "unloaded", "not started"])
def test_requests_refused_by_a_stopping_server_go_to_another(
    pair: tuple[Triton, Triton], fault: tuple[grpc.StatusCode, str]
) -> None:
    first, second = pair
    faults = 8 if fault == NOT_STARTED else 1000
    first.faults = [fault] * faults

    async def ask(transport: GrpcTransport) -> tuple[int, int]:
        return await infer_repeatedly(transport), transport.resent

    assert asked(f"{first.address},{second.address}", ask) == (24, min(faults, len(first.asked)))


def test_one_server_that_is_not_ready_does_not_fail_the_others(pair: tuple[Triton, Triton]) -> None:
    first, second = pair
    first.ready = False
    for _ in range(4):
        assert read_version(f"{first.address},{second.address}") == "2.80.0"


@pytest.mark.parametrize(("several", "times"), [(False, TRIES), (True, TRIES_OF_SEVERAL)], ids=["one", "several"])
def test_exhausted_retries_say_to_try_again_later(pair: tuple[Triton, Triton], several: bool, times: int) -> None:
    for triton in pair:
        triton.faults = [STOPPING] * 100
    address = ",".join(triton.address for triton in pair[: 1 + several])
    with pytest.raises(BusyError, match=r"is stopping \(request [0-9a-f]{32}\).*Try again when it is back"):
        infer_logits(address)
    assert sum(len(triton.asked) for triton in pair) == times
