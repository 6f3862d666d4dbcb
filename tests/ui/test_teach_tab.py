"""The "Teach" tab, with a fake server that makes up its answers."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import numpy as np
import pytest

from asl_triton.presets import PRESETS
from asl_triton.teaching.dictionary import SignDictionary
from asl_triton.transport.base import Array, TensorSpec
from asl_triton.transport.fake import FakeTransport
from asl_triton_ui.options import PageOptions
from asl_triton_ui.page_context import PageContext, Updates
from asl_triton_ui.state.live_sessions import LiveSessions
from asl_triton_ui.state.request_queue import RequestQueue
from asl_triton_ui.state.server import ServerConnection
from asl_triton_ui.state.taught_signs import OWN, TAUGHT, TaughtSigns, Visitor
from asl_triton_ui.tabs.teach import CORRECTIONS, TeachTab
from tests.client import videos
from tests.client.served import GLOSSES, described
from tests.client.teaching.taught import NUM_CLASSES, NUM_FEATURES, answer, teach

MODEL = "signs"


T = TypeVar("T")


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Yield one event loop for the whole page, as in production."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield made
    asyncio.set_event_loop(None)
    made.close()


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.get_event_loop().run_until_complete(coroutine)


class Camera:
    """A camera whose next recording `show` chooses."""

    def __init__(self, clip: Path) -> None:
        self.clip, self.sign, self.take, self.checkpoint = clip, 0, 0, "a" * 64

    def show(self, sign: int, take: int) -> str:
        self.sign, self.take = sign, take
        return str(self.clip)

    def connect(self, in_flight: int = 1, timeout_s: float = 1.0) -> FakeTransport:
        def outputs(_model: str, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            num_steps = max(-(-inputs["FRAMES__0"].shape[1] // 8) - 1, 1)
            features, steps = answer(self.sign, self.take)
            steps = np.resize(steps, (num_steps, NUM_CLASSES))
            return {"FEATURES__2": features[None], "STEP_LOGITS__1": steps[None], "LOGITS__0": steps.mean(axis=0)[None]}

        model = described(PRESETS["wlasl"], **{"asl_triton.checkpoint_sha256": self.checkpoint})
        model.outputs["FEATURES__2"] = TensorSpec("FP32", (-1, NUM_FEATURES))  # type: ignore[index]
        return FakeTransport({MODEL: model}, GLOSSES, outputs)


class Page:
    """One page with two visitors, `ada` and `bob`."""

    def __init__(self, camera: Camera, options: PageOptions) -> None:
        self.camera = camera
        self.server = ServerConnection(camera.connect, timeout_s=5, at_once=1, limits=options.limits)
        self.taught = TaughtSigns(options)
        with gr.Blocks():
            model, signs = gr.Dropdown([MODEL]), gr.Radio([OWN])
            self.tab = TeachTab(PageContext(self.server, options, model, signs, self.taught, RequestQueue(1, 1)))
        self.ada, self.bob = make_request("ada"), make_request("bob")

    def act(self, steps: Callable[..., AsyncIterator[Updates]], *arguments: Any) -> dict[str, Any]:
        """Return what the page shows after an event."""

        async def last() -> Updates:
            await self.server.state(now=True)
            return [updates async for updates in steps(*arguments)][-1]

        return self.name(run(last()))

    def ask(self, clip: str, with_vocabulary: bool, request: gr.Request) -> tuple[str, list[str]]:
        """Return the answer to a clip and the labels of the correction buttons."""

        async def last() -> Updates:
            await self.server.state(now=True)
            return [updates async for updates in self.tab.ask(clip, MODEL, with_vocabulary, request)][-1]

        updates = run(last())
        return updates[self.tab.answer], [updates[b].value for b in self.tab.corrections if updates[b].visible]

    def name(self, updates: Updates) -> dict[str, Any]:
        """Return the updates by the tab's names for its components."""
        known = {value: name for name, value in vars(self.tab).items() if isinstance(value, gr.blocks.Block)}
        return {known[component]: value for component, value in updates.items() if component in known}


def open_page(camera: Camera, options: PageOptions) -> Page:
    """Build a page while the loop runs. Otherwise Gradio makes its own loop and leaves it open."""

    async def build() -> Page:
        return Page(camera, options)

    return run(build())


def make_request(session: str) -> gr.Request:
    class Client:
        host = "127.0.0.1"

    request = gr.Request(username=None, session_hash=session)
    request.client = Client()
    return request


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos.clip(tmp_path_factory.mktemp("clip") / "take.mp4", num_frames=64)


