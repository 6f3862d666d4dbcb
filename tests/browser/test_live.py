"""The tab "Live" in a real browser whose camera shows the demo signer, over a real Triton."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from asl_triton_demo.signer import find_sign
from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.film import FPS, paint_scene, perform_pause, perform_sign
from tests.browser.conftest import (
    ARGUMENTS,
    CAMERA_GLOSS,
    MAX_LIVE,
    PATIENCE_MS,
    PHONE,
    SEED,
    WIDE,
    Visit,
    choose,
    recognize,
    recognize_expecting_problem,
    take_screenshot,
    wait_until_ready,
    write_camera,
)
from tests.browser.test_looks import find_violations, has_horizontal_scroll

GLOSS, REST_S = "book", 2.0
LOOP_S = 3.0  # minimum time between two starts of the sign
THRESHOLD, STRIDE = 70, 16  # a browser on a busy machine sends few frames
LOW_THRESHOLD = 40  # when two browsers share the machine


@pytest.fixture(scope="module")
def signer(chromium: str, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Yield a second browser, whose camera shows another sign and a pause in a loop."""
    seed = SEED + 2
    frames = list(paint_scene([perform_sign(find_sign(GLOSS), seed), perform_pause(REST_S, seed)], seed))
    assert len(frames) / FPS > LOOP_S
    path = write_camera(tmp_path_factory.mktemp("live") / "camera.y4m", frames)
    arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={path}"]
    launched = browser.browser_type.launch(executable_path=chromium, args=arguments)
    yield launched
    launched.close()


@pytest.fixture(scope="module")
def signing(signer: Browser, page_url: str) -> Iterator[Page]:
    """Yield the page of a visitor who signs `GLOSS` throughout these tests."""
    with signer.new_context(viewport=WIDE) as context:  # type: ignore[arg-type]
        context.grant_permissions(["camera", "clipboard-read", "clipboard-write"])
        yield open_live(context, page_url, THRESHOLD)


@pytest.fixture(scope="module")
def other(browser: Browser, page_url: str) -> Iterator[Page]:
    """Yield the page of a visitor who signs `CAMERA_GLOSS` and prefers dark mode."""
    with browser.new_context(viewport=WIDE, color_scheme="dark", permissions=["camera"]) as context:  # type: ignore[arg-type]
        yield open_live(context, page_url, LOW_THRESHOLD)


def open_live(context: BrowserContext, url: str, threshold: float) -> Page:
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    return go_live(wait_until_ready(page), threshold)


def go_live(page: Page, threshold: float = THRESHOLD) -> Page:
    """Open the tab, allow the camera and start."""
    page.get_by_role("tab", name="Live").click()
    page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
    set_slider(page, "threshold", threshold)
    set_slider(page, "stride", STRIDE)
    page.locator("#live-camera").get_by_role("button", name="Start", exact=True).click()
    return page


def set_slider(page: Page, slider: str, value: float) -> None:
    page.locator(f"#live-{slider} input[type=number]").fill(str(value))


def read_transcript(page: Page) -> list[tuple[float, str]]:
    """Return the times in seconds and the glosses of the transcript, oldest first."""
    lines = page.locator("#live-transcript li").all_inner_texts()
    matches = [re.match(r"(\d+):([\d.]+)\s+(.+?)\s+[\d.]+\s%", line) for line in reversed(lines)]
    return [(60 * int(m[1]) + float(m[2]), m[3]) for m in matches if m]


def read_fact(page: Page, name: str) -> str:
    return page.locator("#live-now .facts div").filter(has_text=name).locator("dd").inner_text()


def test_each_sign_is_reported_once_and_pauses_are_not(signing: Page) -> None:
    expect(signing.locator("#live-gloss")).to_have_text(GLOSS)
    signing.locator("#live-transcript li").nth(2).wait_for()
    expect(signing.locator("#live-now .none")).to_have_text("No sign")  # also between two signs
    transcript = read_transcript(signing)
    assert {gloss for _, gloss in transcript} == {GLOSS}
    assert all(later - earlier > LOOP_S / 2 for (earlier, _), (later, _) in pairwise(transcript)), transcript


def test_performance_facts_are_shown(signing: Page) -> None:
    assert re.fullmatch(r"[\d,]+\sms", read_fact(signing, "Lag"))
    assert float(read_fact(signing, "Frames per second")) > 0
    assert re.fullmatch(r"[\d,]+\sframes?, [\d,]+\swindows?", read_fact(signing, "Dropped"))
    assert read_fact(signing, "Model") == "demo"
    expect(signing.locator("#live-way")).to_contain_text(re.compile(r"Frames take \d+ ms from this browser"))


def test_transcript_is_announced_copied_and_downloaded(signing: Page) -> None:
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


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
def test_tab_is_accessible_and_fits_the_screen(request: pytest.FixtureRequest, color_scheme: str) -> None:
    page: Page = request.getfixturevalue({"light": "signing", "dark": "other"}[color_scheme])
    expect(page.locator("#live-now .facts")).to_contain_text(re.compile(r"Lag\s*[\d,]+\sms"))
    findings = []
    for size in (WIDE, PHONE):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        take_screenshot(page, f"live-{color_scheme}-{size['width']}")
        assert not has_horizontal_scroll(page)
        findings += find_violations(page)
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    assert findings == []


