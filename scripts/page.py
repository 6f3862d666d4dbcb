"""Make the pictures of the page from what its tests photographed: fewer colors, so that they are small.

.venv/bin/python -m pytest tests/browser/test_looks.py tests/browser/test_teach.py && .venv/bin/python scripts/page.py
"""

from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
SCREENSHOTS = DOCS.parent / "tests" / "browser" / "screenshots"
COLORS = 256
PICTURES = {
    "page-recognize": "recognize-light-1280",
    "page-many-clips": "many-clips-dark-1280",
    "page-phone": "recognize-dark-390",
    "page-teach": "teach-light-1280",
}


def main() -> None:
    for name, screenshot in PICTURES.items():
        with Image.open(SCREENSHOTS / f"{screenshot}.png") as picture:
            small = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE, kmeans=3)
        path = DOCS / f"{name}.png"
        small.save(path, optimize=True)
        print(f"{path.name}: {small.width} x {small.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
