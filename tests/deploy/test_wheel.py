"""The wheel: its contents, and that it works in a fresh environment."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from asl_triton.models.recognize_sign import SIGN_MODELS
from tests.client import videos
from tests.paths import ROOT

DEPENDENCIES = Path(np.__file__).parents[1]  # the fresh environment uses what is installed here


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


class Environment:
    """A fresh virtual environment with asl-triton from the wheel and its dependencies from this one."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        (packages,) = folder.glob("lib/python3.*/site-packages")
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--quiet", wheel], check=True, capture_output=True)
        (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")

    def run(self, program: str, *arguments: object, cwd: Path, code: int = 0) -> str:
        """Run a program of the environment, and return both of its outputs."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            [self.bin / program, *map(str, arguments)],
            cwd=cwd,
            env={**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("fresh") / "venv", wheel)


def test_wheel_has_the_demo_checkpoint_and_the_whole_video_models_but_not_the_demo_signer(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    models = {name for name in names if "/model_repository/" in name}
    files = ("1/model.py", "config.pbtxt")
    assert models == {f"asl_triton_deploy/model_repository/{name}/{file}" for name in SIGN_MODELS for file in files}
    packages = {name.partition("/")[0] for name in names}
    assert {name for name in packages if not name.endswith(".dist-info")} == {
        "asl_triton", "asl_triton_deploy", "asl_triton_export", "asl_triton_ui"
    }  # fmt: skip
    demo = {name for name in names if name.startswith("asl_triton_export/demo_checkpoint/")}
    assert {Path(name).name for name in demo} == {
        "README.md", "card.json", "labels.txt", "preset.json", "weights.safetensors"
    }  # fmt: skip


def test_installed_wheel_exports_serves_and_recognizes(environment: Environment, tmp_path: Path) -> None:
    path = environment.run("python", "-c", "import asl_triton; print(asl_triton.__file__)", cwd=tmp_path)
    assert Path(path).is_relative_to(environment.bin.parent)
    clips = tmp_path / "clips"
    clips.mkdir()
    videos.clip(clips / "a.mp4", num_frames=12)
    environment.run("asl-triton", "export", "demo", cwd=tmp_path)
    output = environment.run("asl-triton", "batch", "clips", "--local", "--format", "csv", cwd=tmp_path)
    assert "a.mp4" in (tmp_path / "results" / "results.csv").read_text(), output


def test_missing_extra_is_installed_from_the_wheel(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden" / "pyarrow"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'pyarrow'\", name='pyarrow')\n")
    run = f"import sys; sys.path.insert(0, {str(hidden.parent)!r}); from asl_triton.cli.app import main; main()"
    videos.clip(tmp_path / "a.mp4", num_frames=9)
    output = environment.run("python", "-c", run, "batch", tmp_path, "--format", "parquet", cwd=tmp_path, code=1)
    assert f"which is not installed: pip install '{wheel}[parquet]'" in " ".join(output.split())
