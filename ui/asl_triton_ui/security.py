"""Access control for the page: which requests are accepted, and limits on their size and duration.

Gradio reads a request's body before it checks who sent it, answers pages of any origin, and waits forever for the rest
of a request. This middleware runs first and prevents that.
"""

import asyncio
import json
import logging
import math
import os
import resource
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from asl_triton_ui.uploads import UploadError, UploadQuota

logger = logging.getLogger(__name__)

API = "/gradio_api"
UPLOAD = f"{API}/upload"
LOGIN = "/login"
# What a visitor needs in order to log in, in addition to the pages.
PUBLIC = tuple(f"{API}/{name}" for name in ("app_id", "login_check", "startup-events", "theme.css", "token", "user"))
# What Gradio offers but the page does not need: fetching any URL, sharing a session as a link, and its own tools.
CLOSED = (
    f"{API}/file=http",
    f"{API}/file/http",
    f"{API}/proxy",
    f"{API}/deep_link",
    f"{API}/process_recording",
    f"{API}/component_server",
    f"{API}/vibe",
    f"{API}/undo-vibe",
    "/monitoring",
    "/openapi.json",
)
MAX_BODY_BYTES = 4_000_000  # a live picture in base64, and the rest of its event
MAX_BODY_VALUES = 50_000  # in a JSON body; each value takes far more memory than its bytes
MAX_LOGIN_BYTES = 4_096
FILE_BYTES = 8_192  # that an upload takes in addition to its content: a folder and a block
# A sender may pause for PATIENCE_S in total, and must otherwise send at MIN_BYTES_PER_S or faster.
PATIENCE_S, MIN_BYTES_PER_S = 20.0, 10_000
MAX_CONNECTIONS = 2_000  # open at once
MAX_ADDRESS_CONNECTIONS = 500  # from one address, unless it may be a proxy
HEAD_TIMEOUT_S = 20.0  # from a request's first byte, or a new connection, to the end of its headers
FREE_LOGINS = 3  # wrong ones in a row from one address before it has to wait
MAX_LOGIN_WAIT_S = 30.0
FORGET_LOGINS_S = 900.0
# The page loads nothing from elsewhere, and no other page may show it in a frame.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class SecurityMiddleware:
    """ASGI middleware around Gradio: refuses requests that the page never sends, and limits the rest.

    `origins` are addresses of the page (scheme, host, port) in addition to the host that a request names. `head` is
    HTML for the head of the login form, where Gradio omits the page's own.
    """

    def __init__(self, app: ASGIApp, uploads: UploadQuota, origins: Collection[str] = (), head: str = "") -> None:
        self.app = app
        self._uploads, self._origins, self._head = uploads, origins, head
        self._logins = LoginThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # Gradio does not use them
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        try:
            self._admit(exchange)
        except HTTPException as exc:
            await exchange.refuse(exc)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as exc:  # raised by Gradio for a request that the page never sends
            if exchange.status is not None:
                raise
            logger.error("%s %.200s failed: %.500s", scope["method"], ascii(scope["path"]), ascii(exc))
            await exchange.refuse(describe_failure(exchange))
        finally:
            if exchange.is_login and exchange.status == 200:
                self._logins.clear(exchange.address)

    def _admit(self, exchange: "Exchange") -> None:
        """Accept or refuse a request by its headers alone, and set the limits for its body.

        Raises:
            HTTPException: the request is refused.
        """
        scope = exchange.scope
        if scope["path"].startswith(CLOSED):
            raise HTTPException(404, "not found")
        origin = exchange.headers.get("origin")
        if origin is not None and not self._is_own(origin, exchange.headers):
            raise HTTPException(403, "this page does not accept requests from other pages")
        exchange.is_login = scope["method"] == "POST" and scope["path"].rstrip("/") == LOGIN
        is_reading = scope["method"] in ("GET", "HEAD", "OPTIONS")
        user = find_user(scope, exchange.headers)
        if exchange.is_login:
            wait_s = self._logins.try_now(exchange.address)
            if wait_s:
                raise HTTPException(
                    429, f"too many wrong logins: try again in {wait_s} s", {"retry-after": str(wait_s)}
                )
        elif user is None and not (is_reading and is_public(scope["path"])):
            raise HTTPException(401, "log in first")
        if user is None and scope["method"] == "GET" and scope["path"] == "/":
            exchange.head = self._head
        if user is not None and scope["path"].rstrip("/") == UPLOAD:
            exchange.body.upload = Upload(self._uploads, user or exchange.address)
        else:
            exchange.body.max_bytes = MAX_LOGIN_BYTES if is_reading or exchange.is_login else MAX_BODY_BYTES
        exchange.body.check_declared(exchange.headers.get("content-length"))

    def _is_own(self, origin: str, headers: Headers) -> bool:
        hosts = (headers.get("host"), headers.get("x-forwarded-host", "").partition(",")[0].strip())
        host = urlsplit(origin).netloc
        return origin in self._origins or (bool(host) and host in hosts)


