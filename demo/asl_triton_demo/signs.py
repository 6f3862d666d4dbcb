"""Choreographies of the demo signer: twenty ASL signs as plain data.

Lengths are in shoulder widths. Each hand has its own axes, mirror images of the other's: x toward the hand's own side,
y up, z away from the signer (to the camera). So a `Pose` works for both hands, and left-handed signers need no data of
their own.

Poses are described as in sign phonology (HamNoSys; Hanke 2004): the handshape, where the extended fingers point, where
the palm faces, and which part of the hand is at which place on the body.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from asl_triton_demo.handshapes import HANDSHAPES, Handshape, Vector

Touch = Literal["wrist", "palm", "back", "edge", "knuckles", "tips", "index", "thumb"]
Face = Literal["neutral", "smile", "question", "negative", "sorry"]
Head = Literal["still", "nod", "shake"]

DIRECTIONS: dict[str, Vector] = {
    "out": (1, 0, 0),
    "in": (-1, 0, 0),
    "up": (0, 1, 0),
    "down": (0, -1, 0),
    "away": (0, 0, 1),
    "toward": (0, 0, -1),
}

# Places on the body that poses refer to; the origin is midway between the shoulders.
ANCHORS: dict[str, Vector] = {
    "forehead": (0, 0.7, 0.28),
    "temple": (0.19, 0.66, 0.22),
    "nose": (0, 0.42, 0.33),
    "mouth": (0, 0.325, 0.3),
    "chin": (0, 0.22, 0.28),
    "cheek": (0.15, 0.38, 0.23),
    "ear": (0.24, 0.49, 0.12),
    "neck": (0, 0.1, 0.18),
    "shoulder": (0.42, -0.04, 0.16),
    "chest": (0, -0.36, 0.24),
    "belly": (0, -0.85, 0.24),
    "neutral": (0.3, -0.42, 0.6),
}


@dataclass(frozen=True)
class Pose:
    """One hand at one moment: its part `touch` is `offset` from `anchor` (a key of `ANCHORS`).

    `fingers` is where straight fingers would point, `palm` where the palm faces: names from `DIRECTIONS`, joined by
    "+" for directions in between ("up+in"; repeat a name to give it more weight). `palm` need not be perpendicular to
    `fingers`.
    """

    anchor: str
    shape: str | Handshape
    fingers: str
    palm: str
    offset: Vector = (0, 0, 0)
    touch: Touch = "palm"

    @property
    def handshape(self) -> Handshape:
        return self.shape if isinstance(self.shape, Handshape) else HANDSHAPES[self.shape]


@dataclass(frozen=True)
class Keyframe:
    """Both hands at one moment, `seconds` after the previous keyframe. If `other` is None, that hand is at rest."""

    seconds: float
    hand: Pose
    other: Pose | None = None


@dataclass(frozen=True)
class Sign:
    """How a sign is made: hands rise from rest to the first keyframe, pass through all of them, and return to rest.

    `repeats` (fewest, most) is how often the keyframes from `loop_from` to the last are performed. `both` makes the
    other hand do what the signing hand does. A hand stops where its path turns back, and moves smoothly elsewhere.
    """

    gloss: str
    keyframes: tuple[Keyframe, ...]
    repeats: tuple[int, int] = (1, 1)
    loop_from: int = 0
    both: bool = False
    face: Face = "neutral"
    head: Head = "still"


@cache
def direction(name: str) -> Vector:
    """Return the unit vector for a name such as "up+in"; ValueError if a part of it is not a direction."""
    parts = name.split("+")
    unknown = [part for part in parts if part not in DIRECTIONS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a direction; use {', '.join(DIRECTIONS)}, joined by '+'")
    total = np.sum([DIRECTIONS[part] for part in parts], axis=0)
    x, y, z = total / np.linalg.norm(total)
    return float(x), float(y), float(z)


def _circle(seconds: float, pose: Pose, radius: float) -> tuple[Keyframe, ...]:
    """Make four keyframes of a circle in the body's plane, for example on the chest: up, in, down, out."""
    x, y, z = pose.offset
    around = ((0, radius), (-radius, 0), (0, -radius), (radius, 0))
    return tuple(
        Keyframe(
            seconds / 4, Pose(pose.anchor, pose.shape, pose.fingers, pose.palm, (x + dx, y + dy, z), touch=pose.touch)
        )
        for dx, dy in around
    )


