"""uvicorn's HTTP/1.1, with time limits for clients that neither send nor read."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits

_READ_BYTES = 16_384  # at a time: tiny chunks are slow to parse, and all other connections wait meanwhile


def _answer(status: str, error: str, more: str = "") -> bytes:
    """A whole answer that says why the connection is closed after it."""
    content = json.dumps({"error": error})
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{more}Connection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode("ascii")


_FULL = _answer("503 Service Unavailable", "too many connections are open: try again shortly", "Retry-After: 1\r\n")
_NO_HTTP = _answer("400 Bad Request", "this is no valid HTTP/1.1 request")


def guarded_protocol(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with these limits on connections, headers, and unread answers."""

    class GuardedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            with suppress(AttributeError):  # another event loop than asyncio's own
                transport.max_size = _READ_BYTES
            if len(self.connections) > limits.max_connections:
                transport.write(_FULL)
                self._close_soon()
                return
            self._expect_headers()

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:  # the headers are complete
                self._end_header_timer()
            elif self._header_timer is None and self.timeout_keep_alive_task is None:  # the next request has begun
                self._expect_headers()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
                self.transport.write(_NO_HTTP)
            self._close_soon()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_header_timer()
            self.resume_writing()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(limits.write_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._close_soon()

        def _close_soon(self) -> None:
            """Close the connection, even if the client does not read what it was sent."""
            self.transport.close()
            self.loop.call_later(limits.write_seconds, self.transport.abort)

        def _expect_headers(self) -> None:
            self._header_timer = self.loop.call_later(limits.header_seconds, self.transport.abort)

        def _end_header_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

    return GuardedProtocol
