"""The tab "Many clips": the table fills, can be sorted, and can be downloaded."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from asl_triton_export.bundle import open_bundle
from tests.browser.conftest import MAX_CLIPS, PATIENCE_MS, ready
from tests.client.videos import TEXT, written_by_opencv
from tests.paths import DEMO_BUNDLE

# A row's state, with the warning that comes with each answer of the demo model.
RECOGNIZED = f"recognized; {open_bundle(DEMO_BUNDLE).card.caveat}"


@pytest.fixture(scope="module")
def filled(
    browser: Browser, page_url: str, clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    """Yield the page after recognizing three clips and a file that is not a video."""
    broken = tmp_path_factory.mktemp("broken") / "notes.mp4"
    broken.write_bytes(TEXT)
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(page_url)
        ready(page).get_by_role("tab", name="Many clips").click()
        page.locator("#clips input[type=file]").set_input_files(
            [clips["drink"], broken, clips["book"], clips["thank you"]]
        )
        expect(page.locator("#clips .file")).to_have_count(4)
        page.locator("#recognize-all").click()
        expect(page.locator(".summary")).to_contain_text("Done.")
        yield page


def column(page: Page, place: int) -> list[str]:
    """Return the texts of a table column, from the top."""
    return [text.strip() for text in page.locator(f"#table tbody tr > :nth-child({place})").all_inner_texts()]


def test_table_has_each_clip_and_one_that_fails_stops_no_other(filled: Page) -> None:
    assert column(filled, 1) == ["drink.mp4", "notes.mp4", "book.mp4", "thank you.mp4"]
    assert column(filled, 2) == ["drink", "", "book", "thank you"]
    states = column(filled, 4)
    assert states[0] == states[2] == states[3] == RECOGNIZED
    assert states[1].startswith("failed: notes.mp4 cannot be read as a video")
    expect(filled.locator(".summary")).to_have_text("Done. 3\xa0clips recognized; 1\xa0clip failed.")


def test_all_is_downloaded(filled: Page, tmp_path: Path) -> None:
    for label in ("CSV", "JSON"):
        with filled.expect_download() as waited:
            filled.locator("#many-downloads").get_by_role("link", name=label, exact=True).click()
        waited.value.save_as(tmp_path / waited.value.suggested_filename)
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert [row["word"] for row in rows if row["rank"] == "1"] == ["drink", "book", "thank you"]
    assert len(rows) == 30
    outcomes = json.loads((tmp_path / "results.json").read_text())
    assert [outcome["video"] for outcome in outcomes] == ["drink.mp4", "notes.mp4", "book.mp4", "thank you.mp4"]
    assert "cannot be read" in outcomes[1]["error"]


def test_table_is_sorted_by_a_column(filled: Page) -> None:
    head = filled.locator("#table thead th")
    head.nth(0).get_by_role("button").click()
    assert column(filled, 1) == ["book.mp4", "drink.mp4", "notes.mp4", "thank you.mp4"]
    assert column(filled, 2) == ["book", "drink", "", "thank you"]
    assert head.nth(0).get_attribute("aria-sort") == "ascending"
    filled.keyboard.press("Enter")  # on the header that was pressed
    assert column(filled, 1) == ["thank you.mp4", "notes.mp4", "drink.mp4", "book.mp4"]
    assert head.nth(0).get_attribute("aria-sort") == "descending"
    head.nth(2).get_by_role("button").click()
    shown = [float(text.split()[0]) for text in column(filled, 3) if text]
    assert len(shown) == 3 and shown == sorted(shown)
    assert column(filled, 3)[-1] == ""  # a row without a confidence comes last


def test_stopped_batch_keeps_what_is_known(page: Page, clips: dict[str, Path], tmp_path: Path) -> None:
    frames = (np.full((96, 128, 3), number % 255, np.uint8) for number in range(5000))
    slow = written_by_opencv(tmp_path / "slow.mp4", frames)
    page.get_by_role("tab", name="Many clips").click()
    page.locator("#clips input[type=file]").set_input_files([slow, clips["book"]])
    expect(page.locator("#clips .file")).to_have_count(2)
    page.locator("#recognize-all").click()
    expect(page.locator("#table tbody")).to_contain_text("recognized")
    page.locator("#stop-all").click()
    expect(page.locator(".summary")).to_have_text("Stopped. 1\xa0clip recognized; 1\xa0clip not tried.")
    assert column(page, 4) == ["not tried", RECOGNIZED]
    expect(page.locator("#many-downloads a")).to_have_count(2)


def test_too_many_or_none_is_a_sentence(page: Page, clips: dict[str, Path], tmp_path: Path) -> None:
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
