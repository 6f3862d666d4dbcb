"""The demo signer, small and off-center, in 1920 x 1080 and in portrait: is the signer found and the sign recognized?

    python -m tests.benchmarks.small_signer --work small-signer
    python -m tests.benchmarks.small_signer --work small-signer --seeds 5 --only usual wide

Renders every sign with seeds that no training saw, in the usual size, small in 1920 x 1080, and in 1080 x 1920, and
writes the clips as H.264. The client's own decoding and the demo network then process each clip twice: in whole frames
(`--signer off`), and with the search for the signer (`--signer auto`). Clips and answers are kept in the folder, so the
same command continues where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from asl_triton.decoding.base import WindowingOptions
from asl_triton.decoding.in_process import cut_video
from asl_triton.presets import PRESETS
from asl_triton.signer.detector import find_signer
from asl_triton.signer.search import LEAST_CONFIDENCE, SEARCHED
from asl_triton.video.reader import open_video
from asl_triton_demo.signer import Placement, RenderedClip, render
from asl_triton_demo.signs import SIGNS, Sign
from asl_triton_demo.training import FIRST_HELD_OUT_SEED
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.formats.torchscript import ServedI3D
from tests.paths import DEMO_BUNDLE

KINDS = ("usual", "wide", "tall")
SIZES = {"usual": None, "wide": (1080, 1920), "tall": (1920, 1080)}  # (H, W)
PRESET = PRESETS["wlasl"]


def choose_placement(kind: str, seed: int, label: int) -> Placement | None:
    """Choose the signer's size and place: 0.3 to 0.55 of the usual size in 1920 x 1080, 0.5 to 1 in portrait."""
    rng = np.random.default_rng((seed, label, KINDS.index(kind)))
    if kind == "usual":
        return None
    if kind == "wide":
        return Placement(rng.uniform(0.3, 0.55), rng.uniform(0.2, 0.8), rng.uniform(0.4, 0.65))
    return Placement(rng.uniform(0.5, 1.0), rng.uniform(0.42, 0.58), rng.uniform(0.4, 0.65))


