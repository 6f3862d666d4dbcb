"""The presets for people match the answers of the authors' code in `shared/reference/expected_people.npz`."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from asl_triton.models.served import LOGITS, STEP_LOGITS
from asl_triton.presets import PRESETS
from asl_triton.results import SignerBox
from asl_triton.video.preprocessing import crop_frames, resample, resize_frame, sample_region, shrink_box
from asl_triton.video.reader import open_video
from asl_triton.video.windows import choose_centered, cut_windows
from asl_triton_export.checkpoint import load_checkpoint
from asl_triton_export.formats.openvino import build_graph, compile_model
from asl_triton_export.formats.torchscript import ServedI3D
from asl_triton_export.i3d import I3D, normalize, pool_steps

CITIZEN, PERSON = PRESETS["asl-citizen"], PRESETS["bsl1k-person"]
CITIZEN_CLIPS = ("07068", "07069", "07068x2", "07068x3")  # 68, 30, 136 and 204 frames
PERSON_CLIPS = ("07068", "07069")
SIZES = {"07068": (736, 414), "07069": (1280, 720)}
FORMATS = ("trained", "torchscript", "openvino")


@pytest.fixture(scope="module")
def people(shared_folder: Path) -> Mapping[str, np.ndarray]:
    with np.load(shared_folder / "reference" / "expected_people.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def net(reference_checkpoint: Path) -> I3D:
    return load_checkpoint(reference_checkpoint).network()


@pytest.fixture(scope="module")
def ask(net: I3D):
    """Run the network of a format on a clip: returns logits (C,) and step logits (S, C) in float32.

    The clip is uint8 RGB (T, 224, 224, 3), or normalized float32 (3, T, 224, 224).
    """

    @cache
    def build(served_as: str, preset: str, normalized: bool):
        if served_as == "openvino":
            return compile_model(build_graph(net, PRESETS[preset], normalized_input=normalized), "fp32")
        return torch.jit.script(ServedI3D(net, PRESETS[preset], torch.float32, normalized_input=normalized).eval())

    def ask(served_as: str, preset: str, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        normalized = frames.dtype == np.float32
        if served_as == "openvino":
            answer = build(served_as, preset, normalized)(frames[None])
            return answer[LOGITS][0], answer[STEP_LOGITS][0]
        clip = torch.from_numpy(frames)[None]
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            if served_as == "trained":
                output = net(clip if normalized else normalize(clip, PRESETS[preset]))
                logits = pool_steps(net, output.step_logits, output.features, PRESETS[preset])
                return logits[0].numpy(), output.step_logits[0].numpy()
            logits, step_logits, _ = build(served_as, preset, normalized)(clip)
        return logits[0].numpy(), step_logits[0].numpy()

    return ask


def find_clip(shared_folder: Path, clip: str) -> Path:
    return shared_folder / "wlasl" / ("long" if "x" in clip else "videos") / f"{clip}.mp4"


def read_crops(shared_folder: Path, clip: str, preset: str, signer: SignerBox | None = None) -> list[np.ndarray]:
    with open_video(find_clip(shared_folder, clip)) as video:
        return [crop.image for crop in crop_frames(video, PRESETS[preset], 10_000, signer)]


def read_official_box(people: Mapping[str, np.ndarray], clip: str) -> SignerBox:
    return SignerBox.from_pixels(tuple(people[f"{clip}/box"].tolist()), *SIZES[clip], source="dataset")


def test_every_array_of_the_reference_is_compared(people: Mapping[str, np.ndarray]) -> None:
    citizen = ("", "/pooled", "/frames", "/num_frames")
    person = ("", "/frames", "/num_frames")
    assert set(people) == (
        {f"{clip}/asl-citizen{what}" for clip in CITIZEN_CLIPS for what in citizen}
        | {f"{clip}/bsl1k-person{what}" for clip in PERSON_CLIPS for what in person}
        | {f"{clip}/box" for clip in PERSON_CLIPS}
    )


@pytest.mark.parametrize("clip", CITIZEN_CLIPS)
def test_centered_frames_match_asl_citizen(shared_folder: Path, people: Mapping[str, np.ndarray], clip: str) -> None:
    crops = read_crops(shared_folder, clip, "asl-citizen")
    assert len(choose_centered(crops, CITIZEN)[1]) == people[f"{clip}/asl-citizen/num_frames"]
    (window,) = cut_windows(iter(crops), CITIZEN)
    ours = window.frames[[0, 32, 63]].astype(int)
    assert np.abs(ours - people[f"{clip}/asl-citizen/frames"]).max() <= 2


@pytest.mark.parametrize("served_as", FORMATS)
@pytest.mark.parametrize("clip", CITIZEN_CLIPS)
def test_float32_export_matches_asl_citizen(
    ask, shared_folder: Path, people: Mapping[str, np.ndarray], clip: str, served_as: str
) -> None:
    (window,) = cut_windows(iter(read_crops(shared_folder, clip, "asl-citizen")), CITIZEN)
    logits, step_logits = ask(served_as, "asl-citizen", window.frames)
    off = [np.abs(step_logits - people[f"{clip}/asl-citizen"]).max()]
    off += [np.abs(logits - people[f"{clip}/asl-citizen/pooled"]).max()]
    print(f"{clip} {served_as}: steps off by {off[0]:.2g}, logits by {off[1]:.2g}")
    assert max(off) <= 1e-3


@pytest.mark.parametrize("clip", PERSON_CLIPS)
def test_crops_of_the_signers_box_match_bsl1k(shared_folder: Path, people: Mapping[str, np.ndarray], clip: str) -> None:
    crops = read_crops(shared_folder, clip, "bsl1k-person", read_official_box(people, clip))
    assert len(crops) == people[f"{clip}/bsl1k-person/num_frames"]
    (window,) = cut_windows(iter(crops), PERSON)
    off = np.abs(window.frames[[0, 32, 63]].astype(int) - people[f"{clip}/bsl1k-person/frames"])
    print(f"{clip}: off by {off.max()}, {off.mean():.4f} on average")
    assert off.max() <= 2


def read_unrounded_window(shared_folder: Path, clip: str, signer: SignerBox) -> np.ndarray:
    """Return the window of a clip as bsl1k samples it, before gray levels are rounded: float32 (3, T, 224, 224)."""
    low, high = PERSON.value_range
    region = shrink_box(signer, 224 / 256)
    with open_video(find_clip(shared_folder, clip)) as video:
        images = (resize_frame(frame.image, PERSON) for frame in resample(video, 25.0, 10_000))
        samples = [sample_region(image, region, 224)[..., ::-1] for image in images]
    samples += [samples[-1]] * (PERSON.window_frames - len(samples))
    return np.ascontiguousarray(np.stack(samples).transpose(3, 0, 1, 2) / 255 * (high - low) + low, np.float32)


@pytest.mark.parametrize("served_as", FORMATS)
@pytest.mark.parametrize("clip", PERSON_CLIPS)
def test_float32_export_matches_bsl1k_in_the_signers_box(
    ask, shared_folder: Path, people: Mapping[str, np.ndarray], clip: str, served_as: str
) -> None:
    window = read_unrounded_window(shared_folder, clip, read_official_box(people, clip))
    logits, _ = ask(served_as, "bsl1k-person", window)
    off = np.abs(logits - people[f"{clip}/bsl1k-person"][0]).max()
    print(f"{clip} {served_as}: off by {off:.2g}")
    assert off <= 1e-3


@pytest.mark.parametrize("clip", PERSON_CLIPS)
def test_rounding_gray_levels_changes_bsl1k_logits_by_less_than_one_percent(
    ask, shared_folder: Path, people: Mapping[str, np.ndarray], clip: str
) -> None:
    """The authors sample crops in floating point; ours are rounded to bytes."""
    (window,) = cut_windows(
        iter(read_crops(shared_folder, clip, "bsl1k-person", read_official_box(people, clip))), PERSON
    )
    logits, _ = ask("torchscript", "bsl1k-person", window.frames)
    original = people[f"{clip}/bsl1k-person"][0]
    off = np.abs(logits - original).max()
    print(f"{clip}: off by {off:.2g} of {np.ptp(original):.0f}")
    assert off <= 0.01 * np.ptp(original)
    assert np.argsort(-logits)[:5].tolist() == np.argsort(-original)[:5].tolist()


@pytest.mark.parametrize("num_frames", [9, 30, 64, 65])
def test_exports_interpolate_the_steps_like_the_trained_network(ask, noise, num_frames: int) -> None:
    trained, torchscript, openvino = (ask(served_as, "asl-citizen", noise(num_frames))[0] for served_as in FORMATS)
    assert np.abs(torchscript - trained).max() <= 1e-3
    assert np.abs(openvino - trained).max() <= 1e-3
