"""The tab "Recognize" in a real browser with a real Triton."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from asl_triton import Recognizer
from asl_triton_deploy.local import LocalTriton
from tests.browser.conftest import CAMERA_GLOSS, PATIENCE_MS, Visit, choose, recognize, wait_until_ready
from tests.client.videos import ffmpeg, rotated


@pytest.fixture(scope="module")
def answered(browser: Browser, page_url: str, clips: dict[str, Path]) -> Iterator[Page]:
    """Yield the page with the answer to a clip of `book`, for tests that do not change it."""
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(page_url)
        choose(wait_until_ready(page), clips["book"])
        assert recognize(page) == "book"
        page.locator(".film img").first.wait_for()
        yield page


def download(page: Page, label: str, folder: Path, inside: str = "#downloads") -> bytes:
    """Download a link's file and return its content."""
    with page.expect_download() as download_info:
        page.locator(inside).get_by_role("link", name=label, exact=True).click()
    path = folder / download_info.value.suggested_filename
    download_info.value.save_as(path)
    return path.read_bytes()


def test_upload_shows_ten_ranked_glosses_with_percentages(
    answered: Page, clips: dict[str, Path], triton: LocalTriton
) -> None:
    with Recognizer(triton.address, model="demo") as recognizer:
        expected = recognizer.recognize(clips["book"])
    rows = answered.locator("#answer .ranking li")
    assert rows.locator(".name").all_inner_texts() == [p.gloss for p in expected.predictions]
    shown = [float(text.split()[0]) for text in rows.locator(".percent").all_inner_texts()]
    assert shown == pytest.approx([100 * p.confidence for p in expected.predictions], abs=0.06)
    facts = answered.locator("#answer .facts").inner_text()
    assert "64 frames, 2.56 s" in facts.replace("\xa0", " ")
    assert facts.count("ms") == 2
    assert answered.locator("#unsure").count() == 0


def test_preview_plays(answered: Page) -> None:
    video = answered.locator("#clip video")
    assert video.evaluate("video => [video.videoWidth, video.videoHeight]") == [256, 256]
    answered.locator('#clip [aria-label="play-pause-replay-button"]').click()
    answered.wait_for_function("document.querySelector('#clip video').currentTime > 0.2")


def test_curves_and_frames_show_when_the_sign_occurs(answered: Page) -> None:
    expect(answered.locator("#timeline .legendtext").first).to_have_text("book")
    assert answered.locator("#timeline .scatterlayer .trace").count() == 5
    frames = answered.locator(".film img")
    assert 4 <= frames.count() <= 7
    assert all(text.startswith("book at ") for text in frames.evaluate_all("images => images.map(i => i.alt)"))
    assert frames.evaluate_all("images => images.every(i => i.complete && i.naturalHeight > 0)")
    peak = answered.locator(".film .peak button")
    at_s = float(peak.get_attribute("data-seek") or 0)
    peak.click()
    assert answered.locator("#clip video").evaluate("video => video.currentTime") == pytest.approx(at_s, abs=0.01)
    answered.get_by_text("The curves as a table").click()
    first = answered.locator(".peaks tbody tr").first.inner_text().replace("\xa0", " ")
    assert first.startswith("book") and f"{at_s:.2f} s" in first


def test_threshold_marks_the_answer_as_unsure(answered: Page) -> None:
    number = answered.locator("#threshold input[type=number]")
    number.fill("100")
    expect(answered.locator("#unsure")).to_contain_text("unsure: nothing reaches the threshold of 100")
    number.fill("0")
    expect(answered.locator("#unsure")).to_have_count(0)
    assert answered.locator("#best-gloss").inner_text() == "book"


def test_csv_starts_with_the_columns_of_the_earlier_project(
    answered: Page, tmp_path: Path, triton: LocalTriton
) -> None:
    text = download(answered, "CSV", tmp_path).decode()
    lines = text.split("\r\n")
    assert lines[0] == "word,confidence,video,rank,class_id,logit,unsure,num_frames,duration_s,model"
    rows = list(csv.DictReader(lines))
    assert [row["word"] for row in rows] == answered.locator(".ranking .name").all_inner_texts()
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 11)]
    assert rows[0]["video"] == "book.mp4" and rows[0]["model"] == "demo" and rows[0]["num_frames"] == "64"
    assert (tmp_path / "book.csv").exists()