def write_clip(clip: RenderedClip, path: Path) -> None:
    """Write a clip as H.264, as phones do."""
    partial = path.with_suffix(".part.mp4")
    height, width = clip.frames.shape[1:3]
    with av.open(str(partial), "w") as container:
        rate = Fraction(clip.fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.thread_count = width, height, "yuv420p", 1
        for frame in clip.frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    partial.rename(path)


def render_clips(work: Path, kinds: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the clips that do not exist yet, and the signer's box in each."""
    for seed in seeds:
        for label, sign in enumerate(SIGNS):
            for kind in kinds:
                path = name_clip(work, kind, sign, seed)
                if path.exists():
                    continue
                clip = render(sign, seed, size=SIZES[kind], placement=choose_placement(kind, seed, label))
                path.with_suffix(".json").write_text(json.dumps(clip.signer))
                write_clip(clip, path)


def name_clip(work: Path, kind: str, sign: Sign, seed: int) -> Path:
    """Return the path of a clip."""
    return work / kind / f"{sign.gloss.replace(' ', '-')}_{seed}.mp4"


def load_network() -> torch.nn.Module:
    """Load the demo network as TorchScript, like the export."""
    net = load_checkpoint(DEMO_BUNDLE / "weights.safetensors").network()
    return torch.jit.script(ServedI3D(net, PRESET, torch.float32).eval())


@torch.inference_mode()
def recognize(net: torch.nn.Module, path: Path, *, finds_signer: bool) -> dict[str, Any]:
    """Recognize a clip, decoded as by the client. Returns the gloss, the signer's box, and the decoding time."""
    began = time.process_time()
    with open_video(path) as video:
        options = WindowingOptions(PRESET, video.limits, finds_signer=finds_signer)
        windows = [torch.from_numpy(window.frames) for window, _ in cut_video(video, options, video)]
        box = video.signer
    decode_s = time.process_time() - began
    logits = torch.cat([net(frames[None])[0] for frames in windows]).amax(dim=0)  # (C,)
    return {
        "gloss": SIGNS[int(logits.argmax())].gloss,
        "box": box and [box.x0, box.y0, box.x1, box.y1],
        "decode_s": decode_s,
    }


def measure_search(path: Path, known: Sequence[int]) -> dict[str, Any]:
    """Search for the signer in the frames that the client searches, and compare the result with the known box."""
    with open_video(path) as video:
        images = [frame.image for frame in islice(video, SEARCHED[-1] + 1)]
    height, width = images[0].shape[:2]
    began = time.process_time()
    estimate = find_signer([images[place] for place in SEARCHED])
    search_s = time.process_time() - began
    box = estimate.box
    pixels = None if box is None else (box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height)
    confidence = 0.0 if box is None else box.confidence
    overlap = 0.0 if pixels is None else compute_overlap(pixels, known)
    return {"confidence": confidence, "overlap": overlap, "search_s": search_s}


def compute_overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Compute the intersection over union of two boxes (left, top, right, bottom)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return intersection / (areas - intersection)


def measure_clips(work: Path, kinds: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Recognize the clips without an answer in the folder. Returns one answer per clip, including earlier ones."""
    journal = work / "answers.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    answers = {answer["clip"]: answer for answer in map(json.loads, lines)}
    net = load_network()
    for seed in seeds:
        for sign in SIGNS:
            for kind in kinds:
                path = name_clip(work, kind, sign, seed)
                clip = f"{kind}/{path.stem}"
                if clip in answers or not path.exists():
                    continue
                answer: dict[str, Any] = {"clip": clip, "kind": kind, "sign": sign.gloss, "seed": seed}
                answer["off"] = recognize(net, path, finds_signer=False)
                answer["auto"] = recognize(net, path, finds_signer=True)
                answer["search"] = measure_search(path, json.loads(path.with_suffix(".json").read_text()))
                answers[clip] = answer
                with journal.open("a") as file:
                    print(json.dumps(answer), file=file)
    return [answer for answer in answers.values() if answer["kind"] in kinds and answer["seed"] in seeds]


def print_report(answers: Sequence[dict[str, Any]]) -> None:
    """Print one row per kind of clip."""
    table = Table(title="The demo signer, small and off-center")
    for heading in (
        "clips", "number", "top-1, off", "top-1, auto", "signer found", "median overlap", "search, ms", "of decoding"
    ):  # fmt: skip
        table.add_column(heading)
    for kind in KINDS:
        chosen = [answer for answer in answers if answer["kind"] == kind]
        if not chosen:
            continue
        right = {way: np.mean([answer[way]["gloss"] == answer["sign"] for answer in chosen]) for way in ("off", "auto")}
        searches = [answer["search"] for answer in chosen]
        search_s = float(np.mean([search["search_s"] for search in searches]))
        decode_s = float(np.mean([answer["off"]["decode_s"] for answer in chosen]))
        table.add_row(
            kind,
            str(len(chosen)),
            f"{right['off']:.1%}",
            f"{right['auto']:.1%}",
            f"{np.mean([search['confidence'] >= LEAST_CONFIDENCE for search in searches]):.1%}",
            f"{np.median([search['overlap'] for search in searches]):.2f}",
            f"{1000 * search_s:.0f}",
            f"{search_s / decode_s:.0%}",
        )
    Console().print(table)


def main() -> None:
    """Render and recognize the clips, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/small-signer"), help="folder that keeps the clips")
    parser.add_argument("--seeds", type=int, default=20, help="seeds per sign: 20 make 400 clips of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS, help="kinds of clips")
    parser.add_argument("--rendered", action="store_true", help="use only clips that exist")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    seeds = range(FIRST_HELD_OUT_SEED + arguments.first, FIRST_HELD_OUT_SEED + arguments.first + arguments.seeds)
    for kind in arguments.only:
        (arguments.work / kind).mkdir(parents=True, exist_ok=True)
    if not arguments.rendered:
        render_clips(arguments.work, arguments.only, seeds)
    print_report(measure_clips(arguments.work, arguments.only, seeds))


if __name__ == "__main__":
    main()
