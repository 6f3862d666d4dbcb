"""Finds the signer in a clip, or in each shot of a film, and cuts out the part of the frames to show to the network."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice

from asl_triton.presets import INPUT_SIZE, Preset
from asl_triton.results import ShotBox, SignerBox
from asl_triton.signer.detector import SignerEstimate, find_signer
from asl_triton.signer.region import ASPECT, SMALLEST_FACE, TYPICAL_FACE, choose_region, cut_region
from asl_triton.video.colors import Image
from asl_triton.video.preprocessing import Crop, crop_frame, resize_image
from asl_triton.video.reader import Frame
from asl_triton.video.shots import ShotDetector

SEARCHED = (0, 2, 4)  # frames of a clip or shot to search; all frames up to the last of them are held in memory
LEAST_CONFIDENCE = 0.6  # found in two of three frames; a chance find is in one
# Pixels of the longer side. Smaller videos are already cut to the signer, or show too little of a small one.
SEARCHED_ABOVE = 512
# Of the frame's height. Taller regions are not cut out; this is the height of the region around the smallest face.
SMALLEST_REGION = SMALLEST_FACE / TYPICAL_FACE
REMEDY = "so whole frames were used: give the signer's box with --signer x0,y0,x1,y1"


@dataclass(frozen=True)
class Framing:
    """The part of the frames that a network is shown. If `region` and `signer` are both None, it sees whole frames.

    `region` is cut out first, from frames of `size` (height, width): left, top, right and bottom in pixels, possibly
    beyond the frame's edges. `signer` is the box named in results. Presets that frame by the signer cut it out.
    """

    region: tuple[int, int, int, int] | None = None
    signer: SignerBox | None = None
    size: tuple[int, int] = (0, 0)


WHOLE = Framing()
_LOOKING = threading.Lock()


@dataclass(frozen=True)
class FramedClip:
    """A clip's frames, ready to be resized, with the signer's box in the original frames and warnings about it."""

    frames: Iterator[Frame]
    signer: SignerBox | None
    warnings: tuple[str, ...]


def frame_signer(
    frames: Iterable[Frame], preset: Preset, signer: SignerBox | None = None, *, finds: bool = True
) -> FramedClip:
    """Cut frames to `signer`, or else, if `finds`, to the signer found in the first frames.

    The signer is looked for if the preset needs it, or the frames are large or taller than wide. A preset that takes
    whole frames gets a part of them if the signer is small or they are taller than wide. The result's `signer` is the
    box that is cut out, or None for whole frames.
    """
    frames = iter(frames)
    head = list(islice(frames, 1))
    if not head:
        return FramedClip(iter(()), None, ())
    framing, estimate = choose_by_box(signer, preset, head[0].image), None
    if signer is None and finds and should_search(preset, head[0].image):
        head += islice(frames, SEARCHED[-1])
        framing, estimate = search([frame.image for frame in head], preset)
    warnings = () if estimate is None else tuple(_list_warnings(estimate, preset, head[0].image))
    shown: Iterator[Frame] = chain(head, frames)
    if framing.region is not None:
        shown = cut_frames(shown, framing)
    return FramedClip(shown, framing.signer, warnings)


def cut_frames(frames: Iterator[Frame], framing: Framing) -> Iterator[Frame]:
    """Cut the region of a framing out of frames."""
    return (Frame(cut_out(frame.image, framing), frame.time_s) for frame in frames)


class FilmFramer:
    """Crops a film, each shot to its own signer. `boxes` and `list_warnings` report how. Use an instance only once.

    The rules are those of `frame_signer`. Cuts are looked for in whole frames, so that a box cannot hide one.
    """

    def __init__(self, preset: Preset, signer: SignerBox | None = None, *, finds: bool = True) -> None:
        self.boxes: list[ShotBox] = []  # of the shots so far
        self._preset, self._signer, self._finds = preset, signer, finds
        self._estimates: list[SignerEstimate] = []  # of the shots that were searched
        self._num_missed = 0  # shots that need a signer, but none was found

    def crop_shots(self, frames: Iterable[Frame]) -> Iterator[Crop]:
        """Crop frames in order, at the preset's rate. Holds at most five frames, to search the start of each shot."""
        detector = ShotDetector()
        whole = ((frame, self._crop_whole(frame)) for frame in frames)
        for number, shot in groupby(whole, key=lambda pair: detector(pair[1])):
            head = list(islice(shot, SEARCHED[-1] + 1 if self._finds and self._signer is None else 1))
            framing = self._choose([frame.image for frame, _ in head])
            self.boxes.append(ShotBox(head[0][1].time_s, framing.signer))
            for frame, crop in chain(head, shot):
                if framing != WHOLE or self._preset.framing == "signer":
                    crop = Crop(show_frame(frame.image, self._preset, framing), frame.time_s)
                yield replace(crop, shot=number)

    def _crop_whole(self, frame: Frame) -> Crop:
        """Crop a whole frame. Presets that frame by the signer get a cheaper crop, which is only used to find cuts."""
        if self._preset.framing == "signer":
            return Crop(resize_image(frame.image, size=INPUT_SIZE), frame.time_s)
        return Crop(crop_frame(frame.image, self._preset), frame.time_s)

    def list_warnings(self) -> list[str]:
        """List warnings about the signers of the shots so far."""
        num_shots, warnings = len(self.boxes), []
        num_crowded = sum(estimate.num_people > 1 for estimate in self._estimates)
        if num_crowded:
            where = "in the picture" if num_shots == 1 else f"in {num_crowded:,} of {num_shots:,} shots"
            warnings.append(f"several people are {where}: the one with the largest face was taken as the signer")
        if self._num_missed:
            where = "in the picture" if num_shots == 1 else f"in {self._num_missed:,} of {num_shots:,} shots"
            warnings.append(f"no signer was found {where}, {REMEDY}")
        return warnings

    def _choose(self, images: Sequence[Image]) -> Framing:
        if self._signer is not None:
            return choose_by_box(self._signer, self._preset, images[0])
        if not self._finds or not should_search(self._preset, images[0]):
            return WHOLE
        framing, estimate = search(images, self._preset)
        self._estimates.append(estimate)
        self._num_missed += not is_found(estimate) and is_needed(self._preset, images[0])
        return framing


