"""Turns a choreography into the joints of both arms and hands, frame by frame.

Coordinates are those of the body, in shoulder widths: x to the right of the picture, y up, z toward the camera. The
origin is midway between the shoulders.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from asl_triton_demo.handshapes import Handshape
from asl_triton_demo.signs import ANCHORS, Keyframe, Pose, Sign, direction

Floats = NDArray[np.float64]

SHOULDER: tuple[float, float, float] = (0.395, -0.15, 0.0)  # of the arm on the +x side
UPPER_ARM_LENGTH = 0.74
FOREARM_LENGTH = 0.64
HAND_LENGTH = 0.54  # wrist to middle fingertip; a little large, as illustrators draw signs
ELBOW_POLE = np.array([0.42, -1.0, -0.4])  # direction that elbows prefer
REACH = 0.985  # of a straight arm
ONSET_S = 0.42  # from rest to the first keyframe, and from the last one back

REST = Pose("belly", "flat", "down", "in", (0.52, -0.65, -0.1), touch="wrist")

# Hand lengths; local axes are x to the little finger, y along the fingers, z out of the palm.
_KNUCKLES = np.array([[-0.155, 0.49, 0], [-0.05, 0.515, 0], [0.055, 0.495, 0], [0.15, 0.45, 0]])
_HEELS = np.array([[-0.075, 0.07, 0], [-0.03, 0.05, 0], [0.02, 0.05, 0], [0.07, 0.07, 0]])
_PHALANGES = np.array([[0.225, 0.135, 0.1], [0.245, 0.15, 0.105], [0.225, 0.14, 0.1], [0.175, 0.105, 0.09]])
_THUMB_ROOT = np.array([-0.1, 0.1, 0.03])
_LOCAL_TOUCH = {"wrist": (0, 0, 0), "palm": (0, 0.32, 0.07), "back": (0, 0.32, -0.07), "edge": (0.2, 0.3, 0.03)}
_LOCAL_TOUCH |= {"knuckles": (0, 0.52, 0)}

# Bones of a hand, in order: four of the palm, three of the thumb, three of each finger from index to little.
BONES_PER_HAND = 19
PALM, THUMB = slice(0, 4), slice(4, 7)
FINGERS = tuple(slice(7 + 3 * i, 10 + 3 * i) for i in range(4))
_FINGER_RADII = ((0.06, 0.056), (0.056, 0.051), (0.051, 0.044))
# (19, 2), start and end, in shoulder widths.
BONE_RADII: Floats = HAND_LENGTH * np.array(
    [(0.085, 0.07)] * 4
    + [(0.085, 0.072), (0.068, 0.06), (0.06, 0.05)]
    + list(_FINGER_RADII) * 3
    + [(r0 * 0.88, r1 * 0.88) for r0, r1 in _FINGER_RADII]
)


@dataclass(frozen=True)
class Arm:
    """One arm through T frames: shoulder, elbow and wrist (T, 3); bones (T, 19, 2, 3); normals (T, 3).

    `bones` are start and end of each of the hand's bones, in the order of PALM, THUMB and FINGERS; `normals` is where
    the palm faces. `flexion` (T, 4) is how far each finger's middle bone is bent toward the palm, in degrees.
    """

    shoulder: Floats
    elbow: Floats
    wrist: Floats
    bones: Floats
    normals: Floats
    flexion: Floats


@dataclass(frozen=True)
class Execution:
    """How one performance differs from the choreography: everything in a movement that a seed varies."""

    repeats: int
    tempo: float = 1.0  # seconds of the performance per second of the choreography
    amplitude: float = 1.0
    lead_s: float = 0.2  # at rest before the sign
    tail_s: float = 0.2
    wander: float = 0.0  # shoulder widths, standard deviation of every keyframe's position
    looseness: float = 0.0  # radians, standard deviation of how hand and fingers are held


def collect_keyframes(sign: Sign, repeats: int) -> tuple[list[Keyframe], Floats]:
    """Return the keyframes with the loop unrolled, and when each is reached, in seconds after leaving rest."""
    loop = list(sign.keyframes[sign.loop_from :])
    keyframes = [*sign.keyframes[: sign.loop_from], *loop * repeats]
    gaps = [ONSET_S] + [keyframe.seconds for keyframe in keyframes[1:]]
    return keyframes, np.cumsum(gaps)


def compute_duration_s(sign: Sign, execution: Execution) -> float:
    """Return the length of the performance, from rest to rest."""
    _, times = collect_keyframes(sign, execution.repeats)
    return execution.lead_s + (float(times[-1]) + ONSET_S) * execution.tempo + execution.tail_s


def perform(sign: Sign, execution: Execution, moments_s: Floats, rng: np.random.Generator) -> tuple[Arm, Arm]:
    """Compute the signing arm and the other arm at each moment, for a signer whose signing arm is on the +x side."""
    keyframes, times = collect_keyframes(sign, execution.repeats)
    hands: list[Pose | None] = [keyframe.hand for keyframe in keyframes]
    others = hands if sign.both else [keyframe.other for keyframe in keyframes]
    start, end = execution.lead_s, execution.lead_s + (times[-1] + ONSET_S) * execution.tempo
    key_times = np.concatenate([[start - 1, start], start + times * execution.tempo, [end, end + 1]])
    arms = []
    for poses in (hands, others):
        keys = np.stack([_state(pose or REST) for pose in poses])  # (K, D)
        signing = np.array([pose is not None for pose in poses])
        if signing.any():
            places = keys[signing, :3]
            middle = places.mean(axis=0)
            wander = rng.normal(0, execution.wander, places.shape) * (1, 1, 0.5)
            keys[signing, :3] = middle + (places - middle) * execution.amplitude + wander
        rest = _state(REST)[None]
        keys = _nearest_quaternions(np.concatenate([rest, rest, keys, rest, rest]))
        keys[2:-2, 3:7] += rng.normal(0, execution.looseness, 4)  # the whole hand is turned a little
        keys[2:-2, 7:23] += rng.normal(0, np.degrees(execution.looseness), 16)  # and fingers bent and spread
        arms.append(_arm(pchip(key_times, keys, moments_s)))
    signing_arm, other_arm = arms
    return signing_arm, mirror(other_arm)


def mirror(arm: Arm) -> Arm:
    """Return the same movement made by the other arm."""
    flip = np.array([-1.0, 1.0, 1.0])
    return Arm(
        arm.shoulder * flip, arm.elbow * flip, arm.wrist * flip, arm.bones * flip, arm.normals * flip, arm.flexion
    )


def compute_wrist(pose: Pose) -> Floats:
    """Return where the wrist must be for the pose (3,), in the axes of a hand on the +x side."""
    local = _touch_point(pose)
    return np.add(ANCHORS[pose.anchor], pose.offset) - _axes(pose) @ (local * HAND_LENGTH)


def pchip(times: Floats, values: Floats, at: Floats) -> Floats:
    """Interpolate (K, D) values to (T, D) with monotone cubics, which stop where a coordinate turns back and never
    overshoot (Fritsch & Butland 1984). `times` must be ascending."""
    steps = np.diff(times)[:, None]  # (K - 1, 1)
    slopes = np.diff(values, axis=0) / steps  # (K - 1, D)
    before, after = slopes[:-1], slopes[1:]
    w0, w1 = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
    same_way = before * after > 0
    denominator = np.where(same_way, w0 * after + w1 * before, 1.0)
    tangents = np.zeros_like(values)
    tangents[1:-1] = np.where(same_way, (w0 + w1) * before * after / denominator, 0.0)
    index = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    width = steps[index]
    u = np.clip((at - times[index])[:, None] / width, 0, 1)  # (T, 1)
    start, end = values[index], values[index + 1]
    return np.asarray(
        start * (1 + 2 * u) * (1 - u) ** 2
        + end * u**2 * (3 - 2 * u)
        + width * (tangents[index] * u * (1 - u) ** 2 + tangents[index + 1] * u**2 * (u - 1))
    )


def _axes(pose: Pose) -> Floats:
    """Return the rotation (3, 3) from the hand's local axes: little finger, along the fingers, out of the palm."""
    fingers = np.array(direction(pose.fingers))
    palm = np.array(direction(pose.palm))
    palm = palm - fingers * (palm @ fingers)
    if np.linalg.norm(palm) < 1e-6:
        raise ValueError(f"palm {pose.palm!r} must differ from fingers {pose.fingers!r} and from their opposite")
    palm /= np.linalg.norm(palm)
    return np.stack([np.cross(fingers, palm), fingers, palm], axis=1)