@pytest.fixture
def camera(clip: Path) -> Camera:
    return Camera(clip)


@pytest.fixture
def page(camera: Camera) -> Iterator[Page]:
    made = open_page(camera, PageOptions())
    yield made
    run(made.server.close())


def teach_sign(page: Page, gloss: str, sign: int, takes: int = 3, request: gr.Request | None = None) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for take in range(takes):
        clip = page.camera.show(sign, take)
        shown = page.act(page.tab.add, gloss, clip, MODEL, request or page.ada)
    return shown


def test_sign_is_taught_by_three_examples(page: Page) -> None:
    shown = teach_sign(page, "tea", 1, takes=1)
    assert "tea: 1 of 3 examples. Record it again." in shown["said"] and shown["clip"] is None
    assert "2 more examples would help" in shown["table"] and shown["signs"].visible is True
    teach_sign(page, "tea", 1)  # the first example is already there
    shown = teach_sign(page, "coffee", 2)
    assert "The model can tell it from the other signs." in shown["said"]
    assert shown["table"].count("3 of 3") == 2 and shown["download"].interactive is True
    assert [label for label, _ in shown["removable"].choices][:2] == ["All signs", "tea: 3\xa0examples"]


def test_clip_is_answered_and_corrected_with_one_click(page: Page) -> None:
    teach_sign(page, "tea", 1)
    teach_sign(page, "coffee", 2)
    clip = page.camera.show(2, 9)

    shown_answer, labels = page.ask(clip, False, page.ada)
    assert 'id="teach-best-gloss">coffee<' in shown_answer
    assert labels == ["This was coffee", "This was tea"]
    shown = page.act(page.tab.correct, labels[1], clip, MODEL, page.ada)
    assert "tea: 4\xa0examples" in shown["said"]
    assert "press “What is it?”" in shown["answer"] and shown["clip"] is None
    dictionary = page.taught.get(Visitor.of(page.ada))
    assert dictionary is not None and len(dictionary.examples) == 7


def test_vocabulary_competes_only_on_request(page: Page) -> None:
    teach_sign(page, "tea", 1)
    clip = page.camera.show(70, 0)
    shown = page.act(page.tab.ask, clip, MODEL, False, page.ada)
    assert 'id="teach-unsure"' in shown["answer"]
    shown = page.act(page.tab.ask, clip, MODEL, True, page.ada)
    assert f'id="teach-best-gloss">{GLOSSES[0]}' in shown["answer"] or any(
        gloss in shown["answer"] for gloss in GLOSSES
    )


def test_gloss_that_the_model_knows_is_pointed_out(page: Page) -> None:
    shown = teach_sign(page, GLOSSES[0], 4, takes=1)
    assert f"The model has a gloss named {GLOSSES[0]}, too." in shown["said"]


def test_bad_input_is_reported(page: Page, tmp_path: Path) -> None:
    clip = page.camera.show(1, 0)
    (tmp_path / "notes.mp4").write_text("no video")
    for name, path, says in (
        ("", clip, "is not a valid name for a sign"),
        ("tea", None, "Record a clip of the sign or upload one first."),
        ("tea", str(tmp_path / "gone.mp4"), "gone.mp4 is no longer here"),
        ("tea", str(tmp_path / "notes.mp4"), "notes.mp4"),
    ):
        assert says in page.act(page.tab.add, name, path, MODEL, page.ada)["said"]
    assert "No signs are taught yet" in page.act(page.tab.ask, clip, MODEL, False, page.ada)["answer"]
    teach_sign(page, "tea", 1, takes=1)
    again = page.act(page.tab.add, "tea", page.camera.show(1, 0), MODEL, page.ada)["said"]
    assert "is an example of &#39;tea&#39; already" in again
    assert "Choose a sign or an example first." in page.name(page.tab.remove(None, page.ada))["said"]


def test_markup_in_a_name_is_escaped(page: Page) -> None:
    shown = teach_sign(page, "<img src=x onerror=alert(1)>", 1, takes=1)
    assert "<img" not in shown["table"] + shown["said"] and "&lt;img" in shown["table"]


