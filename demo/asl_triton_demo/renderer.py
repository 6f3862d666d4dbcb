"""Paints one signer: body, face, arms and hands as polygons, far to near, frame by frame.

Everything is drawn as subpixel polygons on a picture of twice the size, which is then shrunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from asl_triton_demo import appearance as shapes
from asl_triton_demo.appearance import Color, Floats, Image, Look, darken, lighten, mix_colors
from asl_triton_demo.motion import BONE_RADII, FINGERS, PALM, THUMB, Arm
from asl_triton_demo.signs import Face

Polygons = NDArray[np.int32]  # (..., N, 2) in sixteenths of a pixel

SUBPIXEL_BITS = 4
CAMERA_DISTANCE = 7.0  # shoulder widths
HEAD_CENTER = np.array([0.0, 0.525])
HEAD_SCALE = 1.1  # of the shapes in `appearance`
LINE = 0.011  # width of an outline, shoulder widths
_UPPER_ARM_RADII = (0.128, 0.104)
_FOREARM_RADII = (0.104, 0.068)
_SLEEVE_EASE = 0.018
_CAP_POINTS = 8  # polygon points of each round end
_UPPER_SHARE = 0.53  # of the arm's length


@dataclass(frozen=True)
class Expression:
    """A facial expression: the mouth's width relative to its usual one, the lift of its corners, its opening, and the
    lift of the brows' ends."""

    mouth_width: float = 1.0
    corners: float = 0.0
    opening: float = 0.0
    brow_inner: float = 0.0
    brow_outer: float = 0.0


EXPRESSIONS: dict[Face, Expression] = {
    "neutral": Expression(opening=0.012),
    "smile": Expression(1.35, 0.032, 0.03, 0.012, 0.012),
    "question": Expression(0.72, -0.006, 0.035, -0.027, -0.004),
    "negative": Expression(0.95, -0.02, 0.0, -0.014, 0.0),
    "sorry": Expression(0.9, -0.02, 0.008, 0.03, -0.014),
}


@dataclass(frozen=True)
class Camera:
    """Where the signer stands in the picture, in each of T frames, in pixels of the picture that is drawn on."""

    origins: Floats  # (T, 2), of the point between the shoulders
    scale: float  # pixels per shoulder width
    tilt: float  # radians

    def project(self, points: Floats) -> Floats:
        """Project body coordinates (T, ..., 3) to pixels (T, ..., 2), with weak perspective."""
        nearness = self.nearness(points)[..., None]
        origins = self.origins.reshape(-1, *[1] * (points.ndim - 2), 2)
        return np.asarray((points[..., :2] * nearness) @ self._turn + origins)

    def nearness(self, points: Floats) -> Floats:
        """Return how much larger things look there than at the shoulders."""
        return np.asarray(CAMERA_DISTANCE / (CAMERA_DISTANCE - points[..., 2]))

    def place(self, shape: Floats, frame: int) -> Polygons:
        """Convert a flat shape of the body (N, 2) to a polygon."""
        return _subpixel(shape @ self._turn + self.origins[frame])

    def moved(self, left: int, top: int) -> Camera:
        """Return the same camera for a picture with `left` and `top` pixels cut off."""
        return replace(self, origins=self.origins - (left, top))

    @cached_property
    def _turn(self) -> Floats:
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        return self.scale * np.array([[c, s], [s, -c]])


@dataclass(frozen=True)
class HeadMotion:
    """The head's motion over T frames, in shoulder widths: `sway` of the whole head, `turn` of its features, (T, 2)."""

    sway: Floats
    turn: Floats
    expressing: Floats  # (T,), 0 the neutral face, 1 the sign's
    blinking: Floats  # (T,), 1 with the eyes shut


