"""The status of a server at one moment, for pages that stay open longer than the server runs."""

import asyncio
import dataclasses

from asl_triton.errors import ServerError
from asl_triton.models.status import ServerStatus, read_status
from asl_triton.presets import PRESETS
from asl_triton.transport.fake import FakeTransport
from tests.client.served import GLOSSES, answering, described, fake, in_order


class UnreachableServer(FakeTransport):
    """A server that does not answer."""

    async def server_version(self) -> str:
        raise ServerError("no server answers at fake:8001")


def fetch_status(transport: FakeTransport, before: ServerStatus | None = None, only: str | None = None) -> ServerStatus:
    return asyncio.run(read_status(transport, before, only))


def test_running_server_lists_its_models() -> None:
    status = fetch_status(fake())
    assert (status.version, status.problem, status.is_ready) == ("fake", None, True)
    (served,) = status.models
    assert (served.name, served.labels, served.preset) == ("signs", GLOSSES, PRESETS["wlasl"])
    assert status.model(None) is status.model("signs") is served
    assert status.model("other") is None


def test_unreachable_server_has_a_status() -> None:
    status = fetch_status(UnreachableServer({}, (), answering(in_order)), before=fetch_status(fake()))
    assert (status.version, status.is_ready, status.models) == (None, False, ())
    assert status.problem == "no server answers at fake:8001"


def test_only_changed_models_are_asked_again() -> None:
    transport = fake()
    asked: list[str] = []
    answer = transport.answer
    transport.answer = lambda model, inputs: asked.append(model) or answer(model, inputs)  # type: ignore[func-returns-value]
    first = fetch_status(transport)
    assert asked == ["signs"]
    again = fetch_status(transport, first)
    assert again == first and asked == ["signs"]
    transport.models["signs"] = described(**{"asl_triton.checkpoint_sha256": "f" * 64})
    changed = fetch_status(transport, again)
    assert asked == ["signs", "signs"]
    assert changed != first and changed.models[0].checkpoint_sha256 == "f" * 64


def test_broken_model_does_not_hide_other_models() -> None:
    transport = fake()
    transport.models["broken"] = dataclasses.replace(described(name="broken"), labeled=frozenset())
    status = fetch_status(transport)
    assert [served.name for served in status.models] == ["signs"]
    ((name, sentence),) = status.broken
    assert name == "broken" and "has no labels" in sentence
    alone = fetch_status(transport, only="broken")
    assert not alone.is_ready and alone.problem == sentence


def test_missing_models_are_reported() -> None:
    transport = fake()
    assert "does not serve the model 'other'" in str(fetch_status(transport, only="other").problem)
    transport.models.clear()
    status = fetch_status(transport)
    assert (status.version, status.is_ready) == ("fake", False)
    assert "does not serve a model: add one" in str(status.problem)
