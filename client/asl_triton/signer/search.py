"""Finds the signer in the first frames of a clip, and shows the network the part of the frame that it needs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from asl_triton.presets import Preset
from asl_triton.results import SignerBox
from asl_triton.signer.detector import SignerEstimate, find_signer
from asl_triton.signer.region import choose_region, cut_region
from asl_triton.video.reader import Frame

SEARCHED = (0, 2, 4)  # frames of the clip that are searched: those up to the last are in memory
LEAST_CONFIDENCE = 0.6  # found in two frames of three: a chance find is in one
# Of the longer side, in pixels: smaller videos are cut to the signer already, or show too little of a small one.
SEARCHED_ABOVE = 512


@dataclass(frozen=True)
class FramedClip:
    """A clip's frames as they are to be resized, where the signer is in the original frames, and what is odd."""

    frames: Iterator[Frame]
    signer: SignerBox | None
    warnings: tuple[str, ...]


def frame_signer(frames: Iterable[Frame], preset: Preset) -> FramedClip:
    """Look for the signer, if the preset frames by the signer or the frames are large or higher than wide.

    A preset that takes whole frames gets a part of them where the signer is small, or they are higher than wide.
    Reads the first frames. The `signer` is the box that is cut out; None for whole frames.
    """
    frames = iter(frames)
    head = list(islice(frames, 1))
    if not head:
        return FramedClip(iter(()), None, ())
    height, width = head[0].image.shape[:2]
    needs_box = preset.framing == "signer"
    if not needs_box and width >= height and max(width, height) <= SEARCHED_ABOVE:
        return FramedClip(chain(head, frames), None, ())
    head += islice(frames, SEARCHED[-1])
    images = [head[place].image for place in SEARCHED if place < len(head)]
    estimate = find_signer([image for image in images if image.shape == head[0].image.shape])
    shown = chain(head, frames)
    warnings = list(_list_warnings(estimate, needs_box, width, height))
    if estimate.box is None or estimate.box.confidence < LEAST_CONFIDENCE:
        return FramedClip(shown, None, tuple(warnings))
    if needs_box:
        return FramedClip(shown, estimate.box, tuple(warnings))
    region = choose_region(estimate, width, height)
    if region is None:
        return FramedClip(shown, None, tuple(warnings))
    left, top, right, bottom = region
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    box = replace(SignerBox.from_pixels(inside, width, height, "face"), confidence=estimate.box.confidence)
    return FramedClip((Frame(cut_region(f.image, region), f.time_s) for f in shown), box, tuple(warnings))


def _list_warnings(estimate: SignerEstimate, needs_box: bool, width: int, height: int) -> Iterator[str]:
    """What is odd about the signer that was found, or not found, in frames of this size."""
    if estimate.num_people > 1:
        yield f"{estimate.num_people} people are in the picture: the one with the largest face was taken for the signer"
    is_found = estimate.box is not None and estimate.box.confidence >= LEAST_CONFIDENCE
    if not is_found and (needs_box or height > width):
        yield "no signer was found in the picture, so whole frames were taken: say where with --signer x0,y0,x1,y1"