def test_visitors_are_separate_and_removed_signs_are_gone(page: Page) -> None:
    teach_sign(page, "tea", 1)
    shown = page.name(page.tab.show(page.bob))
    assert "No signs are taught yet." in shown["table"] and shown["signs"].visible is False
    assert page.tab.save(page.bob) == ""
    assert "tea" in page.name(page.tab.show(page.ada))["table"]
    shown = page.name(page.tab.remove("sign:tea", page.ada))
    assert "Removed: tea." in shown["said"] and "No signs are taught yet." in shown["table"]
    assert (shown["signs"].value, shown["signs"].visible) == (OWN, False)


def test_downloaded_file_can_be_loaded_by_another_visitor(page: Page, tmp_path: Path) -> None:
    teach_sign(page, "tea", 1)
    path = tmp_path / "signs.safetensors"
    path.write_bytes(base64.b64decode(page.tab.save(page.ada)))
    assert SignDictionary.load(path).glosses == ("tea",)
    shown = page.name(run(page.tab.load(str(path), MODEL, page.bob)))
    assert "Loaded 3\xa0examples." in shown["said"] and "tea" in shown["table"]
    path.write_bytes(b"\0" * 100)
    said = page.name(run(page.tab.load(str(path), MODEL, page.bob)))["said"]
    assert "signs.safetensors is not a dictionary of signs, or is damaged" in said and str(tmp_path) not in said


def test_server_with_another_checkpoint_is_reported(camera: Camera) -> None:
    transports: list[FakeTransport] = []

    def connect(in_flight: int, timeout_s: float) -> FakeTransport:
        transports.append(camera.connect())
        return transports[-1]

    page = open_page(camera, PageOptions())
    page.server = page.tab._server = ServerConnection(connect, timeout_s=5, at_once=1, limits=PageOptions().limits)
    teach_sign(page, "tea", 1)
    camera.checkpoint = "b" * 64
    for transport in transports:  # the server was restarted
        transport.models, transport.connection_epoch = camera.connect().models, 1
    for shown in (
        page.act(page.tab.add, "tea", camera.show(1, 5), MODEL, page.ada)["said"],
        page.act(page.tab.ask, camera.show(1, 5), MODEL, False, page.ada)["answer"],
    ):
        assert "was taught with another checkpoint (aaaaaaaaaaaa, not bbbbbbbbbbbb) than signs" in shown
    run(page.server.close())


def test_shared_signs_are_used_by_all_and_cannot_be_changed(camera: Camera, tmp_path: Path) -> None:
    path = tmp_path / "signs.safetensors"
    teach(8, 3).save(path)
    page = open_page(camera, PageOptions(dictionary=path))
    shown = page.name(page.tab.show(page.bob))
    assert "All visitors of this page share these signs." in shown["table"] and shown["signs"].visible is True
    assert page.tab.save(page.bob) == ""
    clip = camera.show(3, 9)

    shown_answer, labels = page.ask(clip, False, page.bob)
    assert 'id="teach-best-gloss">sign3<' in shown_answer and labels == []
    said = page.act(page.tab.add, "tea", clip, MODEL, page.bob)["said"]
    assert "Visitors of this page cannot change its signs" in said
    run(page.server.close())


def test_few_corrections_are_offered_and_taught_signs_come_first(page: Page) -> None:
    for sign in range(CORRECTIONS + 2):
        teach_sign(page, f"sign {sign}", sign, takes=1)
    clip = page.camera.show(0, 9)

    _, labels = page.ask(clip, True, page.ada)
    assert len(labels) == CORRECTIONS and labels[0] == "This was sign 0"
    assert all(label.startswith("This was sign ") for label in labels)


def test_live_session_uses_the_signs_taught_so_far(page: Page) -> None:
    teach_sign(page, "tea", 1)
    sessions = LiveSessions(page.server, most=1, keep_s=60)
    visitor = sessions.get_visitor("ada")
    own = sessions.open_session(visitor, MODEL)
    tea, _ = page.taught.choose(TAUGHT, Visitor.of(page.ada))
    with_tea = sessions.open_session(visitor, MODEL, tea)
    assert with_tea is not own and sessions.open_session(visitor, MODEL, tea) is with_tea
    assert sessions.open_session(visitor, MODEL, tea, with_vocabulary=True) is not with_tea
    teach_sign(page, "coffee", 2, takes=1)
    both, _ = page.taught.choose(TAUGHT, Visitor.of(page.ada))
    assert both is not tea and sessions.open_session(visitor, MODEL, both) is visitor.session
    sessions.leave("ada")
    assert visitor.session is None and visitor.dictionary is None
