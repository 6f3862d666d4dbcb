"""The login form explains errors that Gradio's own form does not."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from asl_triton_deploy.local import LocalTriton
from tests.browser.conftest import Visit, run_page, take_screenshot, wait_until_ready


def log_in(page: Page, password: str) -> None:
    page.get_by_label("username").fill("ada")
    page.get_by_label("password").fill(password)
    page.get_by_role("button", name="Login").click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_login_delay_is_explained(visit: Visit, triton: LocalTriton, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "accounts").write_text("ada:lovelace\n")
    with run_page(triton, "--auth-file", tmp_path / "accounts") as url:
        page = visit(url, color_scheme=scheme)
        for number in range(3):
            with page.expect_response("**/login") as response_info:
                log_in(page, f"guess {number}")
            assert response_info.value.status == 400
        log_in(page, "lovelace")
        note = page.get_by_role("alert")
        expect(note).to_have_text("Too many wrong logins: try again in 1 s.")
        take_screenshot(page, f"login-{scheme}")
        page.wait_for_timeout(1100)
        log_in(page, "lovelace")
        wait_until_ready(page)
        expect(page.locator(".login-note")).to_have_count(0)
        page.goto("about:blank")
