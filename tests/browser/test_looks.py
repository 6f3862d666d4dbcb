"""Screenshots and an axe-core audit of every tab, light and dark, on a wide screen and a phone."""

from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, WIDE, Visit, choose, recognize, take_screenshot, wait_until_ready
from tests.client.videos import TEXT

SEVERE_IMPACTS = {"serious", "critical"}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
HAS_HORIZONTAL_SCROLL = """
    [...document.querySelectorAll(".row, .column, .block")].some((element) => {
        const { left, right } = element.getBoundingClientRect();
        return element.offsetParent && (left < -1 || right > document.documentElement.clientWidth + 1);
    }) || document.documentElement.scrollWidth > document.documentElement.clientWidth
"""
TABS = {"start": "Recognize", "recognize": "Recognize", "many-clips": "Many clips", "models": "Models"}


def find_violations(page: Page) -> list[str]:
    """Return the serious accessibility violations that axe-core finds on the page."""
    violations = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['target']} {node['html'][:200]}"
        for violation in violations
        if violation["impact"] in SEVERE_IMPACTS
        for node in violation["nodes"]
    ]


def has_horizontal_scroll(page: Page) -> bool:
    """Return whether an element is wider than the window. Gradio clips it, so the page itself may not scroll."""
    return bool(page.evaluate(HAS_HORIZONTAL_SCROLL))


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_tabs_are_accessible_and_fit_the_screen(
    visit: Visit, size: dict[str, int], clips: dict[str, Path], tmp_path: Path
) -> None:
    page = wait_until_ready(visit(viewport=size, reduced_motion="reduce"))
    findings: dict[str, list[str]] = {}

    def check_tab(name: str) -> None:
        page.get_by_role("tab", name=TABS[name]).click()
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("body.dark")).to_have_count(int(scheme == "dark"))
            take_screenshot(page, f"{name}-{scheme}-{size['width']}")
            assert not has_horizontal_scroll(page), name
            if size is WIDE:  # a phone shows the same elements, stacked
                findings[f"{name} {scheme}"] = find_violations(page)

    check_tab("start")
    choose(page, clips["book"])
    recognize(page)
    page.locator(".film img").first.wait_for()
    expect(page.locator("#timeline .legendtext").first).to_be_visible()
    page.locator("#threshold input[type=number]").fill("70")
    check_tab("recognize")
    (tmp_path / "notes.mp4").write_bytes(TEXT)
    page.get_by_role("tab", name="Many clips").click()
    page.locator("#clips input[type=file]").set_input_files([*clips.values(), tmp_path / "notes.mp4"])
    expect(page.locator("#clips .file")).to_have_count(len(clips) + 1)
    page.locator("#recognize-all").click()
    expect(page.locator(".summary")).to_contain_text("Done.")
    check_tab("many-clips")
    page.get_by_role("tab", name="Models").click()
    page.locator(".vocabulary li").first.wait_for()
    check_tab("models")
    assert {name: found for name, found in findings.items() if found} == {}
