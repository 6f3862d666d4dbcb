"""Which Triton a machine uses, and the error if there is none."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton_deploy.triton_binary import CPU_SETTINGS, Machine, find_binary, find_libpython_folder

HERE = Machine.here()
NOTHING_ON_PATH = replace(HERE, search_path="")


def install_tritonserver(root: Path, *backends: str) -> Path:
    """Lay out a `tritonserver` as in NVIDIA's images, and return the folder for PATH."""
    program = root / "bin" / "tritonserver"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    for backend in backends:
        (root / "backends" / backend).mkdir(parents=True)
    return program.parent


def test_this_environment_has_the_wheel() -> None:
    binary = find_binary(NOTHING_ON_PATH, Path("models"))
    assert binary.is_wheel
    assert binary.config_name == "wheel"
    assert all(file.is_file() for file in (binary.path, *binary.python_backend))


def test_backend_folder_of_the_wheel_has_the_stub_of_this_python(tmp_path: Path) -> None:
    binary = find_binary(NOTHING_ON_PATH, Path("models"))
    assert binary.options(tmp_path / "backends") == [
        f"--backend-directory={tmp_path}/backends",
        "--model-config-name=wheel",
    ]
    assert sorted(file.name for file in (tmp_path / "backends" / "python").iterdir()) == [
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    stub = (tmp_path / "backends" / "python" / "triton_python_backend_stub").resolve()
    assert stub.parent.name == HERE.python


def test_libpython_outside_the_loader_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    assert find_libpython_folder("3.99") == []
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libpython3.99.so.1.0").touch()
    assert find_libpython_folder("3.99") == [str(tmp_path / "lib")]


@pytest.mark.parametrize(
    ("backends", "has_gpu", "options"),
    [
        (("pytorch", "python"), True, []),
        (("pytorch", "python"), False, ["--model-config-name=cpu"]),
        (("python",), True, ["--model-config-name=wheel"]),
        (("python",), False, ["--model-config-name=wheel"]),
    ],
)
def test_tritonserver_on_path_comes_first(
    tmp_path: Path, backends: tuple[str, ...], has_gpu: bool, options: list[str]
) -> None:
    path = install_tritonserver(tmp_path, *backends)
    here = replace(HERE, search_path=str(path), has_gpu=has_gpu)
    for machine in (here, replace(here, architecture="aarch64")):
        binary = find_binary(machine, Path("models"))
        assert not binary.is_wheel
        assert binary.path == path / "tritonserver"
        assert binary.options(tmp_path / "unused") == [f"--backend-directory={tmp_path}/backends", *options]


def test_linked_tritonserver_finds_the_backends_next_to_its_target(tmp_path: Path) -> None:
    real = install_tritonserver(tmp_path / "opt", "pytorch") / "tritonserver"
    link = tmp_path / "usr" / "tritonserver"
    link.parent.mkdir()
    link.symlink_to(real)
    binary = find_binary(replace(HERE, search_path=str(link.parent)), Path("models"))
    assert binary.backends == tmp_path / "opt" / "backends"


def test_cpu_settings_apply_only_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    path = install_tritonserver(tmp_path, "pytorch")
    here = replace(HERE, search_path=str(path))
    with_gpu, without = (find_binary(replace(here, has_gpu=has_gpu), Path("models")) for has_gpu in (True, False))
    assert with_gpu.environment == {}
    assert without.environment == {**CPU_SETTINGS, "MALLOC_MMAP_MAX_": "7"}
    wheel = find_binary(NOTHING_ON_PATH, Path("models"))
    assert without.environment.items() <= wheel.environment.items()


@pytest.mark.parametrize(
    "machine",
    [
        replace(NOTHING_ON_PATH, system="Darwin", architecture="arm64", glibc=()),
        replace(NOTHING_ON_PATH, system="Windows", architecture="AMD64", glibc=()),
        replace(NOTHING_ON_PATH, architecture="aarch64"),
        replace(NOTHING_ON_PATH, glibc=(2, 31)),
        replace(NOTHING_ON_PATH, glibc=()),
    ],
    ids=["macos", "windows", "arm", "old glibc", "musl"],
)
def test_unsupported_machine_is_referred_to_the_container(machine: Machine) -> None:
    with pytest.raises(AslTritonError) as failure:
        find_binary(machine, Path("/data/models"))
    sentence = str(failure.value)
    assert "\n" not in sentence
    assert "docker run --rm --gpus all" in sentence
    assert "-p 127.0.0.1:8001:8001" in sentence
    assert sentence.endswith(
        "-v /data/models:/models:ro nvcr.io/nvidia/tritonserver:26.11-py3 tritonserver --model-repository=/models"
    )


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        (replace(NOTHING_ON_PATH, wheel=None), r"no `tritonserver`: pip install .*\[serve\]"),
        (replace(NOTHING_ON_PATH, wheel=Path("/not/there")), r"no `tritonserver`: pip install .*\[serve\]"),
        (replace(NOTHING_ON_PATH, numpy="2.1.0"), "NumPy 2.1.0, .* empty tensors .*: pip install 'numpy<2'"),
        (replace(NOTHING_ON_PATH, python="3.99"), "not run models on Python 3.99: .* one of 3.8, 3.9, 3.10, 3.11"),
    ],
    ids=["no wheel", "another pytriton", "numpy 2", "new python"],
)
def test_missing_requirement_is_reported_in_one_sentence(machine: Machine, sentence: str) -> None:
    with pytest.raises(AslTritonError, match=sentence) as failure:
        find_binary(machine, Path("models"))
    assert "\n" not in str(failure.value)
