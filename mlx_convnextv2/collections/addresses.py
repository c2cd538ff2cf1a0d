"""Pictures at http addresses, within limits, and never from a private network."""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import closing, suppress
from urllib.parse import quote, urljoin, urlsplit

from .._version import __version__
from ..messages import one_line, short

MAX_BYTES = 100_000_000
SECONDS = 30.0  # for the whole picture, redirects included
_REDIRECTS = 5
_CHUNK = 65_536
# Local addresses that some versions of Python do not know as such: IPv6's old site-local ones, IETF's protocol block
# (Oracle's metadata service is in it), and Azure's host.
_LOCAL = [ipaddress.ip_network(one) for one in ("fec0::/10", "192.0.0.0/24", "168.63.129.16/32")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # leads to the IPv4 address in the last 32 bits


class Address:
    """A picture that is fetched when it is read, by the thread that reads it."""

    def __init__(self, name: str):
        self.name = name
        self._content: io.BytesIO | None = None

    def read(self, size: int = -1) -> bytes:
        if self._content is None:
            self._content = io.BytesIO(fetch(self.name))
        return self._content.read(size)


def fetch(address: str) -> bytes:
    """Fetch the content of an address.

    The host's name is resolved once, and all its addresses must be public. The connection goes to one of them, so a
    second answer of the name server changes nothing. Each redirect is checked in the same way. Proxies are not used.

    Raises:
        OSError: it cannot be reached, answers with an error, or takes more than 30 seconds.
        ValueError: it is not an http address, not public, redirects too often, or has more than 100 MB.
    """
    deadline = time.monotonic() + SECONDS
    for _ in range(_REDIRECTS + 1):
        answer = _get(address, deadline)
        if isinstance(answer, bytes):
            return answer
        try:
            address = urljoin(address, answer)
        except ValueError:
            raise ValueError(f"it redirects to {short(answer)}, which is not an http address") from None
    raise ValueError(f"it redirects more than {_REDIRECTS} times")


def is_public(host: str) -> bool:
    """Whether a numeric address is on the public internet: not loopback, private or link-local."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in one for one in _LOCAL)


def _get(address: str, deadline: float) -> bytes | str:
    """The content, or where a redirect leads."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ValueError(f"it is not an http address: {one_line(error)}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{short(address)} is not an http address")
    if parts.username is not None:
        raise ValueError("an address with a user's name in it is not fetched")
    try:
        with closing(_Pinned(parts.scheme, host, port, deadline)) as connection:
            path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
            headers = {"User-Agent": f"mlx_convnextv2/{__version__}", "Accept": "image/*", "Connection": "close"}
            connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
            found = _read(connection.getresponse())
        if time.monotonic() >= deadline:  # the content may have been cut off
            raise TimeoutError
        return found
    except http.client.HTTPException as error:
        raise OSError(f"it did not answer in HTTP ({type(error).__name__}: {one_line(error)})") from None
    except UnicodeError:
        raise ValueError(f"{short(host)} is no name of a host") from None
    except OSError as error:
        if time.monotonic() >= deadline:
            raise OSError(f"it took more than {SECONDS:g} seconds") from None
        raise OSError(error.strerror or str(error)) from None


def _read(answer: http.client.HTTPResponse) -> bytes | str:
    if answer.status in (301, 302, 303, 307, 308) and (target := answer.headers.get("Location")):
        return target
    if answer.status != 200:
        raise OSError(f"it answered {answer.status} {short(answer.reason)}")
    too_many = f"it has more than {MAX_BYTES // 10**6} MB"
    if (answer.length or 0) > MAX_BYTES:
        raise ValueError(too_many)
    content = io.BytesIO()
    while chunk := answer.read(_CHUNK):
        content.write(chunk)
        if content.tell() > MAX_BYTES:
            raise ValueError(too_many)
    if answer.length:
        raise OSError("it ended too early")
    return content.getvalue()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was resolved and checked once. It is cut at the deadline, whatever it does."""

    def __init__(self, scheme: str, host: str, port: int, deadline: float):
        super().__init__(host, port)
        self._scheme, self._deadline = scheme, deadline
        self.default_port = 443 if scheme == "https" else 80  # the Host header leaves it out
        self._timer: threading.Timer | None = None

    def connect(self) -> None:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        numbers = [str(one[4][0]) for one in found]
        if not numbers or not all(map(is_public, numbers)):
            raise ValueError(f"{self.host} is not on the internet but in a private network, which is not fetched from")
        self.sock = self._first_that_answers(numbers)
        self._timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self._cut)
        self._timer.daemon = True
        self._timer.start()
        if self._scheme == "https":
            secure = ssl.create_default_context()
            self.sock = secure.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def _first_that_answers(self, numbers: list[str]) -> socket.socket:
        for i, number in enumerate(numbers):
            try:
                left = max(0.01, self._deadline - time.monotonic())
                return socket.create_connection((number, self.port), timeout=left)
            except OSError:
                if i == len(numbers) - 1:
                    raise
        raise OSError("it has no address")

    def _cut(self) -> None:
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().close()
