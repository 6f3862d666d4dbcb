"""Real video files: every frame, in order, at its time and upright, or a warning."""

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from asl_triton.decoding.factory import open_frames
from asl_triton.errors import VideoError
from asl_triton.video.colors import make_upright
from asl_triton.video.reader import Frame, open_video
from tests.client import videos

WIDE, HIGH = 96, 64


def read_video(path: Path) -> tuple[list[Frame], list[str], int]:
    """Return the frames, the warnings, and the number of lost frames."""
    with open_video(path) as video:
        return list(video), video.warnings, video.lost_frames


def count_with_ffmpeg(path: Path) -> int:
    """Count the frames that the ffmpeg program decodes."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(path)]
    shown = subprocess.run([*command, "-map", "0:V:0", "-fps_mode", "passthrough", "-f", "framemd5", "-"],
                           capture_output=True, text=True)  # fmt: skip
    return sum(not line.startswith("#") for line in shown.stdout.splitlines())


@pytest.mark.parametrize(("name", "count", "first_s", "last_s", "lost", "warns"), [
    ("good.mp4", 77, 0, 3.167, 0, ""),
    ("bad_zero.mp4", 76, 0, 3.167, 1, "damaged: 1 of 77 frames could not be decoded"),
    ("film_damaged_faststart.mp4", 432, 0, 18.0, 1, "damaged: 1 of 433 frames could not be decoded"),
    ("mjpeg_422_420.avi", 40, 0, 1.56, 0, ""),
    ("mjd_3840x2160.avi", 3, 0, 0.08, 0, ""),
    ("hflip.mp4", 77, 0, 3.167, 0, ""),
    ("dup_times.webm", 433, 0, 18.0, 0, ""),
    ("tagged3.mp4", 77, 0, 3.167, 0, ""),
    ("late.mp4", 77, 1.5, 4.667, 0, ""),
    ("nodef.webm", 385, 0, 12.787, 0, ""),
    ("h265_nokey.mkv", 516, 4.125, 25.583, 99, "damaged: 99 of 615 frames could not be decoded, including the first "
     "4.1 s, so the answer may be wrong"),
])  # fmt: skip
def test_zoo_file_is_read_with_its_times_and_warnings(
    shared_folder: Path, name: str, count: int, first_s: float, last_s: float, lost: int, warns: str
) -> None:
    frames, warnings, num_lost = read_video(shared_folder / "zoo" / name)
    assert len(frames) == count
    assert (frames[0].time_s, frames[-1].time_s) == pytest.approx((first_s, last_s), abs=0.001)
    assert (num_lost, warnings) == (lost, [warns] if warns else [])
    times_s = [frame.time_s for frame in frames]
    assert all(before < after for before, after in itertools.pairwise(times_s))
    with open_frames(shared_folder / "zoo" / name) as video:  # in a decoder process
        assert [frame.time_s for frame in video] == times_s
        assert video.warnings == warnings


def test_equal_timestamps_are_spread_out(shared_folder: Path) -> None:
    times_s = [frame.time_s for frame in read_video(shared_folder / "zoo" / "dup_times.webm")[0]]
    assert np.diff(times_s).max() < 0.05  # 24 frames per second, three of which share a timestamp


def test_mirrored_file_is_flipped_horizontally(shared_folder: Path) -> None:
    with open_video(shared_folder / "zoo" / "hflip.mp4") as video:
        upright = next(iter(video)).image
    with av.open(str(shared_folder / "zoo" / "hflip.mp4")) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="bgr24")
    assert np.abs(upright[:, ::-1].astype(int) - stored).mean() < 2


def test_changing_pixel_format_keeps_the_colors(shared_folder: Path) -> None:
    frames = read_video(shared_folder / "zoo" / "mjpeg_422_420.avi")[0]
    means = np.array([frame.image.mean(axis=(0, 1)) for frame in frames])
    assert np.abs(means - means[0]).max() < 12


# The eight display matrices, and what they make of an image with 1 and 2 at the top and 3 and 4 at the bottom.
MATRICES = {
    "as it is": ((1, 0, 0, 1), [[1, 2], [3, 4]]),
    "mirrored": ((-1, 0, 0, 1), [[2, 1], [4, 3]]),
    "upside down, mirrored": ((1, 0, 0, -1), [[3, 4], [1, 2]]),
    "turned by 180 degrees": ((-1, 0, 0, -1), [[4, 3], [2, 1]]),
    "turned to the right": ((0, 1, -1, 0), [[3, 1], [4, 2]]),
    "turned to the left": ((0, -1, 1, 0), [[2, 4], [1, 3]]),
    "transposed": ((0, 1, 1, 0), [[1, 3], [2, 4]]),
    "transposed the other way": ((0, -1, -1, 0), [[4, 2], [3, 1]]),
}


@pytest.mark.parametrize("how", MATRICES)
def test_every_display_matrix_is_applied(how: str) -> None:
    (a, b, c, d), seen = MATRICES[how]
    unit = 1 << 16
    matrix = np.array([[a * unit, b * unit, 0], [c * unit, d * unit, 0], [0, 0, 1 << 30]], np.int32)
    image = np.array([[1, 2], [3, 4]], np.uint8)[..., None].repeat(3, axis=2)
    assert make_upright(image, matrix)[..., 0].tolist() == seen


@pytest.mark.parametrize(("degrees", "flips"), [
    (0, ()), (90, ()), (180, ()), (270, ()), (0, ("-display_hflip",)), (0, ("-display_vflip",)),
    (90, ("-display_hflip",)), (270, ("-display_hflip",)),
])  # fmt: skip
def test_phone_video_is_rotated_as_in_players(tmp_path: Path, degrees: int, flips: Sequence[str]) -> None:
    source = videos.corners(tmp_path / "corners.mp4")
    path, seen = tmp_path / "turned.mp4", tmp_path / "seen.mp4"
    videos.ffmpeg("-display_rotation", str(degrees), *flips, "-i", source, "-c", "copy", path)
    videos.ffmpeg("-i", path, "-c:v", "libx264", "-qp", "0", seen)  # FFmpeg applies the rotation when it converts
    ours, theirs = read_video(path)[0][0].image, read_video(seen)[0][0].image
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean() < 8


CODECS: dict[str, tuple[str, list[str]]] = {
    "h264.mp4": ("libx264", ["-bf", "2"]), "h264.mkv": ("libx264", ["-bf", "2"]), "h264.ts": ("libx264", ["-bf", "2"]),
    "h264.flv": ("libx264", []), "h264.avi": ("libx264", ["-bf", "0"]), "h264.3gp": ("libx264", []),
    "h264.mts": ("libx264", []), "h264.mov": ("libx264", ["-bf", "2"]),
    "hevc.mp4": ("libx265", ["-x265-params", "log-level=none"]),
    "hevc.mkv": ("libx265", ["-x265-params", "log-level=none"]),
    "vp8.webm": ("libvpx", []), "vp9.webm": ("libvpx-vp9", []), "vp9.mp4": ("libvpx-vp9", []),
    "av1.mp4": ("libaom-av1", ["-cpu-used", "8"]), "av1.webm": ("libaom-av1", ["-cpu-used", "8"]),
    "mpeg4.avi": ("mpeg4", ["-bf", "2"]), "mpeg4.mp4": ("mpeg4", []), "xvid.mkv": ("mpeg4", []),
    "mpeg2.mpg": ("mpeg2video", ["-bf", "2"]), "mpeg2.vob": ("mpeg2video", ["-f", "vob"]),
    "mpeg1.mpeg": ("mpeg1video", []),
    "wmv2.wmv": ("wmv2", []), "wmv1.asf": ("wmv1", []), "theora.ogv": ("libtheora", []), "mjpeg.avi": ("mjpeg", []),
    "mjpeg.mov": ("mjpeg", []), "flv1.flv": ("flv", []), "anim.gif": ("gif", []), "mpeg2.mxf": ("mpeg2video", []),
    "prores.mov": ("prores_ks", []), "ffv1.mkv": ("ffv1", []),
}  # fmt: skip
PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "prores_ks": "yuv422p10le"}


def write_video(folder: Path, kind: str, num_frames: int = 50) -> Path:
    """Write a moving picture in one of `CODECS`."""
    codec, options = CODECS[kind]
    source = ["-f", "lavfi", "-i", f"testsrc2=size={WIDE}x{HIGH}:rate=25", "-frames:v", str(num_frames)]
    videos.ffmpeg(*source, "-c:v", codec, "-pix_fmt", PIXELS.get(codec, "yuv420p"), "-g", "10", *options, folder / kind)
    return folder / kind


@pytest.mark.parametrize("kind", CODECS)
def test_codec_and_container_give_every_frame_at_its_time(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path, kind)
    frames, warnings, lost = read_video(path)
    assert (len(frames), lost, warnings) == (50, 0, [])
    assert [frame.time_s for frame in frames] == pytest.approx([n / 25 for n in range(50)], abs=0.002)
    reference = read_video(write_video(tmp_path, "ffv1.mkv"))[0]
    for index in (0, 24, 49):  # the same pictures in the same order
        off = np.abs(frames[index].image.astype(int) - reference[index].image).mean()
        assert off < 25, f"frame {index} is off by {off}"


def filter_packets(path: Path, how: str) -> Path:
    """Damage or drop packets of a video with FFmpeg's bitstream filter `noise`."""
    damaged = path.with_stem(f"{path.stem}-damaged")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-nostdin",
        "-y",
        "-i",
        path,
        "-c",
        "copy",
        "-copyts",
    ]
    subprocess.run([*command, "-bsf:v", f"noise={how}", damaged])  # reports an error but continues
    assert damaged.stat().st_size > 0.5 * path.stat().st_size
    return damaged


