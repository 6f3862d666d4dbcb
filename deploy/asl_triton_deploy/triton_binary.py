"""Finds this machine's `tritonserver`: the one on PATH, or else the one in the nvidia-pytriton wheel."""

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from ctypes.util import find_library
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import asl_triton
from asl_triton.errors import AslTritonError
from asl_triton.extras import format_install_command

# NVIDIA's images have their backends here, wherever the link `tritonserver` points.
IMAGE_BACKENDS = Path("/opt/tritonserver/backends")
# The wheel's libraries are from Ubuntu 22.04.
WHEEL_GLIBC = (2, 35)
# Exists if NVIDIA's driver is loaded and, in a container, if the container has a GPU.
NVIDIA_DRIVER = Path("/dev/nvidiactl")
CONTAINER = "nvcr.io/nvidia/tritonserver:26.11-py3"


@dataclass(frozen=True)
class Machine:
    """The properties of a machine that decide which Triton can run on it."""

    search_path: str
    system: str
    architecture: str
    glibc: tuple[int, ...]
    python: str
    numpy: str | None
    wheel: Path | None
    has_gpu: bool = False

    @classmethod
    def here(cls) -> "Machine":
        """Describe this machine and this Python environment, without importing the wheel."""
        libc, libc_version = platform.libc_ver()
        spec = find_spec("pytriton")
        locations = spec.submodule_search_locations if spec is not None else None
        return cls(
            search_path=os.environ.get("PATH", os.defpath),
            system=platform.system(),
            architecture=platform.machine(),
            glibc=tuple(int(part) for part in libc_version.split(".")) if libc == "glibc" else (),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            numpy=_installed("numpy"),
            wheel=Path(locations[0]) / "tritonserver" if locations else None,
            has_gpu=has_gpu(),
        )


@dataclass(frozen=True)
class TritonBinary:
    """A `tritonserver` and how to start it. `python_backend` are files to link into a backend folder for it."""

    path: Path
    config_name: str | None
    backends: Path | None = None
    python_backend: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_wheel(self) -> bool:
        """Whether this is the old Triton from the wheel, which is for development only."""
        return bool(self.python_backend)

    def options(self, folder: Path) -> list[str]:
        """Return the options that say where the backends are and which model configuration to use.

        For the wheel, this creates the backend folder at `folder` from links, because Triton needs the stub next to the
        backend.
        """
        backends = self.backends
        if self.python_backend:
            backends = folder
            (folder / "python").mkdir(parents=True)
            for file in self.python_backend:
                (folder / "python" / file.name).symlink_to(file)
        options = [f"--backend-directory={backends}"] if backends is not None else []
        return options + ([f"--model-config-name={self.config_name}"] if self.config_name is not None else [])


def find_binary(machine: Machine, repository: Path) -> TritonBinary:
    """Find the Triton to run on `machine`.

    Raises:
        AslTritonError: there is none; the message says what to install, or which container serves `repository`.
    """
    on_path = shutil.which("tritonserver", path=machine.search_path)
    if on_path is not None and machine.system == "Linux":
        return _installed_binary(Path(on_path), machine)
    if (machine.system, machine.architecture) != ("Linux", "x86_64") or machine.glibc < WHEEL_GLIBC:
        raise AslTritonError(
            "this machine has no `tritonserver`, and the one that pip can install runs on Linux x86-64 with glibc "
            f"2.35 or newer only; with Docker and an NVIDIA GPU, this does the same: "
            f"{build_container_command(repository)}"
        )
    return _wheel_binary(machine)


