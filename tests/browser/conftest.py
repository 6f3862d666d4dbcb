"""One browser, one page and one Triton for all of these tests: a real Chromium, `asl-triton ui` as a process, and the
demo checkpoint.

The fixtures have package scope, not session scope, because the browser's driver keeps an event loop in this thread,
which would break tests elsewhere.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect, sync_playwright

from asl_triton.presets import PRESETS
from asl_triton.video.colors import Image
from asl_triton_demo.signer import render, write_video
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports
from asl_triton_export.bundle import open_bundle
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import fastest_precision
from tests.exports import export_shared, load_demo
from tests.local_triton import serve
from tests.networks import GLOSSES, save_checkpoint
from tests.paths import DEMO_BUNDLE

SCREENSHOTS = Path(__file__).parent / "screenshots"
SEED = 3_000_000  # for rendered clips; the demo checkpoint was not trained on seeds near it
CAMERA_GLOSS = "hello"
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MAX_UPLOAD_MB, MAX_CLIPS, MAX_LIVE = 20, 6, 2
PATIENCE_MS = 90_000  # beside other work, a server may take half a minute to start
NO_CHROMIUM = "these tests drive a Chromium, and none is on PATH: apt-get install chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--use-fake-device-for-media-stream",  # pages still need permission
)


@pytest.fixture(scope="package")
def chromium() -> str:
    """Return the path of this machine's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(NO_CHROMIUM)
        pytest.skip(NO_CHROMIUM)
    return path


@pytest.fixture(scope="package")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a clip of the demo signer for each of several glosses."""
    folder = tmp_path_factory.mktemp("signs")
    paths = {gloss: folder / f"{gloss}.mp4" for gloss in ("book", "drink", "thank you")}
    for gloss, path in paths.items():
        write_video(render(gloss, SEED, size=(256, 256), num_frames=64, fps=25.0), path)
    return paths


@pytest.fixture(scope="package")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the camera's looping video: the demo signer signs `CAMERA_GLOSS`, then rests."""
    path = tmp_path_factory.mktemp("camera") / "camera.y4m"
    clip = render(CAMERA_GLOSS, SEED, size=(240, 320), fps=25.0)
    return write_camera(path, [*clip.frames, *[clip.frames[-1]] * 25])


def write_camera(path: Path, frames: Sequence[Image]) -> Path:
    """Write RGB frames (H, W, 3) at 25 per second as a YUV4MPEG2 file, which Chromium's camera shows in a loop."""
    height, width = frames[0].shape[:2]
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (width, height))
        for frame in frames:
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
    return path


@pytest.fixture(scope="package")
def browser(chromium: str, camera: Path) -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={camera}"]
        launched = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="package")
def triton(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalTriton]:
    """Serve the demo checkpoint as `demo`, with its card, and a small untrained network as `small`, without one.

    The server keeps its ports when it is restarted.
    """
    folder = tmp_path_factory.mktemp("models")
    options = {"precision": fastest_precision(), "card": open_bundle(DEMO_BUNDLE).card}
    export_shared(tmp_path_factory, *load_demo(), PRESETS["wlasl"], folder, "demo", **options)
    small = load_checkpoint(save_checkpoint(tmp_path_factory.mktemp("weights") / "small.pt"))
    export_shared(tmp_path_factory, small, GLOSSES, PRESETS["bsl1k"], folder, "small")
    ports = claim_ports("127.0.0.1", {"gRPC": None, "HTTP": None, "metrics": None})
    with serve(folder, **{f"{name.lower()}_port": port for name, port in ports.items()}) as server:
        yield server


@contextmanager
def run_page(triton: LocalTriton, *options: object) -> Iterator[str]:
    """Run `asl-triton ui` as a process on a free port; yield its URL."""
    command = [sys.executable, "-m", "asl_triton", "ui", "--server", triton.address, "--port", "0", "--json"]
    command += ["--max-upload-mb", str(MAX_UPLOAD_MB), "--max-clips", str(MAX_CLIPS)]
    command += ["--max-live", str(MAX_LIVE), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line, f"{' '.join(command)} ended with {process.wait(60)}"
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="package")
def page_url(triton: LocalTriton) -> Iterator[str]:
    with run_page(triton) as url:
        yield url


@pytest.fixture(scope="package")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Yield the context shared by visitors without special needs, so that Gradio's files are cached once."""
    with browser.new_context(viewport=WIDE) as context:  # type: ignore[arg-type]
        yield context


Visit = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser, context: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Yield a function that opens the page for a new visitor. Fails if a page contacts another machine or throws.

    A visitor with `own_context` or `options` shares neither cache nor cookies with the others.
    """
    opened: list[Page | BrowserContext] = []
    foreign: list[str] = []
    thrown: list[str] = []

    def record_foreign(sent: Request) -> None:
        if not sent.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            foreign.append(sent.url)

    def visit(url: str | None = None, *, own_context: bool = False, **options: Any) -> Page:
        is_own = own_context or bool(options)
        used = browser.new_context(**{"viewport": WIDE, **options}) if is_own else context
        page = used.new_page()
        opened.append(used if is_own else page)
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", record_foreign)
        # Gradio does not catch the error of a blocked camera.
        page.on("pageerror", lambda error: thrown.append(str(error)) if "Permission denied" not in str(error) else None)
        page.goto(url or request.getfixturevalue("page_url"))
        return page

    yield visit
    for item in opened:
        item.close()
    assert foreign == []
    assert thrown == []


@pytest.fixture
def page(visit: Visit) -> Page:
    """Return the page of a new visitor once it is ready."""
    return wait_until_ready(visit())


def wait_until_ready(page: Page) -> Page:
    """Wait until the page reports the server as ready and offers the samples. Returns the page."""
    page.get_by_text("Ready", exact=True).wait_for()
    page.locator("#samples button").first.wait_for()
    return page


def choose(page: Page, path: Path) -> None:
    """Upload a file to the tab "Recognize" and wait for the preview."""
    page.locator("#clip input[type=file]").set_input_files(path)
    page.locator("#clip video[src]").wait_for()


def recognize(page: Page) -> str:
    """Press Recognize and return the best gloss."""
    page.locator("#recognize").click()
    return page.locator("#best-gloss").inner_text()


def recognize_expecting_problem(page: Page) -> str:
    """Press Recognize and return the problem shown instead of an answer."""
    page.locator("#recognize").click()
    return page.locator("#answer .problem").inner_text()


def take_screenshot(page: Page, name: str) -> None:
    """Take a screenshot of the whole page."""
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
