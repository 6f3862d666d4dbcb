"""The entry point of the Triton image, run as the image runs it: real processes, the wheel's real Triton."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.models.checksums import MANIFEST, write_checksums
from asl_triton_deploy.model_layout import find_shipped_models
from asl_triton_deploy.production.__main__ import prepare
from asl_triton_deploy.readiness import model_states
from asl_triton_deploy.triton_binary import CPU_SETTINGS, Machine, find_binary
from tests.client.model_folders import GLOSSES, write_folder
from tests.client.videos import clip
from tests.deploy.conftest import request_sum, write_model
from tests.deploy.container import run_contained
from tests.deploy.entry_point import find_free_ports, lay_out_image, run_entry_point, wait_until_ready
from tests.live import sign_client

# A model that answers every clip with the same logits.
CONSTANT = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer() for _ in requests]

    def answer(self):
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS__0", np.array([[3, 2, 1, 0, 0, 0]], np.float32))])
"""


@pytest.fixture
def image(repository: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a container, with everything under `tmp_path` instead of `/`."""
    return lay_out_image(repository, tmp_path)


def test_only_listed_files_are_served_and_sigterm_stops_cleanly(
    image: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    write_model(tmp_path / "image_models", "of_the_image")
    # Neither of these is listed: a model, and a version 2 that Triton would import and serve instead of version 1.
    write_model(repository, "unlisted")
    (repository / "summing" / "2").mkdir()
    (repository / "summing" / "2" / "model.py").write_text(f"open({str(tmp_path / 'was_here')!r}, 'w')\n")
    with run_entry_point(image, tmp_path) as (process, (http, grpc, _metrics)):
        # The process has become Triton, so a signal to the container's PID 1 reaches it.
        assert Path(process.exe()).name == "tritonserver"
        assert CPU_SETTINGS.items() <= process.environ().items()
        assert request_sum(f"127.0.0.1:{grpc}", "summing", 7) == 7
        assert request_sum(f"127.0.0.1:{grpc}", "of_the_image", 5) == 5
        # HTTP does not list the models.
        assert model_states("127.0.0.1", http) is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    served = sorted(path.name for path in (tmp_path / "run" / "models").glob("summing/*"))
    assert served == ["1", "config.pbtxt", "configs"]
    assert not (tmp_path / "was_here").exists()
    assert "asl-triton: checked summing; from the image: of_the_image" in (tmp_path / "log").read_text()


def test_recognize_sign_of_the_image_finds_mounted_models(
    image: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    folder = write_folder(repository, "signs", golden=False)
    config = (folder / "config.pbtxt").read_text()
    (folder / "configs").mkdir()
    (folder / "configs" / "wheel.pbtxt").write_text(config.replace('backend: "pytorch"', 'backend: "python"'))
    (folder / "1" / "model.py").write_text(CONSTANT)
    write_checksums(repository)
    video = clip(tmp_path / "clip.mp4", 12).read_bytes()
    shipped = {**image, "ASL_TRITON_IMAGE_MODELS": str(find_shipped_models())}
    with run_entry_point(shipped, tmp_path) as (_process, (_http, grpc, _metrics)):
        answer = sign_client.ask(f"127.0.0.1:{grpc}", video, top_k=1)
    assert isinstance(answer, sign_client.Answer) and answer.details["model"] == "signs"
    assert answer.glosses == (GLOSSES[0],)


def test_entry_point_serves_as_uid_1000_on_a_read_only_file_system(image: dict[str, str], tmp_path: Path) -> None:
    binary = find_binary(Machine.here(), tmp_path)
    options = binary.options(tmp_path / "backends")
    (http, grpc, metrics), root = find_free_ports(3), str(tmp_path)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    command = [sys.executable, "-m", "asl_triton_deploy.production", *options, *ports]
    places = {**binary.environment, **image, "ASL_TRITON_SERVED": "/run/asl-triton/models"}
    inside = {name: value.replace(root, "/mnt/given") for name, value in places.items()}
    arguments = [part.replace(root, "/mnt/given") for part in command]
    with run_contained(arguments, inside, tmp_path, tmp_path / "log") as process:
        wait_until_ready(process, http, tmp_path / "log")
        assert request_sum(f"127.0.0.1:{grpc}", "summing", 9) == 9
        assert (process.uids().effective, process.name()) == (1000, "tritonserver")
        process.terminate()
        # PID 1 only receives signals that it handles.
        process.wait(60)
    assert "All models are stopped, unloading models" in (tmp_path / "log").read_text()


def test_process_refuses_a_changed_model_in_one_sentence(image: dict[str, str], repository: Path) -> None:
    modify_model(repository)
    command = [sys.executable, "-m", "asl_triton_deploy.production"]
    done = subprocess.run(command, env=image, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {repository}/summing/1/model.py is not the file that SHA256SUMS lists")
    assert not Path(image["ASL_TRITON_SERVED"]).exists()


def modify_model(repository: Path) -> None:
    """Append a line to the code of a model."""
    with (repository / "summing" / "1" / "model.py").open("a") as code:
        code.write("\nimport os\n")


def get_refusal(image: Mapping[str, str]) -> str:
    """Return the error that `main` would print."""
    with pytest.raises(AslTritonError) as refused:
        prepare(image)
    return str(refused.value)


def test_partially_copied_model_is_refused(image: dict[str, str], repository: Path) -> None:
    (repository / "summing" / "config.pbtxt").unlink()
    assert "SHA256SUMS lists summing/config.pbtxt, but " in get_refusal(image)


def test_operators_checksums_take_precedence(image: dict[str, str], repository: Path, tmp_path: Path) -> None:
    # An attacker who can change the volume can change its SHA256SUMS too.
    shutil.move(repository / MANIFEST, tmp_path / MANIFEST)
    modify_model(repository)
    write_checksums(repository)
    assert "is not the file" in get_refusal({**image, "ASL_TRITON_CHECKSUMS": str(tmp_path / MANIFEST)})


def test_repository_without_checksums_is_refused(image: dict[str, str], repository: Path) -> None:
    (repository / MANIFEST).unlink()
    assert "write it with `asl-triton export`" in get_refusal(image)


def test_placeholder_checksums_of_an_overlay_are_refused(image: dict[str, str]) -> None:
    overlay = Path(__file__).parents[2] / "deploy" / "kubernetes" / "overlays" / "gpu" / MANIFEST
    assert "lists no model" in get_refusal({**image, "ASL_TRITON_CHECKSUMS": str(overlay)})


def test_missing_key_is_refused_before_models_are_copied(image: dict[str, str]) -> None:
    assert "ASL_TRITON_API_KEY is missing" in get_refusal({**image, "ASL_TRITON_API_KEY": ""})
    assert not Path(image["ASL_TRITON_SERVED"]).exists()


def test_old_triton_is_refused(image: dict[str, str]) -> None:
    sentence = get_refusal({**image, "TRITON_SERVER_VERSION": "2.60.0"})
    assert "Triton 2.60.0 has known vulnerabilities" in sentence


def test_invalid_triton_version_is_refused(image: dict[str, str]) -> None:
    assert "not a version such as" in get_refusal({**image, "TRITON_SERVER_VERSION": "latest"})


def test_missing_triton_is_reported(image: dict[str, str], tmp_path: Path) -> None:
    assert "there is no `tritonserver` on PATH" in get_refusal({**image, "PATH": str(tmp_path)})


def test_unwritable_scratch_folder_is_reported(image: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "read_only").touch()
    assert "cannot copy the models" in get_refusal(
        {**image, "ASL_TRITON_SERVED": str(tmp_path / "read_only" / "models")}
    )
