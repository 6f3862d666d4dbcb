"""The tab "Live" in a real browser whose camera shows the demo signer, over a real Triton."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from asl_triton_demo.signer import find_sign
from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.film import FPS, paint_scene, perform_sign, rest
from tests.browser.conftest import (
    ARGUMENTS,
    CAMERA_GLOSS,
    MAX_LIVE,
    PATIENCE_MS,
    PHONE,
    SEED,
    WIDE,
    Visit,
    answer_to,
    choose,
    ready,
    sentence_after,
    shoot,
    write_camera,
)
from tests.browser.test_looks import grave_findings, scrolls_sideways

GLOSS, REST_S = "book", 2.0
LOOP_S = 3.0  # minimum time from one start of the sign to the next
THRESHOLD, STRIDE = 70, 16  # for these tests, because a browser on a busy machine sends few frames
LOW_THRESHOLD = 40  # when two browsers share the machine


@pytest.fixture(scope="module")
def signer(chromium: str, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a second browser, whose camera shows another sign and a pause in a loop."""
    seed = SEED + 2
    frames = list(paint_scene([perform_sign(find_sign(GLOSS), seed), rest(REST_S, seed)], seed))
    assert len(frames) / FPS > LOOP_S
    path = write_camera(tmp_path_factory.mktemp("live") / "camera.y4m", frames)
    arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={path}"]
    launched = browser.browser_type.launch(executable_path=chromium, args=arguments)
    yield launched
    launched.close()


@pytest.fixture(scope="module")
def signing(signer: Browser, page_url: str) -> Iterator[Page]:
    """Yield the page of a visitor who signs `GLOSS` during all of these tests."""
    with signer.new_context(viewport=WIDE) as context:  # type: ignore[arg-type]
        context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
        yield opened(context, page_url, THRESHOLD)


@pytest.fixture(scope="module")
def other(browser: Browser, page_url: str) -> Iterator[Page]:
    """Yield the page of a visitor who signs `CAMERA_GLOSS` and prefers dark mode."""
    with browser.new_context(viewport=WIDE, color_scheme="dark", permissions=["camera"]) as context:  # type: ignore[arg-type]
        yield opened(context, page_url, LOW_THRESHOLD)


def opened(context: BrowserContext, url: str, threshold: float) -> Page:
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    return go_live(ready(page), threshold)


def go_live(page: Page, threshold: float = THRESHOLD) -> Page:
    """Open the tab, allow the camera and start."""
    page.get_by_role("tab", name="Live").click()
    page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
    adjust(page, "threshold", threshold)
    adjust(page, "stride", STRIDE)
    page.locator("#live-camera").get_by_role("button", name="Start", exact=True).click()
    return page


def adjust(page: Page, slider: str, value: float) -> None:
    page.locator(f"#live-{slider} input[type=number]").fill(str(value))


def transcript(page: Page) -> list[tuple[float, str]]:
    """Return the transcript's times in seconds and glosses, oldest first."""
    lines = page.locator("#live-transcript li").all_inner_texts()
    times = [re.match(r"(\d+):([\d.]+)\s+(.+?)\s+[\d.]+\s%", line) for line in reversed(lines)]
    return [(60 * int(m[1]) + float(m[2]), m[3]) for m in times if m]


def fact(page: Page, name: str) -> str:
    return page.locator("#live-now .facts div").filter(has_text=name).locator("dd").inner_text()


def test_each_sign_is_told_once_and_no_pause_is_a_sign(signing: Page) -> None:
    expect(signing.locator("#live-gloss")).to_have_text(GLOSS)
    expect(signing.locator("#live-transcript li")).to_have_count(3)
    expect(signing.locator("#live-now .none")).to_have_text("No sign")  # also between two signs
    told = transcript(signing)
    assert {gloss for _, gloss in told} == {GLOSS}
    assert all(later - earlier > LOOP_S / 2 for (earlier, _), (later, _) in pairwise(told)), told


def test_how_it_goes_is_shown(signing: Page) -> None:
    assert re.fullmatch(r"[\d,]+\sms", fact(signing, "Lag"))
    assert float(fact(signing, "Frames per second")) > 0
    assert re.fullmatch(r"[\d,]+\sframes?, [\d,]+\swindows?", fact(signing, "Dropped"))
    assert fact(signing, "Model") == "demo"
    expect(signing.locator("#live-way")).to_contain_text(re.compile(r"Frames take \d+ ms from this browser"))


def test_transcript_is_told_copied_and_downloaded(signing: Page) -> None:
    newest = signing.locator("#live-transcript li").first
    expect(newest).to_contain_text(GLOSS)
    expect(signing.locator(".announcement[role=status]")).to_contain_text(re.compile(rf"^{GLOSS}, \d+:"))
    links = signing.locator("#live-downloads a")
    assert links.all_inner_texts() == ["Text", "WebVTT"]
    contents = links.evaluate_all("async links => Promise.all(links.map(async a => (await fetch(a.href)).text()))")
    assert re.fullmatch(rf"(\d+:\d\d\.\d {GLOSS}\n)+", contents[0])
    assert re.match(rf"WEBVTT\n\nNOTE demo: live\n\n1\n00:00:[\d.]+ --> 00:00:[\d.]+\n{GLOSS}\n", contents[1])
    signing.get_by_role("button", name="Copy the text").click()
    expect(signing.get_by_role("button", name="Copied")).to_be_visible()
    assert re.fullmatch(rf"(\d+:\d\d\.\d {GLOSS}\n)+", signing.evaluate("navigator.clipboard.readText()"))


