"""deploy/kubernetes and what is not Kubernetes itself: the schemas of its extensions, and the queries it scales by."""

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

from tests.deploy.programs import missing, program
from tests.deploy.rendered import DEPLOY, OVERLAYS, Object, by_itself, of_kind, pods, render
from tests.deploy.test_kubernetes import CORE, KUBERNETES_VERSIONS, version_of

EXTENSIONS = Path(__file__).parent / "extensions"
KSERVE = "kserve==0.21.0"
KSERVE_KINDS = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
# No package brings the schema of this one, NGINX Gateway Fabric's: its fields are held here by hand.
WITHOUT_SCHEMA = {"ClientSettingsPolicy": {"targetRef", "body"}}


def of_extensions() -> list[Object]:
    """The objects of all overlays that Kubernetes itself knows nothing of, each once."""
    found = [thing for overlay in OVERLAYS for thing in render(overlay) if not CORE.fullmatch(version_of(thing))]
    return list({json.dumps(thing, sort_keys=True): thing for thing in found}.values())


def installed_once(config: pytest.Config, name: str, command: list[str | Path], sources: list[Path]) -> Path:
    """A folder with copies of `sources` in which `command` was run; kept between test runs while both stay the same."""
    digest = hashlib.sha256(b"".join([repr(command).encode(), *(source.read_bytes() for source in sources)]))
    folder = config.cache.mkdir(f"{name}-{digest.hexdigest()[:12]}")
    if not (folder / "installed").exists():
        for source in sources:
            shutil.copy(source, folder)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            missing(f"{command[0]} could not install the schemas: is the package index in reach? {done.stderr[-500:]}")
        (folder / "installed").touch()
    return folder


@pytest.fixture(scope="module")
def validator(request: pytest.FixtureRequest) -> Path:
    """The folder in which validate.mjs finds its schemas."""
    npm = program("npm", "install Node.js 20 or newer")
    command: list[str | Path] = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    sources = [EXTENSIONS / name for name in ("package.json", "package-lock.json", "validate.mjs")]
    return installed_once(request.config, "kubernetes-extensions", command, sources)


