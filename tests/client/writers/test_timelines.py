"""Timeline files: read back with the usual parsers, and complete or absent."""

import csv
import dataclasses
import html
import json
from pathlib import Path

import pytest
import webvtt
import xmlschema
from pympi import Elan

from asl_triton.errors import AslTritonError
from asl_triton.results import Segment, ShotBox, SignerBox, Timeline
from asl_triton.writers.timelines import COLUMNS, TIMELINES
from tests.client.conftest import Shrink
from tests.paths import EAF_SCHEMA

SCHEMA = EAF_SCHEMA
SEGMENTS = (
    Segment("book", 0, 0.0, 1.2344, 0.987654321, 0.5),
    Segment("thank you", 3, 1.2344, 2.0, 0.5, 1.5),
    Segment("<b>R&D</b> --> \"x\", 'y'", 7, 59.9996, 60.0004, 0.7, 60.0),
    Segment("été 🤟", 1, 3599.5, 3661.25, 1.0, 3600.0),
    Segment("short", 2, 36000.1, 36000.1001, 1.0, 36000.1),
)
TIMES_MS = [(0, 1234), (1234, 2000), (60000, 60001), (3599500, 3661250), (36000100, 36000101)]
NAMES = ("a.mp4", 'two "words", and\\n.mp4', "🤟/été -->.mp4")


def make_timeline(video: str = "a.mp4", segments: tuple[Segment, ...] = SEGMENTS) -> Timeline:
    return Timeline(video, "signs", segments, 900_000, 36001.0, 28124, 1.0, 2.0, ("cut off",))


def write_timeline(name: str, path: Path, one: Timeline, media: Path | None = None) -> Path:
    with TIMELINES[name](path, media) as sink:
        sink.write(one)
    return path


def read_cues(path: Path) -> list[tuple[str, int, int]]:
    """Read a WebVTT file with a third-party parser, and unescape the characters that it leaves escaped."""
    return [
        (html.unescape(c.text), c.start_time.in_milliseconds(), c.end_time.in_milliseconds()) for c in webvtt.read(path)
    ]


def test_jsonl_adds_the_box_of_each_shot_and_nothing_else_changes(tmp_path: Path) -> None:
    box = SignerBox(0.1, 0.2, 0.5, 1.0, "face", 0.667)
    boxed = dataclasses.replace(make_timeline(), signers=(ShotBox(0.0, None), ShotBox(1.3, box), ShotBox(60.5, None)))
    plain, with_boxes = (
        [json.loads(line) for line in write_timeline("jsonl", tmp_path / name, one).read_text().splitlines()]
        for name, one in (("plain.jsonl", make_timeline()), ("boxed.jsonl", boxed))
    )
    shown = {"box": [0.1, 0.2, 0.5, 1.0], "source": "face", "confidence": 0.667}
    assert [row.pop("signer", None) for row in with_boxes] == [None, shown, shown, None, None]
    assert with_boxes == plain
    for name in ("csv", "vtt"):
        one, other = (
            write_timeline(name, tmp_path / f"{n}.{name}", t) for n, t in (("plain", make_timeline()), ("boxed", boxed))
        )
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("video", NAMES)
@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_tables_round_trip(tmp_path: Path, name: str, video: str) -> None:
    path = write_timeline(name, tmp_path / f"a.{name}", make_timeline(video))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if name == "csv" else [json.loads(line) for line in file]
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert [(row["video"], row["gloss"], int(row["class_id"]), row["model"]) for row in rows] == [
        (video, segment.gloss, segment.class_id, "signs") for segment in SEGMENTS
    ]
    times_ms = [(round(float(row["start_s"]) * 1000), round(float(row["end_s"]) * 1000)) for row in rows]
    assert times_ms == TIMES_MS
    assert [(float(row["confidence"]), float(row["peak_s"])) for row in rows] == [
        (pytest.approx(segment.confidence, abs=1e-6), segment.peak_s) for segment in SEGMENTS
    ]


@pytest.mark.parametrize("video", NAMES)
def test_webvtt_parser_reads_the_subtitles(tmp_path: Path, video: str) -> None:
    path = write_timeline("vtt", tmp_path / "a.vtt", make_timeline(video))
    assert read_cues(path) == [(s.gloss, *times_ms) for s, times_ms in zip(SEGMENTS, TIMES_MS, strict=True)]
    text = path.read_text(encoding="utf-8")
    assert text.startswith("WEBVTT\n\nNOTE signs: ")
    assert "&lt;b&gt;R&amp;D&lt;/b&gt; --&gt;" in text and text.count(" --> ") == len(SEGMENTS)


