"""Around the app: who may ask, headers that keep browsers strict, errors as JSON, and the clock."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..messages import cut, one_line, printable
from .access import Access
from .bodies import discard
from .errors import DisconnectedError, RefusedError
from .metrics import Metrics

logger = logging.getLogger("mlx_convnextv2.serving")

_CLIENT_GONE = 499  # as others log a client that went before its answer
_STATUS_SENTENCES = {404: "there is nothing here: POST a picture to /", 405: "this method is not for this path"}

# The page loads nothing but its own files, sends nothing elsewhere, and stands in no other page.
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
        extra = self._extra_headers(headers.get("origin"))
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        try:
            self._access.check(scope["method"], scope["path"], headers)
            if scope["method"] == "OPTIONS" and self._access.is_foreign(headers.get("origin")):
                await _send(send_guarded, 204, b"", _PREFLIGHT)
            else:
                await self._app({**scope, "app": self}, receive, send_guarded)  # with which Starlette raises its errors
        except DisconnectedError:
            status = status or _CLIENT_GONE
        except Exception as error:
            await self._refuse(_refusal(error, scope), status, Request(scope, receive), send_guarded)
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.add(path, str(status))
        self._metrics.latency.observe(time.perf_counter() - start)

    async def _refuse(self, refusal: RefusedError, status: int, request: Request, send: Send) -> None:
        if status:  # the answer has begun, and cannot be taken back
            raise RuntimeError("the answer could not be ended")
        self._metrics.refused.add(str(refusal.status))
        if request.method not in ("GET", "HEAD"):
            await discard(request)
        await _send(send, refusal.status, json.dumps({"error": refusal.sentence}).encode(), refusal.headers)

    def _extra_headers(self, origin: str | None) -> list[tuple[bytes, bytes]]:
        headers = dict(SECURITY_HEADERS)
        if self._access.origins:
            headers["Vary"] = "Origin"
        if self._access.is_foreign(origin):
            headers["Access-Control-Allow-Origin"] = origin or ""
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _refusal(error: Exception, scope: Scope) -> RefusedError:
    """An error as what the client is told."""
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


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    all_headers: dict[str, Any] = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    all_headers["Cache-Control"] = "no-store"
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in all_headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
