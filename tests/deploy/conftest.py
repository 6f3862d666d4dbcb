"""Model repositories small enough to serve in a second, and what a Triton must not leave behind."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc

CONFIG = """
backend: "{backend}"
max_batch_size: 0
input [{{ name: "FRAMES__0", data_type: TYPE_UINT8, dims: [-1] }}]
output [{{ name: "SUM__0", data_type: TYPE_INT64, dims: [1] }}]
instance_group [{{ kind: KIND_CPU }}]
"""
SUMMING = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        frames = pb_utils.get_input_tensor_by_name(request, "FRAMES__0").as_numpy()
        total = np.array([frames.sum(dtype=np.int64)])
        return pb_utils.InferenceResponse([pb_utils.Tensor("SUM__0", total)])
"""


def write_model(repository: Path, name: str, code: str = SUMMING) -> Path:
    """A folder as `asl-triton export` lays it out, with a model that sums its frames."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.pt").touch()
    (folder / "1" / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(CONFIG.format(backend="pytorch"))
    (folder / "configs").mkdir()
    (folder / "configs" / "wheel.pbtxt").write_text(CONFIG.format(backend="python"))
    return folder


def ask(address: str, model: str, n_bytes: int) -> int:
    """The sum that a model answers to `n_bytes` ones."""
    frames = tritonclient.grpc.InferInput("FRAMES__0", [n_bytes], "UINT8")
    frames.set_data_from_numpy(np.ones(n_bytes, np.uint8))
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return int(client.infer(model, [frames]).as_numpy("SUM__0")[0])


@dataclass(frozen=True)
class Family:
    """A running Triton with all its processes, its folder and its shared memory, seen from outside."""

    processes: list[psutil.Process]
    folder: Path
    name: str

    @classmethod
    def of(cls, supervisor_pid: int) -> "Family":
        supervisor = psutil.Process(supervisor_pid)
        arguments = supervisor.cmdline()
        return cls([supervisor, *supervisor.children(recursive=True)], Path(arguments[3]), arguments[4])

    def assert_complete(self) -> None:
        """Supervisor, Triton and a stub are there, and what they use."""
        assert len(self.processes) >= 3
        assert self.folder.is_dir()
        assert self.shared_memory()

    def assert_gone(self) -> None:
        """Nothing is left, or will be when the processes that are ending have ended."""
        _, alive = psutil.wait_procs(self.processes, timeout=60)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        assert not self.folder.exists()
        assert self.shared_memory() == []

    def shared_memory(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.name}*"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model, `summing`."""
    path = tmp_path / "model_repository"
    write_model(path, "summing")
    return path


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """The names of what is in the folder for temporary files, which is empty at first."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield lambda: sorted(path.name for path in folder.iterdir())
