"""The Kubernetes extensions that deploy/kubernetes uses: their schemas, and the queries that scale Triton."""

import ast
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.programs import program, skip_or_fail
from tests.deploy.rendered import DEPLOY, OVERLAYS, Object, find_pods, load_standalone, render, select_kind
from tests.deploy.test_kubernetes import CORE, KUBERNETES_VERSIONS, get_api_version

EXTENSIONS = Path(__file__).parent / "extensions"
KSERVE = "kserve==0.21.0"
KSERVE_KINDS = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
# No package has the schema of this one, from NGINX Gateway Fabric, so its fields are listed by hand.
WITHOUT_SCHEMA = {"ClientSettingsPolicy": {"targetRef", "body"}}


def render_extensions() -> list[Object]:
    """Return the objects of all overlays that Kubernetes itself does not define, without duplicates."""
    found = [obj for overlay in OVERLAYS for obj in render(overlay) if not CORE.fullmatch(get_api_version(obj))]
    return list({json.dumps(obj, sort_keys=True): obj for obj in found}.values())


def install_once(config: pytest.Config, name: str, command: list[str | Path], sources: list[Path]) -> Path:
    """Run `command` in a folder with copies of `sources`. Later test runs reuse the folder until either changes."""
    digest = hashlib.sha256(b"".join([repr(command).encode(), *(source.read_bytes() for source in sources)]))
    folder = config.cache.mkdir(f"{name}-{digest.hexdigest()[:12]}")
    if not (folder / "installed").exists():
        for source in sources:
            shutil.copy(source, folder)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            skip_or_fail(f"{command[0]} could not install the schemas: check the network. {done.stderr[-500:]}")
        (folder / "installed").touch()
    return folder


@pytest.fixture(scope="module")
def validator(request: pytest.FixtureRequest) -> Path:
    """The folder in which validate.mjs finds its schemas."""
    npm = program("npm", "install Node.js 20 or newer")
    command: list[str | Path] = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    sources = [EXTENSIONS / name for name in ("package.json", "package-lock.json", "validate.mjs")]
    return install_once(request.config, "kubernetes-extensions", command, sources)


