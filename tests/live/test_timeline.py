"""Timelines from the demo checkpoint in a real Triton: a film of the demo signer, and common mistakes."""

import csv
import json
from fractions import Fraction
from pathlib import Path

import av
import pytest
import webvtt
import xmlschema
from pympi import Elan

from asl_triton.recognizer.sync_client import Recognizer
from asl_triton.results import Segment, Timeline
from asl_triton_deploy.local import LocalTriton
from tests.benchmarks.film import FPS, SIZE, FilmSign, write_film
from tests.command_line import asl_triton
from tests.live.conftest import write_clip
from tests.paths import EAF_SCHEMA

Capture = pytest.CaptureFixture[str]
SCHEMA = EAF_SCHEMA
SEED = 7_500_000
BORDER_S = 0.64  # two steps; the benchmark measures the typical error


@pytest.fixture(scope="module")
def triton(fast_demo_triton: LocalTriton) -> LocalTriton:
    return fast_demo_triton


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[FilmSign]]:
    """Write a film of two scenes of three signs with pauses; return it with its signs."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return path, write_film(path, seconds=36, signs=6, signs_per_scene=3, seed=SEED)


@pytest.fixture(scope="module")
def timeline(triton: LocalTriton, film: tuple[Path, list[FilmSign]]) -> Timeline:
    with Recognizer(triton.address) as recognizer:
        return recognizer.timeline(film[0])


def check_segments(segments: tuple[Segment, ...], signed: list[FilmSign]) -> None:
    """Check that exactly these signs are found, at the right times."""
    assert [segment.gloss for segment in segments] == [sign.gloss for sign in signed]
    for segment, sign in zip(segments, signed, strict=True):
        assert (segment.start_s, segment.end_s) == pytest.approx((sign.start_s, sign.end_s), abs=BORDER_S), sign


def write_uneven(path: Path, source: Path) -> Path:
    """Copy a film, dropping every fourth frame of the second half. The other frames keep their times."""
    with av.open(str(source)) as film, av.open(str(path), "w") as container:
        frames = film.streams.video[0].frames
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, frame in enumerate(film.decode(video=0)):
            if number < frames // 2 or number % 4:
                frame.pts, frame.time_base = round(number / FPS * 1000), Fraction(1, 1000)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_film_has_a_segment_for_each_sign_at_the_right_time(
    timeline: Timeline, film: tuple[Path, list[FilmSign]]
) -> None:
    check_segments(timeline.segments, film[1])
    assert (timeline.video, timeline.model) == (str(film[0]), "demo")
    assert timeline.duration_s == pytest.approx(timeline.num_frames / FPS) == pytest.approx(36, abs=0.2)


def test_film_with_a_variable_frame_rate_has_the_same_segments(
    triton: LocalTriton, film: tuple[Path, list[FilmSign]], tmp_path: Path
) -> None:
    path = write_uneven(tmp_path / "uneven.mp4", film[0])
    with Recognizer(triton.address) as recognizer:
        found = recognizer.timeline(path)
    assert 780 < found.num_frames < 800  # counting frames would put the last sign four seconds too early
    assert found.duration_s == pytest.approx(36, abs=0.2)
    check_segments(found.segments, film[1])


def test_all_formats_contain_the_same_segments(
    triton: LocalTriton, timeline: Timeline, film: tuple[Path, list[FilmSign]], tmp_path: Path, capsys: Capture
) -> None:
    folder, output = tmp_path / "films", tmp_path / "out"
    (folder / "deeper").mkdir(parents=True)
    (folder / "deeper" / "film.mp4").write_bytes(film[0].read_bytes())
    options = ["--server", triton.address, "--output", output, "--timeline", "--format", "csv,jsonl,vtt,eaf"]
    done = asl_triton(capsys, "batch", folder, *options)
    assert done.code == 0, done.output
    assert "deeper/film.mp4" in done.out and f"{len(film[1])}" in done.out
    expected = [(s.gloss, round(s.start_s * 1000), round(s.end_s * 1000)) for s in timeline.segments]
    stem = output / "deeper" / "film"
    with stem.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        tables = [list(csv.DictReader(file))]
    tables.append([json.loads(line) for line in stem.with_suffix(".jsonl").read_text().splitlines()])
    for rows in tables:
        assert [
            (row["gloss"], round(float(row["start_s"]) * 1000), round(float(row["end_s"]) * 1000)) for row in rows
        ] == expected
    captions = webvtt.read(stem.with_suffix(".vtt"))
    assert [(c.text, c.start_time.in_milliseconds(), c.end_time.in_milliseconds()) for c in captions] == expected
    xmlschema.XMLSchema(SCHEMA).validate(stem.with_suffix(".eaf"))
    document = Elan.Eaf(str(stem.with_suffix(".eaf")))
    annotations = sorted(document.get_annotation_data_for_tier("gloss"))
    assert [(gloss, start, end) for start, end, gloss in annotations] == expected
    assert document.get_linked_files()[0]["RELATIVE_MEDIA_URL"] == "../../films/deeper/film.mp4"


def test_bad_films_are_reported_and_others_written(triton: LocalTriton, tmp_path: Path, capsys: Capture) -> None:
    folder, output = tmp_path / "films", tmp_path / "out"
    write_clip(folder / "good.mp4", num_frames=30)
    write_clip(folder / "one frame.mp4", num_frames=1)
    (folder / "empty.mp4").touch()
    (folder / "text.mov").write_text("this is no video\n" * 50)
    (folder / "cut.mp4").write_bytes((folder / "good.mp4").read_bytes()[:300])
    done = asl_triton(capsys, "batch", folder, "--server", triton.address, "--output", output, "--timeline", "--json")
    assert done.code == 3
    errors = {
        line["video"]: line["error"] for line in map(json.loads, (output / "errors.jsonl").read_text().splitlines())
    }
    assert set(errors) == {"empty.mp4", "text.mov", "cut.mp4"}
    assert "is empty (0 bytes)" in errors["empty.mp4"] and "something else" in errors["text.mov"]
    written = {path.name for path in output.iterdir()} - {"errors.jsonl", "journal.jsonl"}
    assert written == {f"{stem}.{name}" for stem in ("good", "one frame") for name in ("csv", "jsonl")}


@pytest.mark.parametrize(("options", "error"), [
    (["--window", "8"], "--window 8 is out of range: preset 'wlasl' accepts 9 to 300 frames"),
    (["--window", "301"], "--window 301 is out of range"),
    (["--stride", "65"], "--stride 65 is out of range: windows of 64 frames need 1 to 64"),
    (["--vocabulary", "words.txt"], "does not know 1 of the 2 glosses in the vocabulary: xylophone"),
    (["--output", "words.txt"], "Choose another folder with --output"),
], ids=" ".join)  # fmt: skip
def test_invalid_option_is_an_error(
    triton: LocalTriton,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clips/a.mp4"), num_frames=9)
    Path("words.txt").write_text("book\nxylophone\n")
    done = asl_triton(capsys, "batch", "clips", "--server", triton.address, "--timeline", *options)
    assert done.code == 1
    assert error in done.output
