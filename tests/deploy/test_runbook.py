"""Commands, options, files and names in the runbook exist, and its release works as described."""

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


def test_named_files_exist() -> None:
    named = {word for block in CONSOLE for word in re.findall(r"\bdeploy/[\w./-]+", block)}
    assert len(named) > 8
    created = {"deploy/.env", "deploy/monitoring/rules/"}  # created by the commands, or followed by a pattern
    assert [name for name in named - created if not (ROOT / name).exists()] == []
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", RUNBOOK):
        assert (DEPLOY / target).exists(), target


def test_named_variables_are_read() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for folder in (ROOT / "client", DEPLOY)
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml", ".example")
    ]
    for name in set(re.findall(r"\b(?:ASL_TRITON|MODEL)_[A-Z_]+[A-Z]\b", RUNBOOK)):
        assert any(name in source for source in sources), name


@pytest.mark.parametrize("secret", re.findall(r"create secret generic (\S+)", RUNBOOK))
def test_created_secrets_are_used(secret: str) -> None:
    manifests = [path.read_text(encoding="utf-8") for path in (DEPLOY / "kubernetes").rglob("*.yaml")]
    assert any(secret in manifest for manifest in manifests)


def render_by_name(folder: Path) -> dict[tuple[str, str], Any]:
    """Return the rendered objects by kind and name."""
    objects = yaml.load_all(kustomize(folder), yaml.CSafeLoader)
    return {(obj["kind"], obj["metadata"]["name"]): obj for obj in objects}


def test_release_is_in_the_pod_template_so_that_undo_reverts_it(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
    overlay = tmp_path / "deploy" / "kubernetes" / "overlays" / "gpu"
    before = render_by_name(DEPLOY / "kubernetes" / "overlays" / "gpu")
    (release,) = re.findall(r"```yaml\n(.*?)```", RUNBOOK, flags=re.DOTALL)
    (overlay / "release.yaml").write_text(release)
    (overlay / "SHA256SUMS").write_text(f"{'0' * 64}  i3d/2/model.pt\n")
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    kustomization["patches"].append({"path": "release.yaml"})
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    after = render_by_name(overlay)

    def get_pod_spec(objects: dict[tuple[str, str], Any], name: str) -> Any:
        return objects["Deployment", name]["spec"]["template"]["spec"]

    def get_repository(objects: dict[tuple[str, str], Any]) -> Any:
        environment = get_pod_spec(objects, "triton")["containers"][0]["env"]
        return next((v["value"] for v in environment if v["name"] == "ASL_TRITON_REPOSITORY"), "/models")

    def get_checksums_name(objects: dict[tuple[str, str], Any]) -> str:
        (name,) = (
            v["configMap"]["name"] for v in get_pod_spec(objects, "triton")["volumes"] if v["name"] == "checksums"
        )
        assert ("i3d/2/model.pt" in objects["ConfigMap", name]["data"]["SHA256SUMS"]) == (objects is after)
        return str(name)

    assert (get_repository(before), get_repository(after)) == ("/models", "/models/2")
    # Named by content, so the old one stays next to the new.
    assert get_checksums_name(before) != get_checksums_name(after)
    assert get_pod_spec(after, "doctor")["containers"][0]["args"][-2:] == ["--repository", "/models/2"]
    changed = {key for key in before.keys() & after.keys() if before[key] != after[key]}
    assert changed == {("Deployment", "triton"), ("Deployment", "doctor")}
