"""Reading models from the folders of model repositories."""

import re
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError, ContractError, LabelsError
from asl_triton.models.repository import ModelOnDisk, read_repositories
from asl_triton.presets import PRESETS
from tests.client.model_folders import GLOSSES, Network, replace_file, write_folder


def read_signs(*repositories: Path) -> ModelOnDisk:
    model = read_repositories(repositories)["signs"]
    assert isinstance(model, ModelOnDisk)
    return model


def test_folders_with_our_preset_are_models(tmp_path: Path) -> None:
    for name in ("b", "a", ".unfinished"):
        write_folder(tmp_path, name)
    (tmp_path / "recognize_sign").mkdir()
    (tmp_path / "recognize_sign" / "config.pbtxt").write_text('backend: "python"')
    (tmp_path / "README.md").touch()
    assert list(read_repositories([tmp_path])) == ["a", "b"]


def test_several_repositories_are_merged(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", "a")
    write_folder(tmp_path / "two", "b")
    found = read_repositories([tmp_path / "one", tmp_path / "two", tmp_path / "none"])
    assert list(found) == ["a", "b"]


def test_folder_describes_the_model_as_a_server_does(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", preset=PRESETS["bsl1k"])
    model = read_signs(tmp_path)
    assert model.served.labels == GLOSSES
    assert model.served.preset == PRESETS["bsl1k"]
    assert (model.served.datatype, model.served.version) == ("UINT8", "1")


def test_first_of_two_folders_with_the_same_name_wins(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", "signs")
    write_folder(tmp_path / "two", "signs", labels=tuple(reversed(GLOSSES)))
    assert read_signs(tmp_path / "one", tmp_path / "two").served.labels == GLOSSES
    assert read_signs(tmp_path / "two", tmp_path / "one").served.labels == tuple(reversed(GLOSSES))


@pytest.mark.parametrize(
    ("file", "text", "error", "sentence"),
    [
        ("config.pbtxt", 'name: "signs" # asl_triton.preset {', ContractError, "does not match asl-triton's contract"),
        ("config.pbtxt", "asl_triton.preset", ContractError, "cannot read .*config.pbtxt"),
        ("labels.txt", "book\ndrink\n", LabelsError, "labels.txt lists 2 glosses for 6 classes"),
        ("labels.txt", "", LabelsError, "are empty"),
        ("golden.npz", "no archive", ContractError, "is not a golden answer"),
    ],
)
def test_damaged_folder_is_reported_without_hiding_others(
    tmp_path: Path, file: str, text: str, error: type[AslTritonError], sentence: str
) -> None:
    folder = write_folder(tmp_path, "signs")
    replace_file(folder / file, text)
    write_folder(tmp_path, "well")
    found = read_repositories([tmp_path])
    assert list(found) == ["signs", "well"] and isinstance(found["well"], ModelOnDisk)
    assert type(found["signs"]) is error and re.search(sentence, str(found["signs"]))


def test_network_is_identified_by_its_golden_answer(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", Network(1))
    model = read_signs(tmp_path)
    assert model.golden is not None
    logits = model.golden.logits
    assert model.matches_golden(logits)
    assert model.matches_golden(logits + 0.1 * (logits.max() - logits.min()))  # on another machine, in bfloat16
    assert not model.matches_golden(logits[::-1])
    assert not model.matches_golden(logits[:-1])
