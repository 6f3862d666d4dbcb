"""The tab "Teach" in a real browser whose camera shows the demo signer, over a real Triton."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from asl_triton_demo.signer import render, write_video
from asl_triton_deploy.local import LocalTriton
from tests.browser.conftest import (
    CAMERA_GLOSS,
    PATIENCE_MS,
    PHONE,
    SEED,
    WIDE,
    Visit,
    choose,
    ready,
    running_page,
    shoot,
)
from tests.browser.test_looks import SCHEMES, grave_findings, scrolls_sideways

SIGN, OTHER = "my wave", "my book"  # what the visitor calls the camera's sign, and that of the clips
TAKES = 3


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Clips of another sign than the camera's, and one more of each for asking."""
    folder = tmp_path_factory.mktemp("takes")
    paths = []
    for name, gloss, seed in [(f"book{take}", "book", SEED + 10 + take) for take in range(TAKES + 1)] + [
        ("hello", CAMERA_GLOSS, SEED + 20)
    ]:
        paths.append(folder / f"{name}.mp4")
        write_video(render(gloss, seed, size=(256, 256), num_frames=64, fps=25.0), paths[-1])
    return paths


@pytest.fixture(scope="module")
def teacher(browser: Browser, page_url: str, takes: list[Path]) -> Iterator[Page]:
    """A visitor who taught two signs: one with the camera, one by uploads."""
    with browser.new_context(viewport=WIDE, permissions=["camera"]) as context:  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(page_url)
        open_tab(ready(page))
        for take in range(1, TAKES + 1):
            record(page, first=take == 1)
            add(page, SIGN)
            expect(page.locator("#teach-said")).to_contain_text(f"{SIGN}: {take}")
        for take in range(TAKES):
            upload(page, takes[take])
            add(page, OTHER)
            expect(page.locator("#teach-said")).to_contain_text(f"{OTHER}: {take + 1}")
        yield page


def open_tab(page: Page) -> Page:
    page.get_by_role("tab", name="Teach").click()
    page.locator("#teach-clip").wait_for()
    return page


def record(page: Page, *, first: bool) -> None:
    """Record a clip: the countdown, and the end by itself."""
    clip = page.locator("#teach-clip")
    if clip.get_by_label("Capture from camera").is_visible():
        clip.get_by_label("Capture from camera").click()
    if first:  # later it opens by itself
        clip.get_by_text("Click to Access Webcam").click()
    clip.get_by_label("start recording").click()
    expect(clip.locator(".countdown")).to_have_text("3")
    expect(clip.locator(".countdown")).to_be_hidden()
    clip.locator("video[src*='gradio_api/file=']").wait_for()


def upload(page: Page, path: Path) -> None:
    page.locator('#teach-clip button[aria-label^="Upload"]').click()
    page.locator("#teach-clip input[type=file]").set_input_files(path)
    page.locator("#teach-clip video[src*='gradio_api/file=']").wait_for()


