"""Live sessions with a model that sees shades of gray: which signs are reported, when, and what a server can do."""

import asyncio
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.live.recognizer import LiveRecognizer, LiveSession
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveEvent
from asl_triton.live.window import LiveWindow
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import SignerBox
from asl_triton.signer.search import choose_by_box
from asl_triton.transport.fake import FakeTransport
from tests.client.gray_signer import UNSURE, WEAK, Observer, Plan, frames, observer, picture, shade
from tests.client.served import GLOSSES, described
from tests.client.streams import wait_until

PLAN: Plan = [(None, 1.5), ("book", 1.0), (None, 1.5), ("help", 1.2), (None, 2.0)]


async def let_others_run(count: int = 20) -> None:
    """Give other tasks turns of the event loop, without waiting for the clock."""
    for _ in range(count):
        await asyncio.sleep(0)


async def recognize_plan(
    transport: Observer, plan: Plan, rules: LiveRules | None = None, rate: float = 25.0, start_s: float = 0.0
) -> list[LiveEvent]:
    """Return the events of a plan when each frame is fed as soon as the previous one has been processed."""
    async with LiveRecognizer(AsyncRecognizer(transport=transport), rules) as live:
        await let_others_run()
        for image, time_s in frames(plan, rate, start_s):
            live.feed(image, time_s)
            await let_others_run()
        await live.finish()
        return [event async for event in live.events()]


def get_glosses(events: list[LiveEvent]) -> list[str]:
    return [event.gloss for event in events]


def recognize_glosses(transport: Observer, plan: Plan, rules: LiveRules | None = None, rate: float = 25.0) -> list[str]:
    """Return the glosses of the events of a plan, in order."""
    return get_glosses(asyncio.run(recognize_plan(transport, plan, rules, rate)))


def test_signs_are_reported_once_with_their_times_and_pauses_are_not() -> None:
    events = asyncio.run(recognize_plan(observer(), PLAN, start_s=70.0))
    assert get_glosses(events) == ["book", "help"]
    assert [event.class_id for event in events] == [GLOSSES.index("book"), GLOSSES.index("help")]
    for event, start_s in zip(events, (71.5, 74.0), strict=True):
        assert abs(event.start_s - start_s) < 0.35
        assert event.start_s < event.end_s < start_s + 1.5
        assert event.confidence == pytest.approx(0.998, abs=1e-3)
        assert 0 <= event.lag_s < 60


@pytest.mark.parametrize("rate", [8.0, 12.5, 25.0, 60.0])
def test_signs_are_the_same_at_any_frame_rate(rate: float) -> None:
    assert recognize_glosses(observer(), PLAN, rate=rate) == ["book", "help"]


@pytest.mark.parametrize("stride", [1, 8, 13, 32])
def test_signs_are_the_same_with_any_stride(stride: int) -> None:
    rules = LiveRules(stride_frames=stride)
    assert recognize_glosses(observer(), PLAN, rules) == ["book", "help"]


def test_sure_sign_is_reported_before_it_ends() -> None:
    async def watch() -> float:
        async with LiveRecognizer(AsyncRecognizer(transport=observer())) as live:
            await let_others_run()
            for image, time_s in frames([(None, 1.0), ("home", 2.0)]):
                live.feed(image, time_s)
                await let_others_run()
                if live.state().events:
                    assert live.state().gloss == "home"
                    return time_s
        raise AssertionError("the sign was not reported")

    assert asyncio.run(watch()) < 2.0


def test_unsure_gloss_is_reported_at_the_second_look_and_a_glimpse_is_not() -> None:
    transport = observer(certainty=UNSURE)
    assert recognize_glosses(transport, PLAN) == ["book", "help"]

    glimpse: Plan = [(None, 1.44), ("drink", 0.4), ("mother", 1.5), (None, 1.0)]
    doubtful = observer(certainty=UNSURE)
    plain = doubtful.answer

    def only_when_newest(model: str, inputs):  # type: ignore[no-untyped-def]
        outputs = dict(plain(model, inputs))
        outputs["STEP_LOGITS__1"] = outputs["STEP_LOGITS__1"].copy()
        outputs["STEP_LOGITS__1"][0, :-1, GLOSSES.index("drink")] = -8.0  # a better look shows another sign
        return outputs

    doubtful.answer = only_when_newest
    assert recognize_glosses(doubtful, glimpse) == ["mother"]


def test_unsure_gloss_is_reported_if_no_second_look_is_possible() -> None:
    plan: Plan = [(None, 1.5), ("book", 1.0), (None, 5.0)]
    assert recognize_glosses(observer(certainty=UNSURE), plan, LiveRules(stride_frames=64)) == ["book"]


