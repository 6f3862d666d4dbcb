"""Corrupted video files, as from an attacker or a bad disk. Each is reproducible from its seed."""

import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.client.videos import clip, faststart, ffmpeg, still, with_audio

EXTREMES = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], bytearray]


def seeds(folder: Path) -> list[bytes]:
    """Return small intact videos, a few kB each, in all supported containers and the codecs of cameras and browsers."""
    plain = clip(folder / "plain.mp4", 12)
    files = [
        plain,
        faststart(folder / "faststart.mp4", plain),
        clip(folder / "fragments.mp4", 12, options=["-movflags", "frag_keyframe+empty_moov", "-g", "4"]),
        clip(folder / "hevc.mov", 10, options=["-c:v", "libx265", "-x265-params", "log-level=none"]),
        clip(folder / "mpeg4.avi", 12),
        clip(folder / "mjpeg.avi", 6, options=["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"]),
        clip(folder / "vp8.webm", 12),
        clip(folder / "vp9.webm", 8, options=["-c:v", "libvpx-vp9"]),
        clip(folder / "h264.mkv", 12),
        clip(folder / "ffv1.mkv", 4, options=["-c:v", "ffv1"]),
        clip(folder / "av1.mp4", 8, options=["-c:v", "libaom-av1", "-cpu-used", "8"]),
        clip(folder / "h264.ts", 12),
        clip(folder / "mpeg2.mpg", 12, options=["-c:v", "mpeg2video"]),
        clip(folder / "h264.flv", 12),
        clip(folder / "wmv2.wmv", 12, options=["-c:v", "wmv2"]),
        clip(folder / "theora.ogv", 12, options=["-c:v", "libtheora"]),
        clip(folder / "animated.gif", 8, options=["-c:v", "gif", "-pix_fmt", "rgb8"]),
        with_audio(folder / "audio.mp4", 12, 0.6),
        still(folder / "picture.jpg"),
    ]
    rotated = folder / "rotated.mp4"
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", rotated)
    return [file.read_bytes() for file in (*files, rotated)]


def mutated(seed: int, originals: Sequence[bytes]) -> bytes:
    """Return one of the originals with one to six mutations, half of them in its first bytes."""
    rng = random.Random(seed)
    content = bytearray(rng.choice(originals))
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        if content:
            content = rng.choice(MUTATIONS)(rng, content, originals)
    return bytes(content)


def pick_offset(rng: random.Random, content: bytearray) -> int:
    """Return a random offset. Half of them are in the header, where most can go wrong."""
    return rng.randrange(len(content) if rng.random() < 0.5 else min(len(content), 600))


def flip_bits(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    for _ in range(rng.choice((1, 4, 32, 256))):
        content[pick_offset(rng, content)] ^= 1 << rng.randrange(8)
    return content


def set_extreme_number(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    """Set what may be a length, count or size to an extreme value."""
    start = pick_offset(rng, content)
    content[start : start + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(EXTREMES))
    return content


def truncate(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    return content[: pick_offset(rng, content)]


def delete_bytes(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start = pick_offset(rng, content)
    del content[start : start + rng.choice((1, 4, 64, 1000))]
    return content


def insert_noise(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start = pick_offset(rng, content)
    content[start:start] = rng.randbytes(rng.choice((1, 4, 64, 1000)))
    return content


def blank_bytes(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start, length = pick_offset(rng, content), rng.choice((1, 8, 100, 2000))
    content[start : start + length] = bytes([rng.choice((0, 0xFF))]) * len(content[start : start + length])
    return content


def repeat_bytes(rng: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start = pick_offset(rng, content)
    content[start:start] = content[start : start + rng.choice((8, 100, 2000))] * rng.choice((1, 3, 20))
    return content


def splice(rng: random.Random, content: bytearray, originals: Sequence[bytes]) -> bytearray:
    """Join the beginning of one file and the end of another."""
    other = rng.choice(originals)
    return content[: pick_offset(rng, content)] + bytearray(other[rng.randrange(len(other)) :])


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    set_extreme_number,
    truncate,
    delete_bytes,
    insert_noise,
    blank_bytes,
    repeat_bytes,
    splice,
)