def test_elan_parser_reads_the_elan_file(tmp_path: Path) -> None:
    path = write_timeline("eaf", tmp_path / "a.eaf", make_timeline())
    document = Elan.Eaf(str(path))
    assert list(document.get_tier_names()) == ["gloss", "confidence"]
    assert sorted(document.get_annotation_data_for_tier("gloss")) == sorted(
        (*times_ms, s.gloss) for s, times_ms in zip(SEGMENTS, TIMES_MS, strict=True)
    )
    found = {(start, end): (confidence, gloss) for start, end, confidence, gloss in
            document.get_ref_annotation_data_for_tier("confidence")}  # fmt: skip
    assert found == {t: (f"{s.confidence:.4f}", s.gloss) for s, t in zip(SEGMENTS, TIMES_MS, strict=True)}
    assert document.properties == [("asl_triton.model", "signs")]


@pytest.mark.parametrize("segments", [SEGMENTS, (), (Segment("\x00\x1b\ufffe\ud800", 0, 1, 2, 0.5, 1.5),)], ids=len)
def test_elan_file_is_valid_against_the_schema(tmp_path: Path, segments: tuple[Segment, ...]) -> None:
    path = write_timeline("eaf", tmp_path / "a.eaf", make_timeline(segments=segments), tmp_path / "clips" / "a.mp4")
    schema = xmlschema.XMLSchema(SCHEMA)
    schema.validate(path)
    broken = path.read_text(encoding="utf-8").replace('LINGUISTIC_TYPE_REF="of-gloss"', 'LINGUISTIC_TYPE_REF="other"')
    assert not schema.is_valid(broken)  # the schema does check references


@pytest.mark.parametrize(("media", "output", "relative", "kind"), [
    ("clips/a.mp4", "out/a.eaf", "../clips/a.mp4", "video/mp4"),
    ("a.MOV", "a.eaf", "a.MOV", "video/quicktime"),
    ("a & b/été.webm", "x/y/a.eaf", "../../a & b/été.webm", "unknown"),
], ids=str)  # fmt: skip
def test_elan_file_links_the_video_relative_to_its_own_path(
    tmp_path: Path, media: str, output: str, relative: str, kind: str
) -> None:
    path = tmp_path / output
    path.parent.mkdir(parents=True, exist_ok=True)
    write_timeline("eaf", path, make_timeline(), tmp_path / media)
    (linked,) = Elan.Eaf(str(path)).get_linked_files()
    assert linked == {
        "MEDIA_URL": f"file://{(tmp_path / media).as_posix()}",
        "RELATIVE_MEDIA_URL": relative,
        "MIME_TYPE": kind,
    }
    assert (path.parent / linked["RELATIVE_MEDIA_URL"]).resolve() == tmp_path / media


@pytest.mark.parametrize("name", TIMELINES)
def test_video_without_signs_has_a_file_too(tmp_path: Path, name: str) -> None:
    path = write_timeline(name, tmp_path / f"a.{name}", make_timeline(segments=()))
    if name == "vtt":
        assert read_cues(path) == []
    elif name == "eaf":
        assert not Elan.Eaf(str(path)).get_annotation_data_for_tier("gloss")
    else:
        assert path.read_text().splitlines() == ([",".join(COLUMNS)] if name == "csv" else [])


@pytest.mark.parametrize("name", TIMELINES)
def test_file_is_complete_or_unchanged(disk: tuple[Path, Shrink], name: str) -> None:
    folder, shrink = disk
    path = folder / f"a.{name}"
    path.write_text("of an earlier run")
    many = dataclasses.replace(make_timeline(), segments=SEGMENTS * 2000)
    with shrink(4096), pytest.raises(AslTritonError, match=f"cannot write {path}: .*Make room, or choose another"):
        write_timeline(name, path, many)
    assert path.read_text() == "of an earlier run"
    assert [left.name for left in folder.iterdir()] == [path.name]
    write_timeline(name, path, make_timeline())
    assert path.read_text() != "of an earlier run"
