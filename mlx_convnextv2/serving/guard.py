"""The layer around the app: access control, headers that keep browsers strict, errors as JSON, and timing."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..messages import cut, one_line, printable
from .access import Access
from .errors import DisconnectedError, RefusedError
from .metrics import Metrics

logger = logging.getLogger("mlx_convnextv2.serving")

_READ_ON_SECONDS = 2.0
_CLIENT_GONE = 499  # other servers log this too for a client that left before its answer
_STATUS_SENTENCES = {404: "there is nothing here: POST a picture to /", 405: "this method is not for this path"}

# The page loads only its own files, sends nothing elsewhere, and cannot be framed by another page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=(), display-capture=(), usb=()",
}


class Guard:
    """An ASGI app around another."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, paths: frozenset[str]):
        self._app, self._access, self._metrics, self._paths = app, access, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            raise RuntimeError("this server speaks HTTP alone")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        headers = Headers(scope=scope)
        exchange = _Exchange(headers, receive, send, self._extra_headers(headers.get("origin")))
        try:
            self._access.check(scope["method"], scope["path"], headers)
            if exchange.unread and scope["method"] != "POST":  # it would be read on and on after the answer
                raise RefusedError(400, f"a {cut(printable(scope['method']), 20)} has no body")
            if scope["method"] == "OPTIONS" and self._access.is_foreign(headers.get("origin")):
                await exchange.answer(204, b"", _PREFLIGHT)
            else:
                # with an "app" Starlette raises its own refusals
                await self._app({**scope, "app": self}, exchange.receive, exchange.send)
        except DisconnectedError:
            exchange.status = exchange.status or _CLIENT_GONE
        except Exception as error:
            refusal = _refusal(error, scope)
            if exchange.status:  # the answer has begun
                raise RuntimeError("the answer could not be ended") from error
            self._metrics.refused.add(str(refusal.status))
            content = json.dumps({"error": refusal.sentence}).encode()
            await exchange.answer(refusal.status, content, refusal.headers)
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.add(path, str(exchange.status))
        self._metrics.latency.observe(time.perf_counter() - start)

    def _extra_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        headers = dict(SECURITY_HEADERS)
        if self._access.origins:
            headers["Vary"] = "Origin"
        if self._access.is_foreign(origin):
            headers["Access-Control-Allow-Origin"] = origin or ""
            headers["Access-Control-Expose-Headers"] = "Retry-After, X-Label, X-Score"
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _refusal(error: Exception, scope: Scope) -> RefusedError:
    """The refusal that tells the client about an error."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, HTTPException):
        sentence = _STATUS_SENTENCES.get(error.status_code, "this cannot be answered")
        return RefusedError(error.status_code, sentence, dict(error.headers or {}))
    what = f"{scope['method']} {printable(scope['path'])}"
    logger.error("%s failed: %s: %s", cut(what), type(error).__name__, one_line(error))
    return RefusedError(500, "the server failed: its log says why", {"Connection": "close"})


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Max-Age": "600",
}


class _Exchange:
    """A request and its answer: whether the body is still unread, and the answer's status, 0 before it has begun."""

    def __init__(self, headers: Headers, receive: Receive, send: Send, extra: list[tuple[bytes, bytes]]):
        self._receive, self._send, self._extra = receive, send, extra
        self.unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.unread = self.unread and message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._extra]}
        await self._send(message)

    async def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Send the whole answer. The rest of the body is read for a moment, because a reset would lose the answer."""
        given = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Cache-Control": "no-store"}
        given |= {**headers, "Connection": "close"} if self.unread else headers
        encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": content, "more_body": True})
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._read_on(), _READ_ON_SECONDS)
        await self.send({"type": "http.response.body", "body": b""})

    async def _read_on(self) -> None:
        while self.unread:
            await self.receive()