def build_container_command(repository: Path) -> str:
    """Build the command that serves `repository` with NVIDIA's container."""
    ports = " ".join(f"-p 127.0.0.1:{port}:{port}" for port in (8000, 8001, 8002))
    return (
        f"docker run --rm --gpus all --shm-size 1g {ports} -v {repository.absolute()}:/models:ro "
        f"{CONTAINER} tritonserver --model-repository=/models"
    )


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU, on which models then run."""
    return NVIDIA_DRIVER.exists()


def _installed_binary(path: Path, machine: Machine) -> TritonBinary:
    beside = path.resolve().parent.parent / "backends"
    backends = next((folder for folder in (beside, IMAGE_BACKENDS) if folder.is_dir()), None)
    has_pytorch = backends is not None and (backends / "pytorch").is_dir()
    config_name = "wheel" if not has_pytorch else None if machine.has_gpu else "cpu"
    return TritonBinary(path, config_name, backends, environment={} if machine.has_gpu else choose_cpu_settings())


def _wheel_binary(machine: Machine) -> TritonBinary:
    if machine.wheel is None or not (machine.wheel / "bin" / "tritonserver").is_file():
        raise AslTritonError(f"this machine has no `tritonserver`: {format_install_command('serve')}")
    if machine.numpy is not None and int(machine.numpy.split(".")[0]) >= 2:
        raise AslTritonError(
            f"with NumPy {machine.numpy}, the wheel's Triton returns empty tensors instead of an error: "
            "pip install 'numpy<2'"
        )
    stub = machine.wheel / "python_backend_stubs" / machine.python / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted((path.name for path in stub.parent.parent.iterdir()), key=lambda name: int(name.split(".")[1]))
        raise AslTritonError(
            f"the wheel's Triton cannot run models on Python {machine.python}: "
            f"install asl-triton in an environment with one of {', '.join(known)}"
        )
    backend = machine.wheel / "backends" / "python"
    return TritonBinary(
        path=machine.wheel / "bin" / "tritonserver",
        config_name="wheel",
        python_backend=(backend / "libtriton_python.so", backend / "triton_python_backend_utils.py", stub),
        environment=_wheel_environment(machine),
    )


# These make forwards on a CPU faster.
CPU_SETTINGS = {
    # By default glibc returns large blocks to the system at once, and each forward has to fault them in again. Keeping
    # them makes a forward a sixth to a quarter faster on two cores (64 frames, bfloat16). PyTorch's switch requests
    # large pages.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "THP_MEM_ALLOC_ENABLE": "1",
    # A thread that waits for the other threads of a forward spins first. If other programs run, GNU OpenMP's default
    # of 300,000 rounds keeps a core busy that the other threads need, and a forward takes up to twenty times as long.
    # On an idle machine, fewer rounds cost nothing: python -m tests.benchmarks.neighbor.
    "GOMP_SPINCOUNT": "10000",
}


def choose_cpu_settings() -> dict[str, str]:
    """Return `CPU_SETTINGS`, except that variables already set in this process's environment keep their values."""
    return {name: os.environ.get(name, value) for name, value in CPU_SETTINGS.items()}


def _wheel_environment(machine: Machine) -> dict[str, str]:
    """Return the environment in which the binary finds its libraries, and the stub finds Python and its packages."""
    assert machine.wheel is not None
    site_packages = machine.wheel.parents[1]
    packages = [
        str(site_packages),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        # The locations of asl_triton and asl_triton_deploy if they are installed for development.
        str(Path(asl_triton.__file__).parents[1]),
        str(Path(__file__).parents[1]),
    ]
    return {
        "LD_LIBRARY_PATH": _joined(
            [str(site_packages / "nvidia_pytriton.libs"), *find_libpython_folder(machine.python)], "LD_LIBRARY_PATH"
        ),
        "PATH": _joined([str(Path(sys.executable).parent)], "PATH"),
        "PYTHONPATH": _joined(packages, "PYTHONPATH"),
        **choose_cpu_settings(),
    }


def find_libpython_folder(python: str) -> list[str]:
    """Find the folder of libpython, which the stub needs, if the loader does not search it: with pyenv, uv or conda."""
    folder = Path(sys.base_prefix) / "lib"
    is_needed = find_library(f"python{python}") is None and (folder / f"libpython{python}.so.1.0").is_file()
    return [str(folder)] if is_needed else []


def _joined(first: list[str], variable: str) -> str:
    inherited = os.environ.get(variable, "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys(part for part in (*first, *inherited) if part))


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