def zero_packet(path: Path, index: int) -> Path:
    """Overwrite a packet of a video with zeros."""
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(container.streams.video[0]), index, None))
    damaged, content = path.with_stem(f"{path.stem}-damaged"), bytearray(path.read_bytes())
    assert packet.pos is not None
    content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    damaged.write_bytes(content)
    return damaged


@pytest.mark.parametrize("kind", [
    "h264.mp4", "h264.mkv", "h264.ts", "hevc.mp4", "hevc.mkv", "vp9.webm", "av1.mp4", "mjpeg.avi", "mpeg4.avi",
    "vp8.webm",
])  # fmt: skip
@pytest.mark.parametrize("index", [0, 1, 10, 24, 49])
def test_damaged_packet_loses_few_frames_and_gives_a_warning(tmp_path: Path, kind: str, index: int) -> None:
    whole = write_video(tmp_path, kind)
    damage = f"amount='eq(n,{max(index, 1)})'"  # FFmpeg cannot write a .ts without the parameters in the first packet
    path = filter_packets(whole, damage) if kind.endswith(".ts") else zero_packet(whole, index)
    expected = count_with_ffmpeg(path)
    frames, warnings, lost = read_video(path)
    assert abs(len(frames) - expected) <= 1 or warnings
    # With the other containers, FFmpeg resynchronizes and does not report the packets in between.
    assert len(frames) == 50 or warnings or not kind.endswith((".mp4", ".avi"))
    assert bool(warnings) == bool(lost)
    times_s = [frame.time_s for frame in frames]
    assert all(before < after for before, after in itertools.pairwise(times_s))
    assert times_s[-1] == pytest.approx(49 / 25, abs=0.05) or index == 49 or len(frames) < 45


