"""Pictures at addresses: fetched where that is allowed, within limits, and never from a private network."""

from __future__ import annotations

import io
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import pytest
from PIL import Image

from mlx_convnextv2.collections import addresses
from mlx_convnextv2.collections.addresses import fetch, is_public


@pytest.fixture(scope="module")
def server(photo) -> Iterator[str]:
    """Serves a photo, redirects, and misbehaves."""
    picture = io.BytesIO()
    Image.Image.save(photo, picture, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path
            if path.startswith("/loop"):
                self.answer(302, location="/loop")
            elif path.startswith("/to?"):
                self.answer(301, location=unquote(path.partition("?")[2]))
            elif path == "/large":
                self.answer(200, b"", length=addresses.MAX_BYTES + 1)
            elif path == "/endless":
                self.answer(200, b"x" * 1_000_000, length=None)
            elif path == "/short":
                self.answer(200, b"half", length=8)
            elif path == "/drip":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                with suppress(OSError):
                    for i in range(600):
                        self.wfile.write(b"X-%d: 1\r\n" % i)
                        self.wfile.flush()
                        time.sleep(0.05)
            elif path == "/nonsense":
                self.wfile.write(b"SSH-2.0\r\n")
            else:
                self.answer(200 if path == "/cat%20%C3%A9.png?size=1" else 404, picture.getvalue())

        def answer(self, status: int, body: bytes = b"", location: str = "", length: int | None = -1) -> None:
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            if length is not None:
                self.send_header("Content-Length", str(len(body) if length < 0 else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def here_is_public(monkeypatch) -> None:
    """Let this machine count as public. No option does this, so the function that decides is replaced."""
    monkeypatch.setattr(addresses, "is_public", lambda host: host == "127.0.0.1")


@pytest.fixture
def classify(run, mlx_folder):
    def classify(*arguments):
        result = run("classify", *arguments, "--model", mlx_folder, "--format", "jsonl")
        return result, [json.loads(line) for line in result.stdout.splitlines()]

    return classify


@pytest.mark.usefixtures("here_is_public")
def test_an_address_is_classified_like_a_file(classify, server, photo, tmp_path) -> None:
    photo.save(tmp_path / "a.png")
    address = f"{server}/to?/cat é.png?size=1"
    result, (fetched,) = classify(address, "--allow-urls")
    assert result.returncode == 0, result.stderr
    assert fetched["image"] == address
    assert fetched["predictions"] == classify(tmp_path / "a.png")[1][0]["predictions"]


def test_without_the_option_nothing_is_fetched(classify, server) -> None:
    result, (line,) = classify(f"{server}/cat.png")
    assert result.returncode == 2
    assert "--allow-urls" in line["error"]


def test_a_private_address_is_refused(classify, server) -> None:
    result, (line,) = classify(f"{server}/cat.png", "--allow-urls")
    assert result.returncode == 2
    assert "private network" in line["error"]


@pytest.mark.usefixtures("here_is_public")
@pytest.mark.parametrize("target", ["http://169.254.169.254/", "http://[::1]/", "http://10.0.0.1:8000/"])
def test_a_redirect_into_a_private_network_is_refused(server, target) -> None:
    with pytest.raises(ValueError, match="private network"):
        fetch(f"{server}/to?{quote(target)}")


@pytest.mark.usefixtures("here_is_public")
@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://a:b@127.0.0.1/", "http://[x/"])
def test_a_redirect_to_what_is_not_http_is_refused(server, target) -> None:
    with pytest.raises(ValueError, match="address"):
        fetch(f"{server}/to?{quote(target)}")


def test_a_name_is_resolved_once_and_all_its_addresses_count(server, monkeypatch) -> None:
    """A name server gains nothing by giving first a public address and then a private one, or both at once."""
    resolve, answers = socket.getaddrinfo, [["8.8.8.8", "127.0.0.1"], ["8.8.8.8"], ["127.0.0.1"]]
    connected = []

    def answer(host, port, *arguments, **options):
        if host != "rebinding.test":
            return resolve(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (number, port)) for number in answers.pop(0)]

    def connect(address, *arguments, **options):
        connected.append(address[0])
        raise OSError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ValueError, match="private network"):
        fetch("http://rebinding.test/cat.png")
    with pytest.raises(OSError, match="refused"):
        fetch("http://rebinding.test/cat.png")
    assert connected == ["8.8.8.8"]
    assert answers == [["127.0.0.1"]]


def test_the_usual_port_is_no_part_of_the_host(monkeypatch) -> None:
    """With the port in it, a signed address would count as another one."""
    sent: list[bytes] = []

    def send(self: addresses._Pinned, data: bytes) -> None:
        sent.append(data)
        raise OSError("cut")

    monkeypatch.setattr(addresses._Pinned, "send", send)
    with pytest.raises(OSError, match="cut"):
        fetch("https://example.com/cat.png")
    assert b"\r\nHost: example.com\r\n" in sent[0]


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "0.0.0.0",
    "100.64.0.1",
    "224.0.0.1",
]
PRIVATE += ["::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "ff02::1"]
PRIVATE += ["255.255.255.255", "240.0.0.1", "::ffff:127.0.0.1", "192.0.2.1", "fec0::1", "192.0.0.192", "168.63.129.16"]


@pytest.mark.parametrize("host", PRIVATE)
def test_no_private_address_counts_as_public(host) -> None:
    assert not is_public(host)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_the_internets_addresses_are_public(host) -> None:
    assert is_public(host)


@pytest.mark.usefixtures("here_is_public")
@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/loop", "redirects more than"),
        ("/large", "more than 100 MB"),
        ("/endless", "more than 0 MB"),
        ("/short", "too early"),
        ("/gone", "answered 404"),
        ("/nonsense", "did not answer in HTTP"),
    ],
)
def test_what_answers_badly_is_a_failed_picture(classify, server, monkeypatch, path, word) -> None:
    if path == "/endless":
        monkeypatch.setattr(addresses, "MAX_BYTES", 100_000)
    result, (line,) = classify(f"{server}{path}", "--allow-urls")
    assert result.returncode == 2
    assert word in line["error"]
    assert line["error"].startswith(f"{server}{path} ")


@pytest.mark.usefixtures("here_is_public")
def test_a_server_that_drips_is_cut_at_the_deadline(server, monkeypatch) -> None:
    monkeypatch.setattr(addresses, "SECONDS", 0.3)
    with pytest.raises(OSError, match=r"more than 0\.3 seconds"):
        fetch(f"{server}/drip")


@pytest.fixture
def secure_server(server, tmp_path, monkeypatch) -> Iterator[str]:
    """The address of a server with a certificate for the name cats.test, which resolves to this machine."""
    openssl = shutil.which("openssl") or pytest.skip("no openssl makes a certificate")
    command = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        "/CN=cats.test",
    ]
    command += ["-addext", "subjectAltName=DNS:cats.test", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.headers["Host"].encode())

        def log_message(self, *_: object) -> None:
            pass

    resolve = socket.getaddrinfo
    here = lambda host, *rest, **options: resolve("127.0.0.1" if host.endswith(".test") else host, *rest, **options)  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", here)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"cats.test:{running.server_port}"
        running.shutdown()


@pytest.mark.usefixtures("here_is_public")
def test_the_certificate_is_checked_for_the_name_and_not_for_the_number(secure_server) -> None:
    assert fetch(f"https://{secure_server}/") == secure_server.encode()
    with pytest.raises(OSError, match="certificate"):
        fetch(f"https://{secure_server.replace('cats', 'dogs')}/")
