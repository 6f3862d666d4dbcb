"""Bad input and other failures: each is reported in a sentence, and the page remains usable."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.browser.conftest import MAX_UPLOAD_MB, PATIENCE_MS, Visit, answer_to, choose, ready, sentence_after
from tests.client.videos import PDF, written_by_opencv


@pytest.fixture(scope="module")
def shared(context: BrowserContext, page_url: str) -> Iterator[Page]:
    """Yield one page for all failures. Each test starts from the state that the previous one left."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(page_url)
    yield ready(page)
    page.close()


@pytest.fixture
def usable_after(shared: Page, clips: dict[str, Path]) -> Iterator[Page]:
    """Yield the page without a clip. After the test, check that it recognizes a good clip."""
    yield shared
    remove_clip(shared)
    choose(shared, clips["book"])
    assert answer_to(shared) == "book"
    shared.locator(".film img").first.wait_for()  # an earlier click on Recognize would be ignored
    remove_clip(shared)


def remove_clip(page: Page) -> None:
    if clear := page.locator('#clip [aria-label="Clear"]').all():
        clear[0].click()
        expect(page.locator("#clip video")).to_have_count(0)


def test_pdf_named_mp4(usable_after: Page, tmp_path: Path) -> None:
    (tmp_path / "paper.mp4").write_bytes(PDF)
    choose(usable_after, tmp_path / "paper.mp4")
    expect(usable_after.get_by_text("This browser cannot play this file")).to_be_visible()
    said = sentence_after(usable_after)
    assert "paper.mp4 cannot be read as a video: it is something else" in said.replace("Paper", "paper")


def test_empty_file(usable_after: Page, tmp_path: Path) -> None:
    (tmp_path / "nothing.mp4").touch()
    choose(usable_after, tmp_path / "nothing.mp4")
    expect(usable_after.get_by_text("This browser cannot play this file")).to_be_visible()
    assert "is empty (0 bytes)" in sentence_after(usable_after)


def test_two_gigabytes_are_refused_before_they_are_sent(usable_after: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(2 * 10**9)
    sent: list[str] = []
    usable_after.on("request", lambda request: sent.append(request.url) if "upload" in request.url else None)
    usable_after.locator("#clip input[type=file]").set_input_files(large)
    note = usable_after.locator(".page-note")
    expect(note).to_have_text(
        f"large.mp4: larger than this page's limit of {MAX_UPLOAD_MB} MB. Cut or compress it first."
    )
    assert sent == []


def test_half_an_hour_of_video(usable_after: Page, tmp_path: Path) -> None:
    frames = (np.full((64, 64, 3), number % 255, np.uint8) for number in range(1800))
    choose(usable_after, written_by_opencv(tmp_path / "lecture.mp4", frames, rate=1.0))
    assert "is longer than 10 minutes, the limit: cut it shorter" in sentence_after(usable_after)


def test_long_clip_says_how_far_it_is_and_is_stopped(usable_after: Page, tmp_path: Path) -> None:
    frames = (np.full((96, 128, 3), number % 255, np.uint8) for number in range(5000))
    choose(usable_after, written_by_opencv(tmp_path / "patience.mp4", frames))
    usable_after.locator("#recognize").click()
    expect(usable_after.locator("#answer .progress")).to_contain_text("of about 5,000 frames")
    usable_after.locator("#stop").click()
    expect(usable_after.locator("#answer .hint")).to_contain_text("Stopped.")
    expect(usable_after.locator("#stop")).to_be_disabled()


def test_three_frames_are_answered(usable_after: Page, tmp_path: Path) -> None:
    frames = (np.full((120, 160, 3), 90 + number, np.uint8) for number in range(3))
    choose(usable_after, written_by_opencv(tmp_path / "blink.mp4", frames))
    answer_to(usable_after)
    usable_after.locator(".film img").first.wait_for()
    assert "3 frames" in usable_after.locator("#answer .facts").inner_text().replace("\xa0", " ")


def test_no_clip(usable_after: Page) -> None:
    assert "Choose a video file, record one, or pick a sample" in sentence_after(usable_after)


def test_refused_camera(usable_after: Page) -> None:
    usable_after.get_by_label("Capture from camera").click()
    usable_after.get_by_text("Click to Access Webcam").click()
    expect(usable_after.locator(".page-note")).to_contain_text("The browser blocked the camera. Allow it for this page")
    usable_after.get_by_label("Upload file").first.click()


def test_two_visitors_at_once_see_their_own(visit: Visit, clips: dict[str, Path]) -> None:
    visitors = {gloss: ready(visit(own_context=True)) for gloss in ("book", "drink")}
    for gloss, page in visitors.items():
        choose(page, clips[gloss])
    for page in visitors.values():
        page.locator("#recognize").click()
    for gloss, page in visitors.items():
        expect(page.locator("#best-gloss")).to_have_text(gloss)
        assert page.locator("#clip video").get_attribute("src").endswith(f"/{gloss}.mp4")  # type: ignore[union-attr]
