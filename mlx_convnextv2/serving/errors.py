"""Errors for clients that cannot be served."""

from __future__ import annotations


class RefusedError(Exception):
    """A status, and a sentence that says what to do. `headers` go with the answer."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


class DisconnectedError(Exception):
    """The client has gone, so there is nobody to answer."""


def busy() -> RefusedError:
    return RefusedError(503, "the server is busy: try again in a second", {"Retry-After": "1"})
