"""Video files that somebody, or a bad disk, has changed: seeded, so that each can be made again."""

import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.client.videos import clip, faststart, ffmpeg, still, with_audio

EXTREMES = (0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], bytearray]


def seeds(folder: Path) -> list[bytes]:
    """Small whole videos, a few kB each: every container that is read, and the codecs that cameras and browsers use."""
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
    turned = folder / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", plain, "-c", "copy", turned)
    return [file.read_bytes() for file in (*files, turned)]


def mutated(seed: int, originals: Sequence[bytes]) -> bytes:
    """The file of number `seed`: one of the originals with one to six changes, in its first part as often as beyond."""
    chance = random.Random(seed)
    content = bytearray(chance.choice(originals))
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        if content:
            content = chance.choice(MUTATIONS)(chance, content, originals)
    return bytes(content)


def place(chance: random.Random, content: bytearray) -> int:
    """Somewhere in a file; headers are short, and where most can go wrong."""
    return chance.randrange(len(content) if chance.random() < 0.5 else min(len(content), 600))


def flip_bits(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    for _ in range(chance.choice((1, 4, 32, 256))):
        content[place(chance, content)] ^= 1 << chance.randrange(8)
    return content


def set_a_number(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    """A length, a count or a size becomes an extreme."""
    start = place(chance, content)
    content[start : start + 4] = struct.pack(chance.choice("<>") + "I", chance.choice(EXTREMES))
    return content


def cut_off(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    return content[: place(chance, content)]


def drop(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start = place(chance, content)
    del content[start : start + chance.choice((1, 4, 64, 1000))]
    return content


def insert_noise(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start = place(chance, content)
    content[start:start] = chance.randbytes(chance.choice((1, 4, 64, 1000)))
    return content


def blank(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start, length = place(chance, content), chance.choice((1, 8, 100, 2000))
    content[start : start + length] = bytes([chance.choice((0, 0xFF))]) * len(content[start : start + length])
    return content


def repeat(chance: random.Random, content: bytearray, _: Sequence[bytes]) -> bytearray:
    start = place(chance, content)
    content[start:start] = content[start : start + chance.choice((8, 100, 2000))] * chance.choice((1, 3, 20))
    return content


def splice(chance: random.Random, content: bytearray, originals: Sequence[bytes]) -> bytearray:
    """The beginning of one file and the end of another."""
    other = chance.choice(originals)
    return content[: place(chance, content)] + bytearray(other[chance.randrange(len(other)) :])


MUTATIONS: tuple[Mutation, ...] = (flip_bits, set_a_number, cut_off, drop, insert_noise, blank, repeat, splice)
