"""From click to glosses: how much longer the page takes than the library for the same clip.

    python -m tests.benchmarks.page

A real Chromium presses Recognize on a page connected to a real Triton with the demo checkpoint, in turns with
`Recognizer.recognize` on the same file and the same server, so that noise affects both alike. The figures are medians.
On a busy machine, read the CPU times: other programs do not affect what the page and the browser compute.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright

from asl_triton import Recognizer
from asl_triton.presets import PRESETS
from asl_triton_demo.signer import render, write_video
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model, fastest_precision
from tests.paths import DEMO_BUNDLE

NUM_FRAMES = 64
WARM_UP = 3
# Seconds from the press until a gloss is in the document, and until it is painted.
PRESS = """() => new Promise((done, fail) => {
    const answer = document.querySelector("#answer");
    answer.querySelector(".gloss")?.setAttribute("data-old", "");
    const began = performance.now();
    const watch = new MutationObserver(() => {
        if (!answer.querySelector(".gloss:not([data-old])")) return;
        watch.disconnect();
        const inserted = performance.now() - began;
        requestAnimationFrame(() => setTimeout(() => done([inserted / 1000, (performance.now() - began) / 1000]), 0));
    });
    watch.observe(answer, { childList: true, subtree: true, characterData: true });
    setTimeout(() => fail(new Error("no answer within 30 s")), 30000);
    document.querySelector("#recognize").click();
})"""


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    chromium = shutil.which("chromium") or sys.exit("Chromium is missing: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = folder / "book.mp4"
        write_video(render("book", 3_000_000, size=(256, 256), num_frames=NUM_FRAMES, fps=25.0), clip)
        labels = tuple((DEMO_BUNDLE / "labels.txt").read_text().splitlines())
        checkpoint = load_checkpoint(DEMO_BUNDLE / "weights.safetensors")
        precision = fastest_precision()
        export_model(checkpoint, labels, PRESETS["wlasl"], folder / "models", "demo", precision=precision)
        with LocalTriton(folder / "models") as triton, Recognizer(triton.address) as recognizer:
            command = [sys.executable, "-m", "asl_triton", "ui", "--server", triton.address, "--port", "0", "--json"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as driver:
                assert process.stdout is not None
                url = json.loads(process.stdout.readline())["url"]
                browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
                page = browser.new_page()
                page.goto(url)
                try:
                    measure(page, process.pid, recognizer, clip, rounds, precision)
                finally:
                    browser.close()
                    process.terminate()


def read_cpu_s(pids: list[int]) -> float:
    """CPU seconds of processes so far."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids if psutil.pid_exists(pid))


def measure(page: Page, pid: int, recognizer: Recognizer, clip: Path, rounds: int, precision: str) -> None:
    """Measure the library and the page in turns, with the same clip."""
    page.get_by_text("Ready", exact=True).wait_for()
    page.locator("#clip input[type=file]").set_input_files(clip)
    page.locator("#clip video[src]").wait_for()
    page.wait_for_timeout(1000)
    library, with_curves, inserted, painted = [], [], [], []
    cpu: dict[str, list[float]] = {"the library": [], "the page's process": [], "the browser": []}
    children = psutil.Process().children(recursive=True)
    pids = [[psutil.Process().pid], [pid], [child.pid for child in children if "chrom" in child.name()]]
    for turn in range(WARM_UP + rounds):
        began_s = time.perf_counter()
        recognizer.recognize(clip)
        library_s = time.perf_counter() - began_s
        began_s, before = time.perf_counter(), read_cpu_s(pids[0])
        recognizer.recognize_with_curves(clip)
        curves_s = time.perf_counter() - began_s
        spent = [read_cpu_s(pids[0]) - before, *(-read_cpu_s(group) for group in pids[1:])]
        inserted_s, painted_s = page.evaluate(PRESS)
        spent[1:] = [seconds + read_cpu_s(group) for seconds, group in zip(spent[1:], pids[1:], strict=True)]
        page.locator(".film img").first.wait_for()
        page.wait_for_timeout(400)  # let the page finish what it draws after the glosses
        if turn >= WARM_UP:
            library.append(library_s)
            with_curves.append(curves_s)
            inserted.append(inserted_s)
            painted.append(painted_s)
            for values, seconds in zip(cpu.values(), spent, strict=True):
                values.append(seconds)
    print(f"{NUM_FRAMES} frames, demo checkpoint, {precision}, medians of {rounds}, in milliseconds:")
    for what, values in (
        ("Recognizer.recognize", library),
        ("Recognizer.recognize_with_curves", with_curves),
        ("page: from click to glosses", inserted),
        ("page: from click to painted", painted),
    ):
        print(f"  {what:<34}{1000 * statistics.median(values):7.0f}   min {1000 * min(values):7.0f}")
    for what, values in cpu.items():
        print(f"  {'CPU: ' + what:<34}{1000 * statistics.median(values):7.0f}   min {1000 * min(values):7.0f}")
    added = [page_s - library_s for page_s, library_s in zip(painted, library, strict=True)]
    min_s = min(painted) - min(library)
    print(f"  {'added by the page':<34}{1000 * statistics.median(added):7.0f}   min {1000 * min_s:7.0f}")


if __name__ == "__main__":
    main()
