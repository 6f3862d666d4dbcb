"""Handshapes of the demo signer as plain data, named as in ASL, by their look or by the letter they spell."""

from __future__ import annotations

from dataclasses import dataclass

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Handshape:
    """A handshape: degrees at the joints of the fingers, and where the thumb lies.

    `flexion` has one row (knuckle, middle joint, end joint) for each of index, middle, ring and little finger; 0 is
    straight. `spread` is each finger's sideways angle, positive toward the little finger. `thumb` has the positions of
    its two joints and its tip, in hand lengths: x toward the little finger, y along the fingers, z out of the palm.
    """

    flexion: tuple[Vector, Vector, Vector, Vector]
    thumb: tuple[Vector, Vector, Vector]
    spread: tuple[float, float, float, float] = (-1, 0, 1, 2)


_STRAIGHT: Vector = (0, 3, 2)
_CURLED: Vector = (82, 100, 60)
_FAN = (-17, -5, 8, 22)
_BESIDE_INDEX = ((-0.22, 0.24, 0.03), (-0.27, 0.39, 0.04), (-0.25, 0.52, 0.04))
_OVER_FINGERS = ((-0.21, 0.26, 0.13), (-0.14, 0.36, 0.25), (0.0, 0.39, 0.29))
_STRETCHED = ((-0.27, 0.22, 0.05), (-0.43, 0.31, 0.06), (-0.56, 0.40, 0.07))
_SIDEWAYS = ((-0.27, 0.22, 0.04), (-0.44, 0.25, 0.05), (-0.60, 0.28, 0.05))

HANDSHAPES: dict[str, Handshape] = {
    "flat": Handshape((_STRAIGHT,) * 4, _BESIDE_INDEX),
    "open": Handshape((_STRAIGHT,) * 4, _STRETCHED, _FAN),
    "fist": Handshape((_CURLED,) * 4, _OVER_FINGERS),
    "a": Handshape((_CURLED,) * 4, ((-0.22, 0.24, 0.06), (-0.26, 0.40, 0.10), (-0.24, 0.55, 0.12))),
    "thumb_up": Handshape((_CURLED,) * 4, _SIDEWAYS),
    "index": Handshape((_STRAIGHT, _CURLED, _CURLED, _CURLED), _OVER_FINGERS),
    "hook": Handshape(((5, 85, 45), _CURLED, _CURLED, _CURLED), _OVER_FINGERS),
    "l": Handshape((_STRAIGHT, _CURLED, _CURLED, _CURLED), _SIDEWAYS),
    "bent_l": Handshape(((10, 75, 40), _CURLED, _CURLED, _CURLED), _SIDEWAYS),
    "two": Handshape((_STRAIGHT, _STRAIGHT, _CURLED, _CURLED), _STRETCHED, (1, -1, 1, 2)),
    "two_closed": Handshape(
        ((62, 20, 5), (60, 22, 5), _CURLED, _CURLED),
        ((-0.24, 0.22, 0.14), (-0.20, 0.40, 0.30), (-0.12, 0.56, 0.44)),
        (2, -2, 1, 2),
    ),
    "u": Handshape((_STRAIGHT, _STRAIGHT, _CURLED, _CURLED), _OVER_FINGERS, (1, -1, 1, 2)),
    "v": Handshape((_STRAIGHT, _STRAIGHT, _CURLED, _CURLED), _OVER_FINGERS, (-14, 10, 1, 2)),
    "w": Handshape((_STRAIGHT, _STRAIGHT, _STRAIGHT, _CURLED), _OVER_FINGERS, (-14, 0, 14, 2)),
    "i": Handshape((_CURLED, _CURLED, _CURLED, _STRAIGHT), _OVER_FINGERS, (-1, 0, 1, 8)),
    "y": Handshape((_CURLED, _CURLED, _CURLED, _STRAIGHT), _STRETCHED, (-1, 0, 1, 22)),
    "f": Handshape(
        ((58, 50, 10), _STRAIGHT, _STRAIGHT, _STRAIGHT),
        ((-0.22, 0.22, 0.14), (-0.20, 0.38, 0.26), (-0.15, 0.52, 0.34)),
        (-2, -4, 8, 20),
    ),
    "c": Handshape(((38, 48, 30),) * 4, ((-0.22, 0.18, 0.14), (-0.24, 0.28, 0.29), (-0.20, 0.40, 0.38))),
    "o": Handshape(((58, 66, 38),) * 4, ((-0.21, 0.20, 0.15), (-0.19, 0.33, 0.29), (-0.12, 0.44, 0.37))),
    "flat_o": Handshape(
        ((50, 28, 4), (50, 28, 4), (52, 28, 4), (56, 26, 4)),
        ((-0.21, 0.21, 0.14), (-0.17, 0.42, 0.29), (-0.07, 0.61, 0.40)),
        (5, 1, -4, -9),
    ),
    "claw": Handshape(((22, 52, 34),) * 4, ((-0.26, 0.20, 0.10), (-0.38, 0.30, 0.20), (-0.40, 0.43, 0.28)), _FAN),
    "open_eight": Handshape(
        ((4, 6, 4), (52, 12, 6), (6, 6, 4), (4, 6, 4)),
        ((-0.26, 0.22, 0.12), (-0.36, 0.34, 0.24), (-0.36, 0.48, 0.33)),
        (-17, -2, 10, 24),
    ),
    "eight": Handshape(
        ((8, 10, 6), (66, 40, 12), (14, 14, 8), (10, 8, 4)),
        ((-0.23, 0.22, 0.15), (-0.19, 0.38, 0.29), (-0.09, 0.50, 0.41)),
        (-14, -1, 9, 22),
    ),
}
