"""Limits on what one client, or all clients together, may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """Each limit is enforced before the memory that it limits is taken.

    Args:
        max_body: bytes of one request.
        max_total_bytes: bytes of the bodies of all requests that are being read or wait.
        max_pixels: pixels of a picture, checked before it is decoded.
        max_waiting: requests that have come whole and wait or are computed; the next is told to come again (503).
        max_connections: open connections; the next is told to come again (503).
        header_seconds: time for a request's first line and headers.
        body_seconds: time for a request's body (408).
        write_seconds: time for a client to read what it was sent, before it is cut off.
        keep_alive_seconds: time for an idle connection.
        drain_seconds: time for requests under way when the server is asked to stop.
        max_batch: pictures that go through the model at once.
        max_wait: seconds that a picture waits for others that are on their way.
        max_side: pixels of the longer side of a heat map's picture.
    """

    max_body: int = 16_000_000
    max_total_bytes: int = 256_000_000
    max_pixels: int = 50_000_000
    max_waiting: int = 64
    max_connections: int = 200
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 30.0
    keep_alive_seconds: int = 15
    drain_seconds: int = 30
    max_batch: int = 8
    max_wait: float = 0.004
    max_side: int = 1024

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**40:
                raise ValueError(f"{field.name} must be a positive number below {2**40:,}, not {value!r}")
