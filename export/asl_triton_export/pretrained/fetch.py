"""Fetches published weights and turns them into a bundle for `asl-triton export`.

The bundle also has a `README.txt` that says where the weights come from and what they may be used for.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError, CheckpointError, LabelsError
from asl_triton.files import atomic_folder, sha256
from asl_triton.presets import PRESETS
from asl_triton_export.bundle import CARD, LABELS, PRESET, write_description
from asl_triton_export.checkpoint import Checkpoint, load_checkpoint, read_labels_for
from asl_triton_export.pretrained.catalog import PUBLISHED, Weights
from asl_triton_export.pretrained.download import OnBytes, RemoteFile, download, download_lock, ignore
from asl_triton_export.pretrained.glosses import read_glosses
from asl_triton_export.pretrained.zip_extract import extract_member

BUNDLE_FILES = ("weights.pt", LABELS, PRESET, CARD, "README.txt")
LATER_FILES = (CARD,)  # missing in bundles of earlier versions
DOWNLOADS = ".downloads"  # next to the bundles
FETCHED_BY = ", fetched by asl-triton"  # how README.txt's first line ends: --force may replace such a folder


@dataclass(frozen=True)
class FetchResult:
    """A bundle on this machine."""

    folder: Path
    weights: Weights
    is_new: bool  # False if it was already there and nothing was done
    archive: Path | None = None  # kept because it also contains other weights


def fetch(
    name: str,
    folder: Path | None = None,
    *,
    force: bool = False,
    labels: Path | None = None,
    catalog: Mapping[str, Weights] = PUBLISHED,
    on_bytes: OnBytes = ignore,
    on_step: Callable[[str], None] = ignore,
) -> FetchResult:
    """Download published weights and write a bundle to `folder`, by default `weights/<name>`.

    The folder appears complete and checked, or not at all. Downloads are kept in `.downloads` next to it: a later call
    resumes them, and uses a file that somebody put there. An existing bundle is kept unless `force` is given, which
    downloads everything again. With `labels`, a file of glosses, the glosses are not downloaded.

    Raises:
        AslTritonError: there are no such weights; the folder contains something else; a file cannot be downloaded or
            written.
        CheckpointError: a file differs from the published one.
    """
    weights = catalog.get(name)
    if weights is None:
        raise AslTritonError(f"unknown weights {name!r}: choose one of {', '.join(catalog)}")
    folder = Path("weights") / name if folder is None else folder
    if folder.name in ("", "..") or folder.is_symlink():
        folder = folder.resolve()
    downloads = folder.parent / DOWNLOADS
    try:
        if _is_there(folder, weights, force):
            return FetchResult(folder, weights, is_new=False)
        with download_lock(downloads):
            on_step(_describe_download(weights))
            source = download(weights.checkpoint, downloads, force=force, on_bytes=on_bytes)
            glosses = labels or download(weights.glosses, downloads, force=force, on_bytes=on_bytes)
            on_step(f"Checking {name}")
            with atomic_folder(folder) as bundle:
                _fill(bundle, weights, source, glosses, is_own=labels is not None)
            if sum(other.checkpoint == weights.checkpoint for other in catalog.values()) > 1:
                return FetchResult(folder, weights, is_new=True, archive=source)
            source.unlink()
            if labels is None:
                glosses.unlink()
            return FetchResult(folder, weights, is_new=True)
    except OSError as exc:
        raise AslTritonError(
            f"cannot write {folder}: {exc.strerror or exc}. The downloaded files are kept in {downloads}"
        ) from exc


def _describe_download(weights: Weights) -> str:
    """How much will be downloaded, and on which terms."""
    size = weights.checkpoint.num_bytes
    amount = "" if size is None else f", {size / 1e6:.0f} MB"
    return f"{weights.name}: {weights.num_classes:,} glosses{amount}. {weights.terms}"


def _is_there(folder: Path, weights: Weights, force: bool) -> bool:
    """Whether `folder` already contains this bundle.

    Raises:
        AslTritonError: it contains something else. `force` allows another fetched bundle, to replace it.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    readme = folder / "README.txt"
    strangers = [p.name for p in folder.iterdir() if p.name not in BUNDLE_FILES] if folder.is_dir() else [folder.name]
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    first_line = text.partition("\n")[0]
    if strangers or not first_line.endswith(FETCHED_BY):
        raise AslTritonError(
            f"{folder} exists and was not fetched by asl-triton (it has {(strangers or ['another README.txt'])[0]}): "
            "move it away, or choose another folder with --to"
        )
    if force:
        return False
    needed = [file for file in BUNDLE_FILES if file not in LATER_FILES]
    if first_line == _title(weights) and all((folder / file).is_file() for file in needed):
        return True
    raise AslTritonError(
        f"{folder} contains other or incomplete weights ({first_line[:60]!r}): replace them with --force, or choose "
        "another folder with --to"
    )


