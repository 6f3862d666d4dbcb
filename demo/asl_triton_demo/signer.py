"""The demo signer: renders a choreography from `signs` as a clip of a person signing.

It makes the clips for `make demo`, tests and benchmarks. A seed chooses the signer, clothes, room, size, position,
tempo, camera shake, handedness and frame rate; the same sign and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from asl_triton_demo.appearance import TORSO, Floats, Image, Look, choose_look, darken, paint_room
from asl_triton_demo.handshapes import Handshape
from asl_triton_demo.motion import Arm, Execution, compute_duration_s, mirror, perform
from asl_triton_demo.renderer import Camera, HeadMotion, Painter
from asl_triton_demo.signs import SIGNS, Head, Keyframe, Pose, Sign

__all__ = [
    "SIGNS", "Handshape", "Keyframe", "Placement", "Pose", "RenderedClip", "Sign", "render", "render_demo",
    "write_video",
]  # fmt: skip

SIZES = ((256, 256), (240, 320), (288, 352), (360, 480), (480, 640))  # (H, W)
SIZE_SHARES = (0.4, 0.2, 0.2, 0.12, 0.08)
FRAME_RATES = (24.0, 25.0, 29.97, 30.0)
MIN_FRAMES, MAX_FRAMES = 32, 80
SLOWEST = 1.5  # the most that a sign is slowed down to fill a clip; rest fills what is left
SUPERSAMPLING = 2
LEFT_HANDED_SHARE = 0.15
MAX_SHAKE = 0.005  # of the picture's height
# For a signer placed in a larger picture, in shoulder widths: how far down the body is visible above the desk, and how
# far the arms reach up and to the sides.
DESK, REACH = 1.5, 1.8
SAMPLE_GLOSSES = ("book", "drink", "hello", "help", "home", "mother", "thank you", "where")
SAMPLE_SEED = 2_000_000  # far from the seeds that the demo checkpoint is trained on
CODECS = {".mp4": "vp09", ".webm": "VP90", ".avi": "MJPG"}


@dataclass(frozen=True)
class RenderedClip:
    """A clip of one sign: `frames` (T, H, W, 3) uint8 RGB.

    `signer` is where the signer is in the first frame, arms at rest: left, top, right and bottom in pixels.
    """

    frames: NDArray[np.uint8]
    fps: float
    gloss: str
    seed: int
    signer: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Placement:
    """Where the signer is in the frame, and how large: the usual picture of the signer, scaled and moved.

    `scale` is the size, where 1 is as usual; `x` and `y` are the middle of that picture, as fractions of the frame. By
    the end of the clip, the signer has walked to `walks_to`, another x. If the frame extends further down, the signer
    stands behind a desk.
    """

    scale: float = 1.0
    x: float = 0.5
    y: float = 0.5
    walks_to: float | None = None


@dataclass(frozen=True)
class Take:
    """What a seed chose for one clip, before anything is drawn."""

    execution: Execution
    left_handed: bool
    size: tuple[int, int]  # (H, W)
    fps: float
    num_frames: int
    arms: tuple[Arm, Arm]
    moments_s: Floats  # (T,)


def find_sign(gloss: str) -> Sign:
    """Return the sign in `SIGNS` with this gloss; KeyError if there is none."""
    for sign in SIGNS:
        if sign.gloss == gloss:
            return sign
    raise KeyError(f"no demo sign {gloss!r}; there are {', '.join(sign.gloss for sign in SIGNS)}")


def render(
    sign: Sign | str,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    placement: Placement | None = None,
) -> RenderedClip:
    """Render one clip, from rest to rest. `size` (H, W), `num_frames` and `fps` override the seed's choices.

    A clip with more frames than the sign needs is filled with rest; one with fewer shows the sign faster. With
    `placement`, the signer is elsewhere in the picture, or smaller.
    """
    sign = find_sign(sign) if isinstance(sign, str) else sign
    rng = make_generator(sign.gloss, seed)
    take = plan_take(sign, rng, size=size, num_frames=num_frames, fps=fps)
    look = choose_look(rng)
    height, width = (side * SUPERSAMPLING for side in take.size)
    shake = _shake(take, rng)  # (T, 2) pixels of the large picture
    margin = int(np.abs(shake).max()) + 1
    share = 1 if placement is None else SUPERSAMPLING  # large rooms are painted at the frame's size, which is faster
    room = paint_room(look, (height + 2 * margin) // share, (width + 2 * margin) // share, rng)
    plate = np.asarray(cv2.resize(room, (width + 2 * margin, height + 2 * margin)), np.uint8)
    camera = _camera(take, shake, rng, placement)
    _cast_shadow(plate, camera, margin, look.light_from)
    left, top, right = 0, 0, width  # of the part that the signer is painted in
    desk: Floats = np.full(take.num_frames, float(height))  # where the desk begins, in each frame
    if placement is not None:
        desk = _put_desk(plate, camera, shake, margin, look)
        left, top, right = _find_reach(camera, width, height)
    painter = Painter(look, camera.moved(left, top), take.arms, _head_motion(sign, take, rng), sign.face)
    frames = np.empty((take.num_frames, *take.size, 3), np.uint8)
    for index, frame in enumerate(frames):
        x, y = margin - shake[index]
        picture = plate[y : y + height, x : x + width]
        if placement is not None:
            cv2.resize(picture, take.size[::-1], dst=frame, interpolation=cv2.INTER_AREA)
        large: Image = picture[top:, left:right].copy()
        painter.paint(large[: round(desk[index]) - top], index)
        frame[top // SUPERSAMPLING :, left // SUPERSAMPLING : right // SUPERSAMPLING] = cv2.resize(
            large, None, fx=1 / SUPERSAMPLING, fy=1 / SUPERSAMPLING, interpolation=cv2.INTER_AREA
        )
    return RenderedClip(frames, take.fps, sign.gloss, seed, _find_box(painter, (left, top), desk[0], take.size))


def _put_desk(plate: Image, camera: Camera, shake: NDArray[np.int64], margin: int, look: Look) -> Floats:
    """Draw the desk that the signer stands behind, and return where it begins in each frame (T,), in pixels."""
    height = len(plate) - 2 * margin
    edge = round(float((camera.origins - shake)[:, 1].mean()) + DESK * camera.scale)
    thick = round(0.06 * camera.scale)
    cv2.rectangle(plate, (0, edge + margin), plate.shape[1::-1], darken(look.wall, 0.45), -1)
    cv2.rectangle(plate, (0, edge + margin), (plate.shape[1], edge + margin + thick), darken(look.wall, 0.3), -1)
    return np.minimum(edge + shake[:, 1], height).astype(np.float64)


def _find_reach(camera: Camera, width: int, height: int) -> tuple[int, int, int]:
    """Return left, top and right of the part that the signer reaches in any frame, on whole pixels of the output."""
    reach = REACH * camera.scale
    left, top = np.floor((camera.origins.min(axis=0) - reach) / SUPERSAMPLING).astype(int) * SUPERSAMPLING
    right = int(np.ceil((camera.origins[:, 0].max() + reach) / SUPERSAMPLING)) * SUPERSAMPLING
    return max(int(left), 0), max(int(top), 0), min(right, width)


def _find_box(
    painter: Painter, origin: tuple[int, int], desk: float, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return where the signer is in the first frame, in its pixels."""
    left, top, right, bottom = painter.find_bounds(0)
    x, y = origin
    ends = np.array([left + x, top + y, right + x, min(bottom + y, desk)]) / SUPERSAMPLING
    x0, y0, x1, y1 = (round(float(end)) for end in np.clip(ends, 0, (size[1], size[0]) * 2))
    return x0, y0, x1, y1


