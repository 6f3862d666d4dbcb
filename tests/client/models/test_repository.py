from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError, ContractError, LabelsError
from asl_triton.models.repository import ModelRepository
from asl_triton.presets import PRESETS
from tests.client.model_folders import GLOSSES, Network, replace, write_folder


def test_models_are_the_folders_with_our_preset(tmp_path: Path) -> None:
    for name in ("b", "a", ".unfinished"):
        write_folder(tmp_path, name)
    (tmp_path / "recognize_sign").mkdir()
    (tmp_path / "recognize_sign" / "config.pbtxt").write_text('backend: "python"')
    (tmp_path / "README.md").touch()
    assert ModelRepository([tmp_path]).names() == ["a", "b"]


def test_several_repositories_are_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", "a")
    write_folder(tmp_path / "two", "b")
    assert ModelRepository([tmp_path / "one", tmp_path / "two", tmp_path / "none"]).names() == ["a", "b"]


def test_folder_tells_all_that_a_server_does(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", preset=PRESETS["bsl1k"])
    shelved = ModelRepository([tmp_path]).read("signs")
    assert shelved is not None
    assert shelved.served.labels == GLOSSES
    assert shelved.served.preset == PRESETS["bsl1k"]
    assert (shelved.served.datatype, shelved.served.version) == ("UINT8", "1")


def test_no_folder_of_that_name_is_none(tmp_path: Path) -> None:
    write_folder(tmp_path / "models", "signs")
    catalog = ModelRepository([tmp_path / "models"])
    assert [catalog.read(name) for name in ("other", "../models/signs", "", ".", "signs/..")] == [None] * 5


def test_folder_is_read_again_when_it_is_another(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "signs")
    catalog = ModelRepository([tmp_path])
    first = catalog.read("signs")
    assert catalog.read("signs") is first
    replace(folder / "labels.txt", "\n".join(reversed(GLOSSES)))
    second = catalog.read("signs")
    assert second is not None and second.served.labels == tuple(reversed(GLOSSES))


@pytest.mark.parametrize(
    ("file", "text", "error", "sentence"),
    [
        ("config.pbtxt", 'name: "signs" # asl_triton.preset {', ContractError, "is not what asl-triton can talk to"),
        ("config.pbtxt", "asl_triton.preset", ContractError, "cannot read .*config.pbtxt"),
        ("labels.txt", "book\ndrink\n", LabelsError, "labels.txt names 2 glosses for 6 classes"),
        ("labels.txt", "", LabelsError, "are empty"),
        ("golden.npz", "no archive", ContractError, "is no golden answer"),
    ],
)
def test_damaged_folder_is_one_sentence(
    tmp_path: Path, file: str, text: str, error: type[AslTritonError], sentence: str
) -> None:
    folder = write_folder(tmp_path, "signs")
    replace(folder / file, text)
    catalog = ModelRepository([tmp_path])
    assert catalog.names() == ["signs"]
    with pytest.raises(error, match=sentence):
        catalog.read("signs")


def test_network_is_known_by_its_golden_answer(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", Network(1))
    shelved = ModelRepository([tmp_path]).read("signs")
    assert shelved is not None and shelved.golden is not None
    known = shelved.golden.logits
    assert shelved.matches_golden(known)
    assert shelved.matches_golden(known + 0.1 * (known.max() - known.min()))  # another machine, in bfloat16
    assert not shelved.matches_golden(known[::-1])
    assert not shelved.matches_golden(known[:-1])
