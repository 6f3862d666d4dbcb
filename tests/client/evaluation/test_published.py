"""WLASL, ASL Citizen and MS-ASL as published, with their boxes, times and signers."""

import json
from pathlib import Path

import numpy as np
import pytest

from asl_triton.errors import AslTritonError, LabelsError, VideoError
from asl_triton.evaluation.dataset import Dataset, read_dataset
from asl_triton.evaluation.scoring import ClassMapping, score_clips
from asl_triton.presets import PRESETS
from asl_triton.recognizer.async_client import AsyncRecognizer
from asl_triton.results import SignerBox
from asl_triton.video.excerpt import Excerpt
from tests.client import videos
from tests.client.served import GLOSSES, fake

YOUTUBE = "https://www.youtube.com/watch?v="


def create_files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write_video(path: Path, width: int, height: int) -> Path:
    """Write a video with frames of this size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return videos.written_by_opencv(path, [np.full((height, width, 3), 90, np.uint8)] * 5)


def make_instance(video_id: str, **values: object) -> dict[str, object]:
    """Make an instance as in WLASL_v0.3.json."""
    defaults = {
        "bbox": [234, 17, 524, 414], "fps": 25, "frame_start": 1, "frame_end": -1, "instance_id": 0, "signer_id": 5,
        "source": "x", "split": "train", "url": "http://x/a.mp4", "variation_id": 0, "video_id": video_id,
    }  # fmt: skip
    return defaults | values


def write_wlasl(path: Path, **glosses: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps([{"gloss": gloss, "instances": instances} for gloss, instances in glosses.items()]))
    return path


def make_sign(
    youtube_id: str, start_s: float, end_s: float, label: int, text: str, **values: object
) -> dict[str, object]:
    """Make a sign as in MSASL_train.json, where boxes are top, left, bottom, right."""
    defaults = {
        "org_text": text, "clean_text": text, "start_time": start_s, "end_time": end_s, "signer_id": 7, "signer": 0,
        "start": 0, "end": 9, "file": "f", "label": label, "height": 360.0, "fps": 30.0, "width": 640.0, "text": text,
        "url": f"www.youtube.com/watch?v={youtube_id}", "box": [0.05, 0.2, 1.0, 0.8], "review": 1,
    }  # fmt: skip
    return defaults | values


def test_wlasl_has_boxes_signers_splits_and_glosses_in_class_order(tmp_path: Path) -> None:
    write_video(tmp_path / "videos" / "07068.mp4", 736, 414)
    data = write_wlasl(
        tmp_path / "WLASL_v0.3.json", book=[make_instance("07068"), make_instance("2", split="test")], drink=[]
    )
    dataset = read_dataset(data)
    assert (dataset.glosses, dataset.missing, dataset.has_subsets) == (("book", "drink"), ("2",), True)
    (clip,) = dataset.clips
    assert (clip.name, clip.gloss, clip.class_id, clip.subset, clip.signer_id) == ("07068", "book", 0, "train", "5")
    assert clip.signer == SignerBox.from_pixels((234, 17, 524, 414), 736, 414, source="dataset")
    assert clip.excerpt is None


@pytest.mark.parametrize(("first", "last", "excerpt"), [
    (1, -1, None), (42, 98, Excerpt(41, 97)), (42, -1, Excerpt(41)), (1, 60, Excerpt(0, 59)),
])  # fmt: skip
def test_untrimmed_videos_of_wlasl_are_cut_at_its_frame_numbers(
    tmp_path: Path, first: int, last: int, excerpt: Excerpt | None
) -> None:
    untrimmed = make_instance("07068", url=f"{YOUTUBE}dQw4w9WgXcQ", frame_start=first, frame_end=last, bbox=None)
    data = write_wlasl(tmp_path / "WLASL_v0.3.json", book=[untrimmed])
    create_files(tmp_path / "raw", "dQw4w9WgXcQ.mp4")
    (clip,) = read_dataset(data, videos=tmp_path / "raw").clips
    assert (clip.path.name, clip.excerpt) == ("dQw4w9WgXcQ.mp4", excerpt)
    create_files(tmp_path / "raw", "07068.mp4")  # a clip cut by WLASL's preprocessing takes precedence
    (clip,) = read_dataset(data, videos=tmp_path / "raw").clips
    assert (clip.path.name, clip.excerpt) == ("07068.mp4", None)


def test_boxes_that_are_missing_or_do_not_fit_are_reported(tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4"):
        write_video(tmp_path / "videos" / f"{name}.mp4", 256, 256)
    create_files(tmp_path / "videos", "5.mp4")
    bad = [
        make_instance("1", bbox=None),
        make_instance("2", bbox=[300, 0, 200, 10]),
        make_instance("3"),
        make_instance("5"),
    ]
    data = write_wlasl(tmp_path / "WLASL_v0.3.json", book=[*bad, make_instance("4", bbox=[10, 20, 250, 258])])
    dataset = read_dataset(data)
    assert [clip.name for clip in dataset.clips if clip.signer] == ["4"]
    assert any("2 clips have no signer's box" in warning for warning in dataset.warnings)
    assert any("2 boxes are outside the frame" in warning for warning in dataset.warnings)


def write_citizen(folder: Path) -> Path:
    """Write a small data set in the form of ASL Citizen."""
    create_files(folder / "videos", "1-DOG.mp4", "2-CAT.mp4", "3-DOG.mp4", "4-CAT.mp4")
    header = "Participant ID,Video file,Gloss,ASL-LEX Code\n"
    (folder / "splits").mkdir()
    (folder / "splits" / "train.csv").write_text(f"{header}P1,1-DOG.mp4,DOG ,A_1\nP1,2-CAT.mp4,CAT,A_2\n")
    (folder / "splits" / "val.csv").write_text(f"{header}P2,3-DOG.mp4,DOG,A_1\n")
    (folder / "splits" / "test.csv").write_text(f"{header}P3,4-CAT.mp4,CAT,A_2\nP3,9-CAT.mp4,CAT,A_2\n")
    return folder


def summarize(dataset: Dataset) -> list[tuple[str, str, str | None, str | None]]:
    return [(clip.name, clip.gloss, clip.subset, clip.signer_id) for clip in dataset.clips]


def test_asl_citizen_is_read_from_a_split_or_a_folder(tmp_path: Path) -> None:
    folder = write_citizen(tmp_path)
    test = read_dataset(folder / "splits" / "test.csv", labels=("CAT", "DOG", "ZOO"))
    assert summarize(test) == [("4-CAT.mp4", "CAT", "test", "P3")]
    assert (test.missing, test.warnings, test.glosses) == (("9-CAT.mp4",), (), ("CAT", "DOG", "ZOO"))
    whole = read_dataset(folder)
    assert [clip.subset for clip in whole.clips] == ["train", "train", "val", "test"]
    assert whole.glosses == ("CAT", "DOG") and whole.has_subsets
    assert summarize(read_dataset(folder, subset="val")) == [("3-DOG.mp4", "DOG", "val", "P2")]


def test_gloss_missing_from_the_labels_is_left_out_and_reported(tmp_path: Path) -> None:
    dataset = read_dataset(write_citizen(tmp_path), labels=("cat", "bird"))
    assert [clip.gloss for clip in dataset.clips] == ["cat", "cat"]
    assert dataset.unknown == ("DOG",)
    assert "1 gloss is not among the labels, and 2 clips are left out: DOG" in dataset.warnings


def test_msasl_has_times_boxes_and_signers(tmp_path: Path) -> None:
    signs = [
        make_sign("aaaaaaaaaaa", 1.5, 3.25, 1, "nice"),
        make_sign("aaaaaaaaaaa", 4.0, 5.0, 0, "hello", box=[0.9, 0.2, 0.1, 0.8], signer_id=-1),
        make_sign("bbbbbbbbbbb", 2.0, 4.5, 0, "hello"),
        make_sign("bbbbbbbbbbb", 2.0, 4.5, 0, "hello"),
        make_sign("ccccccccccc", 0.0, 1.0, 0, "hello"),
    ]
    (tmp_path / "MSASL_val.json").write_text(json.dumps(signs))
    create_files(tmp_path / "videos", "aaaaaaaaaaa.mp4", "val/bbbbbbbbbbb_000002_000004.mp4")
    dataset = read_dataset(tmp_path / "MSASL_val.json")
    assert dataset.glosses == ("hello", "nice")
    assert summarize(dataset) == [
        ("aaaaaaaaaaa_1.5_3.25", "nice", "val", "7"), ("aaaaaaaaaaa_4_5", "hello", "val", None),
        ("bbbbbbbbbbb_2_4.5", "hello", "val", "7"), ("bbbbbbbbbbb_2_4.5#2", "hello", "val", "7"),
    ]  # fmt: skip
    assert dataset.missing == ("ccccccccccc_0_1",)
    first, second, trimmed, _ = dataset.clips
    assert (first.excerpt, trimmed.excerpt) == (Excerpt(start_s=1.5, end_s=3.25), None)
    assert first.signer == SignerBox(0.2, 0.05, 0.8, 1.0, source="dataset") and second.signer is None
    assert any("1 clip has no signer's box" in warning for warning in dataset.warnings)
    assert read_dataset(tmp_path).clips == dataset.clips  # from the folder


BROKEN: dict[str, tuple[str, str]] = {
    "a.json": ('[{"word": "book"}]', "is neither WLASL's list of glosses"),
    "b.json": ("[1, 2]", "is neither WLASL's list of glosses"),
    "c.json": ("[", "is not JSON"),
    "d.json": ('[{"gloss": "book", "instances": [{"split": "test"}]}]', "'video_id' is missing in"),
    "e.json": ('[{"gloss": "book", "instances": [7]}]', "in {"),
    "f.json": ('[{"gloss": "book", "instances": [{"video_id": "1", "split": "a", "url": "v=aaaaaaaaaaa", '
               '"frame_start": 9, "frame_end": 3}]}]', "must end after it begins"),
    "g.json": ('[{"url": "v=aaaaaaaaaaa", "label": 0, "text": "a", "start_time": 2, "end_time": 1}]', "must end after"),
    "h.json": ('[{"url": "v=aaaaaaaaaaa", "label": "x", "text": "a", "start_time": 1, "end_time": 2}]', "invalid"),
    "i.csv": ("", "is not a split of ASL Citizen"),
    "j.csv": ("a,b,c\n1,2,3\n", "is not a split of ASL Citizen"),
    "k.csv": ("Participant ID,Video file,Gloss\nP1,1.mp4\n", "line 2: expected participant, video file and gloss"),
    "l.csv": ("Participant ID,Video file,Gloss\nP1,1.mp4,\n", "line 2: expected participant, video file and gloss"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_file_that_is_not_a_data_set_is_a_clear_error(name: str, tmp_path: Path) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoError) as raised:
        read_dataset(tmp_path / name)
    assert message in str(raised.value) and name in str(raised.value)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({"subset": "dev"}, VideoError, r"no video in the subset 'dev': it has test \(2\)"),
    ({"videos": Path("nowhere")}, VideoError, r"No such file or directory. Name their folder with --videos"),
    ({"labels": ("zebra",)}, LabelsError, "from another vocabulary"),
])  # fmt: skip
def test_unusable_data_set_is_a_clear_error(
    tmp_path: Path, arguments: dict[str, object], error: type[AslTritonError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_dataset(write_citizen(tmp_path) / "splits" / "test.csv", **arguments)  # type: ignore[arg-type]


def test_data_set_without_videos_is_a_clear_error(tmp_path: Path) -> None:
    folder = write_citizen(tmp_path)
    create_files(tmp_path / "other", "x.mp4")
    with pytest.raises(VideoError, match=r"none of the 2 videos .* \(such as 4-CAT.mp4\): name their folder"):
        read_dataset(folder / "splits" / "test.csv", videos=tmp_path / "other")


def test_real_clips_get_their_official_boxes(shared_folder: Path, tmp_path: Path) -> None:
    instances = [make_instance("07068"), make_instance("07069", bbox=[462, 44, 949, 720], split="val", signer_id=-1)]
    data = write_wlasl(tmp_path / "WLASL_v0.3.json", book=instances)
    first, second = read_dataset(data, videos=shared_folder / "wlasl" / "videos").clips
    assert first.signer == SignerBox(234 / 736, 17 / 414, 524 / 736, 1.0, source="dataset")
    assert second.signer == SignerBox(462 / 1280, 44 / 720, 949 / 1280, 1.0, source="dataset")


def test_clips_are_scored_within_their_boxes_and_times(tmp_path: Path) -> None:
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[:, 80:] = 200
    (tmp_path / "videos").mkdir()
    videos.written_by_opencv(tmp_path / "videos" / "aaaaaaaaaaa.mp4", [frame * 0] * 25 + [frame] * 50)
    signs = [
        make_sign("aaaaaaaaaaa", 1.0, 2.0, 0, "book", box=[0, 0.52, 1, 1]),
        make_sign("aaaaaaaaaaa", 1.0, 2.0, 0, "book", box=[0, 0, 1, 0.48]),
        make_sign("aaaaaaaaaaa", 0.0, 0.9, 0, "book", box=[0, 0.52, 1, 1]),
    ]
    (tmp_path / "MSASL_test.json").write_text(json.dumps(signs))
    clips = read_dataset(tmp_path / "MSASL_test.json", labels=GLOSSES).clips
    # The first class's logit is the brightness of the crops, and the second class's is constant.
    transport = fake(PRESETS["bsl1k-person"], lambda crops: [float(crops.mean()), 100.0, 0, 0, 0, 0])
    run = score_clips(lambda: AsyncRecognizer(transport=transport), clips, ClassMapping.of(GLOSSES), clips_at_once=1)
    assert {answer.video: answer.rank for answer in run.answers} == {
        "aaaaaaaaaaa_1_2": 1, "aaaaaaaaaaa_1_2#2": 2, "aaaaaaaaaaa_0_0.9": 2
    }  # fmt: skip
    assert {answer.signer_id for answer in run.answers} == {"7"}
