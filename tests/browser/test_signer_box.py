"""The signer's box and the camera guide in a real browser with a real Triton."""

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from asl_triton.video.reader import open_video
from asl_triton_demo.signer import RenderedClip, render, write_video
from tests.browser.conftest import (
    ARGUMENTS,
    PATIENCE_MS,
    PHONE,
    SEED,
    WIDE,
    Visit,
    choose,
    recognize,
    take_screenshot,
    wait_until_ready,
    write_camera,
)
from tests.browser.test_live import go_live
from tests.browser.test_looks import SCHEMES, find_violations, has_horizontal_scroll

SIZE, SIDE, LEFT, TOP = (720, 1280), 180, 896, 432  # pixels: the frame, and the signer's picture in it
BOX = (70, 60, 84, 85)  # the same picture, in percent of the frame
NARROW = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return clips in which the demo signer is too small to be recognized in whole frames."""
    folder = tmp_path_factory.mktemp("small")
    for gloss in ("book", "drink"):
        clip = render(gloss, SEED, size=(256, 256), num_frames=64, fps=25.0)
        frames = np.full((len(clip.frames), *SIZE, 3), (205, 200, 190), np.uint8)
        for image, frame in zip(clip.frames, frames, strict=True):
            scaled = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            frame[TOP : TOP + SIDE, LEFT : LEFT + SIDE] = scaled
        write_video(RenderedClip(frames, clip.fps, gloss, SEED), folder / f"{gloss}.mp4")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def person(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Return RGB frames filled by a person."""
    with open_video(shared_folder / "wlasl" / "videos" / "07069.mp4") as video:
        return [np.ascontiguousarray(frame.image[..., ::-1]) for frame in video]