def is_public(path: str) -> bool:
    """Return whether a path is passed to Gradio without a login. Gradio may still require one."""
    return not path.startswith(API) or path.startswith(PUBLIC)


def find_user(scope: Scope, headers: Headers) -> str | None:
    """Return the user that Gradio's app knows, "" if the page has no login, or None if nobody is logged in."""
    app: Any = scope["app"]
    if app.auth is None:
        return ""
    cookies = cookie_parser(headers.get("cookie", ""))
    kinds = ("access-token", "access-token-unsecure")
    tokens = [token for kind in kinds if (token := cookies.get(f"{kind}-{app.cookie_id}"))]
    user = app.tokens.get(tokens[0]) if tokens else None
    return None if user is None else str(user)


def describe_failure(exchange: "Exchange") -> HTTPException:
    """Return the response for a request on which Gradio raised an exception."""
    if exchange.body.upload is not None:
        return HTTPException(400, "the upload cannot be read: send files in the form's field `files`, each with a name")
    return HTTPException(500, "the page cannot answer this request")


class LoginThrottle:
    """Slows down password guessing: after three wrong passwords, each further one doubles the wait, up to 30 seconds.

    Counts by address. Behind a proxy that does not pass on its clients' addresses, all visitors share one count.
    """

    def __init__(self) -> None:
        self._tries: dict[str, tuple[int, float]] = {}  # by address: wrong tries in a row, and when the next may come

    def try_now(self, address: str) -> int:
        """Return the whole seconds that an address has to wait. If 0, count a wrong try; `clear` undoes it."""
        now_s = time.monotonic()
        for known in [known for known, (_, next_s) in self._tries.items() if now_s - next_s > FORGET_LOGINS_S]:
            del self._tries[known]
        tries, next_s = self._tries.get(address, (0, now_s))
        if next_s > now_s:
            return math.ceil(next_s - now_s)
        wait_s = min(2.0 ** (tries - FREE_LOGINS + 1), MAX_LOGIN_WAIT_S) if tries >= FREE_LOGINS - 1 else 0.0
        self._tries[address] = (min(tries + 1, 100), now_s + wait_s)
        return 0

    def clear(self, address: str) -> None:
        """Reset an address after a correct password."""
        self._tries.pop(address, None)


@dataclass(frozen=True)
class Upload:
    """One upload, counted toward its visitor's quota as it arrives."""

    quota: UploadQuota
    visitor: str

    def count_files(self, answer: bytes) -> None:
        """Count the overhead of each file, from Gradio's answer: a JSON list of paths."""
        try:
            num_files = len(json.loads(answer))
        except (ValueError, TypeError):
            return
        with suppress(UploadError):  # the next upload is refused
            self.quota.add(self.visitor, FILE_BYTES * num_files)


