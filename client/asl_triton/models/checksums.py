"""`SHA256SUMS` of a model repository: written at export. A production server serves only the files listed there.

The format is that of coreutils: one line `<sha256>  <model>/<path>` per file, and comments with '#'. `sha256sum
--check` reads it too.
"""

import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from asl_triton.errors import AslTritonError
from asl_triton.files import atomic_write, sha256

MANIFEST = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def write_checksums(repository: Path) -> Path:
    """Write `SHA256SUMS` of every model in `repository` atomically, and return its path.

    A model is a folder with a `config.pbtxt`. Hidden files are left out, because they belong to unfinished exports.

    Raises:
        AslTritonError: a file cannot be read or written.
    """
    path = repository / MANIFEST
    try:
        models = [folder for folder in repository.iterdir() if (folder / "config.pbtxt").is_file()]
        files = [file.relative_to(repository) for folder in models for file in folder.rglob("*") if file.is_file()]
        names = sorted(file.as_posix() for file in files if not is_left_out(file))
        with atomic_write(path, shared=True) as file:
            file.write("".join(f"{sha256(repository / name)}  {name}\n" for name in names).encode())
    except OSError as exc:
        raise AslTritonError(f"cannot write {path}: {exc}") from exc
    return path


def is_left_out(file: Path) -> bool:
    """Return whether a file in a model folder is not part of the model."""
    return any(part.startswith(".") or part == "__pycache__" for part in file.parts)


def read_checksums(path: Path) -> dict[str, str]:
    """Read the SHA-256 of each file, by its path within the repository.

    Raises:
        AslTritonError: `path` cannot be read, or has a line of another form.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise AslTritonError(
            f"cannot read {path}, which lists what may be served ({exc}): write it with `asl-triton export` or "
            "`sha256sum`"
        ) from exc
    sums = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else PurePosixPath()
        if match is None or name.is_absolute() or ".." in name.parts or len(name.parts) < 2:
            raise AslTritonError(
                f"{path}, line {number}, is not `<sha256>  <model>/<file>` within the repository: {line[:200]!r}"
            )
        sums[str(name)] = match[1]
    return sums


def copy_checked(sums: Mapping[str, str], repository: Path, target: Path, without: Collection[str] = ()) -> list[str]:
    """Copy the files in `sums`, except those of the models in `without`, and return the models' names, sorted.

    Each file is hashed as it is copied, so `target` contains exactly what was listed, whatever happens to `repository`
    later. Files that are not listed are not copied. An existing `target` is replaced.

    Raises:
        AslTritonError: a file is missing, or differs from the listed one. `target` is then deleted.
    """
    wanted = {name: digest for name, digest in sums.items() if PurePosixPath(name).parts[0] not in without}
    shutil.rmtree(target, ignore_errors=True)
    try:
        for name, digest in sorted(wanted.items()):
            source, copy = repository / name, target / name
            if not source.is_file():
                raise AslTritonError(f"{MANIFEST} lists {name}, but {source} does not exist: copy the model again")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copied = sha256(source, copy)
            if copied != digest:
                raise AslTritonError(
                    f"{source} is not the file that {MANIFEST} lists (its SHA-256 is {copied}): it was changed or only "
                    f"partly copied. Copy it again, or use the {MANIFEST} of its own export"
                )
    except OSError as exc:
        shutil.rmtree(target, ignore_errors=True)
        raise AslTritonError(f"cannot copy the models of {repository} to {target}: {exc}") from exc
    except AslTritonError:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return sorted({PurePosixPath(name).parts[0] for name in wanted})