def _fill(bundle: Path, weights: Weights, source: Path, glosses: Path, *, is_own: bool) -> None:
    """Write a bundle's files, and check them. `is_own` says that the user supplied the glosses."""
    path = bundle / "weights.pt"
    with _published(weights, weights.checkpoint, source, bundle):
        _check_sum(source, weights.checkpoint)
        if weights.member is not None:
            extract_member(source, weights.member, path)
        checkpoint = load_checkpoint(source if weights.member is None else path)
        _check(checkpoint, weights)
    with nullcontext() if is_own else _published(weights, weights.glosses, glosses, bundle):
        if is_own:
            labels = read_labels_for(checkpoint, glosses)
        else:
            _check_sum(glosses, weights.glosses)
            labels = read_glosses(glosses, weights.gloss_format, weights.num_classes)
        write_description(bundle, labels, PRESETS[weights.preset], weights.card)
        read_labels_for(checkpoint, bundle / LABELS)
    if weights.member is None:
        try:
            os.link(source.resolve(), path)  # the download is deleted once the bundle is in place
        except OSError:
            shutil.copyfile(source, path)
    origin = f"{glosses.name}, your own list" if is_own else weights.glosses.address
    (bundle / "README.txt").write_text(_readme(weights, checkpoint.sha256, origin), encoding="utf-8")


def _check_sum(path: Path, remote: RemoteFile) -> None:
    if remote.sha256 is not None and (found := sha256(path)) != remote.sha256:
        raise CheckpointError(f"its SHA-256 is {found} instead of {remote.sha256}")


def _check(checkpoint: Checkpoint, weights: Weights) -> None:
    if checkpoint.num_classes != weights.num_classes:
        raise CheckpointError(f"it has {checkpoint.num_classes} classes instead of {weights.num_classes}")
    if weights.sha256 not in (None, checkpoint.sha256):
        raise CheckpointError(f"its SHA-256 is {checkpoint.sha256} instead of {weights.sha256}")


@contextmanager
def _published(weights: Weights, remote: RemoteFile, path: Path, bundle: Path) -> Iterator[None]:
    """Rename a file that differs from the published one, so that the next call downloads it again."""
    try:
        yield
    except (CheckpointError, LabelsError) as exc:
        refused = path.with_name(f"{path.name}.refused")
        path.replace(refused)
        reason = str(exc).replace(f"{bundle}{os.sep}", "")  # a temporary folder, which is deleted by now
        raise CheckpointError(
            f"{remote.address} is not {weights.name} as published: {reason}. The file was renamed to {refused}. Run "
            f"this again to download it again; if the result is the same, the authors may have changed the file: see "
            f"{weights.homepage}"
        ) from exc


def _title(weights: Weights) -> str:
    return weights.name + FETCHED_BY


def _readme(weights: Weights, weights_sha256: str, glosses: str) -> str:
    top10 = f", top-10 {weights.accuracy.top10:.2f} %" if weights.accuracy.top10 is not None else ""
    return f"""{_title(weights)}

I3D for {weights.num_classes} glosses of {weights.language}. Good for: {weights.good_for}.
Published accuracy on {weights.test_set}: top-1 {weights.accuracy.top1:.2f} %, \
top-5 {weights.accuracy.top5:.2f} %{top10}.

Paper:   {weights.paper}
Authors: {weights.homepage}
Weights: {weights.checkpoint.url}{f" ({weights.member})" if weights.member else ""}
Glosses: {glosses}
SHA-256 of weights.pt: {weights_sha256}

License: {weights.terms}
Read the authors' terms before you use or share these files: downloading them is between you and the authors.

Next: asl-triton export THIS_FOLDER
"""
