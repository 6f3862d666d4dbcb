"""Triton's flags in production: what NVIDIA's guide requires and what operators can set."""

import re
from pathlib import Path
from typing import Any

import pytest

from asl_triton.errors import AslTritonError
from asl_triton_deploy.production.flags import FLAGS, Settings, triton_flags
from asl_triton_deploy.server_flags import CLOSED_KEY_NAME, build_server_flags

KEY = "a-key-of-sixteen-signs"
WHEEL = (2, 51)


def make_settings(**changes: Any) -> Settings:
    return Settings((Path("/run/asl-triton/models"),), KEY, **{"tls": "off", **changes})


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).touch()
    return tmp_path


def select_values(flags: list[str], name: str) -> list[str]:
    return [flag.partition("=")[2] for flag in flags if flag.partition("=")[0] == name]


@pytest.mark.parametrize(
    "flag",
    [
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--allow-client-shm=false",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        "--trace-config=level=OFF",
        "--grpc-max-connection-age=300000",
        "--grpc-max-connection-age-grace=60000",
    ],
)
def test_flag_of_the_secure_deployment_guide_is_set(flag: str) -> None:
    assert flag in triton_flags(make_settings())


def test_machine_without_a_gpu_uses_the_cpu_configs() -> None:
    assert select_values(triton_flags(make_settings(on_gpu=False)), "--model-config-name") == ["cpu"]
    assert select_values(triton_flags(make_settings(on_gpu=True)), "--model-config-name") == []


APIS = {"metadata", "inference", "shared-memory", "model-config", "model-repository", "statistics", "trace", "logging"}


def read_restrictions(flags: list[str], name: str) -> dict[str, str]:
    """Return the key that each API requires."""
    rules = [
        re.fullmatch(f"([a-z,-]+):((?:api-key|{CLOSED_KEY_NAME})=.+)", value) for value in select_values(flags, name)
    ]
    return {api: rule[2].removeprefix("api-key=") for rule in rules if rule for api in rule[1].split(",")}


def test_grpc_requires_the_key_except_for_health_and_inference() -> None:
    keys = read_restrictions(triton_flags(make_settings()), "--grpc-restricted-protocol")
    assert keys.keys() == APIS - {"inference"}
    assert {api for api, key in keys.items() if key == KEY} == {
        "metadata",
        "model-config",
        "model-repository",
        "statistics",
    }


def test_operator_can_require_the_key_for_inference() -> None:
    keys = read_restrictions(triton_flags(make_settings(key_for_inference=True)), "--grpc-restricted-protocol")
    assert (keys.keys(), keys["inference"]) == (APIS, KEY)


def test_http_answers_only_health() -> None:
    keys = read_restrictions(triton_flags(make_settings(health_key="of-the-health-check")), "--http-restricted-api")
    assert keys.keys() == APIS
    assert KEY not in keys.values()
    opened_to_the_health_check = {api for api, key in keys.items() if key == "of-the-health-check"}
    assert opened_to_the_health_check == {"inference", "model-config"}


@pytest.mark.parametrize("flag", ["--http-restricted-api", "--grpc-restricted-protocol"])
def test_header_of_closed_apis_cannot_be_sent(flag: str) -> None:
    keys = read_restrictions(triton_flags(make_settings()), flag)
    for api in ("shared-memory", "trace", "logging"):
        assert keys[api].startswith(f"{CLOSED_KEY_NAME}=") and ":" in CLOSED_KEY_NAME


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ("mutual", ["--grpc-use-ssl-mutual", "--grpc-server-cert", "--grpc-server-key", "--grpc-root-cert"]),
        ("server", ["--grpc-use-ssl", "--grpc-server-cert", "--grpc-server-key"]),
        ("off", []),
    ],
)
def test_tls_mode_sets_its_flags(tls: str, expected: list[str], certificates: Path) -> None:
    flags = triton_flags(make_settings(tls=tls, tls_folder=certificates))
    assert [flag.partition("=")[0] for flag in flags if re.search("ssl|cert|server-key", flag)] == expected