def test_weak_gloss_is_reported_only_with_a_low_threshold() -> None:
    assert asyncio.run(recognize_plan(observer(certainty=WEAK), PLAN)) == []
    assert recognize_glosses(observer(certainty=WEAK), PLAN, LiveRules(min_confidence=0.2)) == ["book", "help"]


def test_gloss_is_reported_again_after_a_gap_but_not_after_a_flicker() -> None:
    again: Plan = [(None, 1.0), ("book", 1.0), (None, 1.0), ("book", 1.0), (None, 1.0)]
    assert recognize_glosses(observer(), again) == ["book", "book"]
    flicker: Plan = [(None, 1.0), ("book", 1.0), (None, 0.16), ("book", 1.0), (None, 1.0)]
    assert recognize_glosses(observer(), flicker) == ["book"]
    assert recognize_glosses(observer(), again, LiveRules(gone_s=2.0)) == ["book"]


def test_endless_gloss_is_reported_again_after_repeat_s() -> None:
    events = asyncio.run(recognize_plan(observer(), [(None, 1.0), ("book", 9.0)], LiveRules(repeat_s=3.0)))
    assert get_glosses(events) == ["book"] * 3
    assert [round(b.start_s - a.end_s, 2) for a, b in pairwise(events)] == [0, 0]
    assert recognize_glosses(observer(), [(None, 1.0), ("book", 9.0)], LiveRules(repeat_s=60.0)) == ["book"]


def test_only_glosses_of_the_vocabulary_are_reported() -> None:
    assert recognize_glosses(observer(), PLAN, LiveRules(vocabulary=["help", "home"])) == ["help"]


def test_last_frames_are_recognized_at_the_end() -> None:
    assert recognize_glosses(observer(), [(None, 1.0), ("book", 0.7)], LiveRules(stride_frames=60)) == ["book"]
    short = observer()
    asyncio.run(recognize_plan(short, [("book", 0.12)]))
    assert [shapes["FRAMES__0"][1] for _, shapes in short.calls] == [9]  # three frames, with the last one repeated
    assert asyncio.run(recognize_plan(observer(), [])) == []


@pytest.mark.parametrize(("preset", "lengths"), [
    ("wlasl", [16, 24, 32, 40, 48, 56, 64, 64, 64]), ("bsl1k", [64] * 7),
])  # fmt: skip
def test_first_windows_are_short_if_the_preset_accepts_any_length(preset: str, lengths: list[int]) -> None:
    transport = observer(PRESETS[preset])
    asyncio.run(recognize_plan(transport, [(None, 3.2)]))
    assert [shapes["FRAMES__0"][1] for _, shapes in transport.calls] == lengths


@pytest.mark.parametrize(("after", "what"), [
    (5.0, "a gap in the clock"), (-30.0, "a clock that starts over"), (None, "frames of another size"),
])  # fmt: skip
def test_break_in_the_stream_starts_a_new_window(after: float | None, what: str) -> None:
    async def collect_lengths() -> list[int]:
        transport = observer()
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            for image, time_s in frames([(None, 3.0)], start_s=50.0):
                live.feed(image, time_s)
                await let_others_run()
            before = len(transport.calls)
            start_s = 53.0 if after is None else 53.0 + after
            for image, time_s in frames([(None, 1.0)], start_s=start_s):
                live.feed(image if after is not None else np.repeat(image, 2, axis=0), time_s)
                await let_others_run()
            assert live.state().problem is None
        return [shapes["FRAMES__0"][1] for _, shapes in transport.calls[before:]]

    assert asyncio.run(collect_lengths()) == [16, 24], what


def test_cut_starts_a_new_window_and_a_moving_signer_does_not() -> None:
    async def collect_lengths(level: int) -> list[int]:
        transport = observer()
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            for number in range(96):
                live.feed(np.full((48, 64, 3), 100 if number < 64 else level, np.uint8), number / 25)
                await let_others_run()
        return [shapes["FRAMES__0"][1] for _, shapes in transport.calls]

    assert asyncio.run(collect_lengths(160))[-3:] == [16, 24, 32]
    assert asyncio.run(collect_lengths(108))[-3:] == [64, 64, 64]


def test_frames_that_are_late_or_have_no_time_are_dropped() -> None:
    async def count_dropped() -> int:
        async with LiveRecognizer(AsyncRecognizer(transport=observer())) as live:
            await let_others_run()
            for time_s in (0.0, 0.5, 0.3, float("nan"), float("inf"), 0.54):
                live.feed(picture(None), time_s)
            return live.state().dropped_frames

    assert asyncio.run(count_dropped()) == 3


@pytest.mark.parametrize("image", [
    np.zeros((48, 64), np.uint8), np.zeros((48, 64, 4), np.uint8), np.zeros((48, 64, 3)),
    np.zeros((0, 64, 3), np.uint8),
])  # fmt: skip
def test_invalid_frame_is_a_clear_error(image: np.ndarray) -> None:
    async def feed() -> None:
        async with LiveRecognizer(AsyncRecognizer(transport=observer())) as live:
            await let_others_run()
            live.feed(image, 0.0)

    with pytest.raises(VideoError, match="a frame must be uint8 BGR of height x width x 3"):
        asyncio.run(feed())


