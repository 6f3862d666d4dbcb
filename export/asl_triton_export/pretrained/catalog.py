"""The sign-language weights that others publish for I3D: where they are, how accurate, and on which terms."""

from dataclasses import dataclass

from asl_triton_export.pretrained.download import RemoteFile
from asl_triton_export.pretrained.glosses import GlossFormat

WLASL_ARCHIVE = RemoteFile(
    "https://drive.google.com/uc?id=1jALimVOB69ifYkeT0Pe297S1z4U3jC48",
    "wlasl-archived.zip",
    num_bytes=197_000_000,
    on_drive=True,
)
WLASL_CLASS_LIST = RemoteFile(
    "https://raw.githubusercontent.com/dxli94/WLASL/master/code/I3D/preprocess/wlasl_class_list.txt",
    "wlasl_class_list.txt",
)
BSL1K = "https://www.robots.ox.ac.uk/~vgg/research/bsl1k"
C_UDA = (
    "WLASL and its weights are under the Computational Use of Data Agreement (C-UDA 1.0, in the repository of WLASL), "
    "for academic and computational use only; commercial use is not allowed."
)


@dataclass(frozen=True)
class Accuracy:
    """Published top-k accuracies on the test split, in percent of the clips."""

    top1: float
    top5: float
    top10: float | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published checkpoint: where its files are, how it was trained, its published accuracy and its terms."""

    name: str
    num_classes: int
    preset: str
    checkpoint: RemoteFile
    glosses: RemoteFile
    accuracy: Accuracy
    license: str  # a few words, for a table
    terms: str
    homepage: str
    paper: str
    member: str | None = None  # the checkpoint's file name in the zip that `checkpoint` then is
    gloss_format: GlossFormat = "class-list"
    sha256: str | None = None  # of weights.pt


def _wlasl(num_classes: int, accuracy: Accuracy, sha256: str | None = None) -> Weights:
    return Weights(
        name=f"wlasl{num_classes}",
        num_classes=num_classes,
        preset="wlasl",
        checkpoint=WLASL_ARCHIVE,
        member=f"FINAL_nslt_{num_classes}_*.pt",
        sha256=sha256,
        glosses=WLASL_CLASS_LIST,
        accuracy=accuracy,
        license="C-UDA: academic use",
        terms=C_UDA,
        homepage="https://github.com/dxli94/WLASL",
        paper="Li et al., Word-level Deep Sign Language Recognition from Video, WACV 2020, arXiv:1910.11006",
    )


# The recommended one first. The sums of wlasl2000 and wlasl100 are those that independent users of the files give.
PUBLISHED: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name="bsl1k-wlasl2000",
            num_classes=2000,
            preset="bsl1k",
            # Weights and the optimizer's momentum: twice 57 MB.
            checkpoint=RemoteFile(
                f"{BSL1K}/data/experiments/wlasl_i3d_pbsl1k/model.pth.tar", "bsl1k-model.pth.tar", num_bytes=115_000_000
            ),
            glosses=RemoteFile(f"{BSL1K}/demo-data/wlasl/info/info.pkl", "bsl1k-info.pkl"),
            gloss_format="info-pickle",
            accuracy=Accuracy(46.82, 79.36),
            license="none stated; WLASL's C-UDA: academic use",
            terms="The authors state no license for these weights. They were trained on BSL-1K, from television, and "
            f"on WLASL: {C_UDA}",
            homepage="https://github.com/gulvarol/bsl1k",
            paper="Albanie, Varol et al., BSL-1K: Scaling up co-articulated sign language recognition using mouthing "
            "cues, ECCV 2020, arXiv:2007.12131",
        ),
        _wlasl(
            2000,
            Accuracy(32.48, 57.31, 66.31),
            "243a19e6deef3becffbfc5b7dd8adb32916c8bee482565ca243c082584732620",
        ),
        _wlasl(1000, Accuracy(47.33, 76.44, 84.33)),
        _wlasl(300, Accuracy(56.14, 79.94, 86.98)),
        _wlasl(
            100,
            Accuracy(65.89, 84.11, 89.92),
            "a61d7dda5f875ce5ebd9d407c56874f77d1cd2aeb4bc7cd0d98a6e1ca4669a0c",
        ),
    )
}