@pytest.mark.parametrize("look", ["light", "dark"])
def test_it_is_for_everybody(request: pytest.FixtureRequest, look: str) -> None:
    page: Page = request.getfixturevalue({"light": "signing", "dark": "other"}[look])
    expect(page.locator("#live-now .facts")).to_contain_text(re.compile(r"Lag\s*[\d,]+\sms"))
    findings = []
    for size in (WIDE, PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        shoot(page, f"live-{look}-{size['width']}")
        assert not scrolls_sideways(page)
        findings += grave_findings(page)
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    assert findings == []


def test_visitors_see_their_own_alone_and_no_more_than_the_limit(signing: Page, other: Page, visit: Visit) -> None:
    assert MAX_LIVE == 2
    third = go_live(ready(visit(permissions=["camera"])))
    expect(third.locator("#live-problem")).to_contain_text(re.compile(r"Only 2\svisitors can be live on this page"))
    expect(other.locator("#live-transcript").get_by_text(CAMERA_GLOSS).first).to_be_visible(timeout=2 * PATIENCE_MS)
    # With few frames a sign may be mistaken for the other visitor's, but never at the same time with the same
    # confidence.
    theirs = {page: set(page.locator("#live-transcript li").all_inner_texts()) for page in (signing, other)}
    assert any(GLOSS in line for line in theirs[signing]) and not any(CAMERA_GLOSS in line for line in theirs[signing])
    assert theirs[signing].isdisjoint(theirs[other])
    other.close()
    expect(third.locator("#live-problem .note")).to_have_count(0)  # by itself
    expect(third.locator("#live-now .facts")).to_contain_text("demo")


def test_rules_are_obeyed_while_it_runs(signing: Page) -> None:
    adjust(signing, "threshold", 100)
    expect(signing.locator("#live-now .none")).to_have_text("No sign")
    signing.get_by_role("button", name="Clear", exact=True).click()
    expect(signing.locator("#live-transcript")).to_contain_text("No sign yet.")
    # A whole loop was answered, including the sign.
    expect(signing.locator("#live-now .facts")).to_contain_text(re.compile(r"Answers\s*([6-9]|\d\d)\s"))
    assert transcript(signing) == []
    adjust(signing, "threshold", THRESHOLD)
    expect(signing.locator("#live-transcript li .name").first).to_have_text(GLOSS)


def test_pause_and_go_on(signing: Page) -> None:
    signing.locator("#live-pause").click()
    expect(signing.locator("#live-now")).to_contain_text("Paused")
    answers = fact(signing, "Answers")
    signing.locator("#live-pause", has_text="Resume").click()
    expect(signing.locator("#live-now")).not_to_contain_text("Paused")
    expect(signing.locator("#live-now .facts div").filter(has_text="Answers")).not_to_contain_text(answers)


def test_server_killed_and_back_in_mid_stream_and_between_upload_and_answer(
    signing: Page, page: Page, clips: dict[str, Path], triton: LocalTriton
) -> None:
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="small: 7 glosses, bsl1k, fp32").click()
    choose(page, clips["book"])
    triton.stop()
    try:
        expect(signing.locator("#live-problem")).to_contain_text("No answers now.")
        expect(signing.locator("#live-now")).to_contain_text("No answers")
        said = sentence_after(page)
        assert "Not recognized." in said and "no server answers at" in said.lower()
        expect(page.locator("#away")).to_contain_text("This page checks again every few seconds")
        expect(page.locator(".state")).to_contain_text("Server away")
    finally:
        triton.start()
    expect(signing.locator("#live-problem .note")).to_have_count(0)
    signing.get_by_role("button", name="Clear", exact=True).click()
    expect(signing.locator("#live-transcript li .name").first).to_have_text(GLOSS)  # on the same page
    expect(page.locator(".state")).to_contain_text("Ready")
    expect(page.locator("#away")).to_have_count(0)
    answer_to(page)  # the same clip on the same page, with the chosen model
    assert "small" in page.locator("#answer .facts").inner_text()


def test_model_that_is_picked_is_asked(signing: Page) -> None:
    for name in ("small", "demo"):
        signing.locator("#model input").click()
        signing.get_by_role("option", name=re.compile(f"^{name}:")).click()
        expect(signing.locator("#live-now .facts div").filter(has_text="Model")).to_contain_text(name)


def test_frames_are_dropped_where_the_way_is_slow(signing: Page) -> None:
    under_way: set[Request] = set()
    most = 0

    def sent(request: Request) -> None:
        nonlocal most
        if "/gradio_api/stream/" in request.url:
            under_way.add(request)
            most = max(most, len(under_way))

    signing.on("request", sent)
    signing.on("requestfinished", lambda request: under_way.discard(request))
    network = signing.context.new_cdp_session(signing)
    slow = {"offline": False, "latency": 1000, "downloadThroughput": -1, "uploadThroughput": 50_000}
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slow)
    expect(signing.locator("#live-way")).to_contain_text("were dropped while earlier ones were still in flight")
    signing.wait_for_timeout(2000)
    unlimited = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", unlimited)
    assert 0 < most <= 6  # four at once; completions are reported a little late


def test_camera_that_is_stopped_is_off(signing: Page) -> None:
    signing.locator("#live-camera").get_by_role("button", name="Stop", exact=True).click()
    expect(signing.locator("#live-now")).to_contain_text("Camera off")
    signing.locator("#live-camera").get_by_role("button", name="Start", exact=True).click()
    expect(signing.locator("#live-now")).to_contain_text("Signed now")


def test_refused_camera(page: Page) -> None:
    page.get_by_role("tab", name="Live").click()
    page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
    expect(page.locator(".page-note")).to_contain_text("The browser blocked the camera. Allow it for this page")
    page.get_by_role("tab", name="Models").click()
    expect(page.locator(".model").first).to_be_visible()
