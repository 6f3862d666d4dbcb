"""What the one who starts the page decides about it."""

from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError
from asl_triton.files import read_at_most
from asl_triton.video.reader import Limits

MB = 10**6


@dataclass(frozen=True)
class PageOptions:
    """Limits of the page, each with a sentence where it is met."""

    max_upload_mb: int = 200
    max_minutes: float = 10.0  # of one video
    max_clips: int = 200  # of "Many clips" at once
    queue_limit: int = 32  # visitors' requests that may wait
    at_once: int = 4  # clips that are asked about at the same time, of all visitors
    max_live: int = 4  # visitors whose cameras stream at the same time
    keep_minutes: float = 50.0  # an upload is deleted this long after it came, and at most five minutes later
    max_visitor_mb: int | None = None  # of one visitor's uploads; None: five of the largest
    max_folder_mb: int | None = None  # of all visitors' uploads; None: fifteen of the largest
    min_free_mb: int = 500  # of the disk that uploads are on
    decode_timeout_s: float = 15.0  # to open a video, and for each window of it
    dictionary: Path | None = None  # the file of taught signs that all visitors share; None: each has their own
    with_vocabulary: bool = False  # with it, the model's own glosses compete, until a visitor chooses
    visitors_teach: bool = False  # whether visitors may change that file

    @property
    def limits(self) -> Limits:
        """What a visitor's video may be."""
        return Limits(max_bytes=self.max_upload_mb * MB, max_duration_s=self.max_minutes * 60)

    @property
    def max_visitor_bytes(self) -> int:
        """What may lie on the page's disk of one visitor's uploads."""
        return MB * (5 * self.max_upload_mb if self.max_visitor_mb is None else self.max_visitor_mb)

    @property
    def max_folder_bytes(self) -> int:
        """What may lie on the page's disk of all visitors' uploads."""
        return MB * (15 * self.max_upload_mb if self.max_folder_mb is None else self.max_folder_mb)


@dataclass(frozen=True)
class Address:
    """Where the page is found, and by whom. `port` 0 takes a free one; `root_path` is the prefix a proxy cuts off."""

    host: str = "127.0.0.1"
    port: int = 7860
    root_path: str = ""
    share: bool = False
    auth: tuple[tuple[str, str], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach it."""
        return self.share or not (self.host.startswith("127.") or self.host in ("localhost", "::1"))


def read_auth(pair: str | None, path: Path | None) -> tuple[tuple[str, str], ...]:
    """Who may see the page: `user:password`, and a file of such lines. Empty lines are skipped.

    Raises:
        AslTritonError: the file cannot be read or has no line, or a line has no colon, user or password.
    """
    lines = [] if pair is None else [pair]
    if path is not None:
        try:
            content = read_at_most(path, MB)
            if content is None:
                raise AslTritonError(f"{path} (--auth-file) is larger than 1 MB: not a list of accounts")
            lines += [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
            raise AslTritonError(
                f"cannot read {path} (--auth-file): {why}. Write a line user:password for each"
            ) from exc
        if not lines:
            raise AslTritonError(f"{path} (--auth-file) is empty: write a line user:password for each")
    accounts = []
    for number, line in enumerate(lines, start=1):
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):  # and never the line itself: it may hold a password
            raise AslTritonError(f"account {number} of --auth or --auth-file is not user:password: write it like that")
        accounts.append((user, password))
    return tuple(accounts)
