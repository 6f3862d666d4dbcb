"""Small weights on a local server, in the formats of the published ones."""

import dataclasses
import io
import pickle
import zipfile

import torch

from asl_triton_export.i3d import I3D
from asl_triton_export.pretrained.catalog import PUBLISHED, Weights
from asl_triton_export.pretrained.download import RemoteFile

from .file_server import FileServer, Served

GLOSSES = ("book", "drink", "computer", "before", "chair", "go", "clothes", "who")
MEMBERS = {
    size: f"archived/asl{size}/FINAL_nslt_{size}_iters=896_top1=65.89_top5=84.11_top10=89.92.pt" for size in (3, 5)
}


def build_checkpoint(num_classes: int, prefix: str = "", wrapped: bool = False) -> bytes:
    """Return the state dict of a small I3D as `torch.save` writes it."""
    state = {f"{prefix}{key}": value for key, value in I3D(num_classes, width=1 / 32).state_dict().items()}
    file = io.BytesIO()
    torch.save({"epoch": 50, "arch": "InceptionI3d", "state_dict": state} if wrapped else state, file)
    return file.getvalue()


def build_zip(members: dict[str, bytes]) -> bytes:
    """Return a zip of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def build_info_pickle(words: object) -> bytes:
    """Return a pickle like bsl1k's `info.pkl`."""
    return pickle.dumps({"words": words, "videos": {"name": ["a.mp4"], "word_id": [0]}}, protocol=4)


def build_citizen_csv(glosses: tuple[str, ...] = GLOSSES[:6]) -> bytes:
    """Return a split of ASL Citizen with unsorted glosses, each twice and with a trailing space."""
    rows = [f"P{n},{n}-{gloss}.mp4,{gloss.upper()} ,A_01_{n}" for n, gloss in enumerate((*glosses, *glosses[::-1]))]
    return "\r\n".join(("Participant ID,Video file,Gloss,ASL-LEX Code", *rows, "")).encode()


def publish(server: FileServer) -> dict[str, Weights]:
    """Serve `bsl1k` of 4 classes, `citizen` of 6, `msasl` of 3, `wlasl5` and `wlasl3`, and return their catalog."""
    archive = {name: build_checkpoint(size) for size, name in MEMBERS.items()}
    archive |= {name.replace(".pt", ".ini"): b"[config]" for name in MEMBERS.values()}
    archive |= {"__MACOSX/archived/asl5/._FINAL_nslt_5_iters.pt": b"resource fork"}
    server.files |= {
        "/archive": Served(build_zip(archive)),
        "/classes": Served("".join(f"{i}\t{gloss}\n" for i, gloss in enumerate(GLOSSES)).encode()),
        "/model": Served(build_checkpoint(4, prefix="module.", wrapped=True)),
        "/info": Served(build_info_pickle(list(GLOSSES[:4]))),
        "/citizen-weights": Served(build_zip({"weights/ASL_citizen_I3D_weights.pt": build_checkpoint(6)})),
        "/citizen": Served(
            build_zip(
                {"ASL_Citizen/splits/train.csv": build_citizen_csv(), "ASL_Citizen/splits/test.csv": b"other"}
                | {f"ASL_Citizen/videos/{n}.mp4": bytes(10_000) for n in range(50)}
            )
        ),
        "/msasl-model": Served(build_checkpoint(3, prefix="module.", wrapped=True)),
        "/msasl": Served(build_zip({"MS-ASL/MSASL_classes.json": b'["hello", "nice", "teacher"]'})),
    }
    bsl1k = dataclasses.replace(
        PUBLISHED["bsl1k-wlasl2000"],
        name="bsl1k",
        num_classes=4,
        checkpoint=RemoteFile(f"{server.url}/model", "model.pth.tar"),
        glosses=RemoteFile(f"{server.url}/info", "info.pkl"),
    )
    wlasl = [
        dataclasses.replace(
            PUBLISHED["wlasl100"],
            name=f"wlasl{size}",
            num_classes=size,
            sha256=None,
            member=f"FINAL_nslt_{size}_*.pt",
            checkpoint=RemoteFile(f"{server.url}/archive", "archive.zip", on_drive=True),
            glosses=RemoteFile(f"{server.url}/classes", "classes.txt"),
        )
        for size in MEMBERS
    ]
    citizen = dataclasses.replace(
        PUBLISHED["asl-citizen"],
        name="citizen",
        num_classes=6,
        sha256=None,
        checkpoint=RemoteFile(f"{server.url}/citizen-weights", "citizen-weights.zip"),
        glosses=RemoteFile(f"{server.url}/citizen", "train.csv", zip_member="ASL_Citizen/splits/train.csv"),
    )
    msasl = dataclasses.replace(
        PUBLISHED["bsl1k-msasl1000"],
        name="msasl",
        num_classes=3,
        checkpoint=RemoteFile(f"{server.url}/msasl-model", "msasl-model.pth.tar"),
        glosses=RemoteFile(f"{server.url}/msasl", "MSASL_classes.json", zip_member="MSASL_classes.json"),
    )
    return {weights.name: weights for weights in (bsl1k, *wlasl, citizen, msasl)}
