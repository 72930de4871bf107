"""Checks of the page's requests: their host name and their size; and the limit of its connections."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

MAX_UPLOAD_BYTES = 20 * 10**6
MAX_BODY_BYTES = MAX_UPLOAD_BYTES + 10**5  # the file and a browser's multipart headers
MAX_UPLOADED_BYTES, KEPT_S = 2 * 10**9, 7200.0  # limit for all uploads until they are deleted
MAX_QUEUED = 32  # waiting samplings; further requests are refused
MAX_CONNECTIONS = 256  # a browser has up to six
MAX_SILENCE_S = 20.0  # for the head of a request, and between two pieces of its body
FULL = "The uploads of the last two hours fill the page's disk space; try again later."
TOO_MANY = b"The page has too many connections; try again in a minute.\n"
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


@dataclass
class Upload:
    """A request with files: when it began, the bytes that it announced or left, and those received."""

    begun_s: float
    size: int
    received: int = 0

    def counted(self, receive: Receive) -> Receive:
        """Return `receive`, which counts what it receives."""

        async def counting() -> Message:
            message = await receive()
            self.received += len(message.get("body", b""))
            return message

        return counting


class Gate:
    """Middleware that refuses unsafe requests with one line, before the page sees them.

    That is a request

    - under another name than an address, `localhost` or one of `names`: a page of a stranger whose name leads
      here (DNS rebinding) would otherwise be taken for this page by a visitor's browser;
    - that the page of another name or port makes a visitor's browser send (its `Origin`);
    - with more than `MAX_BODY_BYTES`, or without a Content-Length;
    - with a file that would make more than `MAX_UPLOADED_BYTES` of those on the disk.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], names: Iterable[str] = ()) -> None:
        self.app = app
        self.uploads: deque[Upload] = deque()
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(
        self, scope: Message, receive: Receive, send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Pass a request on, or refuse it."""
        is_request = scope["type"] in ("http", "websocket")
        headers = dict(scope["headers"]) if is_request else {}
        refusal = self.refusal(headers) if is_request else None
        if refusal is None:
            upload = self._reserve(headers)
            refusal = (507, FULL) if upload is None else None
        if refusal is None:
            try:
                await self.app(scope, upload.counted(receive), send)
            finally:
                upload.size = upload.received
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, sentence = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})

    def refusal(self, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Return status and sentence for a request that is not passed on, or None."""
        if not self._is_host(headers.get(b"host", b"").decode("latin-1")):
            return 421, "This page does not answer under that name; start it with --name NAME if it should."
        if not self._is_own(headers.get(b"origin"), headers.get(b"host", b"")):
            return 403, "Requests from other web pages are refused."
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers or not length.isdigit():
            return 411, "The request has no Content-Length."
        if int(length) > MAX_BODY_BYTES:
            return 413, f"An upload may have at most {MAX_UPLOAD_BYTES // 10**6} MB."
        return None

    def _reserve(self, headers: dict[bytes, bytes]) -> Upload | None:
        """Return a request's upload, counted from now on if it holds files; None if the disk has no room."""
        now = time.monotonic()
        upload = Upload(now, int(headers.get(b"content-length", b"0")))
        while self.uploads and now - self.uploads[0].begun_s > KEPT_S:
            self.uploads.popleft()
        if b"multipart/" in headers.get(b"content-type", b"").lower():
            if sum(each.size for each in self.uploads) + upload.size > MAX_UPLOADED_BYTES:
                return None
            self.uploads.append(upload)
        return upload

    def _is_own(self, origin: bytes | None, host: bytes) -> bool:
        """Whether a request has no Origin, the Origin of this page, or that of a given name."""
        if origin is None:
            return True
        place = origin.decode("latin-1").lower().partition("://")[2]
        name = _name(place)
        given = name in self.names and name != "localhost" and not _is_address(name)
        return given or place == host.decode("latin-1").strip().lower()

    def _is_host(self, host: str) -> bool:
        """Whether a Host header names this page: an address, with or without a port, or a known name."""
        name = _name(host)
        return name in self.names or _is_address(name)


def limited(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """Return a server's class of connections with `MAX_CONNECTIONS` at a time and `MAX_SILENCE_S`.

    Further connections get status 503 and one line, and are closed.
    """
    connections: set[asyncio.BaseTransport] = set()

    class Limited(protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self.close_if_silent()
            connections.difference_update([other for other in connections if other.is_closing()])
            if len(connections) < MAX_CONNECTIONS:
                connections.add(transport)
                return
            about = b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: %d" % len(TOO_MANY)
            head = b"HTTP/1.1 503 Service Unavailable\r\n%s\r\nConnection: close\r\n\r\n" % about
            transport.write(head + TOO_MANY)
            transport.close()

        def close_if_silent(self) -> None:
            loop = asyncio.get_running_loop()
            self.silence = loop.call_later(MAX_SILENCE_S, self.transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_answering = self.cycle is not None and not self.cycle.response_complete
            upgraded = self.transport.get_protocol() is not self  # to a WebSocket
            if not is_answering and not upgraded and not self.silence.cancelled():
                return  # the head is not complete
            self.silence.cancel()
            if not upgraded and (not is_answering or self.cycle.more_body):
                self.close_if_silent()

    return Limited


def _is_address(name: str) -> bool:
    try:
        return ip_address(name) is not None
    except ValueError:
        return False


def _name(host: str) -> str:
    """Return a Host header without its port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return (name.partition(":")[0] if name.count(":") == 1 else name).rstrip(".")
