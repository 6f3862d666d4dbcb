"""Bad input and other failures: each shows a message, and the page remains usable."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import (
    MAX_UPLOAD_MB,
    PATIENCE_MS,
    Visit,
    choose,
    recognize,
    recognize_expecting_problem,
    wait_until_ready,
)
from tests.client.videos import PDF, written_by_opencv


@pytest.fixture(scope="module")
def shared_page(context: BrowserContext, page_url: str) -> Iterator[Page]:
    """Yield one page for all failures. Each test starts from the state that the previous one left."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(page_url)
    yield wait_until_ready(page)
    page.close()


@pytest.fixture
def empty_page(shared_page: Page, clips: dict[str, Path]) -> Iterator[Page]:
    """Yield the page without a clip. After the test, check that it still recognizes a good one."""
    yield shared_page
    remove_clip(shared_page)
    choose(shared_page, clips["book"])
    assert recognize(shared_page) == "book"
    shared_page.locator(".film img").first.wait_for()  # an earlier click on Recognize would be ignored
    remove_clip(shared_page)


def remove_clip(page: Page) -> None:
    if clear := page.locator('#clip [aria-label="Clear"]').all():
        clear[0].click()
        expect(page.locator("#clip video")).to_have_count(0)


def test_pdf_named_mp4_is_rejected(empty_page: Page, tmp_path: Path) -> None:
    (tmp_path / "paper.mp4").write_bytes(PDF)
    choose(empty_page, tmp_path / "paper.mp4")
    expect(empty_page.get_by_text("This browser cannot play this file")).to_be_visible()
    problem = recognize_expecting_problem(empty_page)
    assert "paper.mp4 cannot be read as a video: it is something else" in problem.replace("Paper", "paper")


def test_empty_file_is_rejected(empty_page: Page, tmp_path: Path) -> None:
    (tmp_path / "nothing.mp4").touch()
    choose(empty_page, tmp_path / "nothing.mp4")
    expect(empty_page.get_by_text("This browser cannot play this file")).to_be_visible()
    assert "is empty (0 bytes)" in recognize_expecting_problem(empty_page)


def test_file_over_the_limit_is_rejected_before_upload(empty_page: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(2 * 10**9)
    sent: list[str] = []
    empty_page.on("request", lambda request: sent.append(request.url) if "upload" in request.url else None)
    empty_page.locator("#clip input[type=file]").set_input_files(large)
    note = empty_page.locator(".page-note")
    expect(note).to_have_text(
        f"large.mp4: larger than this page's limit of {MAX_UPLOAD_MB} MB. Cut or compress it first."
    )
    assert sent == []


def test_video_over_ten_minutes_is_rejected(empty_page: Page, tmp_path: Path) -> None:
    frames = (np.full((64, 64, 3), number % 255, np.uint8) for number in range(1800))
    choose(empty_page, written_by_opencv(tmp_path / "lecture.mp4", frames, rate=1.0))
    assert "is longer than 10 minutes, the limit: cut it shorter" in recognize_expecting_problem(empty_page)


def test_long_clip_shows_progress_and_can_be_stopped(empty_page: Page, tmp_path: Path) -> None:
    frames = (np.full((96, 128, 3), number % 255, np.uint8) for number in range(5000))
    choose(empty_page, written_by_opencv(tmp_path / "long.mp4", frames))
    empty_page.locator("#recognize").click()
    expect(empty_page.locator("#answer .progress")).to_contain_text("of about 5,000 frames")
    empty_page.locator("#stop").click()
    expect(empty_page.locator("#answer .hint")).to_contain_text("Stopped.")
    expect(empty_page.locator("#stop")).to_be_disabled()


def test_clip_of_three_frames_is_recognized(empty_page: Page, tmp_path: Path) -> None:
    frames = (np.full((120, 160, 3), 90 + number, np.uint8) for number in range(3))
    choose(empty_page, written_by_opencv(tmp_path / "blink.mp4", frames))
    recognize(empty_page)
    empty_page.locator(".film img").first.wait_for()
    assert "3 frames" in empty_page.locator("#answer .facts").inner_text().replace("\xa0", " ")


def test_recognize_without_clip_asks_for_one(empty_page: Page) -> None:
    assert "Choose a video file, record one, or pick a sample" in recognize_expecting_problem(empty_page)


def test_blocked_camera_is_explained(empty_page: Page) -> None:
    empty_page.get_by_label("Capture from camera").click()
    empty_page.get_by_text("Click to Access Webcam").click()
    expect(empty_page.locator(".page-note")).to_contain_text("The browser blocked the camera. Allow it for this page")
    empty_page.get_by_label("Upload file").first.click()


def test_two_visitors_at_once_see_their_own_answers(visit: Visit, clips: dict[str, Path]) -> None:
    visitors = {gloss: wait_until_ready(visit(own_context=True)) for gloss in ("book", "drink")}
    for gloss, page in visitors.items():
        choose(page, clips[gloss])
    for page in visitors.values():
        page.locator("#recognize").click()
    for gloss, page in visitors.items():
        expect(page.locator("#best-gloss")).to_have_text(gloss)
        assert page.locator("#clip video").get_attribute("src").endswith(f"/{gloss}.mp4")  # type: ignore[union-attr]
