"""Render the sample clips of the page, `ui/asl_triton_ui/samples`: the demo signer, small enough to ship.

.venv/bin/python scripts/samples.py
"""

import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from asl_triton_demo.signer import render

FOLDER = Path(__file__).parents[1] / "ui" / "asl_triton_ui" / "samples"
DEMO_CHECKPOINT = FOLDER.parents[2] / "export" / "asl_triton_export" / "demo_checkpoint"
SIZE = (360, 480)  # (H, W)
# Far from the seeds that the demo checkpoint is trained on; each another signer.
SAMPLES = {"book": 2_000_000, "hello": 2_000_001, "mother": 2_000_001, "thank you": 2_000_001, "where": 2_000_001}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    shutil.copyfile(DEMO_CHECKPOINT / "labels.txt", FOLDER / "labels.txt")  # the page shows the samples for these
    for gloss, seed in SAMPLES.items():
        clip = render(gloss, seed, size=SIZE)
        path = FOLDER / f"{gloss}.mp4"
        quality = ["-b:v", "0", "-crf", "36", "-movflags", "+faststart"]
        writer = imageio_ffmpeg.write_frames(
            str(path),
            SIZE[::-1],
            fps=clip.fps,
            codec="libvpx-vp9",
            quality=None,
            macro_block_size=1,
            output_params=quality,
        )
        writer.send(None)
        for frame in clip.frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        print(f"{path.name}: {len(clip.frames)} frames, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