class Painter:
    """Draws the frames of one clip; all geometry of the arms is computed once, for all frames together."""

    def __init__(self, look: Look, camera: Camera, arms: tuple[Arm, Arm], head: HeadMotion, face: Face) -> None:
        self.look, self.camera, self.head, self.expression = look, camera, head, EXPRESSIONS[face]
        self.skin = _lit(look.skin, look)
        self.shirt = _lit(look.shirt, look)
        self.hair = _lit(look.hair, look)
        self.limbs = [LimbTrack(look, camera, arm, self.skin, self.shirt) for arm in arms]

    def paint(self, image: Image, frame: int) -> None:
        """Draw the signer of one frame onto the image, in place."""
        self._body(image, frame)
        self._face(image, frame)
        self._shadows(image, frame)
        for limb in sorted(self.limbs, key=lambda limb: float(limb.depths[frame])):
            limb.paint(image, frame)

    def find_bounds(self, frame: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the signer in one frame, in pixels of the picture that is drawn on."""
        style = self.look.hair_style
        head = [shapes.HEAD, *shapes.HAIR_BACK.get(style, []), *shapes.HAIR_FRONT[style]]
        body = self.camera.place(shapes.TORSO * (self.look.build, 1), frame)
        parts = [body, *(self._head_points(shape, frame) for shape in head)]
        for limb in self.limbs:
            parts += [limb.upper[frame], limb.forearm[frame], *(s[frame] for s in limb.sleeves), *limb.bones[frame]]
        points = np.concatenate(parts) / (1 << SUBPIXEL_BITS)
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def _shadows(self, image: Image, frame: int) -> None:
        """Draw the shadows of arms and hands on the body, further away if they are closer to the camera."""
        body: Image = np.zeros(image.shape[:2], np.uint8)
        cv2.fillPoly(
            body, [self.camera.place(shapes.TORSO * (self.look.build, 1), frame)], (255,), cv2.LINE_8, SUBPIXEL_BITS
        )
        cv2.fillPoly(body, [self._head_points(shapes.HEAD, frame)], (255,), cv2.LINE_8, SUBPIXEL_BITS)
        shade = np.zeros_like(body)
        for limb in self.limbs:
            limb.shade(shade, frame, self.camera.scale)
        cv2.copyTo(cv2.convertScaleAbs(image, alpha=0.82), cv2.bitwise_and(body, shade), image)

    def _body(self, image: Image, frame: int) -> None:
        look, place = self.look, self.camera.place
        wide = (look.build, 1.0)
        back_hair = mix_colors(darken(self.hair, 0.3), self.hair, 0.2)
        if look.hair_style != "headscarf":
            for shape in shapes.HAIR_BACK.get(look.hair_style, []):
                self._on_head(image, shape, back_hair, frame)
        fill(image, place(shapes.TORSO * wide, frame), darken(self.shirt, 0.13))
        fill(image, place(shapes.TORSO * wide * (0.9, 1) + (0.03 * look.light_from, 0), frame), self.shirt)
        neck = shapes.NECK[look.neckline]
        fill(image, place(_grown(neck, 0.016), frame), darken(self.shirt, 0.3))
        fill(image, place(neck, frame), darken(self.skin, 0.1))
        fill(image, place(shapes.NECK_SHADE, frame), darken(self.skin, 0.28))
        if look.neckline == "collar":
            for side in (-1, 1):
                flap = shapes.COLLAR_SIDE * (side, 1)
                fill(image, place(_grown(flap, LINE), frame), darken(self.shirt, 0.32))
                fill(image, place(flap, frame), lighten(self.shirt, 0.1))
            seam = np.array([(0.0, -0.16), (0.0, -2.4)])
            stroke(image, place(seam, frame), darken(self.shirt, 0.3), self._px(0.012))

    def _face(self, image: Image, frame: int) -> None:
        look = self.look
        skin, line = self.skin, darken(self.skin, 0.42)
        wide = (look.face_width, 1.0)
        turn = self.head.turn[frame]
        if look.hair_style == "headscarf":
            scarf = _lit(look.scarf, look)
            for shape in shapes.HAIR_BACK["headscarf"]:
                self._on_head(image, _grown(shape, LINE), darken(scarf, 0.35), frame)
                self._on_head(image, shape, scarf, frame)
            self._on_head(image, _grown(shapes.SCARF_OPENING, 0.02), darken(scarf, 0.25), frame)
            outline = shapes.SCARF_OPENING + turn * 0.2
        else:
            for side in (-1, 1):
                ear = shapes.EAR * (side, 1) - turn * 0.4
                self._on_head(image, ear, darken(skin, 0.16), frame)
            outline = shapes.HEAD * wide
        self._on_head(image, _grown(outline, LINE * 0.7), darken(skin, 0.3), frame)
        self._on_head(image, outline, darken(skin, 0.11), frame)
        self._on_head(image, outline * (0.9, 0.97) + (0.016 * look.light_from, 0.006), skin, frame)
        if look.beard:
            self._on_head(image, shapes.BEARD * wide + turn * 0.4, mix_colors(self.hair, skin, 0.16), frame)
        self._features(image, frame, line)
        for shape in shapes.HAIR_FRONT[look.hair_style]:
            self._on_head(image, shape * wide + turn * 0.25, self.hair, frame)
        if look.hair_style in ("short", "bob", "long"):
            shine = shapes.smooth([(-0.13, 0.27), (-0.03, 0.315), (0.09, 0.3)], closed=False) * (look.light_from, 1)
            points = self._head_points(shine + turn * 0.25, frame)
            stroke(image, points, lighten(self.hair, 0.14), self._px(0.02))

    def _features(self, image: Image, frame: int, line: Color) -> None:
        look, shift = self.look, self.head.turn[frame]
        share = float(self.head.expressing[frame])
        rest, face = EXPRESSIONS["neutral"], self.expression
        corners = rest.corners + (face.corners - rest.corners) * share
        opening = rest.opening + (face.opening - rest.opening) * share
        width = 0.062 * (rest.mouth_width + (face.mouth_width - rest.mouth_width) * share)
        inner, outer = face.brow_inner * share, face.brow_outer * share
        open_eye = 1.0 - float(self.head.blinking[frame])
        brow = mix_colors(darken(self.hair, 0.2), darken(self.skin, 0.6), 0.35)
        for side in (-1.0, 1.0):
            center = np.array([0.088 * side, 0.0]) + shift
            if open_eye > 0.3:
                self._on_head(
                    image, shapes.ellipse(0, 0, 0.043, 0.023 * open_eye, count=14) + center, (244, 242, 238), frame
                )
                iris = center + shift * (0.35, 0.1) - (0, 0.001)
                self._on_head(image, shapes.ellipse(0, 0, 0.021, 0.021 * open_eye, count=12) + iris, look.iris, frame)
                self._on_head(image, shapes.ellipse(0, 0, 0.011, 0.011 * open_eye, count=8) + iris, (16, 12, 12), frame)
            lid = np.array([(-0.05, -0.006), (-0.028, 0.021 * open_eye), (0.0, 0.028 * open_eye),
                            (0.028, 0.021 * open_eye), (0.05, -0.004)])  # fmt: skip
            stroke(image, self._head_points(lid + center, frame), darken(self.skin, 0.72), self._px(0.012))
            pinch = 0.012 if inner < 0 else 0.0
            arch = np.array(
                [(0.034 - pinch, 0.064 + inner), (0.085, 0.085 + (inner + outer) / 2), (0.14, 0.066 + outer)]
            )
            stroke(image, self._head_points(arch * (side, 1) + shift, frame), brow, self._px(0.022))
        nose = shapes.smooth([(0.012, -0.01), (0.03, -0.085), (0.012, -0.104), (-0.016, -0.1)], closed=False, steps=3)
        stroke(image, self._head_points(nose * (-look.light_from, 1) + shift * 1.3, frame), line, self._px(0.011))
        self._mouth(image, frame, width, corners, opening)
        if inner < -0.02:
            for side in (-1.0, 1.0):
                crease = np.array([(0.012 * side, 0.05), (0.009 * side, 0.08)]) + shift
                stroke(image, self._head_points(crease, frame), line, self._px(0.008))
        if look.glasses:
            for side in (-1, 1):
                rim = shapes.ellipse(0.09 * side, -0.004, 0.066, 0.054) + shift
                stroke(image, self._head_points(rim, frame), (40, 38, 42), self._px(0.011), closed=True)
            bridge = np.array([(-0.026, 0.008), (0.026, 0.008)]) + shift
            stroke(image, self._head_points(bridge, frame), (40, 38, 42), self._px(0.011))

    def _mouth(self, image: Image, frame: int, width: float, corners: float, opening: float) -> None:
        across = np.linspace(-1, 1, 9)
        middle = -0.185 + corners * (across**2 - 0.5)
        thick = 1 - across**2
        shift = self.head.turn[frame]
        upper = np.stack([across * width, middle + thick * (0.016 + opening / 2)], axis=1)
        lower = np.stack([across * width, middle - thick * (0.018 + opening / 2)], axis=1)
        lips = mix_colors(darken(self.skin, 0.2), (176, 62, 66), 0.42)
        self._on_head(image, np.concatenate([upper, lower[::-1]]) + shift, lips, frame)
        if opening > 0.02:
            upper[:, 1] = middle + thick * opening / 2
            lower[:, 1] = middle - thick * opening / 2
            inside = (246, 242, 236) if corners > 0.01 else (74, 26, 30)
            self._on_head(image, np.concatenate([upper, lower[::-1]]) * (0.9, 1) + shift, inside, frame)
        else:
            seam = np.stack([across * width * 1.05, middle], axis=1) + shift
            stroke(image, self._head_points(seam, frame), darken(self.skin, 0.6), self._px(0.008))

    def _head_points(self, shape: Floats, frame: int) -> Polygons:
        return self.camera.place(shape * HEAD_SCALE + HEAD_CENTER + self.head.sway[frame], frame)

    def _on_head(self, image: Image, shape: Floats, color: Color, frame: int) -> None:
        fill(image, self._head_points(shape, frame), color)

    def _px(self, width: float) -> int:
        return max(1, round(width * self.camera.scale))


class LimbTrack:
    """One arm and hand as polygons for every frame, in drawing order."""

    def __init__(self, look: Look, camera: Camera, arm: Arm, skin: Color, shirt: Color) -> None:
        self.look = look
        self.depths = arm.bones[:, PALM, :, 2].mean(axis=(1, 2))  # (T,)
        self.skin, self.shirt = skin, shirt
        self._trace_arm(camera, arm)
        self._trace_hand(camera, arm, look.hand_scale)
        self._color_hand(arm, skin)

    def paint(self, image: Image, frame: int) -> None:
        line = _outline(self.skin)
        for polygon, color in (
            (self.upper_line, line), (self.upper, self.skin), (self.forearm_line, line), (self.forearm, self.skin),
        ):  # fmt: skip
            fill_convex(image, polygon[frame], color)
        shade = darken(self.shirt, 0.34)
        for outline, cloth in zip(self.sleeve_lines, self.sleeves, strict=True):
            fill_convex(image, outline[frame], shade)
            fill_convex(image, cloth[frame], self.shirt)
        for part in self.order[frame]:
            self._paint_part(image, frame, int(part))

    def shade(self, mask: NDArray[np.uint8], frame: int, scale: float) -> None:
        """Mark where the shadow of forearm and hand falls."""
        depth = max(float(self.depths[frame]), 0.0)
        off = _subpixel(np.array([-0.07 * self.look.light_from, 0.1]) * depth * scale)
        for polygon in (self.forearm[frame], *self.bones[frame]):
            cv2.fillConvexPoly(mask, polygon + off, (255,), cv2.LINE_8, SUBPIXEL_BITS)

    def _paint_part(self, image: Image, frame: int, part: int) -> None:
        bones = PARTS[part]
        color = self.colors[part][frame]
        line = _outline(color)
        for bone in range(bones.start, bones.stop):
            fill_convex(image, self.bone_lines[frame, bone], line)
        for bone in range(bones.start, bones.stop):
            fill_convex(image, self.bones[frame, bone], color)
        if part >= 2 and self.nail_shown[frame, part - 2]:
            fill_convex(image, self.nails[frame, part - 2], lighten(color, 0.32))

    def _trace_arm(self, camera: Camera, arm: Arm) -> None:
        joints = np.stack([arm.shoulder, arm.elbow, arm.wrist], axis=1)  # (T, 3, 3)
        at = camera.project(joints)
        size = camera.nearness(joints) * camera.scale  # (T, 3)

        def limb(start: int, radii: tuple[float, float], grow: float, of: tuple[float, float], flat: bool) -> Polygons:
            a, b = at[:, start], at[:, start + 1]
            near, far = (radii[0] + (radii[1] - radii[0]) * share for share in of)
            ends = np.stack([a + (b - a) * of[0], a + (b - a) * of[1]], axis=1)
            thick = np.stack([(near + grow) * size[:, start], (far + grow) * size[:, start + 1]], axis=1)
            return capsules(ends, thick, flat_end=flat)

        self.upper = limb(0, _UPPER_ARM_RADII, 0, (0, 1), False)
        self.upper_line = limb(0, _UPPER_ARM_RADII, LINE, (0, 1), False)
        self.forearm = limb(1, _FOREARM_RADII, 0, (0, 1), False)
        self.forearm_line = limb(1, _FOREARM_RADII, LINE, (0.22, 1), False)
        ease = _SLEEVE_EASE
        on_upper = min(self.look.sleeve / _UPPER_SHARE, 1.0)
        short = on_upper < 1
        self.sleeves = [limb(0, _UPPER_ARM_RADII, ease, (0, on_upper), short)]
        self.sleeve_lines = [limb(0, _UPPER_ARM_RADII, ease + LINE, (0.3, on_upper + 0.01), short)]
        if not short:
            to = (self.look.sleeve - _UPPER_SHARE) / (1 - _UPPER_SHARE)
            self.sleeve_lines.append(limb(1, _FOREARM_RADII, ease + LINE, (0.22 * to, to + 0.015), True))
            self.sleeves.append(limb(1, _FOREARM_RADII, ease, (0, to), True))

    def _trace_hand(self, camera: Camera, arm: Arm, hand_scale: float) -> None:
        wrist = arm.wrist[:, None, None]
        bones = wrist + (arm.bones - wrist) * hand_scale  # (T, 19, 2, 3)
        ends = camera.project(bones)
        thick = BONE_RADII * hand_scale * camera.nearness(bones) * camera.scale  # (T, 19, 2)
        self.bones = capsules(ends, thick)
        lined = ends.copy()
        lined[:, PALM, 0] += (ends[:, PALM, 1] - ends[:, PALM, 0]) * 0.35  # no line between hand and wrist
        self.bone_lines = capsules(lined, thick + LINE * camera.scale)
        tips = ends[:, [finger.stop - 1 for finger in FINGERS]]  # (T, 4, 2, 2)
        tip_radii = thick[:, [finger.stop - 1 for finger in FINGERS]]
        along = tips[:, :, 1] - tips[:, :, 0]
        nails = np.stack([tips[:, :, 0] + along * 0.72, tips[:, :, 1] + along * 0.12], axis=2)
        self.nails = capsules(nails, tip_radii * 0.58)
        depth = np.stack([bones[:, part, :, 2].mean(axis=(1, 2)) for part in PARTS], axis=1)  # (T, 6)
        depth[:, 0] -= 0.012  # at equal depth the palm lies under the fingers
        self.order = np.argsort(depth, axis=1, kind="stable")

    def _color_hand(self, arm: Arm, skin: Color) -> None:
        """Color the hand. Its inside is lighter than its back, most of all with dark skin."""
        inside = mix_colors(skin, (246, 196, 172), 0.18 + 0.22 * (1 - sum(skin) / 765))
        facing = arm.normals[:, 2]  # (T,), 1 where the palm faces the camera
        fingers_dir = arm.bones[:, 1, 1] - arm.bones[:, 1, 0]
        upward = fingers_dir[:, 2] / np.linalg.norm(fingers_dir, axis=1)  # z of straight fingers
        bent = np.radians(arm.flexion)  # (T, 4)
        finger_facing = facing[:, None] * np.cos(bent) - upward[:, None] * np.sin(bent)
        shares = np.concatenate([facing[:, None], facing[:, None] * 0.5, finger_facing], axis=1)  # (T, 6)
        weights = np.clip(shares * 1.5 + 0.5, 0, 1)
        self.colors = [
            [mix_colors(skin, inside, float(share)) for share in weights[:, part]] for part in range(len(PARTS))
        ]
        self.nail_shown = finger_facing < -0.35


PARTS = (PALM, THUMB, *FINGERS)


def capsules(ends: Floats, radii: Floats, *, flat_end: bool = False) -> Polygons:
    """Convert pixels (..., 2 ends, 2) and radii (..., 2) to convex polygons (..., N, 2) around each tapered bone."""
    along = ends[..., 1, :] - ends[..., 0, :]
    heading = np.arctan2(along[..., 1], along[..., 0])[..., None]  # (..., 1)
    fan = np.linspace(np.pi / 2, 3 * np.pi / 2, _CAP_POINTS)
    start_turn = heading + fan
    end_turn = heading + (np.array([-np.pi / 2, np.pi / 2]) if flat_end else fan - np.pi)
    sides = []
    for end, turn in enumerate((start_turn, end_turn)):
        around = np.stack([np.cos(turn), np.sin(turn)], axis=-1) * radii[..., end, None, None]
        sides.append(ends[..., end, None, :] + around)
    return _subpixel(np.concatenate(sides, axis=-2))


def fill(image: Image, polygon: Polygons, color: Color) -> None:
    cv2.fillPoly(image, [polygon], color, cv2.LINE_AA, SUBPIXEL_BITS)


def fill_convex(image: Image, polygon: Polygons, color: Color) -> None:
    cv2.fillConvexPoly(image, polygon, color, cv2.LINE_AA, SUBPIXEL_BITS)


def stroke(image: Image, points: Polygons, color: Color, width_px: int, *, closed: bool = False) -> None:
    cv2.polylines(image, [points], closed, color, width_px, cv2.LINE_AA, SUBPIXEL_BITS)


def _subpixel(points: Floats) -> Polygons:
    return np.asarray(np.rint(points * (1 << SUBPIXEL_BITS)), np.int32)


def _grown(shape: Floats, by: float) -> Floats:
    """Grow the shape by about `by` on every side."""
    center = (shape.min(axis=0) + shape.max(axis=0)) / 2
    half = (shape.max(axis=0) - shape.min(axis=0)) / 2
    return np.asarray(center + (shape - center) * (1 + by / half))


def _outline(color: Color) -> Color:
    """Return the color of a line that is visible on skin of any tone."""
    return darken(color, 0.34 + 0.3 * max(0.0, 1 - sum(color) / 420))


def _lit(color: Color, look: Look) -> Color:
    red, green, blue = (min(255, round(channel * look.exposure)) for channel in color)
    return red, green, blue
