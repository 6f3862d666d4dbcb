"""Downloads Intel's signer detector, which the client uses where it finds no face."""

import shutil
from pathlib import Path

from asl_triton.errors import AslTritonError, CheckpointError
from asl_triton.files import atomic_folder, sha256
from asl_triton.signer.person_detector import MODEL, find_detector_folder
from asl_triton_export.pretrained.download import OnBytes, RemoteFile, download, download_lock, ignore

NAME = "signer-detector"
HOMEPAGE = "https://github.com/openvinotoolkit/open_model_zoo/tree/master/models/intel/person-detection-asl-0001"
TERMS = f"Apache-2.0, by Intel: {HOMEPAGE}"
_FOLDER = (
    "https://download.01.org/opencv/2021/openvinotoolkit/2021.1/open_model_zoo/models_bin/2/person-detection-asl-0001/"
    "FP16"
)
_WEIGHTS = f"{Path(MODEL).stem}.bin"
# Addresses, sizes, and checksums are from its model.yml in the Open Model Zoo.
FILES = (
    RemoteFile(
        f"{_FOLDER}/{MODEL}",
        MODEL,
        num_bytes=815_428,
        sha256="a2bf1eaedfcc70f16126fa9d80d98a76c5c505c0b6c3bbb3e5b15d3b1fad0d28",
    ),
    RemoteFile(
        f"{_FOLDER}/{_WEIGHTS}",
        _WEIGHTS,
        num_bytes=2_013_340,
        sha256="7f3a401ac5eb738d1e32984a4f29dd5d41cacf71730b0b76a853ced4fb6342c5",
    ),
)


def fetch_detector(
    folder: Path | None = None,
    *,
    force: bool = False,
    on_bytes: OnBytes = ignore,
) -> tuple[Path, bool]:
    """Download the detector into a folder, by default the one where the client looks for it.

    Returns the folder, and whether it is new. The folder appears complete and verified, or not at all. Downloads
    resume; files that you put into `.downloads` next to the folder are not downloaded again.

    Raises:
        AslTritonError: a download or a write failed, or the folder holds something else.
        CheckpointError: a file differs from the published one.
    """
    folder = find_detector_folder() if folder is None else folder
    names = {file.filename for file in FILES}
    downloads = folder.parent / ".downloads"
    try:
        there = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if strangers := sorted(there - names):
            raise AslTritonError(
                f"{folder} already exists and holds something else ({strangers[0]}): choose another folder with --to"
            )
        if not force and there == names and all(sha256(folder / file.filename) == file.sha256 for file in FILES):
            return folder, False
        with download_lock(downloads):
            with atomic_folder(folder) as partial:
                for file in FILES:
                    received = download(file, downloads, force=force, on_bytes=on_bytes)
                    if (found := sha256(received)) != file.sha256:
                        refused = received.replace(received.with_name(f"{received.name}.refused"))
                        raise CheckpointError(
                            f"{file.url} differs from the published file: its SHA-256 is {found}, but {file.sha256} "
                            f"was expected. The file was moved to {refused}; run this again, and see {HOMEPAGE} if the "
                            "problem persists"
                        )
                    shutil.copyfile(received, partial / file.filename)
            for file in FILES:
                (downloads / file.filename).unlink()
    except OSError as exc:
        raise AslTritonError(f"cannot write {folder}: {exc.strerror or exc}") from exc
    return folder, True
