"""The tab "Many clips": the table fills, can be sorted, and can be downloaded."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from asl_triton_export.bundle import open_bundle
from tests.browser.conftest import MAX_CLIPS, PATIENCE_MS, wait_until_ready
from tests.client.videos import TEXT, written_by_opencv
from tests.paths import DEMO_BUNDLE

# The state of a recognized row: the demo model adds its warning to every answer.
RECOGNIZED = f"recognized; {open_bundle(DEMO_BUNDLE).card.caveat}"


@pytest.fixture(scope="module")
def finished_page(
    browser: Browser, page_url: str, clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """Yield the page after recognizing three clips and a file that is not a video."""
    broken = tmp_path_factory.mktemp("broken") / "notes.mp4"
    broken.write_bytes(TEXT)
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(page_url)
        wait_until_ready(page).get_by_role("tab", name="Many clips").click()
        page.locator("#clips input[type=file]").set_input_files(
            [clips["drink"], broken, clips["book"], clips["thank you"]]
        )
        expect(page.locator("#clips .file")).to_have_count(4)
        page.locator("#recognize-all").click()
        expect(page.locator(".summary")).to_contain_text("Done.")
        yield page


def read_column(page: Page, position: int) -> list[str]:
    """Return the texts in a table column, top to bottom."""
    return [text.strip() for text in page.locator(f"#table tbody tr > :nth-child({position})").all_inner_texts()]


def test_table_lists_every_clip_including_a_failed_one(finished_page: Page) -> None:
    assert read_column(finished_page, 1) == ["drink.mp4", "notes.mp4", "book.mp4", "thank you.mp4"]
    assert read_column(finished_page, 2) == ["drink", "", "book", "thank you"]
    states = read_column(finished_page, 4)
    assert states[0] == states[2] == states[3] == RECOGNIZED
    assert states[1].startswith("failed: notes.mp4 cannot be read as a video")
    expect(finished_page.locator(".summary")).to_have_text("Done. 3\xa0clips recognized; 1\xa0clip failed.")


def test_all_results_can_be_downloaded(finished_page: Page, tmp_path: Path) -> None:
    for label in ("CSV", "JSON"):
        with finished_page.expect_download() as download_info:
            finished_page.locator("#many-downloads").get_by_role("link", name=label, exact=True).click()
        download_info.value.save_as(tmp_path / download_info.value.suggested_filename)
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["word"] for row in rows if row["rank"] == "1"] == ["drink", "book", "thank you"]
    assert len(rows) == 30
    outcomes = json.loads((tmp_path / "results.json").read_text())
    assert [outcome["video"] for outcome in outcomes] == ["drink.mp4", "notes.mp4", "book.mp4", "thank you.mp4"]
    assert "cannot be read" in outcomes[1]["error"]


def test_table_can_be_sorted_by_column(finished_page: Page) -> None:
    head = finished_page.locator("#table thead th")
    head.nth(0).get_by_role("button").click()
    assert read_column(finished_page, 1) == ["book.mp4", "drink.mp4", "notes.mp4", "thank you.mp4"]
    assert read_column(finished_page, 2) == ["book", "drink", "", "thank you"]
    assert head.nth(0).get_attribute("aria-sort") == "ascending"
    finished_page.keyboard.press("Enter")  # the header still has the focus
    assert read_column(finished_page, 1) == ["thank you.mp4", "notes.mp4", "drink.mp4", "book.mp4"]
    assert head.nth(0).get_attribute("aria-sort") == "descending"
    head.nth(2).get_by_role("button").click()
    shown = [float(text.split()[0]) for text in read_column(finished_page, 3) if text]
    assert len(shown) == 3 and shown == sorted(shown)
    assert read_column(finished_page, 3)[-1] == ""  # a row without a confidence comes last


def test_stopped_batch_keeps_finished_results(page: Page, clips: dict[str, Path], tmp_path: Path) -> None:
    frames = (np.full((96, 128, 3), number % 255, np.uint8) for number in range(5000))
    slow = written_by_opencv(tmp_path / "slow.mp4", frames)
    page.get_by_role("tab", name="Many clips").click()
    page.locator("#clips input[type=file]").set_input_files([slow, clips["book"]])
    expect(page.locator("#clips .file")).to_have_count(2)
    page.locator("#recognize-all").click()
    expect(page.locator("#table tbody")).to_contain_text("recognized")
    page.locator("#stop-all").click()
    expect(page.locator(".summary")).to_have_text("Stopped. 1\xa0clip recognized; 1\xa0clip not tried.")
    assert read_column(page, 4) == ["not tried", RECOGNIZED]
    expect(page.locator("#many-downloads a")).to_have_count(2)


def test_no_clips_and_too_many_clips_are_rejected(page: Page, clips: dict[str, Path], tmp_path: Path) -> None:
    page.get_by_role("tab", name="Many clips").click()
    page.locator("#recognize-all").click()
    expect(page.locator("#many-status .problem")).to_contain_text("Choose several video files first")
    many = [tmp_path / f"{number}.mp4" for number in range(MAX_CLIPS + 1)]
    for path in many:
        path.write_bytes(clips["book"].read_bytes())
    page.locator("#clips input[type=file]").set_input_files(many)
    expect(page.locator("#clips .file")).to_have_count(len(many))
    page.locator("#recognize-all").click()
    expect(page.locator("#many-status .problem")).to_contain_text(f"more than this page's limit of {MAX_CLIPS}")
