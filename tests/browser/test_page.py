"""The rest of the page: models, keyboard, API, accounts and a reverse proxy."""

import http.client
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import gradio_client
import psutil
import pytest
from playwright.sync_api import Page, expect

from asl_triton_deploy.local import LocalTriton
from tests.browser.conftest import Visit, choose, recognize, run_page, wait_until_ready
from tests.networks import GLOSSES

ACCOUNT = ("ada", "a secret: with a colon")
PREFIX = "/signs"


def test_models_are_listed_and_their_vocabulary_can_be_searched(page: Page) -> None:
    page.get_by_role("tab", name="Models").click()
    cards = page.locator(".model").all_inner_texts()
    assert [card.split()[0] for card in cards] == ["demo", "small"]
    assert "selected" in cards[0] and "20 glosses" in cards[0] and "wlasl" in cards[0]
    assert "7 glosses" in cards[1] and "bsl1k" in cards[1] and "fp32" in cards[1]
    assert page.locator(".vocabulary li").count() == 20
    page.get_by_label("Search the vocabulary").press_sequentially("HE")
    expect(page.locator(".vocabulary li")).to_have_text(["father", "hello", "help", "mother", "where"])
    page.get_by_label("Search the vocabulary").press_sequentially("zzz")
    expect(page.locator("#vocabulary")).to_contain_text("no gloss of demo contains this text")


def test_selected_model_is_used(page: Page, clips: dict[str, Path]) -> None:
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option", name="small: 7 glosses, bsl1k, fp32").click()
    expect(page.locator("#samples")).to_have_count(0)  # the model does not know the samples
    choose(page, clips["book"])
    assert recognize(page) in GLOSSES
    assert page.locator(".ranking li").count() == 7
    assert "small" in page.locator("#answer .facts").inner_text()


def test_page_works_with_the_keyboard_alone(page: Page, clips: dict[str, Path]) -> None:
    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "(e => (e.getAttribute('aria-label') || e.textContent || '').trim())(document.activeElement)"
            )
            if focused == name:
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"{name} has no focus outline"
                return
        raise AssertionError(f"{name} cannot be reached with the Tab key")

    page.locator("body").press("Tab")
    with page.expect_file_chooser() as chooser_info:  # before the key, because the browser reports it with a delay
        tab_to("Drop a video file here to upload")
        page.keyboard.press("Enter")
    chooser_info.value.set_files(clips["drink"])
    page.locator("#clip video[src]").wait_for()
    tab_to("Recognize")
    page.keyboard.press("Enter")
    expect(page.locator("#best-gloss")).to_have_text("drink")
    tab_to("range slider for Threshold in percent")
    page.keyboard.press("End")
    expect(page.locator("#unsure")).to_be_visible()
    tab_to("CSV")
    with page.expect_download() as download_info:
        page.keyboard.press("Enter")
    assert download_info.value.suggested_filename == "drink.csv"


def test_answer_is_announced_to_screen_readers(page: Page, clips: dict[str, Path]) -> None:
    choose(page, clips["book"])
    recognize(page)
    expect(page.locator(".announcement[role=status]")).to_contain_text(re.compile(r"^(Recognized, )?book, confidence"))


def test_api_endpoint_recognize(page_url: str, clips: dict[str, Path], tmp_path: Path) -> None:
    client = gradio_client.Client(page_url, verbose=False, analytics_enabled=False)
    video = gradio_client.handle_file(clips["book"])
    answer = client.predict(video=video, model="demo", top_k=3, min_confidence=0.2, api_name="/recognize")
    assert [p["rank"] for p in answer["predictions"]] == [1, 2, 3]
    assert answer["predictions"][0]["gloss"] == "book"
    assert (answer["video"], answer["model"], answer["unsure"]) == ("book.mp4", "demo", False)
    answer = client.predict(video=video, model="small", api_name="/recognize")
    assert (answer["unsure"], answer["warnings"]) == (None, [])  # neither the request nor the model has a threshold
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/recognize"]  # internal endpoints are hidden
    (returned,) = endpoints["/recognize"]["returns"]
    assert set(returned["type"]["properties"]) == set(answer)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(Exception, match=r"text.mp4 cannot be read as a video"):
        client.predict(video=gradio_client.handle_file(tmp_path / "text.mp4"), model="demo", api_name="/recognize")
    with pytest.raises(Exception, match=r"serves 2 models: choose one \(demo, small\)"):
        client.predict(video=video, api_name="/recognize")
    with pytest.raises(Exception, match="no longer serves model 'nobody'"):
        client.predict(video=video, model="nobody", api_name="/recognize")
    with pytest.raises(Exception, match="does not fetch files from other hosts"):
        remote = gradio_client.handle_file("http://127.0.0.1:9/clip.mp4")
        client.predict(video=remote, model="demo", api_name="/recognize")
    client.close()


