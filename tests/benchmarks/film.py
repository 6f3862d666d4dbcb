"""Long films of the demo signer: signs with pauses between them, and the times at which they are signed.

A film consists of scenes. A scene has one signer, room and camera, and no cuts: every sign begins and ends at rest, and
in the pauses the signer rests, blinks and sways. No training has seen any part of a film, because signs are performed
with seeds beyond `FIRST_HELD_OUT_SEED`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from asl_triton_demo import signer
from asl_triton_demo.appearance import Floats, Image, choose_look, paint_room
from asl_triton_demo.motion import ONSET_S, Arm, mirror
from asl_triton_demo.renderer import Camera, HeadMotion, Painter
from asl_triton_demo.signer import SUPERSAMPLING, Take
from asl_triton_demo.signs import SIGNS, Sign
from asl_triton_demo.training import FIRST_HELD_OUT_SEED, make_idle_sign

SIZE = (256, 256)  # (H, W)
FPS = 25.0
BLINK_EVERY_S = 4.0


@dataclass(frozen=True)
class FilmSign:
    """One sign of a film. It lasts as long as the hands are closer to the sign than to rest.

    It therefore starts halfway through the movement up and ends halfway through the movement down, which is what the
    demo checkpoint was trained to recognize.
    """

    gloss: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Part:
    """A sign or a pause of a scene. The times of `signed` are relative to the start of the part."""

    sign: Sign
    take: Take
    signed: FilmSign | None

    @property
    def arms(self) -> tuple[Arm, Arm]:
        """The arms of a right-handed signer."""
        return tuple(map(mirror, self.take.arms)) if self.take.left_handed else self.take.arms  # type: ignore[return-value]


def perform_sign(sign: Sign, seed: int) -> Part:
    """Perform a sign, at a pace that depends on the seed."""
    take = signer.plan_take(sign, signer.make_generator(sign.gloss, seed), size=SIZE, fps=FPS)
    half_onset_s = ONSET_S * take.execution.tempo / 2
    start_s = take.execution.lead_s + half_onset_s
    end_s = take.num_frames / FPS - take.execution.tail_s - half_onset_s
    return Part(sign, take, FilmSign(sign.gloss, start_s, end_s))


def perform_pause(seconds: float, seed: int) -> Part:
    """Perform a pause."""
    sign = make_idle_sign(seed)
    num_frames = max(round(seconds * FPS), 1)
    return Part(
        sign,
        signer.plan_take(sign, signer.make_generator("idle", seed), size=SIZE, fps=FPS, num_frames=num_frames),
        None,
    )


def paint_scene(parts: Sequence[Part], seed: int) -> Iterator[Image]:
    """Yield the frames of a scene, uint8 RGB (H, W, 3)."""
    rng = signer.make_generator("scene", seed)
    total = sum(part.take.num_frames for part in parts)
    whole = Take(parts[0].take.execution, False, SIZE, FPS, total, parts[0].arms, np.arange(total) / FPS)
    look = choose_look(rng)
    height, width = (side * SUPERSAMPLING for side in SIZE)
    shake = signer._shake(whole, rng)  # (T, 2) pixels of the large picture
    margin = int(np.abs(shake).max()) + 1
    plate = paint_room(look, height + 2 * margin, width + 2 * margin, rng)
    camera = signer._camera(whole, shake, rng)
    signer._cast_shadow(plate, camera, margin, look.light_from)
    sway = signer._drift(whole.moments_s, rng, hertz=(0.3, 0.9)) * 0.012
    turn = signer._drift(whole.moments_s, rng, hertz=(0.2, 0.6)) * 0.01 + rng.uniform(-0.012, 0.012, 2)
    blinking = choose_blinks(whole.moments_s, rng)
    ends = list(accumulate(part.take.num_frames for part in parts))
    for part, end in zip(parts, ends, strict=True):
        now = slice(end - part.take.num_frames, end)
        origins = Camera(camera.origins[now], camera.scale, camera.tilt)
        head = build_head_motion(part, sway[now], turn[now], blinking[now])
        painter = Painter(look, origins, part.arms, head, part.sign.face)
        for index, (left, top) in enumerate(margin - shake[now]):
            large: Image = plate[top : top + height, left : left + width].copy()
            painter.paint(large, index)
            yield np.asarray(cv2.resize(large, SIZE[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def build_head_motion(part: Part, sway: Floats, turn: Floats, blinking: Floats) -> HeadMotion:
    """Combine the swaying of the scene with the nod and the face of the sign."""
    moments, execution = part.take.moments_s, part.take.execution
    start, end = execution.lead_s, moments[-1] - execution.tail_s
    expressing = signer._ramp(moments, start, start + 0.3) * (1 - signer._ramp(moments, end - 0.3, end))
    nod = signer._gesture(part.sign.head, moments, expressing)
    return HeadMotion(sway + nod * 0.012, turn + nod * 0.034, expressing, blinking)


def choose_blinks(moments_s: Floats, rng: np.random.Generator) -> Floats:
    """Choose when the signer blinks. Returns how far the eyes are shut (T,)."""
    times_s = np.cumsum(rng.uniform(0.5, 1.5, int(moments_s[-1] / BLINK_EVERY_S) + 1)) * BLINK_EVERY_S
    return np.max([np.clip(1.5 - np.abs(moments_s - blink) / 0.07, 0, 1) for blink in times_s], axis=0)


def write_film(
    path: Path, *, seconds: float, signs: int, signs_per_scene: int, seed: int, shortest_pause_s: float = 1.0
) -> list[FilmSign]:
    """Write a film (H.264, 256 x 256, 25 frames per second) unless it exists. Returns the signs in it.

    Every gloss appears equally often, in random order. Pauses have random lengths and fill the remaining time. With 0
    signs per scene, every sign and every pause is a scene by itself, as if clips of different signers were joined.
    """
    truth = path.with_suffix(".json")
    if truth.exists():
        return [FilmSign(**line) for line in json.loads(truth.read_text())]
    assert seed > FIRST_HELD_OUT_SEED
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.resize(rng.permutation(len(SIGNS)), signs))
    performed = [perform_sign(SIGNS[index], seed + number) for number, index in enumerate(chosen)]
    num_scenes = -(-signs // signs_per_scene) if signs_per_scene else 1
    spare_s = seconds - sum(part.take.num_frames for part in performed) / FPS
    shares = rng.dirichlet(np.ones(signs + num_scenes))
    pauses_s = shortest_pause_s + shares * (spare_s - shortest_pause_s * len(shares))
    pauses = [perform_pause(pause, seed + number) for number, pause in enumerate(pauses_s)]
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), SIZE[::-1], fps=FPS, codec="libx264", macro_block_size=1)
    writer.send(None)
    signed, start_s = [], 0.0
    for number, parts in enumerate(split_into_scenes(performed, pauses, signs_per_scene)):
        for frame in paint_scene(parts, seed + number):
            writer.send(np.ascontiguousarray(frame))
        for part in parts:
            if part.signed:
                signed.append(FilmSign(part.signed.gloss, start_s + part.signed.start_s, start_s + part.signed.end_s))
            start_s += part.take.num_frames / FPS
    writer.close()
    truth.write_text(json.dumps([asdict(sign) for sign in signed], indent=1))
    return signed


def split_into_scenes(performed: Sequence[Part], pauses: Sequence[Part], signs_per_scene: int) -> Iterator[list[Part]]:
    """Yield scenes with a pause before each sign and one at the end, or one scene per part with 0 signs per scene."""
    remaining = iter(pauses)
    if not signs_per_scene:
        for sign in performed:
            yield [next(remaining)]
            yield [sign]
        yield [next(remaining)]
        return
    for start in range(0, len(performed), signs_per_scene):
        parts = [part for sign in performed[start : start + signs_per_scene] for part in (next(remaining), sign)]
        yield [*parts, next(remaining)]
