"""A server on a free port of this machine, in a thread, and a client that sends what it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from mlx_convnextv2 import ImageClassifier
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.serving.access import Access
from mlx_convnextv2.serving.app import make_app
from mlx_convnextv2.serving.limits import Limits
from mlx_convnextv2.serving.server import make_server


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def error(self) -> str:
        return self.json()["error"]


@dataclass
class Client:
    port: int
    headers: dict[str, str] = field(default_factory=dict)
    server: Any = None

    def ask(self, method: str, path: str, body: bytes | None = None, /, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, {**self.headers, **named})
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, named, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, body: bytes, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextlib.contextmanager
def serving(
    classifier: ImageClassifier,
    limits: Limits | None = None,
    access: Access | None = None,
    name: str = "a small model",
) -> Iterator[Client]:
    """A server of these limits, stopped at the end."""
    limits = limits or Limits()
    listener = socket.create_server(("127.0.0.1", 0))
    server = make_server(make_app(classifier, limits, access, name=name, card="# Card"), limits)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield Client(listener.getsockname()[1], server=server)
    finally:
        server.should_exit = True
        thread.join(60)
        listener.close()
        assert not thread.is_alive()


DIGIT = (DEMO / "images" / "digit-8.png").read_bytes()


def jpeg(image: Image.Image) -> bytes:
    """A picture's file."""
    content = io.BytesIO()
    image.save(content, "JPEG")
    return content.getvalue()