_PALM_UP = Pose("neutral", "flat", "in+in+away", "up", (-0.14, -0.26, -0.1))
_PALM_UP_RAISED = Pose("neutral", "flat", "in+in+away", "up", (-0.14, 0.07, -0.04))

# In class order, which is alphabetical.
SIGNS: tuple[Sign, ...] = (
    # Palms together, then opened like covers, the little fingers staying together.
    Sign(
        "book",
        (
            Keyframe(0.2, Pose("neutral", "flat", "away+up", "in", (-0.25, 0.02, -0.1))),
            Keyframe(0.14, Pose("neutral", "flat", "away+up", "in", (-0.25, 0.02, -0.1))),
            Keyframe(0.36, Pose("neutral", "flat", "away+up", "up+up+toward", (-0.27, -0.06, -0.1), "edge")),
            Keyframe(0.16, Pose("neutral", "flat", "away+up", "up+up+toward", (-0.27, -0.06, -0.1), "edge")),
        ),
        repeats=(1, 2),
        both=True,
    ),
    # A C-hand holds a glass at the mouth and tips it.
    Sign(
        "drink",
        (
            Keyframe(0.25, Pose("chin", "c", "away+in", "in", (0.1, -0.1, 0.12), touch="thumb")),
            Keyframe(0.3, Pose("chin", "c", "away+up+in", "in", (0.08, 0.0, 0.05), touch="thumb")),
            Keyframe(0.25, Pose("chin", "c", "up+up+away", "in", (0.08, 0.02, 0.05), touch="thumb")),
        ),
        repeats=(1, 2),
    ),
    # Bunched fingertips go to the mouth, twice or more.
    Sign(
        "eat",
        (
            Keyframe(0.17, Pose("mouth", "flat_o", "up+up+in", "toward+in", (0.12, -0.14, 0.25), touch="tips")),
            Keyframe(0.17, Pose("mouth", "flat_o", "up+up+in", "toward+in", (0.02, 0, 0.02), touch="tips")),
        ),
        repeats=(2, 3),
    ),
    # The thumb of an open hand taps the forehead.
    Sign(
        "father",
        (
            Keyframe(0.18, Pose("forehead", "open", "up+up+out", "in+away", (0.19, 0.02, 0.2), touch="thumb")),
            Keyframe(0.18, Pose("forehead", "open", "up+up+out", "in+away", (0.07, 0, 0.02), touch="thumb")),
        ),
        repeats=(2, 3),
    ),
    # Both index fingers, pointing up, arc forward and to one side.
    Sign(
        "go",
        (
            Keyframe(
                0.3,
                Pose("chest", "index", "up+up+out", "in+toward", (0.16, 0.0, 0.16), touch="wrist"),
                Pose("chest", "index", "up+up+in", "in+toward", (0.26, -0.08, 0.1), touch="wrist"),
            ),
            Keyframe(
                0.14,
                Pose("chest", "index", "up+away", "away+down+in", (0.12, 0.1, 0.34), touch="wrist"),
                Pose("chest", "index", "up+away", "away+down", (0.26, 0.02, 0.3), touch="wrist"),
            ),
            Keyframe(
                0.2,
                Pose("chest", "index", "away+in", "down", (0.02, -0.06, 0.56), touch="wrist"),
                Pose("chest", "index", "away+out", "down", (0.3, -0.12, 0.54), touch="wrist"),
            ),
            Keyframe(
                0.14,
                Pose("chest", "index", "away+in", "down", (0.02, -0.06, 0.56), touch="wrist"),
                Pose("chest", "index", "away+out", "down", (0.3, -0.12, 0.54), touch="wrist"),
            ),
        ),
    ),
    # A salute: the flat hand goes from the temple out and forward.
    Sign(
        "hello",
        (
            Keyframe(0.3, Pose("temple", "flat", "up+in", "away+down", (0.02, 0.04, 0.06), touch="tips")),
            Keyframe(0.12, Pose("temple", "flat", "up+in", "away+down", (0.02, 0.04, 0.06), touch="tips")),
            Keyframe(0.32, Pose("temple", "flat", "up+up+out", "away", (0.46, 0.22, 0.4), touch="tips")),
            Keyframe(0.12, Pose("temple", "flat", "up+up+out", "away", (0.46, 0.22, 0.4), touch="tips")),
        ),
        face="smile",
    ),
    # A fist, thumb up, stands on the other palm; both rise.
    Sign(
        "help",
        (
            Keyframe(
                0.3,
                Pose("neutral", "thumb_up", "in+away", "in+toward", (-0.27, -0.18, 0), touch="edge"),
                _PALM_UP,
            ),
            Keyframe(
                0.12,
                Pose("neutral", "thumb_up", "in+away", "in+toward", (-0.27, -0.18, 0), touch="edge"),
                _PALM_UP,
            ),
            Keyframe(
                0.4,
                Pose("neutral", "thumb_up", "in+away", "in+toward", (-0.27, 0.15, 0.06), touch="edge"),
                _PALM_UP_RAISED,
            ),
            Keyframe(
                0.12,
                Pose("neutral", "thumb_up", "in+away", "in+toward", (-0.27, 0.15, 0.06), touch="edge"),
                _PALM_UP_RAISED,
            ),
        ),
    ),
    # Bunched fingertips touch next to the mouth, then the cheek near the ear.
    Sign(
        "home",
        (
            Keyframe(0.3, Pose("mouth", "flat_o", "up+up+in", "toward+in", (0.06, -0.02, 0.02), touch="tips")),
            Keyframe(0.14, Pose("mouth", "flat_o", "up+up+in", "toward+in", (0.06, -0.02, 0.02), touch="tips")),
            Keyframe(0.18, Pose("cheek", "flat_o", "up+up+in", "toward+in", (0.13, -0.04, 0.17), touch="tips")),
            Keyframe(0.18, Pose("ear", "flat_o", "up+up+in", "toward+in", (0.01, -0.08, 0.06), touch="tips")),
            Keyframe(0.16, Pose("ear", "flat_o", "up+up+in", "toward+in", (0.01, -0.08, 0.06), touch="tips")),
        ),
    ),
    # Thumb and middle finger draw something out of the chest and close.
    Sign(
        "like",
        (
            Keyframe(0.3, Pose("chest", "open_eight", "in+in+up", "toward", (0.02, 0.08, 0.1))),
            Keyframe(0.14, Pose("chest", "open_eight", "in+in+up", "toward", (0.02, 0.08, 0.1))),
            Keyframe(0.38, Pose("chest", "eight", "in+in+up", "toward+up", (0.16, 0.0, 0.62))),
            Keyframe(0.14, Pose("chest", "eight", "in+in+up", "toward+up", (0.16, 0.0, 0.62))),
        ),
        face="smile",
    ),
    # The fingertips of two bunched hands tap together.
    Sign(
        "more",
        (
            Keyframe(0.16, Pose("neutral", "flat_o", "in+up", "in+toward", (-0.14, 0.12, -0.1), touch="tips")),
            Keyframe(0.16, Pose("neutral", "flat_o", "in+up", "in+toward", (-0.28, 0.12, -0.1), touch="tips")),
        ),
        repeats=(2, 3),
        both=True,
    ),
    # The thumb of an open hand taps the chin.
    Sign(
        "mother",
        (
            Keyframe(0.18, Pose("chin", "open", "up+up+out", "in+away", (0.19, 0.0, 0.2), touch="thumb")),
            Keyframe(0.18, Pose("chin", "open", "up+up+out", "in+away", (0.07, 0, 0.02), touch="thumb")),
        ),
        repeats=(2, 3),
    ),
    # Index and middle finger snap down on the thumb.
    Sign(
        "no",
        (
            Keyframe(0.16, Pose("shoulder", "two", "up+away", "in+away", (0.12, -0.12, 0.4), touch="wrist")),
            Keyframe(0.12, Pose("shoulder", "two_closed", "up+away+away", "in+away", (0.1, -0.16, 0.44), "wrist")),
            Keyframe(0.1, Pose("shoulder", "two_closed", "up+away+away", "in+away", (0.1, -0.16, 0.44), "wrist")),
        ),
        repeats=(2, 2),
        face="negative",
        head="shake",
    ),
    # The flat hand rubs a circle on the chest.
    Sign(
        "please",
        _circle(0.62, Pose("chest", "flat", "in+in+up", "toward", (0.02, -0.08, 0.06)), 0.16),
        repeats=(2, 2),
        face="smile",
    ),
    # The fist rubs a circle on the chest.
    Sign(
        "sorry",
        _circle(0.62, Pose("chest", "a", "in+up", "toward", (0.02, -0.08, 0.12)), 0.16),
        repeats=(2, 2),
        face="sorry",
    ),
    # The edge of one flat hand chops onto the other palm.
    Sign(
        "stop",
        (
            Keyframe(0.3, Pose("neutral", "flat", "away+up+in", "in", (-0.2, 0.26, -0.06), "edge"), _PALM_UP),
            Keyframe(0.18, Pose("neutral", "flat", "away+in", "in", (-0.24, -0.2, 0.02), "edge"), _PALM_UP),
            Keyframe(0.3, Pose("neutral", "flat", "away+in", "in", (-0.24, -0.2, 0.02), "edge"), _PALM_UP),
        ),
        face="negative",
    ),
    # Fingertips leave the chin, forward and down, the palm turning up.
    Sign(
        "thank you",
        (
            Keyframe(0.3, Pose("chin", "flat", "up+in", "toward", (0.03, 0.02, 0.04), touch="tips")),
            Keyframe(0.12, Pose("chin", "flat", "up+in", "toward", (0.03, 0.02, 0.04), touch="tips")),
            Keyframe(0.36, Pose("chin", "flat", "away+up", "up+toward", (0.12, -0.42, 0.76), touch="tips")),
            Keyframe(0.12, Pose("chin", "flat", "away+up", "up+toward", (0.12, -0.42, 0.76), touch="tips")),
        ),
        face="smile",
    ),
    # Two clawed hands, palms up, pull toward the body.
    Sign(
        "want",
        (
            Keyframe(0.28, Pose("neutral", "open", "away+away+down+out", "up", (0.0, -0.06, 0.25))),
            Keyframe(0.34, Pose("neutral", "claw", "away+away+down+out", "up", (0.0, -0.16, -0.25))),
            Keyframe(0.1, Pose("neutral", "claw", "away+away+down+out", "up", (0.0, -0.16, -0.25))),
        ),
        repeats=(1, 2),
        both=True,
    ),
    # The raised index finger wags from side to side.
    Sign(
        "where",
        (
            Keyframe(0.17, Pose("shoulder", "index", "up+up+up+out", "away", (0.16, -0.04, 0.36), touch="wrist")),
            Keyframe(0.17, Pose("shoulder", "index", "up+up+in", "away", (0.12, -0.04, 0.36), touch="wrist")),
        ),
        repeats=(2, 3),
        face="question",
    ),
    # The thumb rests on the chin while the index finger bends.
    Sign(
        "who",
        (
            Keyframe(0.16, Pose("chin", "l", "up+up+up+out", "in+away", (0.05, 0, 0.02), touch="thumb")),
            Keyframe(0.16, Pose("chin", "bent_l", "up+up+up+out", "in+away", (0.05, 0, 0.02), touch="thumb")),
        ),
        repeats=(2, 3),
        face="question",
    ),
    # The fist nods like a head.
    Sign(
        "yes",
        (
            Keyframe(0.17, Pose("shoulder", "fist", "up+up+toward", "away", (0.06, -0.14, 0.4), touch="wrist")),
            Keyframe(0.17, Pose("shoulder", "fist", "away+away+down", "down", (0.06, -0.2, 0.46), touch="wrist")),
        ),
        repeats=(2, 3),
        head="nod",
    ),
)
