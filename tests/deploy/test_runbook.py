"""What the runbook shows is there: commands and their options, files, names; and its release is what it says."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from asl_triton.cli.app import app
from tests.deploy.rendered import kustomize
from tests.paths import ROOT

DEPLOY = ROOT / "deploy"
RUNBOOK = (DEPLOY / "README.md").read_text(encoding="utf-8")
CONSOLE = [block.replace("\\\n", " ") for block in re.findall(r"```console\n(.*?)```", RUNBOOK, flags=re.DOTALL)]
WORDS = [shlex.split(line, comments=True) for block in CONSOLE for line in block.splitlines() if "'" not in line]


@pytest.mark.parametrize(
    "command", [words[words.index("asl-triton") :] for words in WORDS if "asl-triton" in words[:2]], ids=" ".join
)
def test_commands_and_their_options_exist(command: list[str]) -> None:
    parameters = typer.main.get_group(app).commands[command[1]].params
    known = {option for parameter in parameters for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known


def test_files_that_are_named_are_there() -> None:
    named = {word for block in CONSOLE for word in re.findall(r"\bdeploy/[\w./-]+", block)}
    assert len(named) > 8
    made = {"deploy/.env", "deploy/monitoring/rules/"}  # by the commands, or with a pattern behind it
    assert [name for name in named - made if not (ROOT / name).exists()] == []
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", RUNBOOK):
        assert (DEPLOY / target).exists(), target


def test_variables_that_are_named_are_read() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for folder in (ROOT / "client", DEPLOY)
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml", ".example")
    ]
    for name in set(re.findall(r"\b(?:ASL_TRITON|MODEL)_[A-Z_]+[A-Z]\b", RUNBOOK)):
        assert any(name in source for source in sources), name


@pytest.mark.parametrize("secret", re.findall(r"create secret generic (\S+)", RUNBOOK))
def test_secrets_that_are_made_are_asked_for(secret: str) -> None:
    manifests = [path.read_text(encoding="utf-8") for path in (DEPLOY / "kubernetes").rglob("*.yaml")]
    assert any(secret in manifest for manifest in manifests)


def rendered(folder: Path) -> dict[tuple[str, str], Any]:
    """Objects by kind and name."""
    objects = yaml.load_all(kustomize(folder), yaml.CSafeLoader)
    return {(found["kind"], found["metadata"]["name"]): found for found in objects}


def test_release_is_in_the_pods_template_so_that_undo_brings_the_old_one_back(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    overlay = tmp_path / "deploy" / "kubernetes" / "overlays" / "gpu"
    before = rendered(DEPLOY / "kubernetes" / "overlays" / "gpu")
    (release,) = re.findall(r"```yaml\n(.*?)```", RUNBOOK, flags=re.DOTALL)
    (overlay / "release.yaml").write_text(release)
    (overlay / "SHA256SUMS").write_text(f"{'0' * 64}  i3d/2/model.pt\n")
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    kustomization["patches"].append({"path": "release.yaml"})
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    after = rendered(overlay)

    def pod(objects: dict[tuple[str, str], Any], name: str) -> Any:
        return objects["Deployment", name]["spec"]["template"]["spec"]

    def repository(objects: dict[tuple[str, str], Any]) -> Any:
        environment = pod(objects, "triton")["containers"][0]["env"]
        return next((v["value"] for v in environment if v["name"] == "ASL_TRITON_REPOSITORY"), "/models")

    def sums(objects: dict[tuple[str, str], Any]) -> str:
        (name,) = (v["configMap"]["name"] for v in pod(objects, "triton")["volumes"] if v["name"] == "checksums")
        assert ("i3d/2/model.pt" in objects["ConfigMap", name]["data"]["SHA256SUMS"]) == (objects is after)
        return str(name)

    assert (repository(before), repository(after)) == ("/models", "/models/2")
    assert sums(before) != sums(after)  # by their content: the old one stays beside the new
    assert pod(after, "doctor")["containers"][0]["args"][-2:] == ["--repository", "/models/2"]
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed == {("Deployment", "triton"), ("Deployment", "doctor")}
