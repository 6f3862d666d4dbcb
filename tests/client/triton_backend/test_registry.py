"""Whose labels an answer gets, while folders and what is served change independently."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError, LabelsError, ServerError
from asl_triton.models.repository import ModelRepository
from asl_triton.presets import PRESETS
from asl_triton.triton_backend.registry import ModelRegistry, UnknownModelError
from tests.client.model_folders import GLOSSES, Network, Served, write_folder

OTHERS = tuple(reversed(GLOSSES))
BEFORE, AFTER = Network(1), Network(2)


def start(repository: Path, **networks: Network) -> tuple[ModelRegistry, Served]:
    """A register as it is made when a server starts."""
    server = Served(dict(networks))
    return ModelRegistry(ModelRepository([repository]), server), server


def labels(register: ModelRegistry, model: str | None = None) -> tuple[str, ...]:
    """The glosses that an answer of now would get."""

    async def choose() -> tuple[str, ...]:
        chosen = await register.choose(model)
        await register.confirm(chosen)
        return chosen.served.labels

    return asyncio.run(choose())


def test_only_one_needs_no_name(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs")
    register, server = start(tmp_path, signs=Network())
    assert labels(register) == labels(register, "signs") == GLOSSES
    assert server.asked == []


@pytest.mark.parametrize(
    ("served", "model", "error", "sentence"),
    [
        ((), None, UnknownModelError, "this server has no model: write one"),
        ((), "a", UnknownModelError, "this server has no model 'a': its models are none"),
        (("a", "b"), None, AslTritonError, r"has 2 models: name one in the request's parameter `model` \(a, b\)"),
        (("a",), "b", UnknownModelError, "has no model 'b': its models are a"),
        (("a", "b"), "c", UnknownModelError, "has no model 'c': its models are a, b"),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(
    tmp_path: Path, served: tuple[str, ...], model: str | None, error: type[AslTritonError], sentence: str
) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path, name)
    register, _ = start(tmp_path, **{name: Network() for name in served})
    with pytest.raises(error, match=sentence):
        labels(register, model)


def test_of_two_folders_only_the_served_one_counts(tmp_path: Path) -> None:
    write_folder(tmp_path, "served")
    write_folder(tmp_path, "waiting")
    register, _ = start(tmp_path, served=Network())
    assert labels(register) == GLOSSES


def test_folder_written_anew_is_not_believed_until_it_is_served(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)
    write_folder(tmp_path, "signs", AFTER, OTHERS)
    assert labels(register) == GLOSSES  # a server that loads nothing after its start: for ever
    assert labels(register) == GLOSSES
    server.networks["signs"] = AFTER
    assert labels(register) == OTHERS
    server.asked.clear()
    assert labels(register) == OTHERS
    assert server.asked == []  # settled


def test_new_weights_for_the_same_glosses_need_no_proof(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)
    server.networks["signs"] = AFTER  # as version 2, whose golden answer is not there
    (tmp_path / "signs" / "2").mkdir()
    assert labels(register) == GLOSSES
    assert server.asked == []


def test_corrected_spelling_of_the_same_network_is_taken(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE, ("bok", *GLOSSES[1:]))
    register, _ = start(tmp_path, signs=BEFORE)
    write_folder(tmp_path, "signs", BEFORE)
    assert labels(register) == GLOSSES


def test_vocabulary_that_grew_is_told_by_its_number_of_glosses(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)
    grown = Network(1, len(GLOSSES) + 1)
    write_folder(tmp_path, "signs", grown, (*GLOSSES, "where"))
    assert labels(register) == GLOSSES
    server.networks["signs"] = grown
    assert labels(register) == (*GLOSSES, "where")


def test_folder_that_appears_is_served_when_the_server_has_it(tmp_path: Path) -> None:
    register, server = start(tmp_path)
    write_folder(tmp_path, "signs", AFTER)
    with pytest.raises(UnknownModelError):
        labels(register)
    server.networks["signs"] = AFTER
    assert labels(register) == GLOSSES


def test_folder_that_vanishes_is_remembered_while_it_is_served(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)
    shutil.rmtree(tmp_path / "signs")
    assert labels(register) == GLOSSES
    del server.networks["signs"]
    with pytest.raises(UnknownModelError):
        labels(register)


def test_half_written_folder_is_not_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "signs", BEFORE)
    register, _ = start(tmp_path, signs=BEFORE)
    (folder / "labels.txt").write_text("book\n")
    assert labels(register) == GLOSSES


def test_model_that_is_swapped_under_a_request_is_not_labeled(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)

    async def ask() -> None:
        chosen = await register.choose(None)
        write_folder(tmp_path, "signs", AFTER, OTHERS)
        server.networks["signs"] = AFTER
        await register.confirm(chosen)

    with pytest.raises(ServerError, match="signs was replaced while it was asked: send the request again"):
        asyncio.run(ask())


def test_what_neither_folder_describes_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)
    write_folder(tmp_path, "signs", AFTER, OTHERS)
    server.networks["signs"] = Network(3)
    with pytest.raises(ServerError, match="signs does not answer as its folder says: the folder was changed"):
        labels(register)


def test_other_preset_needs_proof_too(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    register, server = start(tmp_path, signs=BEFORE)
    write_folder(tmp_path, "signs", AFTER, preset=replace(PRESETS["wlasl"], score="softmax"))

    def score() -> str:
        return asyncio.run(register.choose(None)).served.preset.score

    assert score() == "sigmoid"
    server.networks["signs"] = AFTER
    assert score() == "softmax"


def test_damaged_folder_is_told_to_who_asks_for_it_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, "well")
    (write_folder(tmp_path, "damaged") / "labels.txt").write_text("book\n")
    register, _ = start(tmp_path, well=Network(), damaged=Network())
    assert labels(register, "well") == GLOSSES
    with pytest.raises(LabelsError, match="names 1 glosses for 6 classes"):
        labels(register, "damaged")