def test_tls_is_mutual_by_default(certificates: Path) -> None:
    variables = {"ASL_TRITON_API_KEY": KEY, "ASL_TRITON_TLS_FOLDER": str(certificates)}
    assert Settings.from_environment(variables, ()).tls == "mutual"


def test_traces_go_to_the_operators_collector() -> None:
    flags = triton_flags(make_settings(otlp_url="http://collector:4318/v1/traces", trace_rate=5))
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in flags
    assert "--trace-config=rate=5" in flags
    assert "--trace-config=level=OFF" not in flags


def test_older_triton_gets_only_flags_that_it_knows() -> None:
    new = {flag.partition("=")[0] for flag in triton_flags(make_settings())}
    old = {flag.partition("=")[0] for flag in triton_flags(make_settings(), WHEEL)}
    assert old < new
    assert new - old == {"--allow-client-shm", "--grpc-max-response-pool-size", "--http-max-input-size"}


def test_every_section_of_the_flag_file_has_flags() -> None:
    sections = FLAGS.read_text().split("# --- ")[1:]
    assert len(sections) == 5
    assert all("--" in section for section in sections)


def test_development_server_differs_only_on_purpose() -> None:
    """`asl-triton serve` has its own flags. Only these differ from production; its code gives the reasons."""
    ports = {"gRPC": 8001, "HTTP": 8000, "metrics": 8002}
    served = dict(
        flag.partition("=")[::2] for flag in build_server_flags(Path("/run/asl-triton/models"), "0.0.0.0", ports, "x")
    )
    production = dict(flag.partition("=")[::2] for flag in triton_flags(make_settings()))
    shared = (served.keys() & production.keys()) - {"--backend-config"}
    assert {name for name in shared if served[name] != production[name]} == {
        "--exit-on-error",  # it starts, reports which model failed, and is stopped
        "--exit-timeout-secs",
        "--http-thread-count",
        "--grpc-restricted-protocol",  # on 127.0.0.1, our client needs no key
        "--http-restricted-api",
    }


# Bad settings: one sentence each


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "ASL_TRITON_API_KEY is missing .* `openssl rand -hex 32`"),
        ({"ASL_TRITON_API_KEY": "short"}, "ASL_TRITON_API_KEY is missing or invalid"),
        ({"ASL_TRITON_API_KEY": "with spaces and\na line end"}, "ASL_TRITON_API_KEY is missing or invalid"),
        (
            {"ASL_TRITON_API_KEY": KEY, "ASL_TRITON_TLS": "on"},
            "ASL_TRITON_TLS is 'on': set it to one of mutual, server, off",
        ),
        ({"ASL_TRITON_API_KEY": KEY, "ASL_TRITON_TLS_FOLDER": "/nowhere"}, "there is no /nowhere/tls.crt: mount"),
        (
            {"ASL_TRITON_API_KEY": KEY, "ASL_TRITON_TLS": "off", "ASL_TRITON_KEY_FOR_INFERENCE": "yes"},
            "to true or false",
        ),
        ({"ASL_TRITON_API_KEY": KEY, "ASL_TRITON_TLS": "off", "ASL_TRITON_TRACE_RATE": "0"}, "a whole number above 0"),
        (
            {"ASL_TRITON_API_KEY": KEY, "ASL_TRITON_OTLP_URL": "http://collector\n--allow-client-shm=true"},
            "ASL_TRITON_OTLP_URL is .*: set it to a collector's",
        ),
    ],
)
def test_bad_setting_is_reported(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(AslTritonError, match=sentence):
        Settings.from_environment(variables, ())


def test_key_is_not_in_the_repr() -> None:
    assert KEY not in repr(make_settings())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("--log-verbose=1 --allow-http=true\n", "a line that is not a flag"),
        ("rm -rf /\n", "a line that is not a flag"),
        ("--id={{ nobody_set_this }}\n", "triton.flags: 'nobody_set_this' is undefined"),
        ("{% if %}\n", "cannot use the flag file"),
    ],
)
def test_bad_flag_file_is_reported(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "triton.flags").write_text(text)
    with pytest.raises(AslTritonError, match=sentence):
        triton_flags(make_settings(), path=tmp_path / "triton.flags")
