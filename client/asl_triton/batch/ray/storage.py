"""Folders on this machine, and remote ones that fsspec supports, such as s3://bucket/clips or gs://bucket/clips."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.video.discovery import (
    Clip,
    FileFingerprint,
    find_clips,
    format_name,
    is_hidden,
    is_video,
    is_wanted,
    no_clips_error,
)

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
LOCAL = ("file", "local")
# File systems' names for the value that changes with a file's content, best first.
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class StoredClip(Clip):
    """A clip in a `Folder`. `key` is its name in the file system. Its `path` exists only on this machine."""

    key: str
    fingerprint: FileFingerprint


@dataclass(frozen=True)
class Folder:
    """A folder or a single file: an absolute path, or an address that fsspec knows. Can be sent to other machines."""

    address: str

    @classmethod
    def parse(cls, text: str) -> "Folder":
        """Return the folder at a path, which may be relative, or at an address.

        Raises:
            AslTritonError: the address is invalid, needs a missing package, or only works in this process.
        """
        scheme, is_address, rest = text.partition("://")
        if not is_address or scheme in LOCAL:
            return cls(os.path.abspath(rest if is_address else text))
        if scheme in ("http", "https"):
            raise AslTritonError(
                f"{text} is on a web server, which cannot be listed or written to: name a folder or a bucket"
            )
        if scheme == "memory":
            raise AslTritonError(f"{text} is in the memory of one process, which a cluster's machines cannot see")
        folder = cls(text.rstrip("/"))
        folder.open()
        return folder

    @property
    def path(self) -> Path | None:
        """The path on this machine, or None for a remote folder."""
        return None if "://" in self.address else Path(self.address)

    def join(self, *names: str) -> "Folder":
        """Return a folder or file in this folder."""
        return Folder("/".join((self.address.rstrip("/"), *names)))

    def open(self) -> tuple[Any, str]:
        """Return the fsspec file system and the path there.

        Raises:
            AslTritonError: the file system's package is not installed, or fsspec does not know such addresses.
        """
        scheme = self.address.partition("://")[0]
        try:
            file_system, path = fsspec.url_to_fs(self.address if self.path is None else f"file://{self.address}")
        except ImportError as exc:
            package = PACKAGES.get("abfs" if scheme == "abfss" else scheme)
            remedy = f"pip install {package}, here and on all of the cluster's machines" if package else str(exc)
            raise AslTritonError(f"{self.address} needs a Python package that is not installed: {remedy}") from exc
        except ValueError as exc:
            raise AslTritonError(
                f"fsspec does not know {scheme}:// addresses: name a folder or an address such as "
                "s3://bucket/folder or gs://bucket/folder"
            ) from exc
        return file_system, str(path)

    def list(self) -> list[str]:
        """Return the keys of all files in the folder and its subfolders, or none if it does not exist.

        Raises:
            AslTritonError: the folder could not be read.
        """
        file_system, path = self.open()
        with translate_storage_errors(f"cannot read {self.address}", "Choose another folder with --output"):
            file_system.invalidate_cache()
            return [str(key) for key in file_system.find(path)]

    def read(self, clip: StoredClip, max_bytes: int) -> bytes:
        """Read the content of a clip. If it is larger than `max_bytes`, returns only `max_bytes` + 1 bytes.

        Raises:
            VideoError: the clip does not exist or could not be read.
        """
        if clip.fingerprint.size == 0:
            return b""  # ranges of an empty file are invalid
        file_system, _ = self.open()
        try:
            data: bytes = file_system.cat_file(clip.key, start=0, end=max_bytes + 1)
        except FileNotFoundError as exc:
            raise VideoError(f"{clip.name} does not exist") from exc
        except Exception as exc:  # each file system has its own exceptions
            raise VideoError(f"cannot read {clip.name}: {exc}") from exc
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file in the folder. A folder on this machine is created if missing.

        Raises:
            AslTritonError: the file could not be written.
        """
        file_system, path = self.open()
        with translate_storage_errors(f"cannot write to {self.address}", "Choose another folder with --output"):
            if self.path is not None:
                self.path.mkdir(parents=True, exist_ok=True)
            file_system.pipe_file(f"{path}/{name}", data)

    def upload(self, files: Iterable[Path], names: Iterable[str]) -> tuple[str, ...]:
        """Upload local files, and delete those of `names` that are not among them. Returns the addresses.

        Raises:
            AslTritonError: the files could not be written.
        """
        file_system, path = self.open()
        uploaded = [file for file in files if file.is_file()]
        with translate_storage_errors(f"cannot write to {self.address}", "Choose another folder with --output"):
            for file in uploaded:
                file_system.put_file(str(file), f"{path}/{file.name}")
            for name in set(names) - {file.name for file in uploaded}:
                with suppress(FileNotFoundError):
                    file_system.rm_file(f"{path}/{name}")
        return tuple(self.join(file.name).address for file in uploaded)

    def delete(self) -> None:
        """Delete the folder and everything in it.

        Raises:
            AslTritonError: the folder could not be deleted.
        """
        file_system, path = self.open()
        with translate_storage_errors(f"cannot delete {self.address}", "Choose another folder with --output"):
            if file_system.exists(path):
                file_system.rm(path, recursive=True)


def find_stored_clips(folder: Folder, glob: str | None = None) -> list[StoredClip]:
    """Find the videos in a folder and its subfolders, sorted by name, or the one file. See `find_clips`.

    Raises:
        VideoError: the folder does not exist or has no videos. AslTritonError: the folder could not be listed.
    """
    if folder.path is not None:
        nothing = FileFingerprint(0, 0)
        return [
            StoredClip(clip.path, clip.name, str(clip.path), FileFingerprint.of(clip.path) or nothing)
            for clip in find_clips(folder.path, glob)
        ]
    file_system, root = folder.open()
    with translate_storage_errors(f"cannot list {folder.address}", "Check the address and your access to it"):
        file_system.invalidate_cache()
        try:
            found: Mapping[str, Mapping[str, Any]] = file_system.find(root, detail=True)
        except FileNotFoundError as exc:
            kind = "file" if is_video(Path(folder.address)) else "folder"
            raise VideoError(f"there is no {kind} {folder.address}") from exc
        if list(found) == [root]:
            return [make_remote_clip(root, root.rpartition("/")[2], file_system.info(root))]
    clips = [
        make_remote_clip(key, name, info)
        for key, info in found.items()
        if is_wanted(name := key.removeprefix(f"{root}/"), glob) and info.get("type", "file") == "file"
    ]
    if not clips:
        names = sorted(key.removeprefix(f"{root}/") for key in found)
        skipped = [format_name(name) for name in names if not any(map(is_hidden, name.split("/")))]
        raise no_clips_error(folder.address, glob, skipped)
    return sorted(clips, key=lambda clip: clip.name)


def make_remote_clip(key: str, name: str, info: Mapping[str, Any]) -> StoredClip:
    """Build a remote clip, identified by its size and by a value that changes with its content: its ETag or a time."""
    size = int(info.get("size") or 0)
    version = next((info[field] for field in VERSIONS if info.get(field)), "")
    return StoredClip(Path(name), format_name(name), key, FileFingerprint(size, 0, f"{size} {version}"))


@contextmanager
def translate_storage_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a file system raises into one sentence, because each has its own exceptions.

    Raises:
        AslTritonError: the block raised something.
    """
    try:
        yield
    except AslTritonError:
        raise
    except Exception as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc) or type(exc).__name__
        raise AslTritonError(f"{what}: {reason}. {remedy}") from exc
