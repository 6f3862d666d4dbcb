"""Downloads files, resumes interrupted downloads, and says how to get a file by hand."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gdown
import httpx
import requests
from gdown.exceptions import DownloadError, FileURLRetrievalError

from asl_triton.errors import AslTritonError
from asl_triton.files import FolderLock, ensure_folder
from asl_triton_export.pretrained.zip_member import TIMEOUT_S, NoSuchMemberError, RangesError, receive_member

ATTEMPTS = 5  # in one call; each follows only if the previous one received something
DRIVE_RETRIES = 2  # by gdown, which waits a few seconds before each

OnBytes = Callable[[str, int, int | None], None]  # file name, bytes so far, total bytes if the server says


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web, and its name on this machine.

    With `zip_member`, the file is that member of the zip at `url`, and only that member is downloaded. It is a path in
    the zip, or the file name at the end of one.
    """

    url: str
    filename: str
    num_bytes: int | None = None  # approximate, to show before the download
    on_drive: bool = False  # Google Drive shows a page before the file, which gdown gets past
    zip_member: str | None = None
    sha256: str | None = None  # of the file on this machine

    @property
    def address(self) -> str:
        """Where the file is, for messages."""
        return self.url if self.zip_member is None else f"{self.zip_member} in {self.url}"


def ignore(*_: object) -> None:
    """Report nothing."""


def download(remote: RemoteFile, folder: Path, *, force: bool = False, on_bytes: OnBytes = ignore) -> Path:
    """Download a file into `folder` and return its path. An existing file is used as it is.

    If the connection breaks, the bytes received so far are kept in a `.part` file, and the next download resumes there.
    Two versions of a file are never mixed if the server says which version it sends. gdown checks this only within one
    call, so a file from Google Drive must have checksums of its own, as a zip does.

    Raises:
        AslTritonError: the file cannot be downloaded or written; the message says how to get it by hand.
    """
    target = folder / remote.filename
    if target.exists() and not force:
        return target
    part = target.with_name(f"{target.name}.part")
    with _translate_errors(remote, target, part):
        folder.mkdir(parents=True, exist_ok=True)
        if force:
            _forget(part)
        report = partial(on_bytes, remote.filename)
        if remote.zip_member is not None:
            receive_member(remote.url, remote.zip_member, part, report)
        else:
            receive = _from_drive if remote.on_drive else _from_web
            receive(remote.url, part, report)
        with part.open("rb") as file:
            head = file.read(512).lstrip().lower()
        if head.startswith((b"<!doctype html", b"<html")):
            _forget(part)
            raise _WebPageError
        part.replace(target)
        _forget(part)
    return target


def download_lock(folder: Path) -> FolderLock:
    """Return a lock for a `with` block that keeps other processes from downloading into `folder`.

    Raises:
        AslTritonError: another process holds it, or the folder cannot be created.
    """
    return FolderLock(ensure_folder(folder, "--to") / ".lock", holder="asl-triton fetch", option="--to")


class _WebPageError(Exception):
    """The server sent a web page instead of the file."""