class Body:
    """A request's body as it arrives, limited in size and in the time that its sender takes."""

    def __init__(self, receive: Receive) -> None:
        self.max_bytes = MAX_BODY_BYTES
        self.upload: Upload | None = None
        self.is_refused = False
        self._receive = receive
        self._num_bytes = self._num_values = 0
        self._waited_s = 0.0
        self._is_whole = False

    def check_declared(self, length: str | None) -> None:
        """Check the length that the headers declare, or for an upload that the visitor has quota left.

        Raises:
            HTTPException: the body is too large, or there is no room for it.
        """
        if self.upload is not None:
            try:
                self.upload.quota.check(self.upload.visitor)
            except UploadError as exc:
                raise HTTPException(413, str(exc)) from exc
        elif length is not None and not (length.isdecimal() and int(length) <= self.max_bytes):
            raise self._too_large()

    async def receive(self) -> Message:
        """Receive the next part as an ASGI message.

        Raises:
            HTTPException: the body is too large or too slow.
            MultiPartException: the same for an upload; Gradio then deletes it.
        """
        if self._is_whole:
            return await self._receive()
        began_s = time.monotonic()
        most_s = PATIENCE_S + self._num_bytes / MIN_BYTES_PER_S - self._waited_s
        try:
            message = await asyncio.wait_for(self._receive(), max(most_s, 0.001))
        except asyncio.TimeoutError:
            raise self._refuse(HTTPException(408, "the rest of the request did not arrive in time")) from None
        self._waited_s += time.monotonic() - began_s
        size = len(message.get("body", b""))
        self._num_bytes += size
        self._is_whole = not message.get("more_body", False)
        if self.upload is None:
            if self._num_bytes > self.max_bytes:
                raise self._refuse(self._too_large())
            self._num_values += sum(map(message.get("body", b"").count, (b",", b"[", b"{")))
            if self._num_values > MAX_BODY_VALUES:
                raise self._refuse(
                    HTTPException(413, f"a request to this page may have up to {MAX_BODY_VALUES:,} values")
                )
        else:
            try:
                self.upload.quota.add(self.upload.visitor, size)
            except UploadError as exc:
                raise self._refuse(HTTPException(413, str(exc))) from exc
        return message

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"a request to this page may have up to {self.max_bytes:,} bytes")

    def _refuse(self, exc: HTTPException) -> HTTPException | MultiPartException:
        self.is_refused = True
        if self.upload is None:
            return exc
        # Gradio responds with 413 if the message has this phrase.
        detail = f"{exc.detail} (beyond the maximum allowed size)" if exc.status_code == 413 else exc.detail
        return MultiPartException(detail)


class Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers = Headers(scope=scope)
        self.address = scope["client"][0] if scope.get("client") else ""
        self.is_login = False
        self.body = Body(receive)
        self.status: int | None = None  # once the response has begun
        self.head = ""  # to insert into the head of an HTML response
        self._send = send

    async def receive(self) -> Message:
        """Receive the next part of the request."""
        return await self.body.receive()

    async def send(self, message: Message) -> None:
        """Send a part of the response, adding our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            # A refused body is not read to its end, except for an upload that is too large: a browser shows the reason
            # only after it has sent everything.
            is_closing = self.body.is_refused and not (self.body.upload is not None and self.status == 413)
            closing = [(b"connection", b"close")] if is_closing else []
            message["headers"] = [*message.get("headers", ()), *HEADERS, *closing]
            if self.head:  # the length changes, so the body is sent in chunks
                message["headers"] = [header for header in message["headers"] if header[0] != b"content-length"]
        elif self.head and b"</head>" in message.get("body", b""):
            message["body"] = message["body"].replace(b"</head>", f"{self.head}</head>".encode(), 1)
        elif self.body.upload is not None and self.status == 200:
            self.body.upload.count_files(message.get("body", b""))
        await self._send(message)

    async def refuse(self, exc: HTTPException) -> None:
        """Respond without reading the rest of the request."""
        self.body.is_refused = True
        response = JSONResponse({"detail": exc.detail}, exc.status_code, headers=dict(exc.headers or {}))
        await response(self.scope, self.body.receive, self.send)


def allow_open_files() -> None:
    """Raise the limit on open files for `MAX_CONNECTIONS`, as far as the system allows; the usual default is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which closes a connection if the headers of its next request do not arrive in time.

    It also closes new connections beyond the limits for all addresses together and for each address.
    """

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._is_one_too_many():
            transport.abort()
        else:
            self._watch_head()

    def _is_one_too_many(self) -> bool:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, soft // 2)
        if len(self.connections) > most:
            return True
        own = self.client[0] if self.client else ""
        if own in ("127.0.0.1", "::1", "") or "FORWARDED_ALLOW_IPS" in os.environ:  # perhaps a proxy
            return False
        others: Any = self.connections
        num_own = sum(bool(other.client) and other.client[0] == own for other in others)
        return bool(num_own > MAX_ADDRESS_CONNECTIONS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_due is None:
            self._head_due = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _forget_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None
