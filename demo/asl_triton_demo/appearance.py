"""What the demo signer and the room look like: everything in a still picture that a seed varies.

Shapes are in shoulder widths, x to the right, y up. The origin is midway between the shoulders for shapes of the body,
and the middle of the head for shapes of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]  # RGB
Floats = NDArray[np.float64]
Image = NDArray[np.uint8]  # (H, W, 3) RGB

SKINS: tuple[Color, ...] = (
    (244, 209, 184), (238, 195, 164), (229, 180, 143), (210, 153, 112),
    (181, 123, 84), (150, 96, 62), (118, 74, 50), (90, 57, 42),
)  # fmt: skip
HAIRS: tuple[Color, ...] = (
    (28, 24, 24), (44, 30, 24), (72, 46, 30), (104, 66, 38), (150, 102, 56),
    (206, 166, 104), (142, 62, 34), (150, 148, 146), (210, 206, 200),
)  # fmt: skip
SHIRTS: tuple[Color, ...] = (
    (34, 38, 46), (58, 66, 82), (40, 72, 120), (70, 118, 170), (32, 96, 92), (48, 112, 72), (116, 52, 96),
    (140, 44, 52), (196, 88, 60), (218, 172, 70), (226, 224, 218), (150, 156, 164), (92, 76, 130), (206, 120, 138),
)  # fmt: skip
WALLS: tuple[Color, ...] = (
    (226, 228, 226), (200, 208, 214), (176, 194, 206), (188, 200, 178), (222, 210, 188), (214, 190, 178),
    (128, 150, 172), (96, 124, 138), (118, 138, 116), (70, 84, 108), (60, 62, 70), (150, 132, 152),
)  # fmt: skip
IRISES: tuple[Color, ...] = ((58, 36, 22), (84, 54, 30), (74, 94, 62), (72, 108, 142))
HAIR_STYLES = ("short", "crop", "curly", "bob", "long", "bun", "bald", "headscarf")
NECKLINES = ("crew", "vee", "collar")
ROOMS = ("plain", "gradient", "window", "shelves", "picture", "curtain", "plant")


@dataclass(frozen=True)
class Look:
    """One signer and one room."""

    skin: Color
    hair: Color
    shirt: Color
    scarf: Color
    wall: Color
    iris: Color
    hair_style: str
    neckline: str
    room: str
    beard: bool
    glasses: bool
    sleeve: float  # how far along the arm, shoulder to wrist, the sleeve ends; 1 is the wrist
    build: float  # width of the torso, 1 is average
    face_width: float
    hand_scale: float
    light_from: int  # -1 from the left of the picture, 1 from the right
    exposure: float  # the camera's gain on every color; 1 leaves them as painted


def choose_look(rng: np.random.Generator) -> Look:
    """Choose a look in which hands stand out from the clothes, and the signer from the wall."""
    skin = _pick(rng, SKINS)
    shirt = _pick(rng, SHIRTS)
    while _distance(shirt, skin) < 130:
        shirt = _pick(rng, SHIRTS)
    wall = _jitter(_pick(rng, WALLS), rng)
    while min(_distance(wall, shirt), _distance(wall, skin)) < 60:
        wall = _jitter(_pick(rng, WALLS), rng)
    style = str(rng.choice(HAIR_STYLES, p=[0.22, 0.12, 0.13, 0.13, 0.18, 0.1, 0.06, 0.06]))
    dark_skin = sum(skin) < 360
    return Look(
        skin=skin,
        hair=_pick(rng, HAIRS[:3] + HAIRS[-2:-1] if dark_skin else HAIRS),
        shirt=_jitter(shirt, rng),
        scarf=_pick(rng, SHIRTS),
        wall=wall,
        iris=_pick(rng, IRISES[:2] if dark_skin else IRISES),
        hair_style=style,
        neckline=str(rng.choice(NECKLINES)),
        room=str(rng.choice(ROOMS)),
        beard=bool(style in ("short", "crop", "bald") and rng.random() < 0.35),
        glasses=bool(rng.random() < 0.18),
        sleeve=float(rng.choice([0.36, 0.74, 0.97], p=[0.45, 0.2, 0.35])),
        build=float(rng.uniform(0.92, 1.1)),
        face_width=float(rng.uniform(0.93, 1.06)),
        hand_scale=float(rng.uniform(0.96, 1.06)),
        light_from=int(rng.choice([-1, 1])),
        exposure=float(rng.uniform(0.88, 1.06)),
    )


def mix_colors(a: Color | Floats, b: Color | Floats, share: float) -> Color:
    """Mix `share` of b into a."""
    red, green, blue = (round(float(x) + (float(y) - float(x)) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def darken(color: Color, share: float) -> Color:
    """Darken a color toward a warm black, like shade on skin and cloth."""
    return mix_colors(color, (34, 14, 18), share)


def lighten(color: Color, share: float) -> Color:
    return mix_colors(color, (255, 250, 242), share)


def smooth(
    points: list[tuple[float, float]], *, symmetric: bool = False, closed: bool = True, steps: int = 5
) -> Floats:
    """Make a Catmull-Rom curve through the points (N, 2); `symmetric` appends the mirror image first."""
    through = np.array(points, float)
    if symmetric:
        other = through[::-1] * (-1, 1)
        through = np.concatenate([through, other[np.abs(other[:, 0]) > 1e-9]])
    if closed:
        padded = np.concatenate([through[-1:], through, through[:2]])
    else:
        padded = np.concatenate([through[:1], through, through[-1:]])
    u = np.linspace(0, 1, steps, endpoint=False)[:, None]
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i][:, None] for i in range(4))  # (S, 1, 2)
    curve = p1 + 0.5 * u * (p2 - p0 + u * (2 * p0 - 5 * p1 + 4 * p2 - p3 + u * (3 * (p1 - p2) + p3 - p0)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, through[-1:]])


def ellipse(x: float, y: float, rx: float, ry: float, *, count: int = 20) -> Floats:
    """Make an ellipse, as a polygon (count, 2)."""
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)


TORSO = smooth(
    [(0.0, 0.06), (0.14, 0.075), (0.25, 0.035), (0.37, 0.006), (0.49, -0.09), (0.49, -0.42), (0.43, -0.85),
     (0.425, -1.2), (0.47, -1.7), (0.48, -2.6), (0.0, -2.6)],
    symmetric=True,
)  # fmt: skip
NECK = {
    "crew": smooth([(0.125, 0.36), (0.128, 0.15), (0.19, 0.06), (0.13, -0.02), (0.0, -0.06)], symmetric=True),
    "vee": smooth([(0.125, 0.36), (0.128, 0.15), (0.2, 0.065), (0.10, -0.11), (0.0, -0.24)], symmetric=True),
    "collar": smooth([(0.125, 0.36), (0.128, 0.15), (0.155, 0.07), (0.075, -0.05), (0.0, -0.15)], symmetric=True),
}
NECK_SHADE = smooth([(0.126, 0.32), (0.128, 0.16), (0.08, 0.09), (0.0, 0.07)], symmetric=True)
COLLAR_SIDE: Floats = np.array([(0.12, 0.12), (0.205, 0.08), (0.19, -0.07), (0.1, -0.125), (0.015, -0.16)])
HEAD = smooth(
    [(0, 0.30), (0.115, 0.275), (0.185, 0.19), (0.208, 0.06), (0.198, -0.07), (0.165, -0.18), (0.095, -0.27),
     (0, -0.30)],
    symmetric=True,
)  # fmt: skip
EAR = ellipse(0.212, -0.02, 0.036, 0.068)
BEARD = smooth(
    [(0, -0.325), (0.1, -0.295), (0.175, -0.19), (0.21, -0.03), (0.19, -0.03), (0.155, -0.135), (0.09, -0.128),
     (0, -0.12)],
    symmetric=True,
)  # fmt: skip

# Hair in front of the face and behind the head, by style.
_CAP = smooth(
    [(0, 0.365), (0.14, 0.335), (0.225, 0.23), (0.243, 0.06), (0.222, -0.03), (0.205, 0.08), (0.165, 0.155),
     (0.06, 0.185), (0, 0.18)],
    symmetric=True,
)  # fmt: skip
_PARTED = smooth(
    [(-0.05, 0.37), (0.13, 0.345), (0.228, 0.24), (0.25, 0.05), (0.236, -0.12), (0.2, 0.02), (0.165, 0.13),
     (0.05, 0.19), (-0.07, 0.225), (-0.15, 0.15), (-0.198, 0.02), (-0.236, -0.12), (-0.25, 0.05), (-0.228, 0.24),
     (-0.15, 0.335)],
)  # fmt: skip
_LOCK = smooth(
    [(0.19, 0.12), (0.25, 0.05), (0.272, -0.2), (0.315, -0.45), (0.3, -0.72), (0.23, -0.78), (0.21, -0.5),
     (0.215, -0.25), (0.205, -0.05)],
)  # fmt: skip
HAIR_FRONT: dict[str, list[Floats]] = {
    "short": [
        smooth(
            [(-0.04, 0.375), (0.13, 0.36), (0.232, 0.25), (0.24, 0.08), (0.218, 0.0), (0.2, 0.1), (0.15, 0.19),
             (0.02, 0.165), (-0.12, 0.2), (-0.195, 0.11), (-0.216, 0.0), (-0.24, 0.08), (-0.23, 0.23), (-0.15, 0.34)],
        )
    ],
    "crop": [_CAP * (0.96, 0.94)],
    "curly": [_CAP]
    + [
        ellipse(0.27 * np.cos(a), 0.12 + 0.22 * np.sin(a), 0.085, 0.085)
        for a in np.radians([-12, 12, 36, 60, 84, 108, 132, 156, 180, 192])
    ],
    "bob": [_PARTED],
    "long": [_PARTED, _LOCK, _LOCK * (-1, 1)],
    "bun": [_CAP],
    "bald": [],
    "headscarf": [],
}  # fmt: skip
HAIR_BACK: dict[str, list[Floats]] = {
    "bob": [
        smooth([(0, 0.36), (0.17, 0.32), (0.262, 0.16), (0.275, -0.1), (0.255, -0.3), (0.12, -0.33), (0, -0.3)],
               symmetric=True)
    ],
    "long": [
        smooth([(0, 0.36), (0.17, 0.32), (0.262, 0.16), (0.285, -0.15), (0.32, -0.5), (0.28, -0.8), (0.14, -0.84),
                (0, -0.7)], symmetric=True)
    ],
    "bun": [ellipse(0, 0.42, 0.115, 0.1)],
    "headscarf": [
        smooth([(0, 0.375), (0.15, 0.345), (0.245, 0.2), (0.265, 0.0), (0.24, -0.2), (0.25, -0.4), (0.3, -0.62),
                (0.16, -0.74), (0, -0.8)], symmetric=True)
    ],
}  # fmt: skip
SCARF_OPENING = smooth(
    [(0, 0.22), (0.1, 0.2), (0.165, 0.11), (0.182, 0.0), (0.172, -0.1), (0.14, -0.2), (0.08, -0.27), (0, -0.292)],
    symmetric=True,
)


def paint_room(look: Look, height: int, width: int, rng: np.random.Generator) -> Image:
    """Paint the background (H, W, 3): a wall with light that falls off, and things in front of it, out of focus."""
    wall = np.array(look.wall, float)
    plate = np.empty((height, width, 3), np.uint8)
    plate[:] = look.wall
    unit = height / 100
    shade, light = darken(look.wall, 0.22), lighten(look.wall, 0.4)

    def box(x: float, y: float, w: float, h: float, color: Color) -> None:  # percent of the height
        cv2.rectangle(
            plate, (round(x * unit), round(y * unit)), (round((x + w) * unit), round((y + h) * unit)), color, -1
        )

    across = 100 * width / height
    side = float(rng.uniform(0.04, 0.12)) * across if rng.random() < 0.5 else float(rng.uniform(0.6, 0.7)) * across
    if look.room == "window":
        sky = _jitter((196, 222, 238), rng)
        box(side - 2, 6, 34, 50, light)
        for pane in range(4):
            box(side + (pane % 2) * 15.5, 8 + (pane // 2) * 23.5, 14.5, 22.5, lighten(sky, 0.15 * (pane // 2)))
        box(side - 4, 56, 38, 3, shade)
    elif look.room == "shelves":
        box(side - 2, 4, 36, 92, shade)
        for row in range(4):
            box(side, 7 + row * 22, 32, 19, darken(look.wall, 0.4))
            x = side + 1
            while x < side + 27:
                thick, tall = float(rng.uniform(2, 5)), float(rng.uniform(11, 17))
                box(x, 26 + row * 22 - tall, thick - 0.6, tall, _jitter(_pick(rng, SHIRTS), rng))
                x += thick
    elif look.room == "picture":
        box(side, 12, 28, 22, darken(look.wall, 0.55))
        box(side + 1.5, 13.5, 25, 19, lighten(look.wall, 0.75))
        box(side + 4, 24, 20, 6, _jitter(_pick(rng, SHIRTS), rng))
        box(side + 4, 16, 20, 8, _jitter((150, 190, 214), rng))
        box(0, 84, across, 16, darken(look.wall, 0.16))
    elif look.room == "curtain":
        folds = np.sin(np.arange(width) / width * float(rng.uniform(50, 90)) + float(rng.uniform(0, 6)))
        plate[:] = np.clip(wall * (1 + 0.07 * folds[None, :, None]), 0, 255).astype(np.uint8)
    elif look.room == "plant":
        green = _jitter((72, 118, 78), rng)
        base = np.array([side + 14, 88.0])
        for leaf in np.linspace(-1.1, 1.1, 9) + rng.uniform(-0.08, 0.08, 9):
            reach = float(rng.uniform(30, 46))
            tip = base + reach * np.array([np.sin(leaf) * 0.75, -np.cos(leaf)])
            bow = (base + tip) / 2 + 5 * np.array([np.cos(leaf), np.sin(leaf)])
            back = (base + tip) / 2 - 2 * np.array([np.cos(leaf), np.sin(leaf)])
            blade = smooth([(float(x), float(y)) for x, y in (base, bow, tip, back)])
            cv2.fillPoly(
                plate, [(blade * unit).astype(np.int32)], mix_colors(green, look.wall, float(rng.uniform(0, 0.35)))
            )
        box(side + 7, 86, 14, 14, _jitter((186, 112, 84), rng))
    if look.room not in ("plain", "gradient", "curtain"):
        plate = np.asarray(cv2.GaussianBlur(plate, (0, 0), height * float(rng.uniform(0.006, 0.014))), np.uint8)
    return _light(plate, look, 0.3 if look.room == "gradient" else 0.14)


def _light(plate: Image, look: Look, strength: float) -> Image:
    """Light the plate, brighter toward the light."""
    height, width = plate.shape[:2]
    down = np.linspace(-0.5, 0.5, height)[:, None]
    across = np.linspace(-0.5, 0.5, width)[None, :]
    gain = look.exposure * (1 + strength * (across * look.light_from - down * 0.8) - 0.22 * (across**2 + down**2))
    return np.clip(plate * gain[..., None].astype(np.float32), 0, 255).astype(np.uint8)


def _pick(rng: np.random.Generator, colors: tuple[Color, ...]) -> Color:
    return colors[int(rng.integers(len(colors)))]


def _jitter(color: Color, rng: np.random.Generator) -> Color:
    red, green, blue = (int(np.clip(c + d, 0, 255)) for c, d in zip(color, rng.integers(-12, 13, 3), strict=True))
    return red, green, blue


def _distance(a: Color, b: Color) -> int:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))
