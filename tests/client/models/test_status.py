"""How a server is at a moment, as pages ask that outlive it."""

import asyncio
import dataclasses

from asl_triton.errors import ServerError
from asl_triton.models.status import ServerStatus, read_status
from asl_triton.presets import PRESETS
from asl_triton.transport.fake import FakeTransport
from tests.client.served import GLOSSES, answering, described, fake, in_order


class Away(FakeTransport):
    """A server that answers nothing."""

    async def server_version(self) -> str:
        raise ServerError("no server answers at fake:8001")


def state(transport: FakeTransport, before: ServerStatus | None = None, only: str | None = None) -> ServerStatus:
    return asyncio.run(read_status(transport, before, only))


def test_server_that_is_there_says_what_it_serves() -> None:
    read = state(fake())
    assert (read.version, read.problem, read.is_ready) == ("fake", None, True)
    (served,) = read.models
    assert (served.name, served.labels, served.preset) == ("signs", GLOSSES, PRESETS["wlasl"])
    assert read.model(None) is read.model("signs") is served
    assert read.model("other") is None


def test_server_that_is_away_is_an_answer() -> None:
    read = state(Away({}, (), answering(in_order)), before=state(fake()))
    assert (read.version, read.is_ready, read.models) == (None, False, ())
    assert read.problem == "no server answers at fake:8001"


def test_model_that_stays_is_not_asked_again_and_one_that_changes_is() -> None:
    transport = fake()
    asked: list[str] = []
    ranks = transport.answer
    transport.answer = lambda model, inputs: asked.append(model) or ranks(model, inputs)  # type: ignore[func-returns-value]
    first = state(transport)
    assert asked == ["signs"]
    again = state(transport, first)
    assert again == first and asked == ["signs"]
    transport.models["signs"] = described(**{"asl_triton.checkpoint_sha256": "f" * 64})
    changed = state(transport, again)
    assert asked == ["signs", "signs"]
    assert changed != first and changed.models[0].checkpoint_sha256 == "f" * 64


def test_broken_model_hides_no_other() -> None:
    transport = fake()
    transport.models["broken"] = dataclasses.replace(described(name="broken"), labeled=frozenset())
    read = state(transport)
    assert [served.name for served in read.models] == ["signs"]
    ((name, sentence),) = read.broken
    assert name == "broken" and "has no labels" in sentence
    alone = state(transport, only="broken")
    assert not alone.is_ready and alone.problem == sentence


def test_server_without_a_model_says_so() -> None:
    transport = fake()
    assert "does not serve the model 'other'" in str(state(transport, only="other").problem)
    transport.models.clear()
    read = state(transport)
    assert (read.version, read.is_ready) == ("fake", False)
    assert "does not serve a model: add one" in str(read.problem)