def _touch_point(pose: Pose) -> Floats:
    """Return the point of the hand that the pose places (3,), in hand lengths and the hand's local axes."""
    if pose.touch in _LOCAL_TOUCH:
        return np.array(_LOCAL_TOUCH[pose.touch], float)
    shape = pose.handshape
    if pose.touch == "thumb":
        return np.array(shape.thumb[-1])
    bones = _local_bones(_shape_vector(shape)[None])[0]  # (19, 2, 3)
    tips = np.stack([bones[finger][-1, 1] for finger in FINGERS[:2]])
    return np.asarray(tips[0] if pose.touch == "index" else tips.mean(axis=0))


def _shape_vector(shape: Handshape) -> Floats:
    return np.concatenate([np.ravel(shape.flexion), shape.spread, np.ravel(shape.thumb)]).astype(float)  # (12 + 4 + 9,)


def _state(pose: Pose) -> Floats:
    """Return the values to interpolate (32,): wrist 3, quaternion 4, flexion 12, spread 4, thumb 9."""
    return np.concatenate([compute_wrist(pose), _quaternion(_axes(pose)), _shape_vector(pose.handshape)])


def _quaternion(axes: Floats) -> Floats:
    """Convert a rotation matrix to (w, x, y, z), by the eigenvector of its K matrix (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = axes
    k = np.array(
        [
            [a - e - i, 0, 0, 0],
            [b + d, e - a - i, 0, 0],
            [c + g, f + h, i - a - e, 0],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(k)[1][:, -1]
    return np.array([w, x, y, z])


def _nearest_quaternions(keys: Floats) -> Floats:
    """Choose each quaternion's sign so that the hand turns the short way."""
    first = keys[0, 3:7]
    keys[0, 3:7] = first * (np.sign(first[np.argmax(np.abs(first))]) or 1)  # an eigenvector's sign is arbitrary
    for previous, key in pairwise(keys):
        if previous[3:7] @ key[3:7] < 0:
            key[3:7] *= -1
    return keys


