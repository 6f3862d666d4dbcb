"""What is wrong with a repository is said before Triton starts."""

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


def replace_by_file(repository: Path) -> None:
    shutil.rmtree(repository)
    repository.touch()


def make_a_model_of_it(repository: Path) -> None:
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
        (replace_by_file, "model_repository is not a folder"),
        (make_a_model_of_it, "is a model, not a model repository"),
        (garble_config, r"cannot read .*config\.pbtxt"),
    ],
)
def test_a_repository_that_cannot_be_served_is_one_sentence(
    repository: Path, temporary: Callable[[], list[str]], damage: Callable[[Path], None], sentence: str
) -> None:
    damage(repository)
    with pytest.raises(AslTritonError, match=sentence) as failure:
        LocalTriton(repository).start()
    assert "\n" not in str(failure.value)
    assert temporary() == []


def test_a_model_of_the_python_backend_needs_no_model_pt(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "recognize_sign")
    (folder / "1" / "model.pt").unlink()
    shutil.copy(folder / "configs" / "wheel.pbtxt", folder / "config.pbtxt")
    shutil.rmtree(folder / "configs")
    (model,) = find_models(tmp_path, None)
    model.check("wheel")
    model.check(None)


def test_the_pytorch_backend_needs_no_model_py(repository: Path) -> None:
    (repository / "summing" / "1" / "model.py").unlink()
    (model,) = find_models(repository, None)
    model.check(None)


def test_the_newest_version_is_the_one_checked(repository: Path) -> None:
    (repository / "summing" / "10").mkdir()
    (model,) = find_models(repository, None)
    with pytest.raises(AslTritonError, match=r"has no 10/model\.py"):
        model.check("wheel")


def names_of(repository: Path, names: list[str] | None = None, *, recognize_sign: bool) -> list[str]:
    return [model.name for model in choose_models(repository, names, recognize_sign=recognize_sign)]


def test_models_for_whole_videos_are_served_where_they_are_wanted(repository: Path) -> None:
    assert names_of(repository, recognize_sign=False) == ["summing"]
    assert names_of(repository, recognize_sign=True) == ["summing", *SIGN_MODELS]
    assert names_of(repository, ["summing"], recognize_sign=True) == ["summing", *SIGN_MODELS]
    for model in choose_models(repository, None, recognize_sign=True):
        model.check("wheel")


def test_models_for_whole_videos_are_the_repositorys_own_where_it_has_them(repository: Path) -> None:
    write_model(repository, "recognize_sign")
    assert names_of(repository, recognize_sign=False) == ["summing"]
    assert names_of(repository, ["recognize_sign"], recognize_sign=False) == ["recognize_sign"]
    places = {model.name: model.path.parent for model in choose_models(repository, None, recognize_sign=True)}
    assert places == {
        "summing": repository,
        "recognize_sign": repository,
        "recognize_sign_stream": find_shipped_models(),
    }


@pytest.mark.parametrize("recognize_sign", [False, True])
def test_models_for_whole_videos_alone_are_no_repository(tmp_path: Path, recognize_sign: bool) -> None:
    write_model(tmp_path, "recognize_sign")
    with pytest.raises(AslTritonError, match="has no asl-triton model: export one with `asl-triton export`"):
        choose_models(tmp_path, None, recognize_sign=recognize_sign)
