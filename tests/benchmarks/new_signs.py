"""Ten signs new to the demo checkpoint, learned from twelve clips each: how accurately, and in how many minutes?

    python -m tests.benchmarks.new_signs
    python -m tests.benchmarks.new_signs --from weights/mine --held-out 5 --work new-signs
    python -m tests.benchmarks.new_signs --only-clips --clips 5 --held-out 3 --work signs

Renders the clips, then runs the commands that a user would: `finetune --train head`, `export` and `evaluate --local`,
with a real Triton and clips with seeds that no training saw.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from asl_triton_demo.signer import render, write_video
from asl_triton_demo.signs import SIGNS, Keyframe, Pose, Sign

FIRST_SEED, FIRST_HELD_OUT_SEED = 5_000_000, 6_000_000


def alternate(seconds: float, one: Pose, other: Pose) -> tuple[Keyframe, Keyframe]:
    """Move to one pose and to the other, in the same time each."""
    return Keyframe(seconds, one), Keyframe(seconds, other)


def glide(one: Pose, other: Pose) -> tuple[Keyframe, ...]:
    """Make a single movement, with a short hold at both ends."""
    return Keyframe(0.28, one), Keyframe(0.12, one), Keyframe(0.36, other), Keyframe(0.12, other)


NEW_SIGNS: tuple[Sign, ...] = (
    # Two L-hands draw apart.
    Sign(
        "big",
        glide(
            Pose("neutral", "bent_l", "away", "in", (-0.2, 0.1, -0.1)),
            Pose("neutral", "bent_l", "away+out", "in", (0.3, 0.16, -0.1)),
        ),
        both=True,
    ),
    # Thumb and index finger pull whiskers.
    Sign(
        "cat",
        alternate(
            0.2,
            Pose("mouth", "f", "up+in", "away+in", (0.1, 0.0, 0.04), "thumb"),
            Pose("mouth", "f", "up+in", "away+in", (0.38, 0.03, 0.02), "thumb"),
        ),
        repeats=(2, 3),
    ),
    # Both fists shiver in front of the chest.
    Sign(
        "cold",
        alternate(
            0.11,
            Pose("chest", "fist", "up", "in", (0.34, 0.16, 0.3), "wrist"),
            Pose("chest", "fist", "up", "in", (0.2, 0.16, 0.3), "wrist"),
        ),
        repeats=(3, 5),
        both=True,
    ),
    # The index finger goes from the ear to the mouth.
    Sign(
        "deaf",
        glide(
            Pose("ear", "index", "up+in", "away", (0.03, -0.06, 0.06), "index"),
            Pose("mouth", "index", "up+in", "away", (0.04, -0.06, 0.06), "index"),
        ),
    ),
    # The thumb of an open hand taps the chest.
    Sign(
        "fine",
        alternate(
            0.18,
            Pose("chest", "open", "up+up+away", "in", (0.02, 0.1, 0.24), "thumb"),
            Pose("chest", "open", "up+up+away", "in", (0.02, 0.1, 0.03), "thumb"),
        ),
        repeats=(1, 2),
        face="smile",
    ),
    # Flat fingertips tap the temple.
    Sign(
        "know",
        alternate(
            0.18,
            Pose("temple", "flat", "up+in", "toward+in", (0.18, 0.02, 0.14), "tips"),
            Pose("temple", "flat", "up+in", "toward+in", (0.04, 0.02, 0.03), "tips"),
        ),
        repeats=(2, 3),
    ),
    # A Y-hand is a telephone receiver at the cheek.
    Sign(
        "phone",
        alternate(
            0.24,
            Pose("cheek", "y", "in+down", "toward+in", (0.16, -0.06, 0.06)),
            Pose("cheek", "y", "in+down", "toward+in", (0.08, -0.06, 0.03)),
        ),
        repeats=(2, 2),
    ),
    # Both open hands sink in front of the face.
    Sign(
        "sad",
        glide(
            Pose("nose", "open", "up", "toward", (0.2, 0.1, 0.2)),
            Pose("chest", "open", "up", "toward", (0.2, 0.16, 0.3)),
        ),
        both=True,
        face="sorry",
    ),
    # Two fingers move forward from the eyes.
    Sign(
        "see",
        glide(
            Pose("cheek", "v", "up+in", "toward", (0.0, 0.1, 0.06), "tips"),
            Pose("cheek", "v", "up+away", "toward+in", (0.1, 0.02, 0.6), "tips"),
        ),
    ),
    # The index finger of a W taps the chin.
    Sign(
        "water",
        alternate(
            0.18,
            Pose("chin", "w", "up", "in", (0.12, 0.0, 0.16), "index"),
            Pose("chin", "w", "up", "in", (0.03, 0.02, 0.02), "index"),
        ),
        repeats=(2, 3),
    ),
)


def render_glosses(folder: Path, signs: Iterable[Sign], seeds: range) -> None:
    """Write `<gloss>/<seed>.mp4` for every sign and seed, unless it exists."""
    for sign in signs:
        (folder / sign.gloss).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            path = folder / sign.gloss / f"{seed}.mp4"
            if not path.exists():
                write_video(render(sign, seed), path)


def run_asl_triton(*arguments: object) -> tuple[str, float]:
    """Run `asl-triton ARGUMENTS`. Returns what it prints, and the minutes it takes."""
    began_s = time.monotonic()
    command = [sys.executable, "-m", "asl_triton", *map(str, arguments)]
    print("$ asl-triton", *arguments, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout, (time.monotonic() - began_s) / 60


def main() -> None:
    """Render the clips, train, export and evaluate, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", default="demo", help="the checkpoint to start from")
    parser.add_argument(
        "--clips", type=int, default=12, help="clips of each sign for training, including those held out"
    )
    parser.add_argument("--held-out", type=int, default=20, help="clips of each sign for the evaluation")
    parser.add_argument("--work", type=Path, default=None, help="folder for all files; temporary by default")
    parser.add_argument("--only-clips", action="store_true", help="render the clips and stop")
    parser.add_argument("options", nargs="*", help="further options of `finetune`, after --")
    arguments = parser.parse_args()
    assert not {sign.gloss for sign in NEW_SIGNS} & {sign.gloss for sign in SIGNS}
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        render_glosses(work / "clips", NEW_SIGNS, range(FIRST_SEED, FIRST_SEED + arguments.clips))
        held_out = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + arguments.held_out)
        render_glosses(work / "held-out", NEW_SIGNS, held_out)
        if arguments.only_clips:
            return
        options = ("--from", arguments.start, "--train", "head", "--to", work / "bundle", *arguments.options)
        output, minutes = run_asl_triton("finetune", work / "clips", *options)
        print(output)
        models = ("--repository", work / "models")
        run_asl_triton("export", work / "bundle", "--name", "new-signs", *models, "--force")
        report = ("--output", work / "report", "--json")
        evaluation = json.loads(run_asl_triton("evaluate", work / "held-out", "--local", *models, *report)[0])
        print(json.dumps(evaluation, indent=1)[:1500])
        print(
            f"{len(NEW_SIGNS)} new signs from {arguments.clips} clips each, head only, in {minutes:.1f} minutes; "
            f"evaluated through Triton on {len(held_out)} clips of each, seeds {held_out.start} to {held_out[-1]}"
        )


if __name__ == "__main__":
    main()
