"""Video files, some of them unusual, written by a static FFmpeg and by OpenCV."""

import os
import subprocess
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

TEXT = b"this is no video\n" * 100
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
CODECS = {".webm": "libvpx", ".avi": "mpeg4"}


def ffmpeg(*arguments: str | os.PathLike[str]) -> None:
    """Run FFmpeg. It overwrites existing files."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-nostdin", "-y", *arguments]
    subprocess.run(command, check=True)


def clip(
    path: Path,
    num_frames: int = 25,
    size: str = "64x48",
    rate: str = "25",
    filters: str = "null",
    options: Iterable[str] = (),
) -> Path:
    """Write a moving test picture. The extension chooses the container and its usual codec."""
    path.write_bytes(encode_clip(path.suffix, num_frames, size, rate, filters, tuple(options)))
    return path


@cache
def encode_clip(suffix: str, num_frames: int, size: str, rate: str, filters: str, options: tuple[str, ...]) -> bytes:
    """Return the bytes of a clip. Cached, because many tests use the same one."""
    codec = CODECS.get(suffix, "libx264")
    source = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}", "-frames:v", str(num_frames), "-vf", filters]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        ffmpeg(*source, "-c:v", codec, "-pix_fmt", "yuv420p", "-threads", "1", *options, path)
        return path.read_bytes()


def levels(path: Path, values: Iterable[int], size: tuple[int, int] = (48, 64), rate: int = 25) -> Path:
    """Write a lossless clip (.mkv) of plain gray frames, one per value."""
    raw = b"".join(bytes([value]) * size[0] * size[1] for value in values)
    shape = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{size[1]}x{size[0]}", "-r", str(rate)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *shape, "-i", "-", "-c:v", "ffv1", path]
    subprocess.run(command, input=raw, check=True)
    return path


def written_by_opencv(path: Path, frames_bgr: Iterable[np.ndarray], rate: float = 25.0) -> Path:
    """Write an mp4 (MPEG-4 part 2) with `cv2.VideoWriter`."""
    writer = None
    for frame in frames_bgr:
        height, width = frame.shape[:2]
        writer = writer or cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
        writer.write(frame)
    assert writer is not None
    writer.release()
    return path


def corners(path: Path) -> Path:
    """Write a clip of 80 x 40 pixels: blue at the top left, red at the top right, white below."""
    frame = np.full((40, 80, 3), 255, np.uint8)
    frame[:20, :40], frame[:20, 40:] = (255, 0, 0), (0, 0, 255)
    return written_by_opencv(path, [frame] * 10)


def rotated(path: Path, source: Path, degrees: int) -> Path:
    """Copy a clip and add metadata that rotates it counter-clockwise by `degrees`."""
    ffmpeg("-display_rotation", str(degrees), "-i", source, "-c", "copy", path)
    return path


def uneven(path: Path, num_frames: int = 100) -> Path:
    """Write a clip of variable frame rate: it keeps frame n if n % 3 == 0 or n % 7 > 4."""
    return clip(path, num_frames, filters="select='not(mod(n,3))+gt(mod(n,7),4)'", options=["-fps_mode", "vfr"])


def trimmed(path: Path, source: Path, start_s: float) -> Path:
    """Trim the beginning of a clip as phones do: the file keeps all frames, and an edit list hides some."""
    ffmpeg("-ss", str(start_s), "-i", source, "-c", "copy", path)
    return path


def faststart(path: Path, source: Path) -> Path:
    """Copy an mp4 with its index in front of its frames."""
    ffmpeg("-i", source, "-c", "copy", "-movflags", "+faststart", path)
    return path


def cut(path: Path, source: Path, share: float = 0.5) -> Path:
    """Copy the first part of a file."""
    content = source.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def audio_only(path: Path) -> Path:
    """Write a container with audio and no video."""
    ffmpeg("-f", "lavfi", "-i", "sine", "-t", "0.5", "-c:a", "aac", path)
    return path


def with_audio(path: Path, num_frames: int = 25, seconds: float = 2) -> Path:
    """Write a clip whose audio is longer than its video."""
    picture = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25", "-f", "lavfi", "-i", "sine"]
    coded = ["-frames:v", str(num_frames), "-t", str(seconds), "-c:v", "libx264", "-c:a", "aac"]
    ffmpeg(*picture, *coded, path)
    return path


def still(path: Path) -> Path:
    """Write a JPEG image, whatever the extension."""
    coded, picture = cv2.imencode(".jpg", np.full((48, 64, 3), 90, np.uint8))
    assert coded
    path.write_bytes(picture.tobytes())
    return path


def huge(path: Path, size: str = "15360x8640") -> Path:
    """Write a small file (.avi) with one huge plain frame."""
    source = ["-f", "lavfi", "-i", f"color=size={size}:rate=5", "-frames:v", "1"]
    ffmpeg(*source, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", path)
    return path


def playlist(path: Path, other: Path) -> Path:
    """Write a text file that FFmpeg would take for a list of files to open."""
    path.write_text(f"ffconcat version 1.0\nfile '{other}'\n")
    return path


def stream_playlist(path: Path, url: str) -> Path:
    """Write a text file that FFmpeg would take for a list of URLs to fetch."""
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n")
    return path
