"""Reads one file out of a large zip on the web: its directory and that member alone, by HTTP ranges."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipInfo

import requests
import urllib3
from remotezip import RangeNotSupported, RemoteIOError, RemoteZip, RemoteZipError

TIMEOUT_S = 30.0  # without a single byte
BLOCK_BYTES = 2**18
MAX_BYTES = 64 * 2**20  # of a member: a list of glosses is smaller


class RangesError(Exception):
    """The server does not send parts of a file, or what it sends is not a zip. The argument says which."""


class NoSuchMemberError(Exception):
    """A zip without that member, or with several. The argument says what it has."""


def receive_member(url: str, member: str, part: Path, on_bytes: Callable[[int, int | None], None]) -> None:
    """Write a member of a zip on the web to `part`: a path in it, or a file name that one path ends with.

    Raises:
        RangesError, NoSuchMemberError: the server or the zip cannot be used.
        requests.RequestException: the server cannot be reached, or refuses.
        OSError: the file cannot be written.
    """
    with requests.Session() as session:
        session.hooks["response"].append(refuse_unencrypted)
        # Some servers take no range that counts from the end, so the length is asked for first.
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
            raise RangesError("the server does not send parts of a file") from exc
        except RemoteIOError as exc:
            if isinstance(exc.__context__, requests.RequestException):
                raise exc.__context__ from None
            raise requests.ConnectionError(str(exc)) from exc
        except urllib3.exceptions.HTTPError as exc:  # which requests leaves alone in a stream
            raise requests.ConnectionError(f"the connection ended early: {exc}") from exc
        except RemoteZipError as exc:
            raise RangesError(f"the server answers wrongly ({exc})") from exc
        except (BadZipFile, EOFError, NotImplementedError, ValueError) as exc:
            raise RangesError(f"it is not a readable zip ({exc})") from exc
    if len(content) > MAX_BYTES:
        raise RangesError(f"it unpacks to more than {MAX_BYTES // 2**20} MiB")
    part.write_bytes(content)


def find_member(members: list[ZipInfo], wanted: str) -> ZipInfo:
    """The member of that path, or the only one of that file name.

    Raises:
        NoSuchMemberError: there is none, or there are several.
    """
    found = [m for m in members if m.filename == wanted] or [
        m for m in members if PurePosixPath(m.filename).name == wanted
    ]
    if len(found) != 1:
        raise NoSuchMemberError(f"{len(found) or 'no'} files called {wanted} among its {len(members):,}")
    return found[0]


def refuse_unencrypted(response: requests.Response, *_: Any, **__: Any) -> None:
    """Refuse an answer that a redirect from https led away to."""
    if response.is_redirect and response.url.startswith("https:") and response.headers["location"].startswith("http:"):
        raise requests.exceptions.InvalidSchema(
            f"it redirects to {response.headers['location']}, which is not encrypted"
        )