@pytest.mark.parametrize("kind", ["h264.mkv", "h264.ts", "hevc.mkv", "hevc.mp4", "vp9.webm", "mpeg4.mp4", "mpeg2.mpg"])
def test_recording_that_starts_between_keyframes_has_no_gray_frames(tmp_path: Path, kind: str) -> None:
    path = filter_packets(write_video(tmp_path, kind), "drop='eq(n,0)'")
    frames, warnings, lost = read_video(path)
    assert 38 <= len(frames) <= 42
    assert lost >= 7 and len(warnings) == 1 and "could not be decoded" in warnings[0]
    for frame in frames:
        gray = (np.abs(frame.image.astype(int) - 128).max(axis=2) < 24).mean()
        assert gray < 0.3


def test_default_track_is_preferred_then_the_largest(tmp_path: Path) -> None:
    small, large = "testsrc2=size=64x64:rate=25", f"color=red:size={2 * WIDE}x{2 * HIGH}:rate=25"
    other = f"color=blue:size={2 * WIDE}x{2 * HIGH}:rate=25"
    inputs = [value for source in (small, large, other) for value in ("-f", "lavfi", "-i", source)]
    maps = ["-map", "0:v", "-map", "1:v", "-map", "2:v", "-frames:v", "10", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
    path = tmp_path / "tracks.mkv"
    videos.ffmpeg(*inputs, *maps, "-disposition:0", "default", "-disposition:1", "0", "-disposition:2", "0", path)
    assert read_video(path)[0][0].image.mean(axis=(0, 1)).argmax() == 2  # red: the first large one
    videos.ffmpeg(*inputs, *maps, "-disposition:0", "0", "-disposition:1", "0", "-disposition:2", "default", path)
    assert read_video(path)[0][0].image.mean(axis=(0, 1)).argmax() == 0  # blue: the default


def test_audio_with_cover_art_is_not_a_video(tmp_path: Path) -> None:
    cover = videos.still(tmp_path / "cover.jpg")
    path = tmp_path / "song.m4v"
    videos.ffmpeg("-f", "lavfi", "-i", "sine", "-i", cover, "-map", "0", "-map", "1", "-t", "1", "-c:a", "aac",
                  "-c:v", "mjpeg", "-disposition:v:0", "attached_pic", "-f", "mp4", path)  # fmt: skip
    with pytest.raises(VideoError, match="it is audio only"):
        read_video(path)


@pytest.mark.parametrize(("options", "warns"), [
    (["-vf", "tinterlace=interleave_top,setfield=tff", "-flags", "+ildct+ilme"], "interlaced: "),
    (["-vf", "setparams=color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc"], "HDR (PQ): "),
    (["-vf", "setparams=color_trc=arib-std-b67:color_primaries=bt2020:colorspace=bt2020nc"], "HDR (HLG): "),
], ids=["interlaced", "PQ", "HLG"])  # fmt: skip
def test_interlaced_and_hdr_videos_give_a_warning(tmp_path: Path, options: list[str], warns: str) -> None:
    path = tmp_path / "clip.mp4"
    source = ["-f", "lavfi", "-i", f"testsrc2=size={WIDE}x{HIGH}:rate=25", "-frames:v", "20"]
    videos.ffmpeg(*source, "-c:v", "libx264", "-pix_fmt", "yuv420p", *options, path)
    frames, warnings, lost = read_video(path)
    assert (len(frames), lost, len(warnings)) == (20, 0, 1)
    assert warnings[0].startswith(warns)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv422p", "yuv444p", "gbrp"])
def test_other_pixel_formats_give_the_same_picture(tmp_path: Path, pixels: str) -> None:
    source = ["-f", "lavfi", "-i", f"smptebars=size={WIDE}x{HIGH}:rate=25", "-frames:v", "3"]
    path, plain = tmp_path / "clip.mkv", tmp_path / "plain.mkv"
    videos.ffmpeg(*source, "-c:v", "ffv1", "-pix_fmt", pixels, path)
    videos.ffmpeg(*source, "-c:v", "ffv1", "-pix_fmt", "yuv420p", plain)
    off = np.abs(read_video(path)[0][0].image.astype(int) - read_video(plain)[0][0].image).mean()
    assert off < 6


def test_full_range_is_honored(tmp_path: Path) -> None:
    path = tmp_path / "full.mkv"
    videos.ffmpeg("-f", "lavfi", "-i", f"color=white:size={WIDE}x{HIGH}:rate=25", "-frames:v", "3", "-c:v", "libx264",
                  "-vf", "scale=out_range=full", "-color_range", "pc", "-pix_fmt", "yuvj420p", path)  # fmt: skip
    assert read_video(path)[0][0].image.min() >= 252


def test_non_square_pixels_are_not_scaled(tmp_path: Path) -> None:
    path = videos.clip(tmp_path / "wide.mp4", num_frames=3, size="72x64", filters="setsar=16/11")
    assert read_video(path)[0][0].image.shape == (64, 72, 3)


def test_files_without_a_video_extension_are_skipped(tmp_path: Path) -> None:
    from asl_triton.video.discovery import find_clips, find_skipped

    for name in ("a.mp4", "b.3GP", "c.mts", "notes.txt", "deep/photo.jpg", ".hidden", "__MACOSX/._a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [clip.name for clip in find_clips(tmp_path)] == ["a.mp4", "b.3GP", "c.mts"]
    assert find_skipped(tmp_path) == ["deep/photo.jpg", "notes.txt"]
