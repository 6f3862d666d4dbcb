"""What it costs to find the signer, in milliseconds of CPU time: per frame checked live, and per shot of a film.

python -m tests.benchmarks.signer shared/wlasl/videos/07069.mp4
"""

import statistics
import sys
import time
from collections.abc import Callable

import cv2

from asl_triton.presets import PRESETS
from asl_triton.signer.search import SEARCHED, FilmFramer, search
from asl_triton.signer.tracker import CHECK_EVERY_S, FIRST_CHECKS, SignerTracker
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import crop_frame
from asl_triton.video.reader import Frame, open_video

SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))  # (W, H)
ROUNDS = 15
PRESET = PRESETS["bsl1k-person"]


def measure_ms(do: Callable[[], object]) -> float:
    """The median CPU time of several rounds, in milliseconds."""
    spent = []
    for _ in range(ROUNDS):
        began_s = time.thread_time()
        do()
        spent.append(1000 * (time.thread_time() - began_s))
    return statistics.median(spent)


def check_once(image: Image) -> None:
    SignerTracker(PRESET, guides=True).check(image, 0.0)


def main() -> None:
    """Measure, and print the table."""
    cv2.setNumThreads(1)
    with open_video(sys.argv[1]) as video:
        images = [frame.image for frame in video]
    print("frame          face: check, per s live; three frames of a shot   no face: check, per s live")
    for size in SIZES:
        with_face = [cv2.resize(image, size) for image in images[: SEARCHED[-1] + 1]]
        without = cv2.GaussianBlur(with_face[0], (0, 0), size[0] / 10)
        face_ms, none_ms = (measure_ms(lambda image=image: check_once(image)) for image in (with_face[0], without))
        shot_ms = measure_ms(lambda images=with_face: search(images, PRESET))
        each_s = 1 / CHECK_EVERY_S
        print(
            f"{size[0]:>4} x {size[1]:<4}   {face_ms:7.1f} ms {face_ms * each_s:6.1f} ms {shot_ms:17.1f} ms"
            f"          {none_ms:7.1f} ms {none_ms * each_s:6.1f} ms"
        )
    print(f"(a stream does its first {FIRST_CHECKS} checks within a second)")
    for name in ("wlasl", "bsl1k-person"):
        preset, frames = PRESETS[name], [Frame(cv2.resize(image, (1280, 720)), 0.0) for image in images]
        plain_ms = measure_ms(lambda p=preset, f=frames: [crop_frame(frame.image, p) for frame in f])
        film_ms = measure_ms(lambda p=preset, f=frames: list(FilmFramer(p).crop_shots(f)))
        print(
            f"a shot of {len(frames)} frames of 1280 x 720, {name}: {film_ms:.0f} ms, or {plain_ms:.0f} ms without "
            "looking for the signer"
        )


if __name__ == "__main__":
    main()