def test_live_visitors_are_separate_and_limited(signing: Page, other: Page, visit: Visit) -> None:
    assert MAX_LIVE == 2
    third = go_live(wait_until_ready(visit(permissions=["camera"])))
    expect(third.locator("#live-problem")).to_contain_text(re.compile(r"Only 2\svisitors can be live on this page"))
    expect(other.locator("#live-transcript").get_by_text(CAMERA_GLOSS).first).to_be_visible(timeout=2 * PATIENCE_MS)
    # With few frames, a sign may be mistaken for the other visitor's, but the lines still differ in time or confidence.
    lines = {page: set(page.locator("#live-transcript li").all_inner_texts()) for page in (signing, other)}
    assert any(GLOSS in line for line in lines[signing]) and not any(CAMERA_GLOSS in line for line in lines[signing])
    assert lines[signing].isdisjoint(lines[other])
    other.close()
    expect(third.locator("#live-problem .note")).to_have_count(0)  # it retries by itself
    expect(third.locator("#live-now .facts")).to_contain_text("demo")


def test_changed_rules_apply_while_live(signing: Page) -> None:
    set_slider(signing, "threshold", 100)
    expect(signing.locator("#live-now .none")).to_have_text("No sign")
    signing.get_by_role("button", name="Clear", exact=True).click()
    expect(signing.locator("#live-transcript")).to_contain_text("No sign yet.")
    # Six windows cover a whole loop, including the sign.
    expect(signing.locator("#live-now .facts")).to_contain_text(re.compile(r"Answers\s*([6-9]|\d\d)\s"))
    assert read_transcript(signing) == []
    set_slider(signing, "threshold", THRESHOLD)
    expect(signing.locator("#live-transcript li .name").first).to_have_text(GLOSS)


def test_pause_and_resume(signing: Page) -> None:
    signing.locator("#live-pause").click()
    expect(signing.locator("#live-now")).to_contain_text("Paused")
    answers = read_fact(signing, "Answers")
    signing.locator("#live-pause", has_text="Resume").click()
    expect(signing.locator("#live-now")).not_to_contain_text("Paused")
    expect(signing.locator("#live-now .facts div").filter(has_text="Answers")).not_to_contain_text(answers)


def test_server_killed_and_restarted_mid_stream_and_between_upload_and_answer(
    signing: Page, page: Page, clips: dict[str, Path], triton: LocalTriton
) -> None:
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="small: 7 glosses, bsl1k, fp32").click()
    choose(page, clips["book"])
    triton.stop()
    try:
        expect(signing.locator("#live-problem")).to_contain_text("No answers now.")
        expect(signing.locator("#live-now")).to_contain_text("No answers")
        problem = recognize_expecting_problem(page)
        assert "Not recognized." in problem and "no server answers at" in problem.lower()
        expect(page.locator("#away")).to_contain_text("This page checks again every few seconds")
        expect(page.locator(".state")).to_contain_text("Server away")
    finally:
        triton.start()
    expect(signing.locator("#live-problem .note")).to_have_count(0)
    signing.get_by_role("button", name="Clear", exact=True).click()
    expect(signing.locator("#live-transcript li .name").first).to_have_text(GLOSS)  # without a reload
    expect(page.locator(".state")).to_contain_text("Ready")
    expect(page.locator("#away")).to_have_count(0)
    recognize(page)  # the same clip and the selected model
    assert "small" in page.locator("#answer .facts").inner_text()


def test_selected_model_is_used(signing: Page) -> None:
    for name in ("small", "demo"):
        signing.locator("#model input").click()
        signing.get_by_role("option", name=re.compile(f"^{name}:")).click()
        expect(signing.locator("#live-now .facts div").filter(has_text="Model")).to_contain_text(name)


def test_frames_are_dropped_on_a_slow_network(signing: Page) -> None:
    in_flight: set[Request] = set()
    max_in_flight = 0

    def record_request(request: Request) -> None:
        nonlocal max_in_flight
        if "/gradio_api/stream/" in request.url:
            in_flight.add(request)
            max_in_flight = max(max_in_flight, len(in_flight))

    signing.on("request", record_request)
    signing.on("requestfinished", lambda request: in_flight.discard(request))
    network = signing.context.new_cdp_session(signing)
    slow = {"offline": False, "latency": 1000, "downloadThroughput": -1, "uploadThroughput": 50_000}
    network.send("Network.enable")
    network.send("Network.emulateNetworkConditions", slow)
    expect(signing.locator("#live-way")).to_contain_text("were dropped while earlier ones were still in flight")
    signing.wait_for_timeout(2000)
    unlimited = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", unlimited)
    assert 0 < max_in_flight <= 6  # four at a time; the browser reports completions a little late


def test_stopped_camera_is_off_until_restarted(signing: Page) -> None:
    signing.locator("#live-camera").get_by_role("button", name="Stop", exact=True).click()
    expect(signing.locator("#live-now")).to_contain_text("Camera off")
    signing.locator("#live-camera").get_by_role("button", name="Start", exact=True).click()
    expect(signing.locator("#live-now")).to_contain_text("Signed now")


def test_blocked_camera_is_explained(page: Page) -> None:
    page.get_by_role("tab", name="Live").click()
    page.locator("#live-camera").get_by_text("Click to Access Webcam").click()
    expect(page.locator(".page-note")).to_contain_text("The browser blocked the camera. Allow it for this page")
    page.get_by_role("tab", name="Models").click()
    expect(page.locator(".model").first).to_be_visible()
