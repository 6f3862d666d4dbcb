"""How far `watch` lags behind, and what it finds: `python -m tests.benchmarks.watch`.

A film of the demo signer, with seeds that no training saw, is played at its own pace to `watch`, which uses the demo
checkpoint in a real Triton on this machine. Each scene of the film has one signer and room, and ends with a cut. A sign
is found if its gloss is reported for a span that overlaps it; anything else that is reported is false.
"""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asl_triton.labels import read_labels
from asl_triton.live.capture import Capture
from asl_triton.live.rules import LiveRules
from asl_triton.live.state import LiveEvent
from asl_triton.live.watch import Happening, Watch, WatchSummary
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.transport.factory import make_transport
from asl_triton_deploy.local import LocalTriton
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.exporter import export_model
from tests.benchmarks.film import FilmSign, write_film
from tests.paths import DEMO_BUNDLE

SEED = 3_000_000
SECONDS_PER_SIGN = 4.0  # including the pause after it


@dataclass(frozen=True)
class ReportedSign:
    """A sign that was reported, `at_s` seconds into the film."""

    event: LiveEvent
    at_s: float


async def watch(film: Path, address: str, rules: LiveRules) -> tuple[list[ReportedSign], WatchSummary]:
    """Watch a film at its own pace. Returns the reported signs, and the summary."""
    reported: list[ReportedSign] = []
    with Capture(str(film)) as capture:
        began_s = time.monotonic()

        def on_happening(happening: Happening) -> None:
            if isinstance(happening, LiveEvent):
                reported.append(ReportedSign(happening, time.monotonic() - began_s))

        watching = Watch(capture, rules, on_happening=on_happening)
        transport = make_transport(address, in_flight=1, resend=False)
        async with AsyncRecognizer(transport=transport) as recognizer:
            await recognizer.model()
            began_s = time.monotonic()
            await watching.run(recognizer)
    return reported, watching.summary


def match_signs(
    reported: list[ReportedSign], signed: list[FilmSign]
) -> tuple[dict[int, ReportedSign], int, list[ReportedSign]]:
    """Match reported signs to the signs of the film. Returns the first report of each, the number of repeated reports,
    and the false ones."""
    found: dict[int, ReportedSign] = {}
    repeated, false = 0, []
    for one in reported:
        event = one.event
        signs = [
            place
            for place, sign in enumerate(signed)
            if sign.gloss == event.gloss and event.start_s < sign.end_s and sign.start_s < event.end_s
        ]
        new = [place for place in signs if place not in found]
        if new:
            found[new[0]] = one
        elif signs:
            repeated += 1
        else:
            false.append(one)
    return found, repeated, false


def format_report(reported: list[ReportedSign], summary: WatchSummary, signed: list[FilmSign]) -> str:
    """Format the figures, one per line."""
    found, repeated, false = match_signs(reported, signed)
    delays_s = [one.at_s - signed[place].end_s for place, one in found.items()]
    assert summary.lag_p50_s is not None and summary.lag_p95_s is not None and delays_s
    missed = [sign.gloss for place, sign in enumerate(signed) if place not in found]
    false_signs = ", ".join(f"{one.event.gloss} at {one.event.start_s:.1f} s" for one in false)
    return "\n".join(
        (
            f"{summary.seconds:.0f} s, {summary.frames} frames, {summary.windows} windows answered",
            f"lag p50 {summary.lag_p50_s * 1000:.0f} ms, p95 {summary.lag_p95_s * 1000:.0f} ms",
            f"dropped: {summary.dropped_frames} frames, {summary.dropped_windows} windows",
            f"found {len(found)} of {len(signed)}, {len(false)} false, {repeated} reported again",
            f"reported {np.median(delays_s):+.2f} s after the hands start to go down (median; p95 "
            f"{np.quantile(delays_s, 0.95):+.2f} s)",
            f"missed: {', '.join(missed) or 'none'}; false: {false_signs or 'none'}",
        )
    )


def main() -> None:
    """Render the film, serve the model, watch, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signs", type=int, default=30)
    parser.add_argument("--signs-a-scene", type=int, default=10)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--stride", type=int, default=LiveRules().stride_frames)
    parser.add_argument("--window", type=int, default=None)
    parser.add_argument("--work", type=Path, default=None, help="folder for all files; temporary by default")
    options = parser.parse_args()
    bundle = DEMO_BUNDLE
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        film = work / f"film-{options.signs}-{options.signs_a_scene}.mp4"
        signed = write_film(
            film,
            seconds=options.signs * SECONDS_PER_SIGN,
            signs=options.signs,
            signs_per_scene=options.signs_a_scene,
            seed=SEED,
        )
        checkpoint, labels = load_checkpoint(bundle / "weights.safetensors"), read_labels(bundle / "labels.txt")
        models = work / "models"
        export_model(checkpoint, labels, PRESETS["wlasl"], models, "demo", precision=options.precision, force=True)
        rules = LiveRules(stride_frames=options.stride, window_frames=options.window)
        with LocalTriton(models) as triton:
            reported, summary = asyncio.run(watch(film, triton.address, rules))
        print(format_report(reported, summary, signed))


if __name__ == "__main__":
    main()
