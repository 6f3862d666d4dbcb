"""The published I3D weights for sign languages: where to get them, how accurate they are, and their terms of use."""

from dataclasses import dataclass

from asl_triton.models.card import ModelCard
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
BSL1K_PAPER = (
    "Albanie, Varol et al., BSL-1K: Scaling up co-articulated sign language recognition using mouthing cues, ECCV "
    "2020, arXiv:2007.12131"
)
BSL1K_BYTES = 115_000_000  # twice 57 MB: the weights, and the optimizer's momentum
MICROSOFT = "https://download.microsoft.com/download"
ASL = "American Sign Language"
C_UDA = (
    "WLASL and its weights are under the Computational Use of Data Agreement (C-UDA 1.0, in WLASL's repository), for "
    "academic and computational use only; commercial use is not allowed."
)


@dataclass(frozen=True)
class Accuracy:
    """Published top-k accuracies on a test set, in percent of its clips."""

    top1: float
    top5: float
    top10: float | None = None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A published checkpoint: where to get it, how it was trained, its published accuracy and its terms of use."""

    name: str
    language: str
    num_classes: int
    preset: str
    test_set: str  # the one that `accuracy` was published for
    good_for: str  # a few words, for a table
    checkpoint: RemoteFile
    glosses: RemoteFile
    accuracy: Accuracy
    license: str  # a few words, for a table
    terms: str
    homepage: str
    paper: str
    member: str | None = None  # the checkpoint's file name, if `checkpoint` is a zip
    gloss_format: GlossFormat = "class-list"
    sha256: str | None = None  # of weights.pt

    @property
    def card(self) -> ModelCard:
        """The card of the bundle and of the served model."""
        return ModelCard(
            purpose=f"{self.num_classes:,} signs of {self.language}; {self.good_for}; published top-1 "
            f"{self.accuracy.top1:.2f} % on {self.test_set}"
        )


def _wlasl(num_classes: int, accuracy: Accuracy, good_for: str, sha256: str | None = None) -> Weights:
    return Weights(
        name=f"wlasl{num_classes}",
        language=ASL,
        num_classes=num_classes,
        preset="wlasl",
        checkpoint=WLASL_ARCHIVE,
        member=f"FINAL_nslt_{num_classes}_*.pt",
        sha256=sha256,
        glosses=WLASL_CLASS_LIST,
        accuracy=accuracy,
        test_set=f"WLASL-{num_classes}'s test split",
        good_for=good_for,
        license="C-UDA: academic use",
        terms=C_UDA,
        homepage="https://github.com/dxli94/WLASL",
        paper="Li et al., Word-level Deep Sign Language Recognition from Video, WACV 2020, arXiv:1910.11006",
    )


def _bsl1k(experiment: str, filename: str) -> RemoteFile:
    return RemoteFile(f"{BSL1K}/data/experiments/{experiment}/model.pth.tar", filename, num_bytes=BSL1K_BYTES)


# The recommended one comes first. The checksums come from independent users of the files; we have not seen the files.
PUBLISHED: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name="asl-citizen",
            language=ASL,
            num_classes=2731,
            preset="asl-citizen",
            checkpoint=RemoteFile(
                "https://github.com/microsoft/ASL-citizen-code/releases/download/checkpoints_v1/"
                "ASL_citizen_I3D_weights.zip",
                "ASL_citizen_I3D_weights.zip",
                num_bytes=56_382_633,
                sha256="42c5349f95595fac79af77a902584510da92290e802903f3c96c4689a4b19a48",
            ),
            member="ASL_citizen_I3D_weights.pt",
            sha256="3538319620331d5ba731e0f9ac79161deeb37a895b7680d215864fc00a14477d",
            # One member of a 46 GB zip.
            glosses=RemoteFile(
                f"{MICROSOFT}/b/8/8/b88c0bae-e6c1-43e1-8726-98cf5af36ca4/ASL_Citizen.zip",
                "asl-citizen-train.csv",
                zip_member="ASL_Citizen/splits/train.csv",
                sha256="87a105649b98ea577182ebfce49d59fe9ca834a2489384f6fe7bc03f14966329",
            ),
            gloss_format="citizen-csv",
            accuracy=Accuracy(63.10, 86.09),
            test_set="ASL Citizen's test split, signers not seen in training",
            good_for="people at a webcam or a phone",
            license="none stated; the data's: research use",
            terms="The authors state no license for these weights. They were trained on ASL Citizen, which is under "
            "Microsoft Research's license for research use.",
            homepage="https://github.com/microsoft/ASL-citizen-code",
            paper="Desai et al., ASL Citizen: A Community-Sourced Dataset for Advancing Isolated Sign Language "
            "Recognition, NeurIPS 2023, arXiv:2304.05934",
        ),
        Weights(
            name="bsl1k-wlasl2000",
            language=ASL,
            num_classes=2000,
            preset="bsl1k-person",
            checkpoint=_bsl1k("wlasl_i3d_pbsl1k", "bsl1k-model.pth.tar"),
            glosses=RemoteFile(f"{BSL1K}/demo-data/wlasl/info/info.pkl", "bsl1k-info.pkl"),
            gloss_format="info-pickle",
            accuracy=Accuracy(46.82, 79.36),
            test_set="WLASL-2000's test split, in its boxes of the signers",
            good_for="WLASL's signs; clips with a box of the signer",
            license="none stated; WLASL's C-UDA: academic use",
            terms="The authors state no license for these weights. They were trained on BSL-1K, from television, and "
            f"on WLASL: {C_UDA}",
            homepage="https://github.com/gulvarol/bsl1k",
            paper=BSL1K_PAPER,
        ),
        Weights(
            name="bsl1k-msasl1000",
            language=ASL,
            num_classes=1000,
            preset="bsl1k-person",
            checkpoint=_bsl1k("msasl_i3d_pbsl1k", "bsl1k-msasl-model.pth.tar"),
            glosses=RemoteFile(
                f"{MICROSOFT}/3/c/a/3ca92c78-1c4a-4a91-a7ee-6980c1d242ec/MS-ASL.zip",
                "MSASL_classes.json",
                zip_member="MSASL_classes.json",
            ),
            gloss_format="json-list",
            accuracy=Accuracy(64.71, 85.59),
            test_set="MSASL-1000's test split, in its boxes of the signers",
            good_for="everyday signs; clips with a box of the signer",
            license="none stated; MS-ASL's C-UDA: academic use",
            terms="The authors state no license for these weights. They were trained on BSL-1K, from television, and "
            "on MS-ASL, which is under Microsoft's Computational Use of Data Agreement (C-UDA), for academic and "
            "computational use only.",
            homepage="https://github.com/gulvarol/bsl1k",
            paper=BSL1K_PAPER,
        ),
        Weights(
            name="bsl1k-bsl1064",
            language="British Sign Language",
            num_classes=1064,
            preset="bsl1k-16",
            checkpoint=_bsl1k("bsl1k_i3d_m5_l20_kws8_ppose", "bsl1k-bsl-model.pth.tar"),
            glosses=RemoteFile(
                "https://raw.githubusercontent.com/gulvarol/bsl1k/master/misc/bsl1k/bsl1k_vocab.pkl", "bsl1k_vocab.pkl"
            ),
            gloss_format="info-pickle",
            accuracy=Accuracy(75.51, 88.83),
            test_set="BSL-1K's test split",
            good_for="British Sign Language: continuous signing on television",
            license="none stated: ask the authors",
            terms="The authors state no license for these weights. They were trained on BSL-1K, from the BBC's "
            "broadcasts, whose data is available for academic research only.",
            homepage="https://github.com/gulvarol/bsl1k",
            paper=BSL1K_PAPER,
        ),
        _wlasl(
            2000,
            Accuracy(32.48, 57.31, 66.31),
            "WLASL's signs, whole frames; results to compare with papers",
            "243a19e6deef3becffbfc5b7dd8adb32916c8bee482565ca243c082584732620",
        ),
        _wlasl(1000, Accuracy(47.33, 76.44, 84.33), "fewer signs, more often right"),
        _wlasl(300, Accuracy(56.14, 79.94, 86.98), "fewer signs, more often right"),
        _wlasl(
            100,
            Accuracy(65.89, 84.11, 89.92),
            "a hundred signs; a first try",
            "a61d7dda5f875ce5ebd9d407c56874f77d1cd2aeb4bc7cd0d98a6e1ca4669a0c",
        ),
    )
}