def test_json_contains_the_recognition_and_its_curves(answered: Page, tmp_path: Path) -> None:
    content = json.loads(download(answered, "JSON", tmp_path))
    assert (content["video"], content["model"], content["num_frames"]) == ("book.mp4", "demo", 64)
    assert len(content["predictions"]) == 10 and content["predictions"][0]["gloss"] == "book"
    assert [curve["gloss"] for curve in content["curves"]] == [p["gloss"] for p in content["predictions"][:5]]
    assert all(len(curve["times_s"]) == len(curve["confidences"]) == 7 for curve in content["curves"])


def test_webvtt_has_one_cue_for_the_sign(answered: Page, tmp_path: Path) -> None:
    content = json.loads(download(answered, "JSON", tmp_path))
    text = download(answered, "WebVTT", tmp_path).decode()
    (cue,) = re.findall(r"^(00:00:0[0-2]\.\d{3}) --> (00:00:0[0-2]\.\d{3})$", text, flags=re.MULTILINE)
    assert text == f"WEBVTT\n\nNOTE demo: book.mp4\n\n1\n{cue[0]} --> {cue[1]}\nbook\n"
    start_s, end_s = (float(time[-6:]) for time in cue)
    curve = content["curves"][0]
    inside = [start_s <= time_s <= end_s for time_s in curve["times_s"]]
    half = max(curve["confidences"]) / 2  # the confidence at a segment's borders
    assert inside == [confidence >= half for confidence in curve["confidences"]]


def test_samples_are_recognized_correctly(page: Page) -> None:
    for gloss in ("thank you", "where"):
        page.locator("#samples").get_by_role("button", name=gloss).click()
        page.wait_for_function(f"document.querySelector('#clip video')?.src.includes('{gloss.split()[0]}')")
        expect(page.locator("#best-gloss")).to_have_count(0)
        assert recognize(page) == gloss


def test_samples_are_shown_only_for_the_demo_vocabulary(page: Page) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name="small: 7 glosses, bsl1k, fp32").click()
    expect(page.locator("#samples")).to_have_count(0)


def test_clip_recorded_from_the_camera_is_recognized(visit: Visit) -> None:
    page = wait_until_ready(visit(permissions=["camera"]))
    page.get_by_label("Capture from camera").click()
    page.get_by_text("Click to Access Webcam").click()
    page.get_by_label("start recording").click()
    page.wait_for_timeout(3500)
    page.get_by_label("start recording").click()  # Gradio's stop button has the same label
    page.locator("#clip video[src*='gradio_api/file=']").wait_for()
    assert recognize(page) == CAMERA_GLOSS


def test_portrait_video_from_a_phone_is_upright(page: Page, tmp_path: Path, clips: dict[str, Path]) -> None:
    sideways, phone = tmp_path / "sideways.mp4", tmp_path / "phone.mp4"
    ffmpeg("-i", clips["book"], "-vf", "pad=iw:ih*4/3:0:(oh-ih)/2,transpose=clock", "-c:v", "libx264", sideways)
    rotated(phone, sideways, 90)
    choose(page, phone)
    assert recognize(page) == "book"
    page.locator(".film img").first.wait_for()
    width, height = page.locator("#box .stage img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert width < height


def test_new_clip_replaces_the_answer(answered: Page, clips: dict[str, Path]) -> None:
    """Run this after the other tests that use the answer."""
    answered.locator('#clip [aria-label="Clear"]').click()
    expect(answered.locator("#best-gloss")).to_have_count(0)
    expect(answered.locator("#when")).to_be_hidden()
    choose(answered, clips["drink"])
    assert recognize(answered) == "drink"


def test_damaged_clip_is_recognized_with_a_warning(page: Page, shared_folder: Path) -> None:
    choose(page, shared_folder / "zoo" / "bad_zero.mp4")
    assert recognize(page)
    expect(page.locator("#answer")).to_contain_text("Damaged: 1 of 77 frames could not be decoded")


def test_video_whose_pixel_format_changes_is_recognized(page: Page, shared_folder: Path) -> None:
    page.locator("#clip input[type=file]").set_input_files(shared_folder / "zoo" / "mjpeg_422_420.avi")
    page.locator("#clip").get_by_text("mjpeg_422_420").or_(page.locator("#clip video")).first.wait_for()
    assert recognize(page)
