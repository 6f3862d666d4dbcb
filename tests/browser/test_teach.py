"""The tab "Teach" in a real browser whose camera shows the demo signer, with a real Triton."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Locator, Page, expect

from asl_triton.presets import PRESETS
from asl_triton_demo.signer import render, write_video
from asl_triton_deploy.local import LocalTriton
from asl_triton_deploy.ports import claim_ports
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.browser.conftest import (
    PATIENCE_MS,
    PHONE,
    SEED,
    WIDE,
    Visit,
    choose,
    run_page,
    take_screenshot,
    wait_until_ready,
)
from tests.browser.test_live import LOW_THRESHOLD, go_live
from tests.browser.test_looks import SCHEMES, find_violations, has_horizontal_scroll
from tests.local_triton import serve
from tests.networks import GLOSSES, save_checkpoint

SIGN, OTHER = "my wave", "my book"  # the visitor's names for the signs in the camera's video and in the clips
TAKES = 3
MAX_TABS = 60  # between any two controls of the tab


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return clips of a sign other than the camera's, with two extra ones to recognize."""
    folder = tmp_path_factory.mktemp("takes")
    paths = [folder / f"book{take}.mp4" for take in range(TAKES + 2)]
    for take, path in enumerate(paths):
        write_video(render("book", SEED + 10 + take, size=(256, 256), num_frames=64, fps=25.0), path)
    return paths


@pytest.fixture(scope="module")
def teacher(browser: Browser, page_url: str, takes: list[Path]) -> Iterator[Page]:
    """Yield the page of a visitor who taught one sign with the camera and another with uploads."""
    with browser.new_context(viewport=WIDE, permissions=["camera"], reduced_motion="reduce") as context:  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(page_url)
        open_tab(wait_until_ready(page))
        for take in range(1, TAKES + 1):
            record(page, first=take == 1)
            if take == 1:
                check_looks(page, "teach-recorded")
                retake(page)
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
    """Record a clip: wait for the countdown and for the automatic end of the recording."""
    clip = page.locator("#teach-clip")
    if clip.get_by_label("Capture from camera").is_visible():
        clip.get_by_label("Capture from camera").click()
    if first:  # later the camera opens by itself
        clip.get_by_text("Click to Access Webcam").click()
        expect(page.locator("#teach-clip-guide .guide")).to_contain_text("Good.")
        check_looks(page, "teach-camera")
    clip.get_by_label("start recording").click()
    expect(clip.locator(".countdown")).to_have_text("3")
    expect(clip.locator(".countdown")).to_be_hidden()
    clip.locator("video[src*='gradio_api/file=']").wait_for()


def retake(page: Page) -> None:
    """Replay a recording, discard it and record another."""
    video = page.locator("#teach-clip video")
    page.wait_for_function("video => Number.isFinite(video.duration)", arg=video.element_handle())
    assert 2 < video.evaluate("async (video) => { await video.play(); return video.duration; }") < 6
    page.locator("#teach-again").click()
    expect(page.locator("#teach-clip video[src*='gradio_api/file=']")).to_have_count(0)
    record(page, first=False)


def check_looks(page: Page, name: str) -> None:
    """Take screenshots of the tab in light and dark, and audit it. Fails if the page shows an error."""
    width = page.viewport_size["width"] if page.viewport_size else 0
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body.dark")).to_have_count(int(scheme == "dark"))
        take_screenshot(page, f"{name}-{scheme}-{width}")
        assert find_violations(page) == []
        assert not has_horizontal_scroll(page)
    expect(page.locator(".toast-body")).to_have_count(0)


def upload(page: Page, path: Path) -> None:
    page.locator('#teach-clip button[aria-label^="Upload"]').click()
    page.locator("#teach-clip input[type=file]").set_input_files(path)
    page.locator("#teach-clip video[src*='gradio_api/file=']").wait_for()


