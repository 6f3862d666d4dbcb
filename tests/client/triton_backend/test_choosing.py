"""Which model answers a request, and with whose labels: those of the folders as they were when the server started."""

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from asl_triton.errors import AslTritonError, LabelsError, ServerError
from asl_triton.models.repository import read_repositories
from asl_triton.models.served import ServedModel
from asl_triton.presets import PRESETS
from asl_triton.triton_backend.service import ServiceLimits, SignService, UnknownModelError
from tests.client.model_folders import GLOSSES, Network, FakeTriton, write_folder

OTHERS = tuple(reversed(GLOSSES))
BEFORE, AFTER = Network(1), Network(2)


class Started:
    """A service as it is when a server has started with the models of a repository."""

    def __init__(self, repository: Path, **networks: Network) -> None:
        self.server = FakeTriton(dict(networks))
        self.service = SignService(read_repositories([repository]), self.server, ServiceLimits())

    def choose(self, model: str | None = None) -> ServedModel:
        """The model that a request of now would get."""
        return asyncio.run(self.service.choose_model(model))

    def labels(self, model: str | None = None) -> tuple[str, ...]:
        """The glosses that an answer of now would get."""
        return self.choose(model).labels


def test_only_one_needs_no_name(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs")
    started = Started(tmp_path, signs=Network())
    assert started.labels() == started.labels("signs") == GLOSSES


@pytest.mark.parametrize(
    ("served", "model", "error", "sentence"),
    [
        ((), None, UnknownModelError, "this server has no model: add one"),
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
    started = Started(tmp_path, **{name: Network() for name in served})
    with pytest.raises(error, match=sentence):
        started.labels(model)


def test_of_two_folders_only_the_served_one_counts(tmp_path: Path) -> None:
    write_folder(tmp_path, "served")
    write_folder(tmp_path, "waiting")
    assert Started(tmp_path, served=Network()).labels() == GLOSSES


def test_model_is_asked_once_whether_it_is_that_of_its_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    started = Started(tmp_path, signs=BEFORE)

    async def crowd() -> list[ServedModel]:
        return await asyncio.gather(*(started.service.choose_model(None) for _ in range(3)))

    assert [served.labels for served in asyncio.run(crowd())] == [GLOSSES] * 3
    assert started.server.asked == ["signs"]


def test_folder_without_a_golden_answer_is_believed(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE, golden=False)
    started = Started(tmp_path, signs=BEFORE)
    assert started.labels() == GLOSSES
    assert started.server.asked == []


def test_folder_that_changed_while_the_server_started_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", AFTER, OTHERS)
    started = Started(tmp_path, signs=BEFORE)
    for _ in range(2):
        with pytest.raises(ServerError, match="signs does not give the answer in its folder: the folder was changed"):
            started.labels()


def test_model_that_does_not_answer_is_asked_again_by_the_next_request(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    started = Started(tmp_path, signs=BEFORE)
    infer, started.server.infer = started.server.infer, fail  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="its queue is full"):
        started.labels()
    started.server.infer = infer  # type: ignore[method-assign]
    assert started.labels() == GLOSSES


async def fail(*arguments: object) -> dict:
    raise ServerError("its queue is full")


def change(repository: Path) -> Iterator[str]:
    """Do all that may be done to the folder of the model `signs` while it is served, and say what."""
    write_folder(repository, "signs", AFTER, OTHERS)
    yield "another network and other labels"
    write_folder(repository, "signs", AFTER, preset=replace(PRESETS["wlasl"], score="softmax"))
    yield "another preset"
    write_folder(repository, "signs", Network(1, len(GLOSSES) + 1), (*GLOSSES, "where"))
    yield "one more gloss"
    (repository / "signs" / "2").mkdir()
    yield "another version"
    (repository / "signs" / "labels.txt").write_text("book\n")
    yield "half written"
    shutil.rmtree(repository / "signs")
    yield "gone"


def test_folder_that_changes_under_a_server_changes_no_answer(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    started = Started(tmp_path, signs=BEFORE)
    for what in change(tmp_path):
        served = started.choose()
        assert (served.labels, served.preset) == (GLOSSES, PRESETS["wlasl"]), what
    del started.server.networks["signs"]
    with pytest.raises(UnknownModelError):
        started.labels()


def test_changed_folder_counts_after_a_restart(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    assert Started(tmp_path, signs=BEFORE).labels() == GLOSSES
    write_folder(tmp_path, "signs", AFTER, OTHERS)
    write_folder(tmp_path, "new")
    restarted = Started(tmp_path, signs=AFTER, new=Network())
    assert (restarted.labels("signs"), restarted.labels("new")) == (OTHERS, GLOSSES)


def test_folder_that_appears_under_a_server_is_not_served(tmp_path: Path) -> None:
    started = Started(tmp_path)
    write_folder(tmp_path, "signs", AFTER)
    with pytest.raises(UnknownModelError):
        started.labels()


def test_damaged_folder_is_told_to_who_asks_for_it_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, "well")
    (write_folder(tmp_path, "damaged") / "labels.txt").write_text("book\n")
    started = Started(tmp_path, well=Network(), damaged=Network())
    assert started.labels("well") == GLOSSES
    for _ in range(2):
        with pytest.raises(LabelsError, match="lists 1 glosses for 6 classes"):
            started.labels("damaged")