def _arm(states: Floats) -> Arm:
    """Convert (T, 32) interpolated states to joints, by two-bone inverse kinematics."""
    shoulder = np.broadcast_to(np.array(SHOULDER), (len(states), 3))
    elbow, wrist = _two_bones(shoulder, states[:, :3])
    w, x, y, z = (states[:, 3:7] / np.linalg.norm(states[:, 3:7], axis=1, keepdims=True)).T
    axes = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)  # (3, 3, T) -> (T, 3, 3)
    local = _local_bones(states[:, 7:]) * HAND_LENGTH  # (T, 19, 2, 3)
    bones = np.einsum("tij,tbej->tbei", axes, local) + wrist[:, None, None]
    flexion = states[:, 7:19].reshape(-1, 4, 3)[..., :2].sum(axis=2)  # (T, 4)
    return Arm(shoulder, elbow, wrist, bones, axes[:, :, 2], flexion)


def _two_bones(shoulder: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Compute elbow and wrist (T, 3): the elbow as far along ELBOW_POLE as possible, on the circle the bones allow."""
    reach = target - shoulder
    distance = np.linalg.norm(reach, axis=1, keepdims=True)  # (T, 1)
    along = reach / np.maximum(distance, 1e-6)
    shortest = abs(UPPER_ARM_LENGTH - FOREARM_LENGTH) + 0.05
    distance = np.clip(distance, shortest, REACH * (UPPER_ARM_LENGTH + FOREARM_LENGTH))
    foot = (distance**2 + UPPER_ARM_LENGTH**2 - FOREARM_LENGTH**2) / (2 * distance)
    height = np.sqrt(np.maximum(UPPER_ARM_LENGTH**2 - foot**2, 0))
    pole = ELBOW_POLE - along * (along @ ELBOW_POLE)[:, None]
    pole /= np.maximum(np.linalg.norm(pole, axis=1, keepdims=True), 1e-6)
    return shoulder + along * foot + pole * height, shoulder + along * distance


def _local_bones(shapes: Floats) -> Floats:
    """Convert (T, 25) handshape vectors to bones (T, 19, 2, 3), in hand lengths and the hand's local axes."""
    count = len(shapes)
    turned = np.radians(np.cumsum(shapes[:, :12].reshape(count, 4, 3), axis=2))  # (T, 4, 3)
    sideways = np.radians(shapes[:, 12:16])[..., None]  # (T, 4, 1)
    along = np.stack(
        [np.sin(sideways) * np.cos(turned), np.cos(sideways) * np.cos(turned), np.sin(turned)], axis=-1
    )  # (T, 4, 3 bones, 3)
    ends = _KNUCKLES[:, None] + np.cumsum(along * _PHALANGES[..., None], axis=2)
    starts = np.concatenate([np.broadcast_to(_KNUCKLES[:, None], (count, 4, 1, 3)), ends[:, :, :-1]], axis=2)
    thumb = np.concatenate(
        [np.broadcast_to(_THUMB_ROOT, (count, 1, 3)), shapes[:, 16:25].reshape(count, 3, 3)], axis=1
    )  # (T, 4, 3)
    palm = np.broadcast_to(np.stack([_HEELS, _KNUCKLES], axis=1), (count, 4, 2, 3))
    return np.concatenate(
        [
            palm,
            np.stack([thumb[:, :-1], thumb[:, 1:]], axis=2),
            np.stack([starts, ends], axis=3).reshape(count, 12, 2, 3),
        ],
        axis=1,
    )
