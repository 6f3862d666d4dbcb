"""Reads one file from a large zip on the web by HTTP ranges, without downloading the rest."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipInfo

import requests
import urllib3
from remotezip import RangeNotSupported, RemoteIOError, RemoteZip, RemoteZipError

TIMEOUT_S = 30.0  # without a single byte
BLOCK_BYTES = 2**18
MAX_BYTES = 64 * 2**20  # per member; gloss lists are much smaller


class RangesError(Exception):
    """The server does not support ranges, or what it sends is not a zip. The argument says which."""


class NoSuchMemberError(Exception):
    """The zip does not have exactly one such member. The argument describes what it has."""


def receive_member(url: str, member: str, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Write a member of a zip on the web to `part`. `member` is its path in the zip, or a unique file name.

    Raises:
        RangesError, NoSuchMemberError: the server or the zip is unusable.
        requests.RequestException: the server is unreachable, or refuses.
        OSError: the file is not writable.
    """
    with requests.Session() as session:
        session.hooks["response"].append(refuse_unencrypted)
        # Some servers do not support ranges that count from the end, so ask for the length first.
        options: dict[str, Any] = {
            "session": session,
            "support_suffix_range": False,
            "timeout": TIMEOUT_S,
            "allow_redirects": True,
            "headers": {"Accept-Encoding": "identity"},
        }
        try:
            with RemoteZip(url, **options) as archive:
                info = find_member(archive.infolist(), member)
                with archive.open(info) as source:
                    content = source.read(MAX_BYTES + 1)
                    on_bytes(len(content), info.file_size)
        except RangeNotSupported as exc:
            raise RangesError("the server does not support HTTP ranges") from exc
        except RemoteIOError as exc:
            if isinstance(exc.__context__, requests.RequestException):
                raise exc.__context__ from None
            raise requests.ConnectionError(str(exc)) from exc
        except urllib3.exceptions.HTTPError as exc:  # which requests leaves alone in a stream
            raise requests.ConnectionError(f"the connection ended early: {exc}") from exc
        except RemoteZipError as exc:
            raise RangesError(f"the server gave an invalid response ({exc})") from exc
        except (BadZipFile, EOFError, NotImplementedError, ValueError) as exc:
            raise RangesError(f"it is not a readable zip ({exc})") from exc
    if len(content) > MAX_BYTES:
        raise RangesError(f"it unpacks to more than {MAX_BYTES // 2**20} MiB")
    part.write_bytes(content)


def find_member(members: list[ZipInfo], wanted: str) -> ZipInfo:
    """Find the member with that path, or the only one with that file name.

    Raises:
        NoSuchMemberError: there is not exactly one.
    """
    found = [m for m in members if m.filename == wanted] or [
        m for m in members if PurePosixPath(m.filename).name == wanted
    ]
    if len(found) != 1:
        raise NoSuchMemberError(f"{len(found) or 'no'} files called {wanted} among its {len(members):,}")
    return found[0]


def refuse_unencrypted(response: requests.Response, *_: Any, **__: Any) -> None:
    """Refuse a redirect from https to http."""
    if response.is_redirect and response.url.startswith("https:") and response.headers["location"].startswith("http:"):
        raise requests.exceptions.InvalidSchema(
            f"it redirects to {response.headers['location']}, which is not encrypted"
        )
