"""Draw `docs/demo.svg` from the last `make demo`: a frame of each clip above what the terminal showed.

make demo && .venv/bin/python scripts/picture.py
"""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
DEMO = "build/demo"
COMMAND = f"batch {DEMO}/clips --local --repository {DEMO}/model_repository --output {DEMO}/results".split()
COLUMNS = 90
GAP = 6


def middle_frame(path: Path) -> str:
    """The frame in the middle of a clip, as a data URI."""
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_POS_FRAMES, capture.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
    _, frame = capture.read()
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = cv2.resize(frame[top : top + side, left : left + side], (280, 280), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()


def terminal() -> str:
    """What `asl-triton batch` shows, as an SVG."""
    program = Path(sys.executable).with_name("asl-triton")
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    done = subprocess.run([program, *COMMAND], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text(f"$ asl-triton {' '.join(COMMAND[:3])}", style="bold"))
        console.print(Text.from_ansi(done.stdout))
    return console.export_svg(title="make demo")


def main() -> None:
    svg = terminal()
    _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', svg)[1].split())
    clips = sorted((ROOT / "build" / "demo" / "clips").glob("*.mp4"))
    side = (width - GAP * (len(clips) - 1)) / len(clips)
    images = [
        f'<image x="{n * (side + GAP):.1f}" y="0" width="{side:.1f}" height="{side:.1f}" href="{middle_frame(clip)}"/>'
        for n, clip in enumerate(clips)
    ]
    inner = svg.replace("<svg ", f'<svg y="{side + GAP:.1f}" width="{width}" height="{height}" ', 1)
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {side + GAP + height:.1f}">'
        f"{''.join(images)}{inner}</svg>"
    )
    (ROOT / "docs" / "demo.svg").write_text(picture, encoding="utf-8")
    print(f"docs/demo.svg: {len(picture) // 1000} kB")


if __name__ == "__main__":
    main()