def write_video(clip: RenderedClip, path: Path) -> None:
    """Write the clip as VP9 in .mp4 or .webm, which browsers play, or as Motion JPEG in .avi.

    ValueError for another suffix; OSError if OpenCV cannot write there.
    """
    if path.suffix not in CODECS:
        raise ValueError(f"cannot write {path.name}: use {', '.join(CODECS)}")
    height, width = clip.frames.shape[1:3]
    codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, clip.fps, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {path}; does its folder exist?")
    for frame in clip.frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def render_demo(
    folder: Path,
    signs: Iterable[Sign | str] = SIGNS,
    seeds: Iterable[int] = (0,),
    *,
    size: tuple[int, int] | None = None,
    placement: Placement | None = None,
) -> list[Path]:
    """Write `<gloss>_<seed>.mp4` for every sign and seed, with "-" for spaces, and return the paths, sign by sign."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = tuple(seeds)
    paths = []
    for sign in signs:
        for seed in seeds:
            clip = render(sign, seed, size=size, placement=placement)
            path = folder / f"{clip.gloss.replace(' ', '-')}_{seed}.mp4"
            write_video(clip, path)
            paths.append(path)
    return paths


def make_generator(gloss: str, seed: int) -> np.random.Generator:
    """Return the clip's only source of randomness, the same on every machine."""
    digest = hashlib.sha256(f"{gloss}\n{seed}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def plan_take(
    sign: Sign,
    rng: np.random.Generator,
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
) -> Take:
    """Choose how the sign is performed and filmed, and compute the motion of the arms."""
    left_handed = bool(rng.random() < LEFT_HANDED_SHARE)
    chosen_size = SIZES[int(rng.choice(len(SIZES), p=SIZE_SHARES))]
    chosen_fps = float(rng.choice(FRAME_RATES))
    execution = Execution(
        repeats=int(rng.integers(sign.repeats[0], sign.repeats[1] + 1)),
        tempo=float(rng.uniform(0.88, 1.25)),
        amplitude=float(rng.uniform(0.92, 1.12)),
        lead_s=float(rng.uniform(0.08, 0.3)),
        tail_s=float(rng.uniform(0.08, 0.3)),
        wander=0.014,
        looseness=0.03,
    )
    fps = fps or chosen_fps
    if num_frames is None:
        num_frames = int(np.clip(round(compute_duration_s(sign, execution) * fps), MIN_FRAMES, MAX_FRAMES))
    execution = _fitted(sign, execution, num_frames / fps)
    moments_s = np.arange(num_frames) / fps
    signing, other = perform(sign, execution, moments_s, rng)
    arms = (mirror(signing), mirror(other)) if not left_handed else (signing, other)
    return Take(execution, left_handed, size or chosen_size, fps, num_frames, arms, moments_s)


