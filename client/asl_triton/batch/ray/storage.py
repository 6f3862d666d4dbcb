"""Folders of this machine, and those that fsspec reaches by an address: s3://bucket/clips, gs://bucket/clips."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from asl_triton.errors import AslTritonError, VideoError
from asl_triton.video.discovery import Clip, FileFingerprint, find_clips, format_name, is_wanted, no_clips_error

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
LOCAL = ("file", "local")
TOLD_BY = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class StoredClip(Clip):
    """A clip in a `Folder`: `key` is what its file system knows it by, `stamp` changes when the file does.

    Only a clip of this machine has a `path` that is there.
    """

    key: str
    stamp: str
    size: int


@dataclass(frozen=True)
class Folder:
    """A folder, or one file: an absolute path, or an address that fsspec knows. Other machines may be sent it."""

    address: str

    @classmethod
    def of(cls, text: str) -> "Folder":
        """The folder of a path, which may be relative, or of an address.

        Raises:
            AslTritonError: nobody here knows such addresses, or only this process would see it.
        """
        scheme, is_address, rest = text.partition("://")
        if not is_address or scheme in LOCAL:
            return cls(os.path.abspath(rest if is_address else text))
        if scheme in ("http", "https"):
            raise AslTritonError(
                f"{text} is on a web server, which nobody can list or write to: name a folder, or a bucket"
            )
        if scheme == "memory":
            raise AslTritonError(f"{text} is the memory of one process, which a cluster's machines do not see")
        folder = cls(text.rstrip("/"))
        folder.opened()
        return folder

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None where it is elsewhere."""
        return None if "://" in self.address else Path(self.address)

    def join(self, *names: str) -> "Folder":
        """A folder or file in it."""
        return Folder("/".join((self.address.rstrip("/"), *names)))

    def opened(self) -> tuple[Any, str]:
        """Its file system, as fsspec has it, and what that calls it.

        Raises:
            AslTritonError: the file system's package is not installed, or there is none for such addresses.
        """
        scheme = self.address.partition("://")[0]
        try:
            file_system, path = fsspec.url_to_fs(self.address if self.path is None else f"file://{self.address}")
        except ImportError as exc:
            package = PACKAGES.get(scheme)
            remedy = f"pip install {package}, here and on the cluster's machines" if package else str(exc)
            raise AslTritonError(f"{self.address} needs a Python package that is not installed: {remedy}") from exc
        except ValueError as exc:
            raise AslTritonError(
                f"{scheme}:// is no kind of address that fsspec knows: name a folder, s3://bucket/folder, "
                "gs://bucket/folder or the like"
            ) from exc
        return file_system, str(path)

    def write(self, name: str, data: bytes) -> None:
        """Put a file into it, and make it where it is a folder of this machine.

        Raises:
            AslTritonError: it cannot be written to.
        """
        file_system, path = self.opened()
        with translate_storage_errors(f"cannot write to {self.address}", "Choose another folder with --output"):
            if self.path is not None:
                self.path.mkdir(parents=True, exist_ok=True)
            file_system.pipe_file(f"{path}/{name}", data)

    def upload(self, files: Iterable[Path], names: Iterable[str]) -> tuple[str, ...]:
        """Upload files of this machine, each of which is seen when it is whole, and delete those of the `names` that
        are not among them; the addresses of those that are.

        Raises:
            AslTritonError: it cannot be written to.
        """
        file_system, path = self.opened()
        uploaded = [file for file in files if file.is_file()]
        with translate_storage_errors(f"cannot write to {self.address}", "Choose another folder with --output"):
            for file in uploaded:
                file_system.put_file(str(file), f"{path}/{file.name}")
            for name in set(names) - {file.name for file in uploaded}:
                with suppress(FileNotFoundError):
                    file_system.rm_file(f"{path}/{name}")
        return tuple(self.join(file.name).address for file in uploaded)

    def read(self, clip: StoredClip, most: int) -> bytes:
        """A clip's file; of one that is larger than `most` bytes, one more than that.

        Raises:
            VideoError: it is not there, or cannot be read.
        """
        if clip.size == 0:
            return b""  # no range of it can be asked for
        file_system, _ = self.opened()
        try:
            data: bytes = file_system.cat_file(clip.key, start=0, end=most + 1)
        except FileNotFoundError as exc:
            raise VideoError(f"there is no file {clip.name}") from exc
        except Exception as exc:  # each file system has its own
            raise VideoError(f"cannot read {clip.name}: {exc}") from exc
        return data


def stored_clips(folder: Folder, glob: str | None = None) -> list[StoredClip]:
    """The videos in a folder and below, by name, or the one file; as `find_clips` says of folders of this machine.

    Raises:
        VideoError: there is no such folder, or no video in it. AslTritonError: it cannot be looked into.
    """
    if folder.path is not None:
        return [local_clip(clip) for clip in find_clips(folder.path, glob)]
    file_system, root = folder.opened()
    with translate_storage_errors(f"cannot look into {folder.address}", "Check the address, and your access to it"):
        file_system.invalidate_cache()
        try:
            found: Mapping[str, Mapping[str, Any]] = file_system.find(root, detail=True)
        except FileNotFoundError as exc:
            raise VideoError(f"there is no folder {folder.address}") from exc
        if list(found) == [root]:
            return [remote_clip(root, root.rpartition("/")[2], file_system.info(root))]
    clips = [
        remote_clip(key, name, info)
        for key, info in found.items()
        if is_wanted(name := key.removeprefix(f"{root}/"), glob) and info.get("type", "file") == "file"
    ]
    if not clips:
        raise no_clips_error(folder.address, glob)
    return sorted(clips, key=lambda clip: clip.name)


def local_clip(clip: Clip) -> StoredClip:
    """A clip of this machine, with its size and the time of its last change."""
    stamp = FileFingerprint.of(clip.path) or FileFingerprint(0, 0)
    return StoredClip(clip.path, clip.name, str(clip.path), f"{stamp.size} {stamp.mtime_ns}", stamp.size)


def remote_clip(key: str, name: str, info: Mapping[str, Any]) -> StoredClip:
    """A clip elsewhere, with its size and what else tells that it was changed: its ETag, or a time."""
    size = int(info.get("size") or 0)
    told = next((info[field] for field in TOLD_BY if info.get(field)), "")
    return StoredClip(Path(name), format_name(name), key, f"{size} {told}", size)


@contextmanager
def translate_storage_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever a file system raises into a sentence: each has errors of its own."""
    try:
        yield
    except AslTritonError:
        raise
    except Exception as exc:
        said = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc) or type(exc).__name__
        raise AslTritonError(f"{what}: {said}. {remedy}") from exc
