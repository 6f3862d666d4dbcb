import re
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError, ContractError, LabelsError
from asl_triton.models.repository import ModelOnDisk, read_repositories
from asl_triton.presets import PRESETS
from tests.client.model_folders import GLOSSES, Network, replace, write_folder


def read_signs(*repositories: Path) -> ModelOnDisk:
    model = read_repositories(repositories)["signs"]
    assert isinstance(model, ModelOnDisk)
    return model


def test_models_are_the_folders_with_our_preset(tmp_path: Path) -> None:
    for name in ("b", "a", ".unfinished"):
        write_folder(tmp_path, name)
    (tmp_path / "recognize_sign").mkdir()
    (tmp_path / "recognize_sign" / "config.pbtxt").write_text('backend: "python"')
    (tmp_path / "README.md").touch()
    assert list(read_repositories([tmp_path])) == ["a", "b"]


def test_several_repositories_are_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", "a")
    write_folder(tmp_path / "two", "b")
    found = read_repositories([tmp_path / "one", tmp_path / "two", tmp_path / "none"])
    assert list(found) == ["a", "b"]


def test_folder_tells_all_that_a_server_does(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", preset=PRESETS["bsl1k"])
    shelved = read_signs(tmp_path)
    assert shelved.served.labels == GLOSSES
    assert shelved.served.preset == PRESETS["bsl1k"]
    assert (shelved.served.datatype, shelved.served.version) == ("UINT8", "1")


def test_of_two_folders_with_one_name_the_first_counts(tmp_path: Path) -> None:
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
def test_damaged_folder_is_one_sentence(
    tmp_path: Path, file: str, text: str, error: type[AslTritonError], sentence: str
) -> None:
    folder = write_folder(tmp_path, "signs")
    replace(folder / file, text)
    write_folder(tmp_path, "well")
    found = read_repositories([tmp_path])
    assert list(found) == ["signs", "well"] and isinstance(found["well"], ModelOnDisk)
    assert type(found["signs"]) is error and re.search(sentence, str(found["signs"]))


def test_network_is_known_by_its_golden_answer(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", Network(1))
    shelved = read_signs(tmp_path)
    assert shelved.golden is not None
    known = shelved.golden.logits
    assert shelved.matches_golden(known)
    assert shelved.matches_golden(known + 0.1 * (known.max() - known.min()))  # another machine, in bfloat16
    assert not shelved.matches_golden(known[::-1])
    assert not shelved.matches_golden(known[:-1])
