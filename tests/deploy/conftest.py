"""Model repositories that load in a second, and checks that a Triton leaves nothing behind."""

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
    """Write a model folder as `asl-triton export` does. The model sums its frames."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.pt").touch()
    (folder / "1" / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(CONFIG.format(backend="pytorch"))
    (folder / "configs").mkdir()
    (folder / "configs" / "wheel.pbtxt").write_text(CONFIG.format(backend="python"))
    return folder


def request_sum(address: str, model: str, n_bytes: int) -> int:
    """Send `n_bytes` ones to a model and return the sum."""
    frames = tritonclient.grpc.InferInput("FRAMES__0", [n_bytes], "UINT8")
    frames.set_data_from_numpy(np.ones(n_bytes, np.uint8))
    with tritonclient.grpc.InferenceServerClient(address) as client:
        return int(client.infer(model, [frames]).as_numpy("SUM__0")[0])


@dataclass(frozen=True)
class ProcessTree:
    """All processes of a running Triton, its folder and its shared memory."""

    processes: list[psutil.Process]
    folder: Path
    name: str

    @classmethod
    def find(cls, supervisor_pid: int) -> "ProcessTree":
        supervisor = psutil.Process(supervisor_pid)
        arguments = supervisor.cmdline()
        return cls([supervisor, *supervisor.children(recursive=True)], Path(arguments[3]), arguments[4])

    def assert_complete(self) -> None:
        """Check that supervisor, Triton and a stub run, with their folder and shared memory."""
        assert len(self.processes) >= 3
        assert self.folder.is_dir()
        assert self.find_shared_memory()

    def assert_gone(self) -> None:
        """Wait for the processes to end, and check that nothing is left."""
        _, alive = psutil.wait_procs(self.processes, timeout=60)
        assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        assert not self.folder.exists()
        assert self.find_shared_memory() == []

    def find_shared_memory(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.name}*"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model, `summing`."""
    path = tmp_path / "model_repository"
    write_model(path, "summing")
    return path


@pytest.fixture(autouse=True)
def list_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Give the test an empty folder for temporary files, and return a function that lists its contents."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield lambda: sorted(path.name for path in folder.iterdir())