def _fitted(sign: Sign, execution: Execution, seconds: float) -> Execution:
    """Make the execution slower or faster to last `seconds`, with longer rest if it would get too slow."""
    factor = seconds / compute_duration_s(sign, execution)
    slowed = min(factor, max(SLOWEST / execution.tempo, 1.0))
    execution = replace(
        execution,
        tempo=execution.tempo * slowed,
        lead_s=execution.lead_s * slowed,
        tail_s=execution.tail_s * slowed,
    )
    spare = max(seconds - compute_duration_s(sign, execution), 0.0)
    return replace(execution, lead_s=execution.lead_s + spare / 2, tail_s=execution.tail_s + spare / 2)


def _shake(take: Take, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw how far the handheld or fixed camera is off (T, 2), in pixels of the large picture."""
    strength = float(rng.uniform(0, MAX_SHAKE)) * take.size[0] * SUPERSAMPLING if rng.random() < 0.7 else 0.0
    drift = _drift(take.moments_s, rng, hertz=(0.4, 2.2))
    return np.asarray(np.rint(strength * drift), np.int64)


def _drift(moments_s: Floats, rng: np.random.Generator, hertz: tuple[float, float]) -> Floats:
    """Draw a smooth drift (T, 2) between about -1 and 1."""
    rates = rng.uniform(*hertz, (3, 2))
    phases = rng.uniform(0, 2 * np.pi, (3, 2))
    waves = np.sin(2 * np.pi * moments_s[:, None, None] * rates + phases)  # (T, 3, 2)
    return np.asarray(waves.mean(axis=1) * 1.5)


def _camera(
    take: Take, shake: NDArray[np.int64], rng: np.random.Generator, placement: Placement | None = None
) -> Camera:
    height, width = (float(side * SUPERSAMPLING) for side in take.size)
    left: Floats = np.zeros(take.num_frames)  # of the signer's own picture
    top = 0.0
    if placement is not None:
        own = placement.scale * min(height, width * 1.1)  # the side of that picture
        to = placement.x if placement.walks_to is None else placement.walks_to
        left = width * np.linspace(placement.x, to, take.num_frames) - own / 2
        top = height * placement.y - own / 2
        height, width = own, own
    scale = min(height, width * 1.1) / float(rng.uniform(2.5, 2.9))
    across = width * (0.5 + float(rng.uniform(-0.045, 0.045)))
    head_top = 0.95 * scale  # above the shoulders
    down = height * float(rng.uniform(0.1, 0.15)) + head_top
    sway = _drift(take.moments_s, rng, hertz=(0.2, 0.7)) * scale * 0.012
    origins = np.stack([across + left, np.full_like(left, down + top)], axis=1)
    return Camera(origins + sway + shake, scale, tilt=float(rng.uniform(-0.03, 0.03)))


def _cast_shadow(plate: Image, camera: Camera, margin: int, light_from: int) -> None:
    """Darken the wall behind the signer, softly, on the side away from the light."""
    small = 8  # a blur this wide needs no more pixels
    mask: Image = np.zeros((plate.shape[0] // small + 1, plate.shape[1] // small + 1), np.uint8)
    at = (camera.origins.mean(axis=0) + margin + camera.scale * np.array([-0.16 * light_from, 0.1])) / small
    unit = camera.scale / small
    body = np.asarray(TORSO * (1.04, -1) * unit + at, np.int32)
    cv2.fillPoly(mask, [body], (255,))
    cv2.circle(mask, (round(at[0]), round(at[1] - 0.53 * unit)), round(0.3 * unit), (255,), -1)
    soft = cv2.resize(cv2.GaussianBlur(mask, (0, 0), 0.1 * unit), plate.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    gain = 1 - soft[..., None].astype(np.float32) * (0.2 / 255)
    plate[:] = (plate * gain).astype(np.uint8)


def _head_motion(sign: Sign, take: Take, rng: np.random.Generator) -> HeadMotion:
    execution, moments = take.execution, take.moments_s
    start, end = execution.lead_s, moments[-1] - execution.tail_s
    expressing = _ramp(moments, start, start + 0.3) * (1 - _ramp(moments, end - 0.3, end))
    sway = _drift(moments, rng, hertz=(0.3, 0.9)) * 0.012
    turn = _drift(moments, rng, hertz=(0.2, 0.6)) * 0.01 + rng.uniform(-0.012, 0.012, 2)
    nod = _gesture(sign.head, moments, expressing)
    blinks = rng.uniform(0, moments[-1], 1 + int(rng.random() < 0.4))
    blinking = np.max([np.clip(1.5 - np.abs(moments - blink) / 0.07, 0, 1) for blink in blinks], axis=0)
    return HeadMotion(sway + nod * 0.012, turn + nod * 0.034, expressing, blinking)


def _gesture(head: Head, moments: Floats, share: Floats) -> Floats:
    """Compute a nod or a shake of the head (T, 2), between -1 and 1."""
    if head == "still":
        return np.zeros((len(moments), 2))
    hertz, axis = (2.1, (1.0, 0.0)) if head == "shake" else (1.8, (0.0, 1.0))
    return np.asarray(np.sin(2 * np.pi * moments * hertz) * share)[:, None] * axis


def _ramp(moments: Floats, start: float, end: float) -> Floats:
    u = np.clip((moments - start) / (end - start), 0, 1)
    return np.asarray(u * u * (3 - 2 * u))


def main() -> None:
    """Render sample clips to a folder."""
    parser = argparse.ArgumentParser(description="Render sample clips of the demo signer.")
    parser.add_argument("folder", type=Path, help="where to write the clips; created if it does not exist")
    parser.add_argument("--signs", nargs="*", default=list(SAMPLE_GLOSSES), help="glosses; a few by default")
    parser.add_argument("--seed", type=int, default=SAMPLE_SEED, help="chooses who signs, where and how")
    parser.add_argument("--size", type=_parse_size, help="frame size, such as 1920x1080; the seed's choice by default")
    parser.add_argument("--scale", type=float, help="size of the signer; 1 fills the frame")
    parser.add_argument("--x", type=float, help="position of the signer, as a fraction of the width")
    parser.add_argument("--y", type=float, help="position of the signer, as a fraction of the height")
    parser.add_argument("--walks-to", type=float, help="where the signer has walked to by the end, like --x")
    arguments = parser.parse_args()
    placed = {name: getattr(arguments, name) for name in ("scale", "x", "y", "walks_to")}
    given = {name: value for name, value in placed.items() if value is not None}
    signs = [find_sign(gloss) for gloss in arguments.signs]
    placement = Placement(**given) if given else None
    for path in render_demo(arguments.folder, signs, [arguments.seed], size=arguments.size, placement=placement):
        print(path)


def _parse_size(text: str) -> tuple[int, int]:
    """Parse `1920x1080` into height and width."""
    width, height = (int(side) for side in text.split("x"))
    if min(width, height) < 16:
        raise ValueError(text)
    return height, width


if __name__ == "__main__":
    main()
