"""The demo signer: renders a choreography of `demo_signs` as a clip of a person signing.

It makes the sample clips of `make demo`, test clips and benchmark load. A seed chooses signer, clothes, room, size,
position, tempo, camera shake, handedness and frame rate; the same sign and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from asl_triton_demo.appearance import TORSO, Floats, Image, choose_look, paint_room
from asl_triton_demo.handshapes import Handshape
from asl_triton_demo.motion import Arm, Execution, compute_duration_s, mirror, perform
from asl_triton_demo.renderer import Camera, HeadMotion, Painter
from asl_triton_demo.signs import SIGNS, Head, Keyframe, Pose, Sign

__all__ = ["SIGNS", "Handshape", "Keyframe", "Pose", "RenderedClip", "Sign", "render", "render_demo", "write_video"]

SIZES = ((256, 256), (240, 320), (288, 352), (360, 480), (480, 640))  # (H, W)
SIZE_SHARES = (0.4, 0.2, 0.2, 0.12, 0.08)
FRAME_RATES = (24.0, 25.0, 29.97, 30.0)
MIN_FRAMES, MAX_FRAMES = 32, 80
SLOWEST = 1.5  # a sign is never drawn out longer than this to fill a clip; rest fills it instead
SUPERSAMPLING = 2
LEFT_HANDED_SHARE = 0.15
MAX_SHAKE = 0.005  # of the picture's height
SAMPLE_GLOSSES = ("book", "drink", "hello", "help", "home", "mother", "thank you", "where")
SAMPLE_SEED = 2_000_000  # far from those that the demo checkpoint is trained on
CODECS = {".mp4": "vp09", ".webm": "VP90", ".avi": "MJPG"}


@dataclass(frozen=True)
class RenderedClip:
    """A clip of one sign: `frames` (T, H, W, 3) uint8 RGB."""

    frames: NDArray[np.uint8]
    fps: float
    gloss: str
    seed: int


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
    """The sign of `SIGNS` with this gloss; KeyError if there is none."""
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
) -> RenderedClip:
    """Draws one clip, from rest to rest. What is given of size (H, W), num_frames and fps replaces the seed's choice.

    A clip of more frames than the sign needs is filled with rest, one of fewer shows the sign faster.
    """
    sign = find_sign(sign) if isinstance(sign, str) else sign
    rng = make_generator(sign.gloss, seed)
    take = plan_take(sign, rng, size=size, num_frames=num_frames, fps=fps)
    look = choose_look(rng)
    height, width = (side * SUPERSAMPLING for side in take.size)
    shake = _shake(take, rng)  # (T, 2) pixels of the large picture
    margin = int(np.abs(shake).max()) + 1
    plate = paint_room(look, height + 2 * margin, width + 2 * margin, rng)
    camera = _camera(take, shake, rng)
    _cast_shadow(plate, camera, margin, look.light_from)
    painter = Painter(look, camera, take.arms, _head_motion(sign, take, rng), sign.face)
    frames = np.empty((take.num_frames, *take.size, 3), np.uint8)
    for index in range(take.num_frames):
        left, top = margin - shake[index]
        large: Image = plate[top : top + height, left : left + width].copy()
        painter.paint(large, index)
        cv2.resize(large, take.size[::-1], dst=frames[index], interpolation=cv2.INTER_AREA)
    return RenderedClip(frames, take.fps, sign.gloss, seed)


def write_video(clip: RenderedClip, path: Path) -> None:
    """Writes the clip as VP9 in .mp4 or .webm, which browsers play, or as Motion JPEG in .avi.

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


def render_demo(folder: Path, signs: Iterable[Sign | str] = SIGNS, seeds: Iterable[int] = (0,)) -> list[Path]:
    """Writes `<gloss>_<seed>.mp4` for every sign and seed, with "-" for spaces; gives the paths, sign by sign."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = tuple(seeds)
    paths = []
    for sign in signs:
        for seed in seeds:
            clip = render(sign, seed)
            path = folder / f"{clip.gloss.replace(' ', '-')}_{seed}.mp4"
            write_video(clip, path)
            paths.append(path)
    return paths


def make_generator(gloss: str, seed: int) -> np.random.Generator:
    """The clip's only source of chance, the same on every machine."""
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
    """Chooses how the sign is performed and filmed, and moves the arms."""
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
    """The execution, slowed or hastened to last `seconds`, with longer rest where it would grow too slow."""
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
    """How far the hand-held or standing camera is off (T, 2), in pixels of the large picture."""
    strength = float(rng.uniform(0, MAX_SHAKE)) * take.size[0] * SUPERSAMPLING if rng.random() < 0.7 else 0.0
    drift = _drift(take.moments_s, rng, hertz=(0.4, 2.2))
    return np.asarray(np.rint(strength * drift), np.int64)


def _drift(moments_s: Floats, rng: np.random.Generator, hertz: tuple[float, float]) -> Floats:
    """Smooth wandering (T, 2) within about -1 and 1."""
    rates = rng.uniform(*hertz, (3, 2))
    phases = rng.uniform(0, 2 * np.pi, (3, 2))
    waves = np.sin(2 * np.pi * moments_s[:, None, None] * rates + phases)  # (T, 3, 2)
    return np.asarray(waves.mean(axis=1) * 1.5)


def _camera(take: Take, shake: NDArray[np.int64], rng: np.random.Generator) -> Camera:
    height, width = (side * SUPERSAMPLING for side in take.size)
    scale = min(height, width * 1.1) / float(rng.uniform(2.5, 2.9))
    across = width * (0.5 + float(rng.uniform(-0.045, 0.045)))
    head_top = 0.95 * scale  # above the shoulders
    down = height * float(rng.uniform(0.1, 0.15)) + head_top
    sway = _drift(take.moments_s, rng, hertz=(0.2, 0.7)) * scale * 0.012
    return Camera(np.array([across, down]) + sway + shake, scale, tilt=float(rng.uniform(-0.03, 0.03)))


def _cast_shadow(plate: Image, camera: Camera, margin: int, light_from: int) -> None:
    """Darkens the wall behind the signer, softly, on the side away from the light."""
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
    """A nod or a shake of the head (T, 2), within -1 and 1."""
    if head == "still":
        return np.zeros((len(moments), 2))
    hertz, axis = (2.1, (1.0, 0.0)) if head == "shake" else (1.8, (0.0, 1.0))
    return np.asarray(np.sin(2 * np.pi * moments * hertz) * share)[:, None] * axis


def _ramp(moments: Floats, start: float, end: float) -> Floats:
    u = np.clip((moments - start) / (end - start), 0, 1)
    return np.asarray(u * u * (3 - 2 * u))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Render sample clips of the demo signer.")
    parser.add_argument("folder", type=Path, help="where the clips go; made if it is not there")
    parser.add_argument("--signs", nargs="*", default=list(SAMPLE_GLOSSES), help="glosses; a few if not given")
    parser.add_argument("--seed", type=int, default=SAMPLE_SEED, help="who signs, where and how")
    arguments = parser.parse_args()
    for clip_path in render_demo(arguments.folder, [find_sign(gloss) for gloss in arguments.signs], [arguments.seed]):
        print(clip_path)
