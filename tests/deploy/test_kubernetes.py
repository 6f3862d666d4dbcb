"""deploy/kubernetes, rendered: objects match their schemas and each other, and the cluster is locked down."""

import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from asl_triton.cli.connection import Connection
from asl_triton_deploy.production.flags import EXIT_TIMEOUT_S
from asl_triton_deploy.readiness import INFERENCE_TIMEOUT_S
from tests.deploy.rendered import (
    DEPLOY,
    OVERLAYS,
    Object,
    PodGroup,
    find_pods,
    kustomize,
    load_standalone,
    render,
    select_kind,
)

# The oldest version that a cloud still patches, and the newest one with a schema here.
KUBERNETES_VERSIONS = ("1.31", kubernetes_validate.latest_version())
# The API groups of Kubernetes itself. test_kubernetes_extensions.py covers the others.
CORE = re.compile(r"v1|(apps|autoscaling|policy|networking\.k8s\.io)/v\d")
SERVED = ("triton", "asl-triton")


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(request.param)


@pytest.fixture
def every_pod(objects: list[Object]) -> list[PodGroup]:
    return [*find_pods(objects), *find_pods(load_standalone())]


@pytest.fixture
def workloads(objects: list[Object]) -> list[PodGroup]:
    return list(find_pods(objects))


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_match_the_kubernetes_schemas(overlay: str, version: str) -> None:
    core = [obj for obj in [*render(overlay), *load_standalone()] if CORE.fullmatch(get_api_version(obj))]
    assert len(core) >= 21
    for obj in core:
        kubernetes_validate.validate(obj, version, strict=True)


def get_api_version(obj: Object) -> str:
    return str(obj["apiVersion"])


def test_schemas_reject_a_misspelled_field() -> None:
    broken = select_kind(render("gpu"), "Deployment")["triton"]
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES_VERSIONS[-1], strict=True)


# Security: one property per test


def test_pods_run_as_an_unprivileged_user(every_pod: list[PodGroup]) -> None:
    expected = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert all(expected.items() <= pod.spec["securityContext"].items() for pod in every_pod)