def test_slow_server_gets_one_window_at_a_time_and_the_newest_next() -> None:
    async def watch() -> None:
        transport = observer()
        transport.gate = asyncio.Event()
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            plan: Plan = [(None, 1.0), ("book", 8.0), ("help", 2.0)]
            for image, time_s in frames(plan):
                live.feed(image, time_s)
                await let_others_run(3)
            state = live.state()
            assert len(transport.newest) == transport.most_at_once == 1
            assert state.windows == 0
            assert state.dropped_windows > 20
            assert state.dropped_frames == 275 - 16 - 64
            transport.gate.set()
            await let_others_run()
            assert transport.newest == [shade(None), shade("help")]
            assert live.state().windows == 2
            assert transport.most_at_once == 1

    asyncio.run(watch())


def test_lost_server_is_a_problem_until_it_is_back() -> None:
    async def watch() -> list[LiveEvent]:
        transport = observer()
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            for number, (image, time_s) in enumerate(frames([(None, 1.0), ("book", 1.0), (None, 3.0)])):
                transport.is_away = 60 <= number < 100
                if number == 61:
                    transport.models = {"signs": replace(described(PRESETS["bsl1k"]), name="signs")}
                live.feed(image, time_s)
                await let_others_run()
                if number == 80:
                    problem = live.state().problem
                    assert problem is not None and "no server answers" in problem
                    assert live.state().gloss is None
            for image, time_s in frames([("help", 20.0)], start_s=5.0):
                live.feed(image, time_s)
                await asyncio.sleep(0.01)  # the server is tried again after a pause
                if live.state().num_events == 2:
                    break
            assert live.state().problem is None
            assert transport.calls[-1][1]["FRAMES__0"][1] == 64  # the window of the preset it came back with
            await live.finish()
            return [event async for event in live.events()]

    assert get_glosses(asyncio.run(watch())) == ["book", "help"]


def test_server_that_starts_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watch() -> None:
        transport = observer()
        transport.is_away = True
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            live.feed(picture(None), 0.0)
            state = live.state()
            assert state.problem is not None and state.model is None and state.dropped_frames == 1
            transport.is_away = False
            while live.state().windows == 0:
                live.feed(picture(None), time.monotonic())
                await asyncio.sleep(0.01)
            assert live.state().problem is None and live.state().model == "signs"

    asyncio.run(watch())


def test_session_ends_cleanly_while_the_server_is_down() -> None:
    async def watch() -> str | None:
        transport = observer()
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            transport.is_away = True
            for image, time_s in frames([(None, 1.0)]):
                live.feed(image, time_s)
            await live.finish()
            assert [event async for event in live.events()] == []
            return live.state().problem

    assert "no server answers" in (asyncio.run(watch()) or "")


def test_slow_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watch() -> str | None:
        transport = observer()
        transport.gate = asyncio.Event()
        async with LiveRecognizer(AsyncRecognizer(transport=transport)) as live:
            await let_others_run()
            for image, time_s in frames([(None, 1.0)]):
                live.feed(image, time_s)
            await let_others_run()
            return live.state().problem

    assert asyncio.run(watch()) is None
    monkeypatch.setattr("asl_triton.live.recognizer.SLOW_ANSWER_S", 0.0)
    assert "fake:8001 has not answered for 0 s" in (asyncio.run(watch()) or "")


def test_rules_that_do_not_fit_the_model_are_a_problem() -> None:
    async def get_problem(rules: LiveRules) -> str:
        async with LiveRecognizer(AsyncRecognizer(transport=observer()), rules) as live:
            await let_others_run()
            for image, time_s in frames([(None, 1.0)]):
                live.feed(image, time_s)
            await let_others_run()
            return live.state().problem or ""

    assert "does not know 1 of the 1 glosses" in asyncio.run(get_problem(LiveRules(vocabulary=["nonsense"])))
    assert "a window of 8 frames is out of range" in asyncio.run(get_problem(LiveRules(window_frames=8)))


@pytest.mark.parametrize("rules", [
    {"min_confidence": 0}, {"min_confidence": 1.5}, {"stride_frames": 0}, {"window_frames": 0}, {"repeat_s": 0},
    {"gone_s": -1}, {"gone_s": float("nan")},
])  # fmt: skip
def test_invalid_rules_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(AslTritonError):
        LiveRules(**rules)  # type: ignore[arg-type]


