"""Problems with a repository are reported before Triton starts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError
from asl_triton.models.recognize_sign import SIGN_MODELS
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.model_layout import choose_models, find_models, find_shipped_models

from .conftest import write_model


def remove_model_file(repository: Path) -> None:
    (repository / "summing" / "1" / "model.pt").unlink()


def remove_backend_code(repository: Path) -> None:
    (repository / "summing" / "1" / "model.py").unlink()


def remove_version(repository: Path) -> None:
    shutil.rmtree(repository / "summing" / "1")


def remove_wheel_config(repository: Path) -> None:
    shutil.rmtree(repository / "summing" / "configs")


def hide_model(repository: Path) -> None:
    (repository / "summing").rename(repository / ".summing")


def remove_repository(repository: Path) -> None:
    shutil.rmtree(repository)


def replace_with_file(repository: Path) -> None:
    shutil.rmtree(repository)
    repository.touch()


def turn_into_model(repository: Path) -> None:
    (repository / "config.pbtxt").touch()


def garble_config(repository: Path) -> None:
    (repository / "summing" / "config.pbtxt").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove_model_file, r"summing has no 1/model\.pt: write the model again with `asl-triton export`"),
        (remove_backend_code, r"summing has no 1/model\.py"),
        (remove_version, "summing has no version folder '1'"),
        (remove_wheel_config, r"summing has no configs/wheel\.pbtxt, and this Triton has no pytorch backend"),
        (hide_model, "has no models .*: export one with `asl-triton export`"),
        (remove_repository, "model_repository does not exist"),
        (replace_with_file, "model_repository is not a folder"),
        (turn_into_model, "is a model, not a model repository"),
        (garble_config, r"cannot read .*config\.pbtxt"),
    ],
)
def test_bad_repository_is_reported_in_one_sentence(
    repository: Path, list_temporary: Callable[[], list[str]], damage: Callable[[Path], None], sentence: str
) -> None:
    damage(repository)
    with pytest.raises(AslTritonError, match=sentence) as failure:
        LocalTriton(repository).start()
    assert "\n" not in str(failure.value)
    assert list_temporary() == []


def test_python_backend_needs_no_model_pt(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "recognize_sign")
    (folder / "1" / "model.pt").unlink()
    shutil.copy(folder / "configs" / "wheel.pbtxt", folder / "config.pbtxt")
    shutil.rmtree(folder / "configs")
    (model,) = find_models(tmp_path, None)
    model.check("wheel")
    model.check(None)


def test_pytorch_backend_needs_no_model_py(repository: Path) -> None:
    (repository / "summing" / "1" / "model.py").unlink()
    (model,) = find_models(repository, None)
    model.check(None)


def test_newest_version_is_checked(repository: Path) -> None:
    (repository / "summing" / "10").mkdir()
    (model,) = find_models(repository, None)
    with pytest.raises(AslTritonError, match=r"has no 10/model\.py"):
        model.check("wheel")


def choose_names(repository: Path, names: list[str] | None = None, *, recognize_sign: bool) -> list[str]:
    return [model.name for model in choose_models(repository, names, recognize_sign=recognize_sign)]


def test_whole_video_models_are_served_on_request(repository: Path) -> None:
    assert choose_names(repository, recognize_sign=False) == ["summing"]
    assert choose_names(repository, recognize_sign=True) == ["summing", *SIGN_MODELS]
    assert choose_names(repository, ["summing"], recognize_sign=True) == ["summing", *SIGN_MODELS]
    for model in choose_models(repository, None, recognize_sign=True):
        model.check("wheel")


def test_whole_video_models_of_the_repository_come_first(repository: Path) -> None:
    write_model(repository, "recognize_sign")
    assert choose_names(repository, recognize_sign=False) == ["summing"]
    assert choose_names(repository, ["recognize_sign"], recognize_sign=False) == ["recognize_sign"]
    places = {model.name: model.path.parent for model in choose_models(repository, None, recognize_sign=True)}
    assert places == {
        "summing": repository,
        "recognize_sign": repository,
        "recognize_sign_stream": find_shipped_models(),
    }


@pytest.mark.parametrize("recognize_sign", [False, True])
def test_repository_with_only_whole_video_models_is_refused(tmp_path: Path, recognize_sign: bool) -> None:
    write_model(tmp_path, "recognize_sign")
    with pytest.raises(AslTritonError, match="has no asl-triton model: export one with `asl-triton export`"):
        choose_models(tmp_path, None, recognize_sign=recognize_sign)