def test_containers_cannot_gain_privileges(every_pod: list[PodGroup]) -> None:
    expected = {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all(container["securityContext"] == expected for pod in every_pod for container in pod.containers)


def test_pods_share_nothing_with_their_node(every_pod: list[PodGroup]) -> None:
    forbidden = {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"}
    assert not any(forbidden & pod.spec.keys() for pod in every_pod)
    assert not any("hostPath" in volume for pod in every_pod for volume in pod.spec["volumes"])
    assert not any("hostPort" in port for pod in every_pod for c in pod.containers for port in c.get("ports", ()))


def test_pods_have_no_api_token(every_pod: list[PodGroup]) -> None:
    assert all(pod.spec["automountServiceAccountToken"] is False for pod in every_pod)


def test_pods_get_no_service_variables(every_pod: list[PodGroup]) -> None:
    assert all(pod.spec["enableServiceLinks"] is False for pod in every_pod)


def test_service_accounts_have_no_token_and_no_roles(objects: list[Object], workloads: list[PodGroup]) -> None:
    accounts = select_kind(objects, "ServiceAccount")
    assert {pod.spec["serviceAccountName"] for pod in workloads} == accounts.keys()
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    assert not {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"} & {obj["kind"] for obj in objects}


def test_containers_have_requests_and_limits(every_pod: list[PodGroup]) -> None:
    for container in (container for pod in every_pod for container in pod.containers):
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert {"cpu", "memory"} <= requests.keys() == limits.keys(), container["name"]


def test_scratch_folders_have_a_size_limit(every_pod: list[PodGroup]) -> None:
    folders = [volume["emptyDir"] for pod in every_pod for volume in pod.spec["volumes"] if "emptyDir" in volume]
    assert folders
    assert all("sizeLimit" in folder for folder in folders)


def test_models_flags_and_certificates_are_read_only(workloads: list[PodGroup]) -> None:
    for pod in workloads:
        writable = {volume["name"] for volume in pod.spec["volumes"] if "emptyDir" in volume}
        mounts = [mount for container in pod.spec["containers"] for mount in container["volumeMounts"]]
        assert [m["name"] for m in mounts if not m.get("readOnly") and m["name"] not in writable] == []


def test_secrets_come_by_reference(objects: list[Object], every_pod: list[PodGroup]) -> None:
    assert select_kind(objects, "Secret") == {}
    variables = [variable for pod in every_pod for c in pod.containers for variable in c.get("env", ())]
    secret = [variable for variable in variables if re.search("KEY$|SECRET|TOKEN|PASSWORD", variable["name"])]
    secret = [variable for variable in secret if not variable["name"].startswith("ASL_TRITON_TLS_")]
    assert {variable["name"] for variable in secret} == {"ASL_TRITON_API_KEY"}
    assert all(variable.keys() == {"name", "valueFrom"} for variable in secret)


def test_config_maps_contain_no_secret(objects: list[Object]) -> None:
    text = "".join("".join(obj["data"].values()) for obj in select_kind(objects, "ConfigMap").values())
    assert "{{ api_key }}" in text  # the template of the flags


def test_images_are_pinned(every_pod: list[PodGroup]) -> None:
    images = {container["image"] for pod in every_pod for container in pod.containers}
    assert [image for image in images if not re.fullmatch(r"\S+(:v?\d+(\.\d+)+|@sha256:[0-9a-f]{64})", image)] == []


def test_namespace_enforces_the_restricted_standard(objects: list[Object]) -> None:
    (namespace,) = select_kind(objects, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {obj["metadata"].get("namespace") for obj in objects} == {None, namespace["metadata"]["name"]}


def test_page_requires_a_login(workloads: list[PodGroup]) -> None:
    (page,) = (pod for pod in workloads if pod.component == "ui")
    arguments = page.spec["containers"][0]["args"]
    mounts = {mount["name"]: mount["mountPath"] for mount in page.spec["containers"][0]["volumeMounts"]}
    assert Path(arguments[arguments.index("--auth-file") + 1]).parent == Path(mounts["accounts"])


# Network access


def test_network_is_closed_by_default(objects: list[Object]) -> None:
    policies = select_kind(objects, "NetworkPolicy")
    assert policies.pop("default-deny")["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policies.pop("names")["spec"]["podSelector"] == {}
    policies.pop("object-store", None)
    assert policies.keys() == {"triton", "ui", "doctor"}
    for policy in policies.values():
        for rule in [*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())]:
            assert rule["ports"]
            assert all(peer for peer in rule.get("from") or rule["to"])


def test_triton_accepts_only_its_own_clients_and_labeled_namespaces(objects: list[Object]) -> None:
    spec = select_kind(objects, "NetworkPolicy")["triton"]["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in spec["ingress"]] == [["grpc"], ["metrics"]]
    peers = [yaml.safe_dump(peer) for rule in spec["ingress"] for peer in rule["from"]]
    assert len(peers) == 4
    assert all("component: " in peer or "asl-triton.io/" in peer for peer in peers)


def test_only_grpc_is_behind_a_service(objects: list[Object]) -> None:
    services = select_kind(objects, "Service")
    assert [port["port"] for name in ("triton", "triton-headless") for port in services[name]["spec"]["ports"]] == [
        8001
    ] * 2
    assert all(service["spec"].get("type", "ClusterIP") == "ClusterIP" for service in services.values())


def test_headless_service_resolves_to_every_pod(objects: list[Object]) -> None:
    services = select_kind(objects, "Service")
    assert services["triton-headless"]["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in services["triton"]["spec"]


# References between objects


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return bool(selector["matchLabels"].items() <= labels.items())


def test_selectors_find_their_pods(objects: list[Object], workloads: list[PodGroup]) -> None:
    for name, deployment in select_kind(objects, "Deployment").items():
        assert matches(deployment["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"]), name
    selectors = [obj["spec"]["selector"] for obj in select_kind(objects, "Service").values()]
    selectors += [
        obj["spec"]["selector"]["matchLabels"] for obj in select_kind(objects, "PodDisruptionBudget").values()
    ]
    for selector in selectors:
        assert len([pod for pod in workloads if selector.items() <= pod.labels.items()]) == 1
    for policy in select_kind(objects, "NetworkPolicy").values():
        selector = policy["spec"]["podSelector"]
        assert (
            selector == {} or "matchExpressions" in selector or any(matches(selector, pod.labels) for pod in workloads)
        )


def test_port_names_exist_in_the_containers(objects: list[Object], workloads: list[PodGroup]) -> None:
    for service in select_kind(objects, "Service").values():
        (pod,) = (pod for pod in workloads if service["spec"]["selector"].items() <= pod.labels.items())
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= list_port_names(pod)
    for pod in workloads:
        for probe in list_probes(pod):
            assert "exec" in probe or probe["httpGet"]["port"] in list_port_names(pod)
        policy = select_kind(objects, "NetworkPolicy")[pod.component]["spec"]
        assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= list_port_names(pod)


def list_port_names(pod: PodGroup) -> set[str]:
    return {port["name"] for container in pod.spec["containers"] for port in container["ports"]}


def list_probes(pod: PodGroup) -> Iterator[Object]:
    for container in pod.spec["containers"]:
        yield from (container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe"))


def test_mounts_and_volumes_match(objects: list[Object], every_pod: list[PodGroup]) -> None:
    for pod in every_pod:
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        mounted = {mount["name"] for container in pod.containers for mount in container.get("volumeMounts", ())}
        assert mounted == volumes, pod.owner
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in select_kind(objects, "ConfigMap")
            if "persistentVolumeClaim" in volume and pod.owner != "model-loader":
                assert volume["persistentVolumeClaim"]["claimName"] in select_kind(objects, "PersistentVolumeClaim")


def test_certificates_create_the_secrets_that_pods_mount(objects: list[Object], workloads: list[PodGroup]) -> None:
    created = {obj["spec"]["secretName"]: obj["spec"] for obj in select_kind(objects, "Certificate").values()}
    mounted = {v["secret"]["secretName"] for pod in workloads for v in pod.spec["volumes"] if "secret" in v}
    assert mounted - created.keys() == {"ui-accounts"}
    servers = {
        read_environment(c)["ASL_TRITON_SERVER"]
        for p in workloads
        if p.component != "triton"
        for c in p.spec["containers"]
    }
    assert {address.partition(":")[0] for address in servers} <= set(created["triton-tls"]["dnsNames"])


def read_environment(container: Object) -> dict[str, str | None]:
    return {variable["name"]: variable.get("value") for variable in container["env"]}


def test_changed_flags_or_models_restart_the_pods(objects: list[Object]) -> None:
    names = select_kind(objects, "ConfigMap").keys()
    assert sorted(re.sub("-[a-z0-9]{10}$", "", name) for name in names) == ["model-checksums", "triton-flags"]
    assert all(re.search("-[a-z0-9]{10}$", name) for name in names)


def test_flags_are_the_same_file_as_for_compose(objects: list[Object]) -> None:
    (data,) = (
        obj["data"] for name, obj in select_kind(objects, "ConfigMap").items() if name.startswith("triton-flags")
    )
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert data["triton.flags"] == (DEPLOY / compose["configs"]["flags"]["file"]).read_text()


# Rollouts, draining, scaling


def test_replicas_are_left_to_the_autoscaler(objects: list[Object]) -> None:
    assert not any("replicas" in obj["spec"] for obj in select_kind(objects, "Deployment").values())
    scaled = [obj["spec"]["scaleTargetRef"]["name"] for obj in select_kind(objects, "ScaledObject").values()]
    served = [
        service["spec"]["predictor"]["minReplicas"] for service in select_kind(objects, "InferenceService").values()
    ]
    assert (scaled, served) in ((["triton"], []), ([], [2]))


def test_pods_are_probed_over_http(workloads: list[PodGroup]) -> None:
    for pod in workloads:
        for container in pod.spec["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), pod.owner
        assert all("httpGet" in probe or pod.component == "triton" for probe in list_probes(pod))
    (triton,) = (pod.spec["containers"][0] for pod in workloads if pod.component == "triton")
    ready = {"path": "/v2/health/ready", "port": "http"}
    assert [triton[name]["httpGet"] for name in ("startupProbe", "readinessProbe")] == [ready, ready]


def test_triton_is_live_while_its_models_answer(workloads: list[PodGroup]) -> None:
    (triton,) = (pod.spec["containers"][0] for pod in workloads if pod.component == "triton")
    probe = triton["livenessProbe"]
    program, option, module = probe["exec"]["command"]
    assert (program, option) == ("python3", "-m")
    assert importlib.util.find_spec(module) is not None
    assert probe["timeoutSeconds"] > INFERENCE_TIMEOUT_S


def test_grace_period_covers_the_pre_stop_wait_and_the_exit(workloads: list[PodGroup]) -> None:
    (triton,) = (pod for pod in workloads if pod.component == "triton")
    sleep, seconds = triton.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert triton.spec["terminationGracePeriodSeconds"] > int(seconds) + EXIT_TIMEOUT_S


def test_rollout_removes_no_pod_before_its_successor_is_ready(objects: list[Object]) -> None:
    strategies = [obj["spec"]["strategy"] for name, obj in select_kind(objects, "Deployment").items() if name in SERVED]
    strategies += [
        s["spec"]["predictor"]["deploymentStrategy"] for s in select_kind(objects, "InferenceService").values()
    ]
    assert strategies == [{"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}]


def test_drains_evict_one_triton_at_a_time(objects: list[Object]) -> None:
    assert select_kind(objects, "PodDisruptionBudget")["triton"]["spec"]["maxUnavailable"] == 1


def test_tritons_spread_over_nodes_and_zones(workloads: list[PodGroup]) -> None:
    (triton,) = (pod for pod in workloads if pod.component == "triton")
    keys = {spread["topologyKey"] for spread in triton.spec["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(matches(s["labelSelector"], triton.labels) for s in triton.spec["topologySpreadConstraints"])


def test_only_gpu_overlays_request_a_gpu() -> None:
    gpus = {}
    for overlay in OVERLAYS:
        (triton,) = (pod for pod in find_pods(render(overlay)) if pod.component == "triton")
        gpus[overlay] = triton.spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus == {"gpu": 1, "cpu": None, "kserve": 1}


def test_kserve_runs_the_same_container_as_the_deployment() -> None:
    (deployed,) = (pod.spec["containers"][0] for pod in find_pods(render("gpu")) if pod.component == "triton")
    (served,) = (pod.spec["containers"][0] for pod in find_pods(render("kserve")) if pod.component == "triton")
    # KServe requires this name and provides the models itself.
    assert served.pop("name") == "kserve-container"
    assert served["env"].pop() == {"name": "ASL_TRITON_REPOSITORY", "value": "/mnt/models"}
    assert deployed.pop("name") == "triton"
    assert deployed["volumeMounts"].pop(0)["name"] == "models"
    assert served == deployed


def test_page_and_doctor_set_variables_that_the_command_line_reads(workloads: list[PodGroup]) -> None:
    known = {
        name
        for field in dataclasses.fields(Connection)
        for meta in getattr(field.type, "__metadata__", ())
        for name in list_variables(meta)
    }
    for pod in workloads:
        if pod.component != "triton":
            (container,) = pod.spec["containers"]
            assert read_environment(container).keys() == {
                f"ASL_TRITON_{n}" for n in ("SERVER", "API_KEY", "TLS_CA", "TLS_CERT", "TLS_KEY")
            }
            assert read_environment(container).keys() <= known


def list_variables(meta: Any) -> list[str]:
    names = getattr(meta, "envvar", None) or []
    return [names] if isinstance(names, str) else list(names)


def test_base_renders_without_the_operators_settings() -> None:
    assert "registry.example.org" not in kustomize(DEPLOY / "kubernetes" / "base")
