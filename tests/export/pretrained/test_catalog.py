import fnmatch
import re

import pytest

from asl_triton.presets import PRESETS
from asl_triton_export.pretrained.catalog import PUBLISHED, Weights

# The names of the files in WLASL's archive.
WLASL_FILES = {
    "wlasl100": "FINAL_nslt_100_iters=896_top1=65.89_top5=84.11_top10=89.92.pt",
    "wlasl300": "FINAL_nslt_300_iters=2997_top1=56.14_top5=79.94_top10=86.98.pt",
    "wlasl1000": "FINAL_nslt_1000_iters=5104_top1=47.33_top5=76.44_top10=84.33.pt",
    "wlasl2000": "FINAL_nslt_2000_iters=5104_top1=32.48_top5=57.31_top10=66.31.pt",
}


def test_recommended_weights_come_first() -> None:
    assert list(PUBLISHED) == [
        "asl-citizen", "bsl1k-wlasl2000", "bsl1k-msasl1000", "bsl1k-bsl1064",
        "wlasl2000", "wlasl1000", "wlasl300", "wlasl100",
    ]  # fmt: skip


@pytest.mark.parametrize("weights", PUBLISHED.values(), ids=lambda weights: weights.name)
def test_published_weights_are_fully_described(weights: Weights) -> None:
    assert weights.preset in PRESETS
    assert all(remote.url.startswith("https://") for remote in (weights.checkpoint, weights.glosses))
    assert weights.license and ("academic" in weights.terms or "research" in weights.terms)
    assert "C-UDA" in weights.license or weights.license.startswith("none stated")
    assert weights.language in ("American Sign Language", "British Sign Language")
    assert weights.test_set and weights.good_for and weights.accuracy.top1 < weights.accuracy.top5
    sums = (weights.sha256, weights.checkpoint.sha256, weights.glosses.sha256)
    assert all(sum is None or re.fullmatch("[0-9a-f]{64}", sum) for sum in sums)


@pytest.mark.parametrize("name", WLASL_FILES)
def test_wlasl_weights_match_their_own_file_with_the_published_accuracy(name: str) -> None:
    weights = PUBLISHED[name]
    assert weights.member is not None
    assert fnmatch.filter(WLASL_FILES.values(), weights.member) == [WLASL_FILES[name]]
    accuracy = weights.accuracy
    assert f"top1={accuracy.top1:.2f}_top5={accuracy.top5:.2f}_top10={accuracy.top10:.2f}" in WLASL_FILES[name]
