"""The sample clips show the demo signer and are offered only for the demo checkpoint."""

from asl_triton.models.served import ServedModel
from asl_triton.presets import PRESETS
from asl_triton.video.reader import open_video
from asl_triton_ui import samples
from tests.paths import DEMO_BUNDLE

LABELS = (DEMO_BUNDLE / "labels.txt").read_text().splitlines()


def served(labels: tuple[str, ...]) -> ServedModel:
    return ServedModel("m", "1", PRESETS["wlasl"], labels, "UINT8", "fp32", "0" * 64, "")


def test_vocabulary_is_the_demo_checkpoints() -> None:
    assert (samples.FOLDER / "labels.txt").read_text() == (DEMO_BUNDLE / "labels.txt").read_text()
    assert {sample.gloss for sample in samples.SAMPLES} <= set(LABELS)


def test_samples_are_for_that_vocabulary_and_not_for_one_that_holds_their_words() -> None:
    assert samples.fits_model(served(tuple(LABELS)))
    assert not samples.fits_model(served((*LABELS, "zebra")))
    assert not samples.fits_model(None)


def test_clips_are_small_and_whole() -> None:
    for sample in samples.SAMPLES:
        assert sample.path.stat().st_size < 60_000
        with open_video(sample.path) as video:
            assert len(list(video)) > 40
            assert video.warnings == []
