"""Tracks the signer of a live stream: found at the start, checked now and then, and not moved by a chance find."""

import math

from asl_triton.presets import Preset
from asl_triton.results import SignerBox
from asl_triton.signer.detector import SignerEstimate
from asl_triton.signer.guide import Advice, AdviceFilter, choose_advice
from asl_triton.signer.search import (
    WHOLE,
    Framing,
    choose_by_box,
    choose_by_estimate,
    estimate_signer,
    is_needed,
    should_search,
)
from asl_triton.video.colors import Image

CHECK_EVERY_S = 2.0
FIRST_CHECKS, FIRST_CHECK_EVERY_S = 3, 0.3  # the first checks of a stream are more frequent
SAME_BOX = 0.7  # intersection over union; boxes that overlap more are the same, given the noise of the cascade
PERSISTS = 2  # checks in a row that must agree on a new box


class SignerTracker:
    """Chooses the part of a stream's frames that the network is shown. Not thread-safe.

    `check` looks at one frame every two seconds. A new box replaces the old one when two checks in a row find it, and
    it overlaps the old one by less than 0.7. So the crop does not follow a nodding head, and a chance find has no
    effect. If the face is hidden by a hand or turned to the side, the box stays.

    A change is a cut, not a smooth move: `LiveWindow` begins a new run with it, so no window contains both framings. A
    moving crop would look like a moving camera, which the networks never saw, and changes are rare.

    If `signer` is given, or `finds` is false, the signer is not looked for, except for the advice if `guides`.
    `AdviceFilter` keeps `advice` steady.
    """

    def __init__(
        self, preset: Preset, signer: SignerBox | None = None, *, finds: bool = True, guides: bool = False
    ) -> None:
        self.framing = WHOLE
        self._advice = AdviceFilter()
        self._preset, self._signer, self._finds, self._guides = preset, signer, finds, guides
        self._checked_s = self._due_s = -math.inf
        self._num_checks = self._times_seen = 0
        self._begin(())

    def check(self, image_bgr: Image, time_s: float) -> None:
        """Take a frame, uint8 BGR (H, W, 3), shown at `time_s`, and look for the signer in it if a check is due."""
        if image_bgr.shape != self._shape:
            self._begin(image_bgr.shape)
            self.framing = choose_by_box(self._signer, self._preset, image_bgr)
        is_searched = self._signer is None and self._finds and should_search(self._preset, image_bgr)
        is_due = not self._checked_s <= time_s < self._due_s  # also if the clock went back
        self._is_needed = is_searched and is_needed(self._preset, image_bgr)
        if not is_due or not (is_searched or self._guides):
            return
        self._num_checks += 1
        pause_s = FIRST_CHECK_EVERY_S if self._num_checks < FIRST_CHECKS else CHECK_EVERY_S
        self._checked_s, self._due_s = time_s, time_s + pause_s
        estimate = estimate_signer([image_bgr])
        if self._guides:
            self._advice.add(choose_advice(image_bgr, estimate))
        if is_searched:
            self._follow(estimate, image_bgr)

    @property
    def advice(self) -> Advice | None:
        """What the signer should do; None without `guides`, or before the first check."""
        return self._advice.advice

    @property
    def is_missing(self) -> bool:
        """Whether the preset needs a signer, but none was found in the first checks or since."""
        return self._is_needed and self._num_checks >= FIRST_CHECKS and self.framing == WHOLE and not self._times_seen

    def _begin(self, shape: tuple[int, ...]) -> None:
        """Start over with frames of this shape."""
        self._shape = shape
        self._checked_s = self._due_s = -math.inf
        self._num_checks = 0
        self._is_needed = False
        self._candidate, self._times_seen = WHOLE, 0

    def _follow(self, estimate: SignerEstimate, image: Image) -> None:
        """Switch to the box of an estimate if it is a new one that the last check found too."""
        if estimate.box is None:
            self._times_seen = 0
            return
        found = choose_by_estimate(estimate, self._preset, image)
        self._times_seen = self._times_seen + 1 if self._times_seen and is_same(found, self._candidate) else 1
        self._candidate = found
        if self._times_seen >= PERSISTS and not is_same(found, self.framing):
            self.framing = found


def is_same(one: Framing, other: Framing) -> bool:
    """Return whether two framings show about the same part."""
    return measure_overlap(one.signer, other.signer) >= SAME_BOX


def measure_overlap(one: SignerBox | None, other: SignerBox | None) -> float:
    """Return the intersection over union of two boxes, 0 to 1. None stands for the whole frame."""
    a, b = (box or SignerBox(0, 0, 1, 1) for box in (one, other))
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    both = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in (a, b))
    return both / (areas - both)
