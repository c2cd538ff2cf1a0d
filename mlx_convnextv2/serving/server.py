"""The server around the app: where it listens, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from ..checkpoints.hub import fetch
from ..files.names import CARD_FILE
from ..inference.classifier import ImageClassifier
from .access import access_for, is_local
from .app import make_app
from .limits import Limits
from .protocol import guarded_protocol

_BACKLOG = 128  # connections that the system holds until they are taken
_MOST_HEADER_BYTES = 32_768
_MOST_OF_A_CARD = 100_000  # characters


def serve(
    model: str | os.PathLike[str] | ImageClassifier,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: Limits | None = None,
    api_key: str | None = None,
    allow_hosts: Iterable[str] = (),
    allow_origins: Iterable[str] = (),
    allow_anyone: bool = False,
    dtype: str | None = None,
    revision: str | None = None,
    name: str = "",
    on_start: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve a model until the process is asked to stop (SIGTERM, Ctrl-C). Requests under way are answered first.

    Args:
        model: a Hub id, a folder, or an `ImageClassifier`.
        dtype, revision: as for `load`.
        limits, name: as for `make_app`. The page shows the model card.
        host, port: where to listen; port 0 takes a free port.
        api_key: the key that clients must send as `Authorization: Bearer KEY`.
        allow_hosts: further names of the server.
        allow_origins: other sites whose pages may send requests.
        allow_anyone: listen beyond this machine without a key.
        on_start: called with the address when the server listens.

    Raises:
        OSError: the server cannot listen on the address.
        ValueError: the address can be reached from other machines, and there is no key.
        FileNotFoundError, OSError, ValueError: the model cannot be loaded (see `load`).
    """
    if not is_local(host) and api_key is None and not allow_anyone:
        raise ValueError(
            f"{host} is reached from other machines: give a key (--api-key), or allow anyone who reaches it "
            "(--allow-anyone)"
        )
    limits = limits or Limits()
    access = access_for(host, allow_hosts, allow_origins, api_key)
    listener = _listen(host, port)
    with contextlib.closing(listener):
        card = ""
        if not isinstance(model, ImageClassifier):
            folder = fetch(model, revision=revision, card=True)
            card = _read_card(folder)
            model = ImageClassifier(folder, dtype=dtype)
        app = make_app(model, limits, access, name=name, card=card)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        asyncio.run(make_server(app, limits, lambda: on_start(address)).serve(sockets=[listener]))


def make_server(app: ASGIApp, limits: Limits, on_start: Callable[[], None] = lambda: None) -> uvicorn.Server:
    """uvicorn's server for an app of `make_app`. It enforces the limits that an app cannot."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # Guard logs what matters
    config = uvicorn.Config(
        app,
        http=guarded_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        backlog=_BACKLOG,
    )
    return _Server(config, on_start)


def _read_card(folder: Path) -> str:
    """The folder's model card, or an empty text."""
    try:
        with open(folder / CARD_FILE, encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_OF_A_CARD)
    except (OSError, ValueError):
        return ""


class _Server(uvicorn.Server):
    """uvicorn's server. A signal asks it to stop, and does not end the process."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]):
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # by a second Ctrl-C: requests are given up, but Python cannot end before the app's threads
            for task in list(self.server_state.tasks):
                task.cancel()
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that already listens: a port in use must be noticed before a model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"{host} is no address of this machine ({error.strerror})") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)  # until then two processes can have the same port
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"port {port} of {host} cannot be listened on ({reason}): choose another --port") from None
    return listener