def load(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as waited:
        page.locator("#teach-load").click()
    waited.value.set_files(path)


def add(page: Page, name: str) -> None:
    page.locator("#teach-name").get_by_role("textbox").fill(name)
    page.locator("#teach-add").click()


def ask(page: Page) -> str:
    page.locator("#teach-ask").click()
    return page.locator("#teach-best-gloss").inner_text()


def rows(page: Page) -> dict[str, str]:
    """How many examples each taught sign has."""
    found = page.locator("#teach-table tbody tr")
    cells = [row.locator("th, td").all_inner_texts() for row in found.all()]
    return {gloss: examples for gloss, examples, *_ in cells}


def test_three_examples_of_each_sign_are_told_apart(teacher: Page) -> None:
    assert rows(teacher) == {SIGN: "3", OTHER: "3"}
    assert "of 3" in teacher.locator("#teach-table").inner_text()
    expect(teacher.locator("#signs")).to_be_visible()


def test_taught_signs_are_recognized_and_corrected(teacher: Page, takes: list[Path]) -> None:
    upload(teacher, takes[TAKES])
    assert ask(teacher) == OTHER
    for scheme in SCHEMES:
        teacher.emulate_media(color_scheme=scheme)
        shoot(teacher, f"teach-{scheme}-{WIDE['width']}")
        assert grave_findings(teacher) == []
        assert not scrolls_sideways(teacher)
    teacher.get_by_role("button", name=f"This was {OTHER}").click()
    expect(teacher.locator("#teach-said")).to_contain_text(f"{OTHER}: 4")
    assert rows(teacher)[OTHER] == "4"
    assert teacher.locator("#teach-best-gloss").count() == 0


def test_other_tabs_answer_with_taught_signs(teacher: Page, takes: list[Path]) -> None:
    teacher.get_by_role("tab", name="Recognize").click()
    teacher.locator("#signs").get_by_label("Taught", exact=True).check()
    expect(teacher.locator("#threshold input[type=number]")).to_have_value("50")
    choose(teacher, takes[0])
    teacher.locator("#recognize").click()
    expect(teacher.locator("#best-gloss")).to_have_text(OTHER)
    teacher.locator("#signs").get_by_label("The model's").check()
    teacher.locator("#recognize").click()
    expect(teacher.locator("#best-gloss")).to_have_text("book")
    open_tab(teacher)


def test_downloaded_signs_are_used_after_a_reload(
    teacher: Page, visit: Visit, takes: list[Path], tmp_path: Path, triton: LocalTriton
) -> None:
    with teacher.expect_download() as waited:
        teacher.locator("#teach-download").click()
    path = tmp_path / waited.value.suggested_filename
    waited.value.save_as(path)
    assert path.name == "signs.safetensors"
    page = open_tab(ready(visit(viewport=PHONE)))
    assert rows(page) == {}  # nobody sees what another visitor taught
    expect(page.locator("#signs")).to_be_hidden()
    load(page, path)
    expect(page.locator("#teach-said")).to_contain_text("examples were loaded.")
    assert set(rows(page)) == {SIGN, OTHER}
    upload(page, takes[TAKES])
    assert ask(page) == OTHER
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        shoot(page, f"teach-{scheme}-{PHONE['width']}")
        assert not scrolls_sideways(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert not scrolls_sideways(page)
    with running_page(triton, "--model", "demo", "--dictionary", path) as url:
        shared = open_tab(ready(visit(url)))
        expect(shared.locator("#teach-table")).to_contain_text("All visitors of this page use these signs.")
        expect(shared.locator("#teach-add")).to_have_count(0)
        upload(shared, takes[TAKES])
        assert ask(shared) == OTHER


def test_hostile_file_is_a_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"\xff" * 64)
    load(open_tab(page), tmp_path / "mine.safetensors")
    expect(page.locator("#teach-said .problem")).to_contain_text("mine.safetensors is no dictionary of signs")


def test_recording_can_be_called_off_during_the_countdown(visit: Visit) -> None:
    page = open_tab(ready(visit(permissions=["camera"])))
    page.locator("#teach-clip").get_by_text("Click to Access Webcam").click()
    button = page.locator("#teach-clip").get_by_label("start recording")
    button.click()
    expect(page.locator("#teach-clip .countdown")).to_have_text("3")
    button.click()
    expect(page.locator("#teach-clip .countdown")).to_be_hidden()
    page.wait_for_timeout(4000)
    assert page.locator('#teach-clip [title="stop recording"]').count() == 0


def test_removed_sign_is_gone(teacher: Page) -> None:
    """And so it is the last of those that look at what was taught."""
    field = teacher.locator("#teach-removable input")
    field.click()
    teacher.get_by_role("option", name=f"{OTHER}: 4").click()
    teacher.locator("#teach-remove").click()
    expect(teacher.locator("#teach-said")).to_contain_text(f"Removed: {OTHER}.")
    assert set(rows(teacher)) == {SIGN}
    field.click()
    teacher.get_by_role("option", name="All signs").click()
    teacher.locator("#teach-remove").click()
    expect(teacher.locator("#teach-table")).to_contain_text("No sign is taught yet.")
    expect(teacher.locator("#signs")).to_be_hidden()