def feed_in_step(session: LiveSession, plan: Plan, start_s: float = 0.0) -> None:
    """Feed a session, waiting for each answer that is due."""
    for number, (image, time_s) in enumerate(frames(plan, start_s=start_s), start=1):
        session.feed(image, time_s)
        due = max(number - 16, -8) // 8 + 1  # windows of a session that has just started
        wait_until(lambda: session.state().windows >= due)  # noqa: B023 - it is called at once


def test_session_reports_events_and_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    with Recognizer(transport=observer()) as recognizer, LiveSession(recognizer) as session:
        wait_until(lambda: session.state().model == "signs")
        feed_in_step(session, PLAN)
        wait_until(lambda: session.state().num_events == 2)
        state = session.state()
        assert [event.gloss for event in state.events] == ["book", "help"]
        assert state.gloss is None and state.confidence < 0.5
        assert state.frames == 180
        assert state.lag_s is not None and state.lag_p95_s is not None and 0 <= state.lag_s <= state.lag_p95_s
        assert state.frame_rate > 25


def test_gloss_is_cleared_when_frames_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    with Recognizer(transport=observer()) as recognizer, LiveSession(recognizer) as session:
        wait_until(lambda: session.state().model == "signs")
        monkeypatch.setattr("asl_triton.live.recognizer.SILENT_S", 60.0)
        feed_in_step(session, [(None, 1.0), ("book", 1.0)])
        assert session.state().gloss == "book"
        monkeypatch.setattr("asl_triton.live.recognizer.SILENT_S", 0.0)
        assert session.state().gloss is None


def test_sessions_of_one_recognizer_do_not_mix() -> None:
    with (
        Recognizer(transport=observer()) as recognizer,
        LiveSession(recognizer) as one,
        LiveSession(recognizer) as other,
    ):
        wait_until(lambda: one.state().model is not None and other.state().model is not None)
        threads = [
            threading.Thread(target=feed_in_step, args=(session, [(None, 1.0), (gloss, 1.2), (None, 1.0)]))
            for session, gloss in ((one, "book"), (other, "home"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: one.state().num_events == other.state().num_events == 1)
        assert [e.gloss for e in one.state().events] == ["book"]
        assert [e.gloss for e in other.state().events] == ["home"]


class HungServer(FakeTransport):
    """Never answers an inference."""

    infer = staticmethod(lambda *_: asyncio.Event().wait())  # type: ignore[assignment]


def test_feed_and_close_return_even_if_the_server_never_answers() -> None:
    hung = HungServer({"signs": described()}, GLOSSES, observer().answer)
    with Recognizer(transport=hung) as recognizer:
        session = LiveSession(recognizer)
        wait_until(lambda: session.state().model == "signs")
        for image, time_s in frames([("book", 20.0)]):
            state = session.feed(image, time_s)
        assert state.windows == 0 and state.dropped_frames > 300
        session.close()
        session.close()
        assert session.feed(picture(None), 30.0).frames == state.frames


def test_session_follows_new_rules_and_can_be_cleared() -> None:
    with Recognizer(transport=observer()) as recognizer, LiveSession(recognizer) as session:
        wait_until(lambda: session.state().model == "signs")
        session.rules = LiveRules(vocabulary=["help"])
        assert session.rules.vocabulary == {"help"}
        feed_in_step(session, PLAN)
        wait_until(lambda: session.state().num_events == 1)
        assert session.state().events[0].gloss == "help"
        session.clear()
        state = session.state()
        assert (state.frames, state.windows, state.num_events, state.events, state.lag_s) == (0, 0, 0, (), None)
        session.rules = LiveRules()
        feed_in_step(session, PLAN, start_s=100.0)
        wait_until(lambda: session.state().num_events == 2)


def test_no_task_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    async def list_tasks() -> set[str]:
        async with LiveRecognizer(AsyncRecognizer(transport=observer())) as live:
            await let_others_run()
            live.feed(picture(None), 0.0)
        return {task.get_name() for task in asyncio.all_tasks()} - {asyncio.current_task().get_name()}  # type: ignore[union-attr]

    assert asyncio.run(list_tasks()) == set()


@pytest.mark.parametrize("name", ["bsl1k-person", "asl-citizen"])
@pytest.mark.parametrize("signer", [SignerBox(0.52, 0.0, 1.0, 1.0), None])
def test_live_windows_are_cropped_to_the_signer_box_if_the_model_needs_it(name: str, signer: SignerBox | None) -> None:
    window = LiveWindow()
    window.prepare(PRESETS[name])
    image = np.zeros((120, 160, 3), np.uint8)
    image[:, 80:] = 200
    framing = choose_by_box(signer, PRESETS[name], image)
    for n in range(40):
        window.push(image, n / 25, n / 25, framing)
    snapshot = window.take()
    assert snapshot is not None and snapshot.frames.shape == (64, 224, 224, 3)
    is_cut = name == "bsl1k-person" and signer is not None
    assert (snapshot.frames.min() == 200) == is_cut