def test_page_neither_fetches_urls_nor_serves_files_for_visitors(page_url: str) -> None:
    for path in ("file=http://127.0.0.1:9/", "file=/etc/passwd", "deep_link?session_hash=a", "proxy=http://a/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{page_url}gradio_api/{path}", timeout=20)
        assert refused.value.code in (403, 404), path
        refused.value.close()


def test_page_connects_only_to_its_server(page: Page, clips: dict[str, Path]) -> None:
    choose(page, clips["book"])
    recognize(page)
    port = urlsplit(page.url).port
    (process,) = {c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    remotes = {c.raddr.ip for c in psutil.Process(process).net_connections("tcp") if c.raddr}
    assert {ip.removeprefix("::ffff:") for ip in remotes} <= {"127.0.0.1", "::1"}


class PrefixProxy(BaseHTTPRequestHandler):
    """Forwards requests to `page` without their prefix, and streams the answers, as server-sent events need."""

    page = ("", 0)
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.forward(None)

    def do_POST(self) -> None:
        self.forward(self.rfile.read(int(self.headers["Content-Length"])))

    def forward(self, body: bytes | None) -> None:
        if not self.path.startswith(f"{PREFIX}/"):
            self.send_error(404)
            return
        connection = http.client.HTTPConnection(*self.page, timeout=60)
        headers = {**self.headers, "X-Forwarded-Host": self.headers["Host"], "Connection": "close"}
        connection.request(self.command, self.path.removeprefix(PREFIX), body, headers)
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        try:
            while chunk := answer.read1(65536):
                self.wfile.write(chunk)
                self.wfile.flush()
        except OSError:
            pass  # the browser closed the connection
        finally:
            connection.close()

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


@contextmanager
def run_proxy(url: str) -> Iterator[str]:
    """Serve the page under a prefix on another port; yield its URL."""
    target = urlsplit(url)
    handler = type("ProxyHere", (PrefixProxy,), {"page": (target.hostname, target.port)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}/"
        server.shutdown()


def test_page_behind_a_prefix_with_accounts(
    triton: LocalTriton, visit: Visit, clips: dict[str, Path], tmp_path: Path
) -> None:
    accounts = tmp_path / "accounts.txt"
    accounts.write_text(":".join(ACCOUNT) + "\n")
    with run_page(triton, "--root-path", PREFIX, "--auth-file", accounts) as inside, run_proxy(inside) as outside:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{inside}config", timeout=20)
        assert refused.value.code == 401
        refused.value.close()
        page = visit(outside, own_context=True)
        page.get_by_label("username").fill(ACCOUNT[0])
        page.get_by_label("password").fill("wrong")
        page.get_by_role("button", name="Login").click()
        page.get_by_text("Incorrect Credentials").wait_for()
        page.get_by_label("username").fill(ACCOUNT[0])  # Gradio forgets it
        page.get_by_label("password").fill(ACCOUNT[1])
        page.get_by_role("button", name="Login").click()
        choose(wait_until_ready(page), clips["book"])
        assert recognize(page) == "book"
        page.locator(".film img").first.wait_for()
        assert (page.locator("#clip video").get_attribute("src") or "").startswith(f"{outside}gradio_api/file=")
