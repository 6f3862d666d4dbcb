"""Screenshots and an axe-core audit of every tab, light and dark, on a wide screen and a phone."""

from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, WIDE, Visit, answer_to, choose, ready, shoot
from tests.client.videos import TEXT

GRAVE = {"serious", "critical"}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SCROLLS_SIDEWAYS = """
    [...document.querySelectorAll(".row, .column, .block")].some((element) => {
        const { left, right } = element.getBoundingClientRect();
        return element.offsetParent && (left < -1 || right > document.documentElement.clientWidth + 1);
    }) || document.documentElement.scrollWidth > document.documentElement.clientWidth
"""
TABS = {"start": "Recognize", "recognize": "Recognize", "many-clips": "Many clips", "models": "Models"}


def grave_findings(page: Page) -> list[str]:
    """Return the serious accessibility violations that axe-core finds on the page."""
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['target']} {node['html'][:200]}"
        for violation in found
        if violation["impact"] in GRAVE
        for node in violation["nodes"]
    ]


def scrolls_sideways(page: Page) -> bool:
    """Return whether an element is wider than the window. Gradio clips it, so the document's width does not show it."""
    return bool(page.evaluate(SCROLLS_SIDEWAYS))


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_each_tab_is_for_everybody(visit: Visit, size: dict[str, int], clips: dict[str, Path], tmp_path: Path) -> None:
    page = ready(visit(viewport=size, reduced_motion="reduce"))
    findings: dict[str, list[str]] = {}

    def look(name: str) -> None:
        page.get_by_role("tab", name=TABS[name]).click()
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("body.dark")).to_have_count(int(scheme == "dark"))
            shoot(page, f"{name}-{scheme}-{size['width']}")
            assert not scrolls_sideways(page), name
            if size is WIDE:  # on a phone, the same elements are stacked
                findings[f"{name} {scheme}"] = grave_findings(page)

    look("start")
    choose(page, clips["book"])
    answer_to(page)
    page.locator(".film img").first.wait_for()
    expect(page.locator("#timeline .legendtext").first).to_be_visible()
    page.locator("#threshold input[type=number]").fill("70")
    look("recognize")
    (tmp_path / "notes.mp4").write_bytes(TEXT)
    page.get_by_role("tab", name="Many clips").click()
    page.locator("#clips input[type=file]").set_input_files([*clips.values(), tmp_path / "notes.mp4"])
    expect(page.locator("#clips .file")).to_have_count(len(clips) + 1)
    page.locator("#recognize-all").click()
    expect(page.locator(".summary")).to_contain_text("Done.")
    look("many-clips")
    page.get_by_role("tab", name="Models").click()
    page.locator(".vocabulary li").first.wait_for()
    look("models")
    assert {name: found for name, found in findings.items() if found} == {}