def faults(validator: Path, objects: list[Object]) -> list[str]:
    node = program("node", "install Node.js 20 or newer")
    done = subprocess.run(
        [node, "validate.mjs"], cwd=validator, input=json.dumps(objects), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def test_objects_fit_the_schemas_of_extensions(validator: Path) -> None:
    objects = [thing for thing in of_extensions() if thing["kind"] not in {*WITHOUT_SCHEMA, *KSERVE_KINDS}]
    assert {thing["kind"] for thing in objects} == {"Certificate", "HTTPRoute", "Issuer", "PodMonitor", "ScaledObject"}
    # What must not pass goes along: one run of TypeScript takes seconds.
    broken = json.loads(json.dumps(of_kind(objects, "HTTPRoute")["ui"]))
    broken["spec"]["hostnames"] = ["no host"]
    broken["spec"]["rules"][0]["timeout"] = {}
    found = faults(validator, [*objects, broken])
    assert len(found) == 2
    assert "hostnames/0 must match pattern" in found[0]
    assert "'\"timeout\"' does not exist in type 'IHTTPRouteRule'" in found[1]


def test_body_limit_of_the_gateway() -> None:
    policies = [thing for thing in of_extensions() if thing["kind"] in WITHOUT_SCHEMA]
    assert len(policies) == 1
    spec = policies[0]["spec"]
    assert spec.keys() == WITHOUT_SCHEMA["ClientSettingsPolicy"]
    assert spec["targetRef"] == {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "ui"}
    assert re.fullmatch(r"\d+m", spec["body"]["maxSize"])


# KServe


@pytest.fixture(scope="module")
def kserve_types(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    """KServe's own classes: each one's fields, as they are written in YAML, with their types."""
    uv = program("uv", "pip install uv")
    folder = installed_once(
        request.config, "kserve", [uv, "pip", "install", "--quiet", "--no-deps", "--target", ".", KSERVE], []
    )
    types = {}
    for path in (folder / "kserve" / "models").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                named = {
                    str(ast.unparse(line.targets[0])): ast.literal_eval(line.value)
                    for line in node.body
                    if isinstance(line, ast.Assign)
                    and ast.unparse(line.targets[0]) in ("openapi_types", "attribute_map")
                }
                types[node.name] = {named["attribute_map"][k]: v for k, v in named.get("openapi_types", {}).items()}
    return types


def unknown_fields(types: dict[str, dict[str, str]], kind: str, value: Any, path: str) -> Iterator[str]:
    """Where `value` has what KServe's class `kind` has not."""
    if kind.startswith("list["):
        yield from (f for i, v in enumerate(value) for f in unknown_fields(types, kind[5:-1], v, f"{path}.{i}"))
    elif kind in ("str", "int", "bool"):
        if type(value).__name__ != kind:
            yield f"{path} is no {kind}"
    elif kind in types and isinstance(value, dict):
        for name, inner in value.items():
            if name in types[kind]:
                yield from unknown_fields(types, types[kind][name], inner, f"{path}.{name}")
            else:
                yield f"{kind} has no {path}.{name}"


def test_kserve_knows_every_field(kserve_types: dict[str, dict[str, str]]) -> None:
    objects = [thing for thing in render("kserve") if thing["kind"] in KSERVE_KINDS]
    assert len(objects) == 2
    for thing in objects:
        assert list(unknown_fields(kserve_types, KSERVE_KINDS[thing["kind"]], thing, "")) == []
    objects[0]["spec"]["predictorr"] = {}
    assert len(list(unknown_fields(kserve_types, KSERVE_KINDS[objects[0]["kind"]], objects[0], ""))) == 1


def test_pod_that_kserve_makes_fits_the_schema(kserve_types: dict[str, dict[str, str]]) -> None:
    (pod,) = (pod for pod in pods(render("kserve")) if pod.component == "triton")
    its_own = {"minReplicas", "maxReplicas", "model", "autoScaling", "deploymentStrategy", "labels"}
    spec = {name: value for name, value in pod.spec.items() if name not in its_own}
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made", "labels": pod.labels}, "spec": spec}
    kubernetes_validate.validate(made, kubernetes_validate.latest_version(), strict=True)


# Scaling by the time that a request waits


def queries() -> list[str]:
    """The queries, as Prometheus gets them."""
    (keda,) = of_kind(render("gpu"), "ScaledObject")["triton"]["spec"]["triggers"]
    service = of_kind(render("kserve"), "InferenceService")["asl-triton"]
    (kserve,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    return [keda["metadata"]["query"], kserve["external"]["metric"]["query"]]


def test_queries_give_the_seconds_that_a_request_waits(tmp_path: Path) -> None:
    # Two requests a second on a, each 30 ms in the queue; on b one that waits 120 ms, behind a model that waits less.
    series = [("a", "i3d", 2, 60_000), ("b", "i3d", 1, 120_000), ("b", "other", 1, 1_000), ("idle", "i3d", 0, 0)]
    inputs = []
    for pod, model, requests, queue_us in series:
        labels = f'{{namespace="asl-triton",pod="{pod}",model="{model}"}}'
        inputs += [
            {"series": f"nv_inference_request_success{labels}", "values": f"0+{requests * 15}x40"},
            {"series": f"nv_inference_queue_duration_us{labels}", "values": f"0+{queue_us * 15}x40"},
        ]
    samples = [{"labels": "{}", "value": 0.06}]  # i3d over all pods: 180 ms in the queue for three requests
    checks = [{"expr": query, "eval_time": "5m", "exp_samples": samples} for query in queries()]
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


def test_ray_job_has_the_fields_that_kuberay_knows() -> None:
    """By hand: no package brings its schema (ray.io/v1, rayjob_types.go and raycluster_types.go of KubeRay)."""
    spec = of_kind(by_itself(), "RayJob")["archive"]["spec"]
    job = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"}
    assert spec.keys() == {*job, "rayClusterSpec"}
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert cluster["headGroupSpec"].keys() == {"rayStartParams", "template"}
    (workers,) = cluster["workerGroupSpecs"]
    assert workers.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert all(isinstance(value, str) for value in cluster["headGroupSpec"]["rayStartParams"].values())
    assert spec["submissionMode"] == "HTTPMode"


def test_ray_of_the_job_is_the_image_s() -> None:
    locked = (DEPLOY / "requirements" / "ray.txt").read_text()
    version = of_kind(by_itself(), "RayJob")["archive"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={version} " in locked


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_pods_that_kuberay_makes_fit_the_schema(version: str) -> None:
    made = [pod for pod in pods(by_itself()) if pod.component == "archive"]
    assert len(made) == 2
    for pod in made:
        metadata = {"name": "made", "labels": pod.labels}
        thing = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod.spec}
        kubernetes_validate.validate(thing, version, strict=True)
        (container,) = pod.containers
        assert {"readinessProbe", "livenessProbe"} <= container.keys()  # or KubeRay adds its own, which call wget


def test_ray_s_machines_reach_triton_and_triton_lets_them_in() -> None:
    policies = of_kind(by_itself(), "NetworkPolicy")
    (machines, _) = (pod for pod in pods(by_itself()) if pod.component == "archive")
    (triton,) = (pod for pod in pods(render("gpu")) if pod.component == "triton")
    for name, there in (("archive", machines), ("triton-for-archive", triton)):
        assert policies[name]["spec"]["podSelector"]["matchLabels"].items() <= there.labels.items()
    (let_in,) = policies["triton-for-archive"]["spec"]["ingress"]
    assert let_in["from"][0]["podSelector"]["matchLabels"].items() <= machines.labels.items()
    reached = [
        peer["podSelector"]["matchLabels"]
        for rule in policies["archive"]["spec"]["egress"]
        for peer in rule["to"]
        if "podSelector" in peer
    ]
    assert [selector.items() <= triton.labels.items() for selector in reached] == [False, True]