def load(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as event_info:
        page.locator("#teach-load").click()
    event_info.value.set_files(path)


def download(page: Page, folder: Path) -> Path:
    with page.expect_download() as event_info:
        page.locator("#teach-download").click()
    assert event_info.value.suggested_filename == "signs.safetensors"
    event_info.value.save_as(folder / "signs.safetensors")
    return folder / "signs.safetensors"


def add(page: Page, name: str) -> None:
    page.locator("#teach-name").get_by_role("textbox").fill(name)
    page.locator("#teach-add").click()


def recognize_taught(page: Page) -> str:
    page.locator("#teach-ask").click()
    return page.locator("#teach-best-gloss").inner_text()


def count_examples(page: Page) -> dict[str, str]:
    """Return the number of examples of each taught sign, ignoring remarks below the gloss."""
    found = page.locator("#teach-table tbody tr")
    cells = [row.locator("th, td").all_inner_texts() for row in found.all()]
    return {re.split(r"\n|Look at", gloss)[0].strip(): examples for gloss, examples, *_ in cells}


def test_three_examples_of_each_sign_are_enough(teacher: Page) -> None:
    assert count_examples(teacher) == {SIGN: "3", OTHER: "3"}
    assert "of 3" in teacher.locator("#teach-table").inner_text()
    expect(teacher.locator("#signs")).to_be_visible()


def test_taught_signs_are_recognized_and_corrected(teacher: Page, takes: list[Path]) -> None:
    upload(teacher, takes[TAKES])
    assert recognize_taught(teacher) == OTHER
    check_looks(teacher, "teach")
    teacher.get_by_role("button", name=f"This was {OTHER}").click()
    expect(teacher.locator("#teach-said")).to_contain_text(f"{OTHER}: 4")
    assert count_examples(teacher)[OTHER] == "4"
    assert teacher.locator("#teach-best-gloss").count() == 0


def test_recognize_tab_answers_with_taught_signs(teacher: Page, takes: list[Path]) -> None:
    teacher.get_by_role("tab", name="Recognize").click()
    teacher.locator("#signs").get_by_label("Taught signs").check()
    expect(teacher.locator("#threshold input[type=number]")).to_have_value("50")
    choose(teacher, takes[0])
    teacher.locator("#recognize").click()
    expect(teacher.locator("#best-gloss")).to_have_text(OTHER)
    teacher.locator("#signs").get_by_label("Model's signs").check()
    teacher.locator("#recognize").click()
    expect(teacher.locator("#best-gloss")).to_have_text("book")
    open_tab(teacher)


def test_taught_sign_is_recognized_live(teacher: Page) -> None:
    teacher.locator("#signs").get_by_label("Taught signs").check()
    go_live(teacher, LOW_THRESHOLD)
    # A busy machine sends few frames, and below eight per second no sign is found.
    expect(teacher.locator("#live-transcript")).to_contain_text(SIGN, timeout=4 * PATIENCE_MS)
    teacher.locator("#live-camera").get_by_role("button", name="Stop", exact=True).click()
    teacher.locator("#signs").get_by_label("Model's signs").check()
    open_tab(teacher)


def test_downloaded_signs_are_used_after_a_reload(teacher: Page, takes: list[Path], tmp_path: Path) -> None:
    open_tab(teacher)
    questions: list[Dialog] = []

    def note_dialog(dialog: Dialog) -> None:
        questions.append(dialog)
        dialog.accept()

    teacher.on("dialog", note_dialog)
    path = download(teacher, tmp_path)
    teacher.reload()
    assert questions == []
    teacher.remove_listener("dialog", note_dialog)
    open_tab(wait_until_ready(teacher))
    expect(teacher.locator("#teach-table")).to_contain_text("No signs are taught yet.")
    expect(teacher.locator("#signs")).to_be_hidden()
    load(teacher, path)
    expect(teacher.locator("#teach-said")).to_have_text("Loaded 7\N{NO-BREAK SPACE}examples.")
    assert count_examples(teacher) == {SIGN: "3", OTHER: "4"}
    upload(teacher, takes[0])
    assert recognize_taught(teacher) == OTHER


def test_visitors_share_only_signs_shared_by_the_operator(
    teacher: Page, visit: Visit, takes: list[Path], tmp_path: Path, triton: LocalTriton
) -> None:
    path = download(teacher, tmp_path)
    page = open_tab(wait_until_ready(visit(viewport=PHONE, reduced_motion="reduce")))
    assert count_examples(page) == {}  # visitors do not see each other's signs
    expect(page.locator("#signs")).to_be_hidden()
    upload(page, takes[TAKES + 1])
    page.locator("#teach-ask").click()
    expect(page.locator("#teach-answer .problem")).to_contain_text("No signs are taught yet")
    add(page, "another name")
    expect(page.locator("#teach-said")).to_contain_text("another name: 1")
    assert count_examples(teacher) == {SIGN: "3", OTHER: "4"}
    load(page, path)
    expect(page.locator("#teach-said")).to_have_text("Loaded 7\N{NO-BREAK SPACE}examples.")
    upload(page, takes[0])
    assert recognize_taught(page) == OTHER
    check_looks(page, "teach")
    page.set_viewport_size({"width": 360, "height": 740})
    check_looks(page, "teach")
    with run_page(triton, "--model", "demo", "--dictionary", path) as url:
        shared = open_tab(wait_until_ready(visit(url)))
        expect(shared.locator("#teach-table")).to_contain_text("All visitors of this page share these signs.")
        expect(shared.locator("#teach-add")).to_have_count(0)
        upload(shared, takes[TAKES])
        assert recognize_taught(shared) == OTHER
        check_looks(shared, "teach-shared")


def test_invalid_dictionary_file_is_rejected(page: Page, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"\xff" * 64)
    load(open_tab(page), tmp_path / "mine.safetensors")
    expect(page.locator("#teach-said .problem")).to_contain_text("mine.safetensors is not a dictionary of signs")


def test_sign_is_taught_with_the_keyboard_alone(visit: Visit) -> None:
    page = open_tab(wait_until_ready(visit(permissions=["camera"])))
    page.locator("#teach-name").get_by_role("textbox").focus()
    page.keyboard.type(SIGN)
    clip = page.locator("#teach-clip")
    press_next(page, clip.get_by_role("button", name="Click to Access Webcam"))
    clip.get_by_label("start recording").wait_for()
    press_next(page, clip.get_by_label("start recording"))
    clip.locator("video[src*='gradio_api/file=']").wait_for()
    press_next(page, page.locator("#teach-add"))
    expect(page.locator("#teach-said")).to_contain_text(f"{SIGN}: 1")
    expect(page.locator(".announcement[role=status]")).to_contain_text(f"{SIGN}: 1")
    press_next(page, page.locator("#teach-removable input"), key="ArrowDown")
    page.keyboard.press("Enter")
    press_next(page, page.locator("#teach-remove"))
    expect(page.locator("#teach-said")).to_have_text("Removed: all signs.")


def press_next(page: Page, control: Locator, key: str = "Enter") -> None:
    """Press Tab until a control has the focus, then press a key."""
    for _ in range(MAX_TABS):
        if control.count() and control.evaluate("element => element === document.activeElement"):
            return page.keyboard.press(key)
        page.keyboard.press("Tab")
    raise AssertionError(f"{control} cannot be reached with the Tab key")


def test_server_with_another_checkpoint_is_explained(visit: Visit, takes: list[Path], tmp_path: Path) -> None:
    ports = claim_ports("127.0.0.1", {"gRPC": None, "HTTP": None, "metrics": None})
    fixed: dict[str, Any] = {f"{name.lower()}_port": port for name, port in ports.items()}
    for seed in (1, 2):
        network = load_checkpoint(save_checkpoint(tmp_path / f"{seed}.pt", seed=seed))
        export_model(network, GLOSSES, PRESETS["wlasl"], tmp_path / str(seed), "small")
    with contextlib.ExitStack() as stack:
        with serve(tmp_path / "1", **fixed) as server:
            page = visit(stack.enter_context(run_page(server)))
            page.get_by_text("Ready", exact=True).wait_for()  # this model has no samples
            open_tab(page)
            upload(page, takes[0])
            add(page, OTHER)
            expect(page.locator("#teach-said")).to_contain_text(f"{OTHER}: 1")
        page.get_by_text("Server away", exact=True).wait_for()
        with serve(tmp_path / "2", **fixed):
            page.get_by_text("Ready", exact=True).wait_for()
            upload(page, takes[1])
            add(page, OTHER)
            expect(page.locator("#teach-said .problem")).to_contain_text("was taught with another checkpoint")
            page.locator("#teach-ask").click()
            expect(page.locator("#teach-answer .problem")).to_contain_text("was taught with another checkpoint")
            assert count_examples(page) == {OTHER: "1"}


def test_recording_can_be_canceled_during_the_countdown(visit: Visit) -> None:
    page = open_tab(wait_until_ready(visit(permissions=["camera"])))
    page.locator("#teach-clip").get_by_text("Click to Access Webcam").click()
    button = page.locator("#teach-clip").get_by_label("start recording")
    button.click()
    expect(page.locator("#teach-clip .countdown")).to_have_text("3")
    button.click()
    expect(page.locator("#teach-clip .countdown")).to_be_hidden()
    page.wait_for_timeout(4000)
    assert page.locator('#teach-clip [title="stop recording"]').count() == 0


def test_page_asks_before_unsaved_signs_are_lost(teacher: Page, takes: list[Path]) -> None:
    upload(teacher, takes[TAKES + 1])
    add(teacher, OTHER)
    expect(teacher.locator("#teach-said")).to_contain_text(f"{OTHER}: 5")
    with teacher.expect_event("dialog") as event_info:
        teacher.evaluate("setTimeout(() => location.reload(), 100)")
    assert event_info.value.type == "beforeunload"
    event_info.value.dismiss()
    assert count_examples(teacher) == {SIGN: "3", OTHER: "5"}


def test_removed_sign_is_gone(teacher: Page) -> None:
    """Run this last, because it removes the signs that the other tests use."""
    field = teacher.locator("#teach-removable input")
    field.click()
    teacher.get_by_role("option", name=f"{OTHER}: 5").click()
    teacher.locator("#teach-remove").click()
    expect(teacher.locator("#teach-said")).to_contain_text(f"Removed: {OTHER}.")
    assert set(count_examples(teacher)) == {SIGN}
    field.click()
    teacher.get_by_role("option", name="All signs").click()
    teacher.locator("#teach-remove").click()
    expect(teacher.locator("#teach-table")).to_contain_text("No signs are taught yet.")
    expect(teacher.locator("#signs")).to_be_hidden()
