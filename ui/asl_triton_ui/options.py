"""The operator's options for the page."""

from dataclasses import dataclass
from pathlib import Path

from asl_triton.errors import AslTritonError
from asl_triton.files import read_at_most
from asl_triton.video.reader import Limits

MB = 10**6


@dataclass(frozen=True)
class PageOptions:
    """The page's limits. A visitor who hits one gets a sentence that says so."""

    max_upload_mb: int = 200
    max_minutes: float = 10.0  # per video
    max_clips: int = 200  # at once on the tab "Many clips"
    queue_limit: int = 32  # waiting requests
    at_once: int = 4  # clips recognized at the same time, for all visitors together
    max_live: int = 4  # visitors whose cameras stream at the same time
    keep_minutes: float = 50.0  # an upload is deleted this long after it arrived, or up to five minutes later
    max_visitor_mb: int | None = None  # one visitor's uploads; None: five times max_upload_mb
    max_folder_mb: int | None = None  # all visitors' uploads; None: fifteen times max_upload_mb
    min_free_mb: int = 500  # space to keep free on the disk of the uploads
    decode_timeout_s: float = 15.0  # to open a video, and for each window of it
    dictionary: Path | None = None  # the file of taught signs that all visitors share; None: each has their own
    with_vocabulary: bool = False  # with `dictionary`, let the model's own glosses compete until a visitor chooses
    visitors_teach: bool = False  # whether visitors may change that file

    @property
    def limits(self) -> Limits:
        """The limits for a visitor's video."""
        return Limits(max_bytes=self.max_upload_mb * MB, max_duration_s=self.max_minutes * 60)

    @property
    def max_visitor_bytes(self) -> int:
        """How many bytes one visitor's uploads may take on the page's disk."""
        return MB * (5 * self.max_upload_mb if self.max_visitor_mb is None else self.max_visitor_mb)

    @property
    def max_folder_bytes(self) -> int:
        """How many bytes all visitors' uploads may take on the page's disk."""
        return MB * (15 * self.max_upload_mb if self.max_folder_mb is None else self.max_folder_mb)


@dataclass(frozen=True)
class Address:
    """The page's address, and the accounts (`auth`) that may log in.

    `port` 0 takes a free one. `root_path` is the prefix that a proxy strips.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    root_path: str = ""
    share: bool = False
    auth: tuple[tuple[str, str], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether other machines may reach the page."""
        return self.share or not (self.host.startswith("127.") or self.host in ("localhost", "::1"))


def read_auth(pair: str | None, path: Path | None) -> tuple[tuple[str, str], ...]:
    """Read the accounts that may see the page from `user:password` and from a file of such lines, skipping empty ones.

    Raises:
        AslTritonError: the file cannot be read or has no accounts, or a line lacks the colon, user or password.
    """
    lines = [] if pair is None else [pair]
    if path is not None:
        try:
            content = read_at_most(path, MB)
            if content is None:
                raise AslTritonError(f"{path} (--auth-file) is larger than 1 MB, so it is not a list of accounts")
            lines += [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as exc:
            why = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8 text"
            raise AslTritonError(
                f"cannot read {path} (--auth-file): {why}. Write one line user:password per account"
            ) from exc
        if not lines:
            raise AslTritonError(f"{path} (--auth-file) is empty: write one line user:password per account")
    accounts = []
    for number, line in enumerate(lines, start=1):
        user, colon, password = line.strip().partition(":")
        if not (user and colon and password):  # never quote the line, which may contain a password
            raise AslTritonError(f"account {number} of --auth or --auth-file is not of the form user:password")
        accounts.append((user, password))
    return tuple(accounts)