def _from_web(url: str, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    # A compressed response could not be counted or resumed.
    with httpx.Client(follow_redirects=True, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"}) as client:
        for attempt in range(1, ATTEMPTS + 1):
            had = _size(part)
            try:
                return _receive(client, url, part, on_bytes)
            except httpx.TransportError:
                if attempt == ATTEMPTS or _size(part) <= had:
                    raise


def _receive(client: httpx.Client, url: str, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Make one request, and append to `part`. `part.tag` keeps the server's tag of the file's version, for If-Range."""
    tag = part.with_name(f"{part.name}.tag")
    done = _size(part) if tag.exists() else 0
    headers = {"Range": f"bytes={done}-", "If-Range": tag.read_text(encoding="latin-1")} if done else {}
    with client.stream("GET", url, headers=headers) as response:
        content_range = response.headers.get("content-range", "")
        if done and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if content_range == f"bytes */{done}":
                return  # it was complete, but the program ended before it could rename the file
            _forget(part)
            return _receive(client, url, part, on_bytes)
        response.raise_for_status()
        if response.url.scheme == "http" and httpx.URL(url).scheme == "https":
            raise httpx.UnsupportedProtocol(f"it redirects to {response.url}, which is not encrypted")
        if response.headers.get("content-type", "").startswith("text/html"):
            raise _WebPageError
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        if resumed and not content_range.startswith(f"bytes {done}-"):
            _forget(part)
            raise httpx.RemoteProtocolError(f"the server sent another part of the file ({content_range})")
        if not resumed:
            _forget(part)
            done = 0
            if version := _version(response):
                tag.write_text(version, encoding="latin-1")
        total = _total(response, done)
        with part.open("ab" if resumed else "wb") as file:
            for block in response.iter_bytes():
                file.write(block)
                done += len(block)
                on_bytes(done, total)
        if total is not None and done < total:
            raise httpx.RemoteProtocolError(f"the connection ended after {done:,} of {total:,} bytes")


def _version(response: httpx.Response) -> str:
    """Return the tag of this version of the file for If-Range, a strong ETag or a date; "" if there is none."""
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified", "")


def _total(response: httpx.Response, offset: int) -> int | None:
    length = response.headers.get("content-length", "")
    if not length.isdecimal() or response.headers.get("content-encoding", "identity") != "identity":
        return None
    return offset + int(length)


def _from_drive(url: str, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Download with gdown, whose unfinished files are called `NAME????????.part`. `part` appears when complete."""
    received = part.with_suffix(".drive")
    unfinished = f"{received.name}????????.part"
    had = sum(_size(path) for path in part.parent.glob(unfinished))
    try:
        _gdown(url, received, on_bytes)
    except FileURLRetrievalError:
        raise
    except DownloadError:
        if not had or sum(_size(path) for path in part.parent.glob(unfinished)) > had:
            raise
        # It cannot be resumed: the file changed, the server refuses, or two runs each left a file.
        _forget(part)
        _gdown(url, received, on_bytes)
    received.replace(part)


def _gdown(url: str, target: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    gdown.download(
        url,
        str(target),
        quiet=True,
        resume=True,
        use_cookies=False,
        progress=on_bytes,
        timeout=TIMEOUT_S,
        retries=DRIVE_RETRIES,
    )


@contextmanager
def _translate_errors(remote: RemoteFile, target: Path, part: Path) -> Iterator[None]:
    """Translate errors of httpx, gdown, requests and the disk into `AslTritonError`."""
    by_hand = f"open it in a browser, save the file as {target} and run this again"
    if remote.zip_member is not None:
        by_hand = f"unpack {remote.zip_member} of that zip, save it as {target} and run this again"
    try:
        yield
    except RangesError as exc:
        raise AslTritonError(
            f"cannot read {remote.zip_member} from {remote.url}: {exc}, and the zip is too large to download for one "
            f"file. If you have it, {by_hand}"
        ) from exc
    except NoSuchMemberError as exc:
        raise AslTritonError(
            f"{remote.url} has {exc}: check whether a newer asl-triton has its new name, or {by_hand}"
        ) from exc
    except _WebPageError as exc:
        raise AslTritonError(
            f"{remote.url} answered with a web page instead of the file (a login, a quota, a proxy?): {by_hand}"
        ) from exc
    except FileURLRetrievalError as exc:
        raise AslTritonError(
            f"Google Drive does not let programs download {remote.url} right now (its quota is used up, or it is no "
            f"longer shared): try again tomorrow, or {by_hand}"
        ) from exc
    except (httpx.HTTPStatusError, requests.HTTPError) as exc:
        status = 0 if exc.response is None else exc.response.status_code
        raise AslTritonError(f"{_refusal(remote.url, status)}, or {by_hand}") from exc
    except (httpx.HTTPError, httpx.InvalidURL, requests.RequestException, DownloadError) as exc:
        raise AslTritonError(
            f"{_describe_break(remote, part)} ({_reason(exc)}). Check the internet connection and run this again, or "
            f"{by_hand}"
        ) from exc
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            raise AslTritonError(
                f"the disk is full: make room for {target} and run this again, which continues the download"
            ) from exc
        raise AslTritonError(f"cannot write {target}: {exc.strerror or exc}. Name another folder") from exc
    except (KeyError, AssertionError) as exc:  # raised by gdown for a page that it does not know
        raise AslTritonError(f"gdown does not understand the response of {remote.url}: {by_hand}") from exc


def _describe_break(remote: RemoteFile, part: Path) -> str:
    """Describe a download whose connection failed, and how much of it was received."""
    unfinished = part.with_suffix(".drive")
    received = _size(part) + sum(map(_size, part.parent.glob(f"{unfinished.name}????????.part")))
    if not received:
        return f"cannot download {remote.url}"
    return f"the download of {remote.url} was interrupted after {received / 1e6:.1f} MB, which are kept"


def _reason(exc: BaseException) -> str:
    """Return the root cause in a few words, because the exceptions around it repeat the URL."""
    while (inner := exc.__cause__ or exc.__context__) is not None:
        exc = inner
    reason = getattr(exc, "strerror", None) or next(iter(str(exc).splitlines()), "") or type(exc).__name__
    return str(reason).rstrip(".")


def _refusal(url: str, status: int) -> str:
    if status in (404, 410):
        return f"{url} no longer exists ({status}): check whether a newer asl-triton has its new address"
    if status in (401, 403, 407, 451):
        return f"{url} was refused ({status}): try from another network"
    return f"{url} is not available right now ({status}): try again later"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(part: Path) -> None:
    """Delete an unfinished download, from the web or from Google Drive."""
    drive = part.with_suffix(".drive")
    for path in (part, part.with_name(f"{part.name}.tag"), drive, *part.parent.glob(f"{drive.name}????????.part")):
        path.unlink(missing_ok=True)
