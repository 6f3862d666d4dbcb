"""The page shows a model's purpose, caveat and threshold like the other interfaces."""

import json
from pathlib import Path

import gradio_client
import pytest
from playwright.sync_api import Page, expect

from asl_triton import Recognizer
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.bundle import open_bundle
from tests.browser.conftest import PHONE, Visit, choose, recognize, take_screenshot, wait_until_ready
from tests.browser.test_recognize import download
from tests.paths import DEMO_BUNDLE

CARD = open_bundle(DEMO_BUNDLE).card
CAVEAT = "demo model: knows an animated signer, not people"


@pytest.fixture
def person(shared_folder: Path) -> Path:
    """Return a clip of a person signing `book`."""
    return shared_folder / "wlasl" / "videos" / "07068.mp4"


def test_clip_of_a_person_is_unsure_as_in_the_other_interfaces(
    page: Page, page_url: str, person: Path, triton: LocalTriton, tmp_path: Path
) -> None:
    with Recognizer(triton.address, model="demo") as recognizer:
        expected = recognizer.recognize(person)
    assert (expected.unsure, expected.warnings) == (True, (CAVEAT,))
    assert CARD.min_confidence is not None
    choose(page, person)
    assert recognize(page) == expected.gloss
    expect(page.locator("#unsure")).to_contain_text(f"the threshold of {CARD.min_confidence * 100:.0f}")
    expect(page.locator("#answer .note")).to_have_text("Warning. D" + CAVEAT[1:] + ".")
    content = json.loads(download(page, "JSON", tmp_path))
    assert (content["predictions"][0]["gloss"], content["unsure"], content["warnings"]) == (
        expected.gloss, True, [CAVEAT]
    )  # fmt: skip
    client = gradio_client.Client(page_url, verbose=False, analytics_enabled=False)
    answer = client.predict(video=gradio_client.handle_file(person), model="demo", api_name="/recognize")
    assert (answer["unsure"], answer["warnings"]) == (True, [CAVEAT])
    client.close()

    page.get_by_role("tab", name="Many clips").click()
    page.locator("#clips input[type=file]").set_input_files(person)
    page.locator("#recognize-all").click()
    expect(page.locator(".summary")).to_contain_text("1 of them unsure")
    expect(page.locator("#table")).to_contain_text(f"unsure; {CAVEAT}")


def test_page_shows_the_models_purpose_and_starts_at_its_threshold(page: Page) -> None:
    threshold = page.locator("#threshold input[type=number]")
    expect(page.locator("#card .note")).to_contain_text("D" + CAVEAT[1:])
    expect(page.locator("#card")).to_contain_text(CARD.purpose[1:])
    expect(threshold).to_have_value(f"{100 * (CARD.min_confidence or 0):.0f}")
    threshold.fill("30")
    page.wait_for_timeout(3000)  # the page polls the server's status meanwhile
    expect(threshold).to_have_value("30")
    page.locator("#model input").click()
    page.get_by_role("option", name="small: 7 glosses, bsl1k, fp32").click()
    expect(page.locator("#card")).to_be_hidden()
    expect(threshold).to_have_value("0")


def test_model_without_a_threshold_is_never_unsure(page: Page, clips: dict[str, Path], tmp_path: Path) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name="small: 7 glosses, bsl1k, fp32").click()
    expect(page.locator("#threshold input[type=number]")).to_have_value("0")
    choose(page, clips["book"])
    recognize(page)
    expect(page.locator("#unsure")).to_have_count(0)
    expect(page.locator("#answer .legend")).to_have_count(0)
    assert json.loads(download(page, "JSON", tmp_path))["unsure"] is None


@pytest.mark.parametrize("tab", ["Recognize", "Live"])
def test_filming_guide_unfolds(visit: Visit, tab: str) -> None:
    page = wait_until_ready(visit(viewport=PHONE))
    page.get_by_role("tab", name=tab).click()
    guide = page.locator("details.filming:visible")
    expect(guide).to_have_count(1)
    expect(guide.get_by_text("25 or 30 per second")).to_be_hidden()
    guide.locator("summary").click()
    for topic in ("Distance", "Camera", "Light", "Background", "at rest", "Frame rate"):
        expect(guide.get_by_text(topic).first).to_be_visible()
    take_screenshot(page, f"filming-{tab}-{PHONE['width']}")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
