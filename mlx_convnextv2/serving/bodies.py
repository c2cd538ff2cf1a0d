"""Reading a request's body within its limits, and finding the picture and the parameters in it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from ..messages import short
from .errors import DisconnectedError, RefusedError, busy
from .limits import Limits

_JSON = "application/json"
_MOST_VALUES = 1000  # in JSON: base64 is one, and many small ones take 20 times their bytes


@dataclass(frozen=True)
class Body:
    """A picture's file and the request's parameters."""

    picture: bytes
    parameters: Mapping[str, Any]


class Bodies:
    """Reads bodies, and counts the bytes that are held."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self.held = 0

    @contextmanager
    def reading(self) -> Iterator[_Reader]:
        """A context in which one body's bytes count as held."""
        reader = _Reader(self, self._limits)
        try:
            yield reader
        finally:
            self.held -= reader.held


class _Reader:
    def __init__(self, bodies: Bodies, limits: Limits):
        self._bodies, self._limits = bodies, limits
        self.held = 0

    async def read(self, request: Request) -> bytes:
        """The whole body.

        Raises:
            RefusedError: the body is too large or too slow, or too much is already held.
            DisconnectedError: the client left before the body's end.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > self._limits.max_body:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._content(request), self._limits.body_seconds)
        except asyncio.TimeoutError:
            sentence = f"the body did not come within {self._limits.body_seconds:g} seconds: send it again"
            raise RefusedError(408, sentence, {"Connection": "close"}) from None

    async def _content(self, request: Request) -> bytes:
        chunks = []
        more = True
        while more:
            message = await request.receive()
            if message["type"] != "http.request":
                raise DisconnectedError
            chunk = message.get("body", b"")
            self.held += len(chunk)
            self._bodies.held += len(chunk)
            if self.held > self._limits.max_body:
                raise self._too_large()
            if self._bodies.held > self._limits.max_total_bytes:
                raise busy()
            chunks.append(chunk)
            more = message.get("more_body", False)
        return b"".join(chunks)

    def _too_large(self) -> RefusedError:
        most = self._limits.max_body / 1e6
        return RefusedError(
            413, f"the body is larger than {most:g} MB: send a smaller picture", {"Connection": "close"}
        )


def parse(content: bytes, content_type: str, query: Mapping[str, str]) -> Body:
    """The picture in a body: its bytes as they are, or {"inputs": base64, "parameters": {...}} as JSON.

    A parameter of the query is used if the body has none of that name.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == _JSON or (not kind and content.lstrip()[:1] == b"{"):
        picture, parameters = _from_json(content)
        return Body(picture, {**query, **parameters})
    if kind.startswith(("multipart/", "text/")):  # curl's default, x-www-form-urlencoded, is read as bytes
        sentence = f"a body of the type {short(kind)} is not read: send the picture's bytes, or JSON with base64"
        raise RefusedError(415, sentence)
    if not content:
        raise RefusedError(400, "the body is empty: send the picture's bytes, or JSON with base64")
    return Body(content, query)


def _from_json(content: bytes) -> tuple[bytes, Mapping[str, Any]]:
    if sum(map(content.count, (b"[", b"{", b","))) > _MOST_VALUES:
        raise RefusedError(400, 'the JSON has too many values: send {"inputs": the picture in base64}')
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        raise RefusedError(400, 'the body is not JSON: send {"inputs": the picture in base64}') from None
    inputs = values.get("inputs") if isinstance(values, dict) else None
    if not isinstance(inputs, str):
        raise RefusedError(400, 'the JSON must be {"inputs": the picture in base64, "parameters": {...}}')
    parameters = values.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise RefusedError(400, f"parameters must be a JSON object, not {short(parameters)}")
    if inputs.startswith("data:"):
        inputs = inputs.partition(",")[2]
    try:
        encoded = inputs.encode("ascii").translate(None, b" \t\r\n\v\f")
        return base64.b64decode(encoded, validate=True), parameters or {}
    except (binascii.Error, ValueError):
        raise RefusedError(400, "inputs is not a picture in base64") from None