@pytest.fixture(scope="module")
def far_away(
    chromium: str, browser: Browser, person: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Yield a browser whose camera shows a person who sits too far away."""
    frames = []
    for image in person[:50]:
        frame = np.full((480, 640, 3), (150, 160, 155), np.uint8)
        frame[210:430, 124:516] = cv2.resize(image, (392, 220), interpolation=cv2.INTER_AREA)
        frames.append(frame)
    path = write_camera(tmp_path_factory.mktemp("camera") / "far.y4m", frames)
    arguments = [*ARGUMENTS, f"--use-file-for-fake-video-capture={path}"]
    launched = browser.browser_type.launch(executable_path=chromium, args=arguments)
    yield launched
    launched.close()


def open_page(context: BrowserContext, url: str) -> Page:
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(url)
    return wait_until_ready(page)


def read_sides(page: Page) -> list[str]:
    return [field.input_value() for field in page.locator("#box-sides input").all()]


def recognize_again(page: Page, message: str) -> str:
    """Press Recognize, wait for the message about the new answer, and return the gloss."""
    page.locator("#recognize").click()
    expect(page.locator("#box-said")).to_contain_text(message)
    page.locator(".film img").first.wait_for()
    return page.locator("#best-gloss").inner_text()


def fill_sides(page: Page, box: tuple[int, ...]) -> None:
    for field, percent in zip(page.locator("#box-sides input").all(), box, strict=True):
        field.fill(str(percent))


def test_typed_box_corrects_the_answer(page: Page, small: dict[str, Path]) -> None:
    choose(page, small["book"])
    expect(page.locator("#box .stage img")).to_be_visible()
    page.locator("#box-whole").click()
    expect(page.get_by_label("Right, %")).to_have_value("100")
    assert recognize_again(page, "The network saw the whole frame.") != "book"
    for label, percent in zip(("Left", "Top", "Right", "Bottom"), BOX, strict=True):
        page.get_by_label(f"{label}, %").press("Control+a")
        page.keyboard.type(str(percent))
    assert recognize_again(page, "The network saw the picture cropped to the signer (your box).") == "book"
    expect(page.locator("#answer")).not_to_contain_text("box was not used")


def test_box_can_be_drawn_moved_and_resized(page: Page, small: dict[str, Path]) -> None:
    choose(page, small["drink"])
    stage = page.locator("#box .stage")
    stage.locator("img").wait_for()
    stage.scroll_into_view_if_needed()
    area = stage.bounding_box()
    assert area is not None

    def drag(start: tuple[float, float], end: tuple[float, float]) -> list[float]:
        places = [(area["x"] + x / 100 * area["width"], area["y"] + y / 100 * area["height"]) for x, y in (start, end)]
        page.mouse.move(*places[0])
        page.mouse.down()
        page.mouse.move(*places[1], steps=5)
        page.mouse.up()
        return [float(side) for side in read_sides(page)]

    assert drag((20, 20), (40, 60)) == pytest.approx([20, 20, 40, 60], abs=1)  # drawn
    assert drag((30, 40), (70, 60)) == pytest.approx([60, 40, 80, 80], abs=1)  # moved
    assert drag((60, 40), (BOX[0], BOX[1])) == pytest.approx([BOX[0], BOX[1], 80, 80], abs=1)  # resized
    assert drag((80, 80), (BOX[2], BOX[3])) == pytest.approx(BOX, abs=1)
    assert drag((75, 70), (140, 70))[2] == 100  # it stays within the picture
    assert drag((93, 70), (93 - (100 - BOX[2]), 70)) == pytest.approx(BOX, abs=2)
    drawn = page.locator("#box .overlay.drawn").bounding_box()
    assert drawn is not None and drawn["width"] / area["width"] == pytest.approx((BOX[2] - BOX[0]) / 100, abs=0.03)
    assert recognize_again(page, "(your box)") == "drink"
    seen, video = page.locator("#clip .overlay.seen").bounding_box(), page.locator("#clip video").bounding_box()
    assert seen is not None and video is not None
    middle = (seen["x"] + seen["width"] / 2 - video["x"]) / video["width"]
    assert middle == pytest.approx((BOX[0] + BOX[2]) / 200, abs=0.03)


def test_film_strip_shows_what_the_network_saw(page: Page, small: dict[str, Path]) -> None:
    choose(page, small["book"])
    fill_sides(page, BOX)
    recognize_again(page, "(your box)")
    frames = page.locator(".film img")
    sizes = frames.evaluate_all("images => images.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes and all(width == height == 108 for width, height in sizes)
    expect(page.locator("#film")).to_contain_text("What the network saw: frames cropped to 224 x 224 pixels.")
    assert "What the network saw around the peak of book" in (page.locator(".film").get_attribute("aria-label") or "")
    colors = frames.first.evaluate(
        "image => { const c = new OffscreenCanvas(108, 108).getContext('2d'); c.drawImage(image, 0, 0);"
        "return [[54, 54], [2, 2]].map(([x, y]) => [...c.getImageData(x, y, 1, 1).data].slice(0, 3)) }"
    )
    wall = np.array((205, 200, 190))
    assert np.abs(np.array(colors[0]) - wall).max() > 30  # the signer, not the wall, is in the center


def test_signer_is_found_on_request_and_fields_can_be_emptied(
    page: Page, person: list[np.ndarray], tmp_path: Path
) -> None:
    wall = np.full((30, *SIZE, 3), (150, 160, 155), np.uint8)
    write_video(RenderedClip(wall, 25.0, "wall", 0), tmp_path / "wall.mp4")
    choose(page, tmp_path / "wall.mp4")
    page.locator("#box .stage img").wait_for()
    page.locator("#box-find").click()
    expect(page.locator("#box-said")).to_contain_text("No signer was found: draw the box on the picture")
    assert read_sides(page) == [""] * 4
    frames = wall.copy()
    frames[:, 300:660, 100:740] = [cv2.resize(image, (640, 360)) for image in person[:30]]
    write_video(RenderedClip(frames, 25.0, "person", 0), tmp_path / "person.mp4")
    page.locator('#clip [aria-label="Clear"]').first.click()
    expect(page.locator("#box")).to_be_hidden()
    choose(page, tmp_path / "person.mp4")
    page.locator("#box .stage img").wait_for()
    page.locator("#box-find").click()
    expect(page.locator("#box-said")).to_contain_text("A signer was found.")
    left, top, right, bottom = (float(side) for side in read_sides(page))
    assert 5 < left < 35 < right < 62 and 38 < top < 50 and 85 < bottom <= 100
    page.locator("#box-empty").click()
    expect(page.get_by_label("Left, %")).to_have_value("")
    recognize_again(page, "The network saw the picture cropped to the signer (found by the face detector")


@pytest.mark.parametrize(
    ("box", "error"),
    [
        (("20", "", "", ""), "The signer's box has four sides: fill in all of them, or leave all empty."),
        (("60", "20", "40", "80"), "give left, top, right and bottom"),
    ],
    ids=["one side", "inverted"],
)
def test_invalid_box_is_explained(page: Page, small: dict[str, Path], box: tuple[str, ...], error: str) -> None:
    choose(page, small["book"])
    page.locator("#box .stage img").wait_for()
    for field, value in zip(page.locator("#box-sides input").all(), box, strict=True):
        field.fill(value)
    page.locator("#recognize").click()
    expect(page.locator("#answer .problem")).to_contain_text(error)


def test_file_that_is_not_a_video_shows_no_box(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    page.locator("#clip input[type=file]").set_input_files(tmp_path / "notes.mp4")
    page.locator("#recognize").click()
    expect(page.locator("#answer .problem")).to_contain_text("cannot be read as a video")
    expect(page.locator("#box")).to_be_hidden()


def test_guide_before_recording(far_away: Browser, page_url: str) -> None:
    with far_away.new_context(viewport=WIDE, permissions=["camera"]) as context:  # type: ignore[arg-type]
        page = open_page(context, page_url)
        expect(page.locator("#clip-guide")).to_be_hidden()
        page.get_by_label("Capture from camera").click()
        page.get_by_text("Click to Access Webcam").click()
        expect(page.locator("#clip-guide .guide")).to_contain_text("Move closer.")
        expect(page.locator("#clip-guide")).to_contain_text("small camera pictures go to this page's server")
        expect(page.locator("#clip .overlay.outline")).to_be_visible()
        expect(page.locator(".announcement[role=status]")).to_have_text("Move closer.")
        check_looks(page, "record-guide")


def test_guide_on_the_live_tab(far_away: Browser, page_url: str) -> None:
    with far_away.new_context(viewport=WIDE, permissions=["camera"]) as context:  # type: ignore[arg-type]
        page = open_page(context, page_url)
        page.get_by_role("tab", name="Live").click()
        expect(page.locator("#live-guide")).to_contain_text("Head to waist in the outline, hands inside the picture.")
        go_live(page)
        expect(page.locator("#live-guide .guide.move")).to_contain_text("Move closer. You are small in the picture.")
        expect(page.locator("#live-now .facts")).to_contain_text(re.compile(r"Picture\s*whole frame"))
        outline = page.locator("#live-camera .overlay.outline").bounding_box()
        video = page.locator("#live-camera video").bounding_box()
        assert outline is not None and video is not None
        assert outline["height"] == pytest.approx(video["height"], abs=2)
        expect(page.locator(".announcement[role=status]")).to_have_text("Move closer.")
        check_looks(page, "live-guide")


def check_looks(page: Page, name: str) -> None:
    """Take screenshots in each size and color scheme, and audit the page."""
    findings = []
    for size in (WIDE, PHONE, NARROW):
        page.set_viewport_size(size)  # type: ignore[arg-type]
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            expect(page.locator("body.dark")).to_have_count(int(scheme == "dark"))
            page.wait_for_timeout(400)  # until the overlays are redrawn
            take_screenshot(page, f"{name}-{scheme}-{size['width']}")
            assert not has_horizontal_scroll(page), (name, size)
            findings += find_violations(page) if size is WIDE else []
    assert findings == []


def test_box_is_accessible(visit: Visit, small: dict[str, Path]) -> None:
    page = wait_until_ready(visit(reduced_motion="reduce"))
    choose(page, small["book"])
    page.locator("#box .stage img").wait_for()
    fill_sides(page, BOX)
    recognize_again(page, "(your box)")
    expect(page.locator("#timeline .legendtext").first).to_be_visible()
    check_looks(page, "box")
    page.set_viewport_size(WIDE)  # type: ignore[arg-type]
    page.get_by_label("Left, %").focus()
    for label in ("Top, %", "Right, %", "Bottom, %"):
        page.keyboard.press("Tab")
        expect(page.get_by_label(label)).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_label("Bottom, %")).to_have_value("86")
    for name in ("Find the signer", "Whole frame", "Empty"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Left, %")).to_have_value("")
    assert recognize(page)