def search(images: Sequence[Image], preset: Preset) -> tuple[Framing, SignerEstimate]:
    """Look for the signer in the first frames of a clip or shot."""
    estimate = estimate_signer([images[place] for place in SEARCHED if place < len(images)])
    return choose_by_estimate(estimate, preset, images[0]), estimate


def estimate_signer(images: Sequence[Image]) -> SignerEstimate:
    """Find the signer in frames, uint8 BGR (H, W, 3); frames whose size differs from the first one's are ignored.

    It can be called from any thread, but only one searches at a time, because OpenCV's cascade is not thread-safe.
    """
    with _LOOKING:
        return find_signer([image for image in images if image.shape == images[0].shape])


def should_search(preset: Preset, image: Image) -> bool:
    """Return whether to look for the signer in a frame like this one."""
    return is_needed(preset, image) or max(image.shape[:2]) > SEARCHED_ABOVE


def is_needed(preset: Preset, image: Image) -> bool:
    """Return whether a preset should not be shown the whole of a frame like this one."""
    height, width = image.shape[:2]
    return preset.framing == "signer" or height > width


def is_found(estimate: SignerEstimate) -> bool:
    """Return whether the signer was found, and not just by chance."""
    return estimate.box is not None and estimate.box.confidence >= LEAST_CONFIDENCE


def choose_by_estimate(estimate: SignerEstimate, preset: Preset, image: Image) -> Framing:
    """Choose the part of a frame to show, given the result of a search."""
    box = estimate.box
    if box is None or not is_found(estimate):
        return WHOLE
    if preset.framing == "signer":
        return Framing(None, box)
    height, width = image.shape[:2]
    region = choose_region(estimate, width, height)
    return WHOLE if region is None else frame_region(region, image, box)


def choose_by_box(box: SignerBox | None, preset: Preset, image: Image) -> Framing:
    """Choose the part of a frame to show, given a box.

    A preset that takes whole frames gets the box widened to 4:3, where that is much less than a frame, or the frame is
    higher than wide, unless the box is the whole frame. Boxes of data sets are for presets that frame by the signer:
    the others were tested without.
    """
    if box is None:
        return WHOLE
    if preset.framing == "signer":
        return Framing(None, box)
    height, width = image.shape[:2]
    region_height = max((box.y1 - box.y0) * height, (box.x1 - box.x0) * width / ASPECT)
    if box.source == "dataset" or box.is_whole_frame or (region_height >= SMALLEST_REGION * height and width >= height):
        return WHOLE
    x, y, half = (box.x0 + box.x1) / 2 * width, (box.y0 + box.y1) / 2 * height, region_height / 2
    region = round(x - ASPECT * half), round(y - half), round(x + ASPECT * half), round(y + half)
    return frame_region(region, image, box)


def frame_region(region: tuple[int, int, int, int], image: Image, found: SignerBox) -> Framing:
    """Return the framing for a region of frames like this one, with the source and confidence of the box found."""
    height, width = image.shape[:2]
    left, top, right, bottom = region
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    box = replace(SignerBox.from_pixels(inside, width, height, found.source), confidence=found.confidence)
    return Framing(region, box, (height, width))


def cut_out(image: Image, framing: Framing) -> Image:
    """Cut the region of a framing out of a frame (H, W, 3). Frames of another size stay whole."""
    if framing.region is None or framing.size != image.shape[:2]:
        return image
    return cut_region(image, framing.region)


def show_frame(image_bgr: Image, preset: Preset, framing: Framing) -> Image:
    """Return what the network is shown of a frame, BGR (H, W, 3), as RGB (224, 224, 3)."""
    return crop_frame(cut_out(image_bgr, framing), preset, framing.signer)


def _list_warnings(estimate: SignerEstimate, preset: Preset, image: Image) -> Iterator[str]:
    """Yield warnings about the signer that was found, or not found, in frames like this one."""
    if estimate.num_people > 1:
        yield f"{estimate.num_people} people are in the picture: the one with the largest face was taken as the signer"
    if not is_found(estimate) and is_needed(preset, image):
        yield f"no signer was found in the picture, {REMEDY}"
