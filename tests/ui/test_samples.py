"""The sample clips show the demo signer and are offered only for the demo checkpoint."""

from asl_triton.models.served import ServedModel
from asl_triton.presets import PRESETS
from asl_triton.video.reader import open_video
from asl_triton_ui import samples
from tests.paths import DEMO_BUNDLE

LABELS = (DEMO_BUNDLE / "labels.txt").read_text().splitlines()


def make_served_model(labels: tuple[str, ...]) -> ServedModel:
    return ServedModel("m", "1", PRESETS["wlasl"], labels, "UINT8", "fp32", "0" * 64, "")


def test_vocabulary_matches_the_demo_checkpoint() -> None:
    assert (samples.FOLDER / "labels.txt").read_text() == (DEMO_BUNDLE / "labels.txt").read_text()
    assert {sample.gloss for sample in samples.SAMPLES} <= set(LABELS)


def test_samples_fit_only_that_exact_vocabulary() -> None:
    assert samples.fits_model(make_served_model(tuple(LABELS)))
    assert not samples.fits_model(make_served_model((*LABELS, "zebra")))
    assert not samples.fits_model(None)


def test_clips_are_small_and_complete() -> None:
    for sample in samples.SAMPLES:
        assert sample.path.stat().st_size < 60_000
        with open_video(sample.path) as video:
            assert len(list(video)) > 40
            assert video.warnings == []