def find_faults(validator: Path, objects: list[Object]) -> list[str]:
    node = program("node", "install Node.js 20 or newer")
    done = subprocess.run(
        [node, "validate.mjs"], cwd=validator, input=json.dumps(objects), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def test_objects_match_the_extension_schemas(validator: Path) -> None:
    objects = [obj for obj in render_extensions() if obj["kind"] not in {*WITHOUT_SCHEMA, *KSERVE_KINDS}]
    assert {obj["kind"] for obj in objects} == {"Certificate", "HTTPRoute", "Issuer", "PodMonitor", "ScaledObject"}
    # The invalid object is part of the same run, because TypeScript takes seconds to start.
    broken = json.loads(json.dumps(select_kind(objects, "HTTPRoute")["ui"]))
    broken["spec"]["hostnames"] = ["no host"]
    broken["spec"]["rules"][0]["timeout"] = {}
    found = find_faults(validator, [*objects, broken])
    assert len(found) == 2
    assert "hostnames/0 must match pattern" in found[0]
    assert "'\"timeout\"' does not exist in type 'IHTTPRouteRule'" in found[1]


def test_gateway_limits_the_request_body() -> None:
    policies = [obj for obj in render_extensions() if obj["kind"] in WITHOUT_SCHEMA]
    assert len(policies) == 1
    spec = policies[0]["spec"]
    assert spec.keys() == WITHOUT_SCHEMA["ClientSettingsPolicy"]
    assert spec["targetRef"] == {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "ui"}
    assert re.fullmatch(r"\d+m", spec["body"]["maxSize"])


# KServe


@pytest.fixture(scope="module")
def kserve_types(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    """The fields of each KServe class, as spelled in YAML, with their types."""
    uv = program("uv", "pip install uv")
    folder = install_once(
        request.config, "kserve", [uv, "pip", "install", "--quiet", "--no-deps", "--target", ".", KSERVE], []
    )
    types = {}
    for path in (folder / "kserve" / "models").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                tables = {
                    str(ast.unparse(line.targets[0])): ast.literal_eval(line.value)
                    for line in node.body
                    if isinstance(line, ast.Assign)
                    and ast.unparse(line.targets[0]) in ("openapi_types", "attribute_map")
                }
                types[node.name] = {tables["attribute_map"][k]: v for k, v in tables.get("openapi_types", {}).items()}
    return types


def find_unknown_fields(types: dict[str, dict[str, str]], kind: str, value: Any, path: str) -> Iterator[str]:
    """Yield each part of `value` that KServe's class `kind` does not allow."""
    if kind.startswith("list["):
        yield from (f for i, v in enumerate(value) for f in find_unknown_fields(types, kind[5:-1], v, f"{path}.{i}"))
    elif kind in ("str", "int", "bool"):
        if type(value).__name__ != kind:
            yield f"{path} is not of type {kind}"
    elif kind in types and isinstance(value, dict):
        for name, inner in value.items():
            if name in types[kind]:
                yield from find_unknown_fields(types, types[kind][name], inner, f"{path}.{name}")
            else:
                yield f"{kind} has no {path}.{name}"


def test_kserve_knows_every_field(kserve_types: dict[str, dict[str, str]]) -> None:
    objects = [obj for obj in render("kserve") if obj["kind"] in KSERVE_KINDS]
    assert len(objects) == 2
    for obj in objects:
        assert list(find_unknown_fields(kserve_types, KSERVE_KINDS[obj["kind"]], obj, "")) == []
    objects[0]["spec"]["predictorr"] = {}
    assert len(list(find_unknown_fields(kserve_types, KSERVE_KINDS[objects[0]["kind"]], objects[0], ""))) == 1


def test_kserve_pod_matches_the_schema(kserve_types: dict[str, dict[str, str]]) -> None:
    (pod,) = (pod for pod in find_pods(render("kserve")) if pod.component == "triton")
    kserve_fields = {"minReplicas", "maxReplicas", "model", "autoScaling", "deploymentStrategy", "labels"}
    spec = {name: value for name, value in pod.spec.items() if name not in kserve_fields}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made", "labels": pod.labels}, "spec": spec}
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)


# Scaling by queue time


def load_queries() -> list[str]:
    """Return the queries that KEDA and KServe send to Prometheus."""
    (keda,) = select_kind(render("gpu"), "ScaledObject")["triton"]["spec"]["triggers"]
    service = select_kind(render("kserve"), "InferenceService")["asl-triton"]
    (kserve,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    return [keda["metadata"]["query"], kserve["external"]["metric"]["query"]]


def test_queries_return_the_queue_seconds_per_request(tmp_path: Path) -> None:
    # Per second, pod a has two requests that wait 30 ms each; b has one that waits 120 ms, and a model that waits less.
    series = [("a", "i3d", 2, 60_000), ("b", "i3d", 1, 120_000), ("b", "other", 1, 1_000), ("idle", "i3d", 0, 0)]
    inputs = []
    for pod, model, requests, queue_us in series:
        labels = f'{{namespace="asl-triton",pod="{pod}",model="{model}"}}'
        inputs += [
            {"series": f"nv_inference_request_success{labels}", "values": f"0+{requests * 15}x40"},
            {"series": f"nv_inference_queue_duration_us{labels}", "values": f"0+{queue_us * 15}x40"},
        ]
    samples = [{"labels": "{}", "value": 0.06}]  # i3d over all pods: 180 ms in the queue for three requests
    checks = [{"expr": query, "eval_time": "5m", "exp_samples": samples} for query in load_queries()]
    test = {
        "evaluation_interval": "15s",
        "tests": [{"interval": "15s", "input_series": inputs, "promql_expr_test": checks}],
    }
    (tmp_path / "queries.test.yml").write_text(yaml.safe_dump(test))
    promtool = program("promtool", "apt-get install prometheus")
    done = subprocess.run(
        [promtool, "test", "rules", "queries.test.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


# Ray


def test_ray_job_uses_only_fields_that_kuberay_knows() -> None:
    """Listed by hand, as no package has the schema (ray.io/v1, rayjob_types.go and raycluster_types.go of KubeRay)."""
    spec = select_kind(load_standalone(), "RayJob")["archive"]["spec"]
    job = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    assert spec.keys() == {*job, "rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())
    assert spec["submissionMode"] == "HTTPMode"


def test_ray_version_of_the_job_matches_the_image() -> None:
    locked = (DEPLOY / "requirements" / "ray.txt").read_text()
    version = select_kind(load_standalone(), "RayJob")["archive"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version} " in locked


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_kuberay_pods_match_the_schema(version: str) -> None:
    made = [pod for pod in find_pods(load_standalone()) if pod.component == "archive"]
    assert len(made) == 2
    for pod in made:
        metadata = {"name": "made", "labels": pod.labels}
        obj = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}
        kubernetes_validate.validate(obj, version, strict=True)
        (container,) = pod.containers
        # Without these, KubeRay adds its own probes, which need wget.
        assert {"readinessProbe", "livenessProbe"} <= container.keys()


def test_ray_pods_can_reach_triton() -> None:
    policies = select_kind(load_standalone(), "NetworkPolicy")
    (ray_head, _) = (pod for pod in find_pods(load_standalone()) if pod.component == "archive")
    (triton,) = (pod for pod in find_pods(render("gpu")) if pod.component == "triton")
    for name, pod in (("archive", ray_head), ("triton-for-archive", triton)):
        assert policies[name]["spec"]["podSelector"]["matchLabels"].items() <= pod.labels.items()
    (rule,) = policies["triton-for-archive"]["spec"]["ingress"]
    assert rule["from"][0]["podSelector"]["matchLabels"].items() <= ray_head.labels.items()
    selectors = [
        peer["podSelector"]["matchLabels"]
        for rule in policies["archive"]["spec"]["egress"]
        for peer in rule["to"]
        if "podSelector" in peer
    ]
    assert [selector.items() <= triton.labels.items() for selector in selectors] == [False, True]
