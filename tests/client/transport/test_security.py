"""TLS, mutual TLS and API keys against a real gRPC server: which clients are answered, and the errors of the others."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from asl_triton.errors import AslTritonError, ServerError
from asl_triton.transport.security import Security
from asl_triton.transport.tls_errors import has_expired, peer_address, speaks_tls
from asl_triton.transport.triton_grpc import GrpcTransport
from tests.certificates import Certificates, make_certificates
from tests.client.asking import infer_logits, read_version
from tests.client.grpc_server import Triton, serving

RESTRICTED = (
    grpc.StatusCode.UNAVAILABLE,
    "This protocol is restricted, expecting header 'triton-grpc-protocol-api-key'",
)


@pytest.fixture
def triton() -> Iterator[Triton]:
    with serving(Triton()) as served:
        yield served


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def make_credentials(certificates: Certificates, name: str = "server", mutual: bool = False) -> grpc.ServerCredentials:
    pair = (certificates.read(f"{name}.key"), certificates.read(f"{name}.pem"))
    return grpc.ssl_server_credentials([pair], certificates.read("authority.pem") if mutual else None, mutual)


def test_tls_with_the_right_authority_works(certificates: Certificates) -> None:
    with serving(Triton(), credentials=make_credentials(certificates)) as triton:
        assert infer_logits(triton.address, certificates.build_security("authority")) == [0, 1, 2, 3]


def test_mutual_tls_with_our_certificate_works(certificates: Certificates) -> None:
    with serving(Triton(), credentials=make_credentials(certificates, mutual=True)) as triton:
        assert infer_logits(triton.address, certificates.build_security("authority", "client")) == [0, 1, 2, 3]


def test_name_in_the_certificate_can_be_given(certificates: Certificates) -> None:
    with serving(Triton(), credentials=make_credentials(certificates, "stranger")) as triton:
        named = certificates.build_security("authority", name="elsewhere.example")
        assert read_version(triton.address, named) == "2.80.0"


@pytest.mark.parametrize(("server", "mutual", "ours", "says"), [
    ("outdated", False, ("authority", None), "TLS with 127.0.0.1.* failed: its certificate has expired: renew it"),
    ("server", False, ("other", None), r"its certificate is not signed by a trusted authority: give .* \(--tls-ca\)"),
    ("stranger", False, ("authority", None), "its certificate is for another name: .*--tls-server-name"),
    ("server", False, (None, None), "closed the connection: it uses TLS: give its authority .--tls-ca"),
    ("server", True, ("authority", None), "closed the connection: it requires a client certificate .--tls-cert"),
    ("server", True, ("authority", "late"), "the client certificate .*late.pem .--tls-cert. has expired: renew it"),
    ("server", True, ("authority", "foreign"), "does not trust the authority that signed the client .*foreign.pem"),
], ids=["expired", "authority", "other name", "no TLS", "no certificate", "ours expired", "ours foreign"])  # fmt: skip
def test_tls_failure_names_its_cause(
    certificates: Certificates, server: str, mutual: bool, ours: tuple[str | None, str | None], says: str
) -> None:
    with serving(Triton(), credentials=make_credentials(certificates, server, mutual)) as triton:
        with pytest.raises(ServerError, match=says):
            read_version(triton.address, certificates.build_security(*ours), timeout_s=10)
        assert triton.asked == []


def test_tls_to_a_server_without_tls_is_reported(certificates: Certificates, triton: Triton) -> None:
    for ours in (Security(tls=True), certificates.build_security("authority")):
        with pytest.raises(ServerError, match=r"TLS with 127.0.0.1.* failed.*server does not use TLS: leave out"):
            read_version(triton.address, ours)


def test_grpc_logs_stay_off_the_terminal(triton: Triton) -> None:
    command = [sys.executable, "-m", "asl_triton", "models", "--tls", "--server", triton.address]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: TLS with 127.0.0.1") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("options", "says"), [
    ({"tls_ca": "nowhere.pem"}, "TLS needs the file .*nowhere.pem, which does not exist"),
    ({"tls_ca": "text.pem"}, "text.pem .--tls-ca. does not contain a PEM certificate"),
    ({"tls_ca": "client.key"}, "client.key .--tls-ca. does not contain a PEM certificate"),
    ({"tls_cert": "client.pem"}, "needs both the certificate .--tls-cert. and its key .--tls-key."),
    ({"tls_key": "client.key"}, "needs both the certificate .--tls-cert. and its key .--tls-key."),
    ({"tls_cert": "client.pem", "tls_key": "server.key"}, "client.pem .* and .*server.key .* are not a PEM"),
    ({"tls_cert": "client.pem", "tls_key": "locked.key"}, "its unencrypted key"),
    ({"tls_cert": "text.pem", "tls_key": "client.key"}, "are not a PEM certificate"),
], ids=str)  # fmt: skip
def test_invalid_key_file_is_rejected_before_any_request(
    certificates: Certificates, options: dict[str, str], says: str
) -> None:
    with pytest.raises(AslTritonError, match=says):
        Security(**{name: certificates.folder / file for name, file in options.items()})  # type: ignore[arg-type]


def test_tls_server_name_without_tls_is_rejected() -> None:
    with pytest.raises(AslTritonError, match=r"--tls-server-name needs TLS"):
        Security(tls_server_name="triton.example")


def test_servers_with_different_names_need_the_name_in_their_certificates(certificates: Certificates) -> None:
    ours = certificates.build_security("authority")
    with pytest.raises(AslTritonError, match="need the one name that is in all their certificates"):
        GrpcTransport("localhost:1,127.0.0.1:2", security=ours)
    with (
        serving(Triton(), credentials=make_credentials(certificates)) as first,
        serving(Triton(), credentials=make_credentials(certificates)) as second,
    ):
        same_host = f"{first.address},{second.address}"
        other_hosts = f"{first.address.replace('127.0.0.1', 'localhost')},{second.address}"
        assert read_version(same_host, ours) == "2.80.0"
        assert read_version(other_hosts, certificates.build_security("authority", name="triton.example")) == "2.80.0"


def test_api_key_is_sent_with_every_request(triton: Triton) -> None:
    infer_logits(triton.address, Security(api_key="secret"))
    infer_logits(triton.address)
    assert [seen.get("triton-grpc-protocol-api-key") for seen in triton.asked] == ["secret", None]


@pytest.mark.parametrize(("key", "says"), [
    (None, "refused .*: it requires an API key .--api-key"), ("wrong", "refused .*: the --api-key is incorrect"),
])  # fmt: skip
def test_missing_and_wrong_api_keys_are_reported_differently(triton: Triton, key: str | None, says: str) -> None:
    triton.faults = [RESTRICTED]
    with pytest.raises(ServerError, match=says) as raised:
        infer_logits(triton.address, Security(api_key=key))
    assert key is None or key not in str(raised.value)


@pytest.mark.parametrize("key", ["", "two words", "line\n", "clé"])
def test_invalid_api_key_is_rejected(key: str) -> None:
    with pytest.raises(AslTritonError, match="--api-key") as raised:
        Security(api_key=key)
    assert not key or key not in str(raised.value)


def test_repr_hides_the_api_key() -> None:
    assert "secret" not in repr(Security(api_key="secret"))


@pytest.mark.parametrize(("message", "address"), [
    ("last error: UNAVAILABLE: ipv4:10.1.2.3:8001: Socket closed", ("10.1.2.3", 8001)),
    ("last error: UNAVAILABLE: ipv6:%5B::1%5D:8001: Socket closed", ("::1", 8001)),
    ("Socket closed", None),
])  # fmt: skip
def test_peer_address_is_parsed_from_grpc_messages(message: str, address: tuple[str, int] | None) -> None:
    assert peer_address(message) == address


def test_expired_certificate_is_detected(certificates: Certificates) -> None:
    for name, expired in (("client", False), ("foreign", False), ("late", True)):
        assert has_expired(certificates.folder / f"{name}.pem", certificates.folder / f"{name}.key") == expired


def test_tls_servers_are_detected(certificates: Certificates, triton: Triton, tmp_path: Path) -> None:
    host, port = triton.address.split(":")
    assert not speaks_tls((host, int(port)))
    assert not speaks_tls((host, 1))
    with serving(Triton(), credentials=make_credentials(certificates, mutual=True)) as other:
        assert speaks_tls((host, int(other.address.split(":")[1])))
