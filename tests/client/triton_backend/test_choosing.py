"""Choosing the model for a request. Its labels are those its folder had when the server started."""

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
from tests.client.model_folders import GLOSSES, FakeTriton, Network, write_folder

OTHERS = tuple(reversed(GLOSSES))
BEFORE, AFTER = Network(1), Network(2)


class StartedService:
    """A service on a server that has just started with the models of a repository."""

    def __init__(self, repository: Path, **networks: Network) -> None:
        self.server = FakeTriton(dict(networks))
        self.service = SignService(read_repositories([repository]), self.server, ServiceLimits())

    def choose(self, model: str | None = None) -> ServedModel:
        """Return the model that answers a request now."""
        return asyncio.run(self.service.choose_model(model))

    def labels(self, model: str | None = None) -> tuple[str, ...]:
        """Return the glosses of an answer now."""
        return self.choose(model).labels


def test_single_model_needs_no_name(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs")
    started = StartedService(tmp_path, signs=Network())
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
def test_impossible_choice_is_rejected(
    tmp_path: Path, served: tuple[str, ...], model: str | None, error: type[AslTritonError], sentence: str
) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path, name)
    started = StartedService(tmp_path, **{name: Network() for name in served})
    with pytest.raises(error, match=sentence):
        started.labels(model)


def test_folder_that_is_not_served_is_ignored(tmp_path: Path) -> None:
    write_folder(tmp_path, "served")
    write_folder(tmp_path, "waiting")
    assert StartedService(tmp_path, served=Network()).labels() == GLOSSES


def test_golden_answer_is_checked_only_once(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    started = StartedService(tmp_path, signs=BEFORE)

    async def crowd() -> list[ServedModel]:
        return await asyncio.gather(*(started.service.choose_model(None) for _ in range(3)))

    assert [served.labels for served in asyncio.run(crowd())] == [GLOSSES] * 3
    assert started.server.asked == ["signs"]


def test_folder_without_a_golden_answer_is_trusted(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE, golden=False)
    started = StartedService(tmp_path, signs=BEFORE)
    assert started.labels() == GLOSSES
    assert started.server.asked == []


def test_folder_changed_during_startup_is_rejected(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", AFTER, OTHERS)
    started = StartedService(tmp_path, signs=BEFORE)
    for _ in range(2):
        with pytest.raises(ServerError, match="signs does not give the answer in its folder: the folder was changed"):
            started.labels()


def test_failed_check_is_repeated_by_the_next_request(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    started = StartedService(tmp_path, signs=BEFORE)
    infer, started.server.infer = started.server.infer, fail  # type: ignore[method-assign]
    with pytest.raises(ServerError, match="its queue is full"):
        started.labels()
    started.server.infer = infer  # type: ignore[method-assign]
    assert started.labels() == GLOSSES


async def fail(*arguments: object) -> dict:
    raise ServerError("its queue is full")


def change_folder(repository: Path) -> Iterator[str]:
    """Change the folder of the model `signs` in every possible way while it is served. Yield each change."""
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


def test_folder_changes_do_not_affect_a_running_server(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    started = StartedService(tmp_path, signs=BEFORE)
    for description in change_folder(tmp_path):
        served = started.choose()
        assert (served.labels, served.preset) == (GLOSSES, PRESETS["wlasl"]), description
    del started.server.networks["signs"]
    with pytest.raises(UnknownModelError):
        started.labels()


def test_changed_folder_takes_effect_after_a_restart(tmp_path: Path) -> None:
    write_folder(tmp_path, "signs", BEFORE)
    assert StartedService(tmp_path, signs=BEFORE).labels() == GLOSSES
    write_folder(tmp_path, "signs", AFTER, OTHERS)
    write_folder(tmp_path, "new")
    restarted = StartedService(tmp_path, signs=AFTER, new=Network())
    assert (restarted.labels("signs"), restarted.labels("new")) == (OTHERS, GLOSSES)


def test_folder_added_to_a_running_server_is_not_served(tmp_path: Path) -> None:
    started = StartedService(tmp_path)
    write_folder(tmp_path, "signs", AFTER)
    with pytest.raises(UnknownModelError):
        started.labels()


def test_damaged_folder_fails_only_its_own_requests(tmp_path: Path) -> None:
    write_folder(tmp_path, "well")
    (write_folder(tmp_path, "damaged") / "labels.txt").write_text("book\n")
    started = StartedService(tmp_path, well=Network(), damaged=Network())
    assert started.labels("well") == GLOSSES
    for _ in range(2):
        with pytest.raises(LabelsError, match="lists 1 glosses for 6 classes"):
            started.labels("damaged")
