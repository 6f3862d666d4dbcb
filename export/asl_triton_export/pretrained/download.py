"""Downloads that resume where they broke off, and that say how to get a file by hand."""

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

ATTEMPTS = 5  # in one call, each only if the previous one brought something
DRIVE_RETRIES = 2  # by gdown, which waits some seconds before each

OnBytes = Callable[[str, int, int | None], None]  # file name, bytes so far, bytes in all where the server says


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web, and its name on this machine.

    With `zip_member`, the file is that member of the zip at `url`, and only that member is downloaded: a path in the
    zip, or a file name that one path ends with.
    """

    url: str
    filename: str
    num_bytes: int | None = None  # about, to show before the download
    on_drive: bool = False  # Google Drive hands files out behind a page of its own, which gdown gets past
    zip_member: str | None = None
    sha256: str | None = None  # of the file on this machine

    @property
    def address(self) -> str:
        """Where it is, for people."""
        return self.url if self.zip_member is None else f"{self.zip_member} in {self.url}"


def ignore(*_: object) -> None:
    """Report nothing."""


def download(remote: RemoteFile, folder: Path, *, force: bool = False, on_bytes: OnBytes = ignore) -> Path:
    """Download a file into `folder` and return its path. A file that is there already is taken as it is.

    What came before a connection broke is kept in a `.part` file and not asked for again. Two versions of a file are
    never mixed where the server says which version it sends. gdown checks that within one call only, so a file from
    Google Drive must be of a kind that shows it, such as a zip with its checksums.

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
    """Keep other processes from downloading into `folder` meanwhile: a lock to use in a `with` block.

    Raises:
        AslTritonError: another one already does, or the folder cannot be made.
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
    """Make one request, into `part`; `part.tag` keeps the server's name for this version of the file, for If-Range."""
    tag = part.with_name(f"{part.name}.tag")
    done = _size(part) if tag.exists() else 0
    headers = {"Range": f"bytes={done}-", "If-Range": tag.read_text(encoding="latin-1")} if done else {}
    with client.stream("GET", url, headers=headers) as response:
        content_range = response.headers.get("content-range", "")
        if done and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            if content_range == f"bytes */{done}":
                return  # the last byte had come, and the program ended before it could say so
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
            raise httpx.RemoteProtocolError(f"another part of the file came than asked for ({content_range})")
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
            raise httpx.RemoteProtocolError(f"the connection ended at {done:,} of {total:,} bytes")


def _version(response: httpx.Response) -> str:
    """The name of this version of the file, where it is one that If-Range takes: a strong ETag, or a date."""
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified", "")


def _total(response: httpx.Response, offset: int) -> int | None:
    length = response.headers.get("content-length", "")
    if not length.isdecimal() or response.headers.get("content-encoding", "identity") != "identity":
        return None
    return offset + int(length)


def _from_drive(url: str, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Download with gdown, whose unfinished files are called `NAME????????.part`; `part` appears once it is whole."""
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
        # It cannot be resumed: the file changed, the server refuses, or two runs left one file each.
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
    """Turn errors of httpx, of gdown and its requests, and of the disk into a sentence."""
    by_hand = f"open it in a browser, save the file as {target} and run this again"
    if remote.zip_member is not None:
        by_hand = f"unpack {remote.zip_member} of that zip, save it as {target} and run this again"
    try:
        yield
    except RangesError as exc:
        raise AslTritonError(
            f"{remote.zip_member} cannot be read out of {remote.url}: {exc}, and the zip is too large to download for "
            f"one file. If you have it, {by_hand}"
        ) from exc
    except NoSuchMemberError as exc:
        raise AslTritonError(
            f"{remote.url} has {exc}: see whether a newer asl-triton knows what it is called now, or {by_hand}"
        ) from exc
    except _WebPageError as exc:
        raise AslTritonError(
            f"{remote.url} answered with a web page instead of the file (a login, a quota, a proxy?): {by_hand}"
        ) from exc
    except FileURLRetrievalError as exc:
        raise AslTritonError(
            f"Google Drive does not hand out {remote.url} to programs now (too many people took it lately, or it is "
            f"no longer shared): try again in a day, or {by_hand}"
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
    except (KeyError, AssertionError) as exc:  # how gdown answers a page that it does not know
        raise AslTritonError(f"gdown cannot make out what {remote.url} answered: {by_hand}") from exc


def _describe_break(remote: RemoteFile, part: Path) -> str:
    """What is left of a download whose connection failed."""
    unfinished = part.with_suffix(".drive")
    received = _size(part) + sum(map(_size, part.parent.glob(f"{unfinished.name}????????.part")))
    if not received:
        return f"cannot download {remote.url}"
    return f"the download of {remote.url} broke off after {received / 1e6:.1f} MB, which are kept"


def _reason(exc: BaseException) -> str:
    """The root cause in a few words: the exceptions around it repeat the URL."""
    while (inner := exc.__cause__ or exc.__context__) is not None:
        exc = inner
    reason = getattr(exc, "strerror", None) or next(iter(str(exc).splitlines()), "") or type(exc).__name__
    return str(reason).rstrip(".")


def _refusal(url: str, status: int) -> str:
    if status in (404, 410):
        return f"{url} is no longer there ({status}): see whether a newer asl-triton knows where it went"
    if status in (401, 403, 407, 451):
        return f"{url} was refused ({status}): try from another network"
    return f"{url} is not being handed out now ({status}): try again later"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _forget(part: Path) -> None:
    """Remove an unfinished file, whichever way it came."""
    drive = part.with_suffix(".drive")
    for path in (part, part.with_name(f"{part.name}.tag"), drive, *part.parent.glob(f"{drive.name}????????.part")):
        path.unlink(missing_ok=True)
