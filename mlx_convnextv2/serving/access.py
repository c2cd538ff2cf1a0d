"""Access control: the name that a browser uses for the server, the page that sends the request, and the key."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..messages import short
from .errors import RefusedError
from .page_files import PAGE_FILES

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_SHORTEST_KEY = 8

# Open to everyone: the page, which asks for the key itself, and whether the server is up.
_OPEN = {*PAGE_FILES, "/health", "/health/live", "/health/ready"}


@dataclass(frozen=True)
class Access:
    """Checks a request's headers, before its body is read.

    Args:
        hosts: names allowed in a Host header, without the port. Another name means that another site has pointed its
            own name at this server (DNS rebinding).
        addresses: allow any IP address in a Host header. This is safe because a site cannot take an address as a name.
        origins: other sites whose pages may send requests, such as "https://example.org".
        api_key: the key that a client must send as `Authorization: Bearer KEY`; None requires no key.
    """

    hosts: frozenset[str] = frozenset(LOCAL_NAMES)
    addresses: bool = False
    origins: frozenset[str] = frozenset()
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for origin in self.origins:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or not parts.netloc
                or origin != f"{parts.scheme}://{parts.netloc}"
            ):
                raise ValueError(f"an origin must be like https://example.org, not {short(origin)}")
        if self.api_key is not None and not _is_key(self.api_key):
            raise ValueError(
                f"the API key must have at least {_SHORTEST_KEY} ASCII characters and no blank at its ends: "
                "make a long random one"
            )

    def check(self, method: str, path: str, headers: Mapping[str, str]) -> None:
        """Raise a RefusedError for a request that must not be answered."""
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        is_open = method == "OPTIONS" or (method in ("GET", "HEAD") and path in _OPEN)  # a preflight carries no key
        if self.api_key is not None and not is_open:
            self._check_key(headers.get("authorization", ""))

    def is_foreign(self, origin: str | None) -> bool:
        """Whether `origin` is an allowed page of another site, which may read the answer."""
        return origin is not None and origin in self.origins

    def _check_host(self, host: str) -> None:
        name = host_name(host)
        if name in self.hosts or (self.addresses and is_address(name)):
            return
        raise RefusedError(421, f"this server is not called {short(name)}: allow the name with --allow-host")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse pages of other sites, even though they could not read the answer."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is not None:
            own = origin.partition("://")[2].lower() == headers.get("host", "").lower()
            if not own and origin not in self.origins:
                raise RefusedError(403, "pages of other sites may not ask: allow a site with --allow-origin")
        elif site == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            raise RefusedError(403, "pages of other sites may not ask: allow a site with --allow-origin")

    def _check_key(self, authorization: str) -> None:
        kind, _, given = authorization.partition(" ")
        expected = (self.api_key or "").encode()
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("utf-8", "replace"), expected):
            sentence = "a key is needed: send it as Authorization: Bearer KEY"
            raise RefusedError(401, sentence, {"WWW-Authenticate": 'Bearer realm="mlx_convnextv2"'})


def access_for(host: str, hosts: Iterable[str] = (), origins: Iterable[str] = (), api_key: str | None = None) -> Access:
    """The access for a server that listens on `host`: its own names and addresses, and those given here."""
    if is_local(host):
        names = {*LOCAL_NAMES, host}
    else:
        names = {*LOCAL_NAMES, host, socket.gethostname(), f"{socket.gethostname()}.local"}
    allowed = frozenset(name.lower() for name in (*names, *hosts))
    return Access(allowed, not is_local(host), frozenset(origin.lower() for origin in origins), api_key)


def is_local(host: str) -> bool:
    """Whether a server that listens on this name or address can be reached only from this machine."""
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _is_key(text: str) -> bool:
    """Whether a header can carry the key whole, and it is not short."""
    return len(text) >= _SHORTEST_KEY and text.isascii() and text.isprintable() and text == text.strip()


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """A Host header without its port and IPv6 brackets: "[::1]:8000" -> "::1"."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
