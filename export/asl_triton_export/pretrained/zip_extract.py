"""Extracts one file from a downloaded zip."""

import fnmatch
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from asl_triton.errors import CheckpointError

MAX_MEMBER_BYTES = 512 * 2**20  # nine times an I3D of 2000 classes
BLOCK_BYTES = 2**20


def extract_member(archive: Path, pattern: str, target: Path) -> None:
    """Extract the only member whose file name matches `pattern`, in any folder of the zip, to `target`.

    Paths in the archive are never used on this machine, and at most `MAX_MEMBER_BYTES` are unpacked.

    Raises:
        CheckpointError: the file is not a zip, is damaged or too large, or does not have exactly one such member.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [m for m in opened.infolist() if fnmatch.fnmatchcase(PurePosixPath(m.filename).name, pattern)]
            if len(found) != 1:
                names = ", ".join(member.filename for member in found or opened.infolist()[:5]) or "nothing"
                raise CheckpointError(
                    f"{archive} has {len(found)} files like {pattern}, but one was expected (it has {names})"
                )
            with opened.open(found[0]) as source, target.open("wb") as file:
                size = 0
                while block := source.read(BLOCK_BYTES):
                    size += len(block)
                    if size > MAX_MEMBER_BYTES:
                        raise CheckpointError(
                            f"{found[0].filename} in {archive} unpacks to more than {MAX_MEMBER_BYTES // 2**20} MiB: "
                            "too large for an I3D checkpoint"
                        )
                    file.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as exc:
        raise CheckpointError(f"{archive} is not a readable zip ({exc})") from exc
