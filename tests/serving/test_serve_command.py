"""`python -m mlx_convnextv2.serve` as a user types it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
from conftest import ROOT
from serving_client import DIGIT, Client

from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.serve import main
from mlx_convnextv2.serving import server


@pytest.fixture
def start():
    """Start the command on a free port, and give its process and a client."""
    processes = []

    def start(*arguments, **env):
        command = [sys.executable, "-m", "mlx_convnextv2.serve", "--port", "0", *arguments]
        quiet: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, **quiet)
        processes.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"at http://\S+:(\d+) ", line)
        assert found, line + process.stderr.read()
        return process, Client(int(found[1]))

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_demo_is_served_until_it_is_asked_to_stop_and_what_is_under_way_is_answered(start):
    process, client = start("--demo")
    assert client.post("/", DIGIT).json()[0]["label"] == "8"
    assert b"<!doctype html>" in client.get("/").content
    with client.connect() as slow:  # half of a request, when the signal comes
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(DIGIT)
        slow.sendall(head + DIGIT[:100])
        assert client.get("/health").status == 200
        process.send_signal(signal.SIGTERM)
        threading.Timer(0.5, lambda: slow.sendall(DIGIT[100:])).start()
        assert slow.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


def test_ctrl_c_stops_it_and_the_key_comes_from_the_environment(start):
    process, client = start("--demo", MLX_CONVNEXTV2_API_KEY="a long random key")
    assert client.post("/", DIGIT).status == 401
    assert client.post("/", DIGIT, Authorization="Bearer a long random key").status == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 is reached from other machines: give a key (--api-key), or allow anyone"),
        (["--host", "::"], ":: is reached from other machines"),
        (["--host", "no.such.host.invalid", "--allow-anyone"], "is no address of this machine"),
        (["--api-key", "short"], "the API key must have at least 8"),
        (["--allow-origin", "example.org"], "an origin must be like https://example.org"),
    ],
)
def test_a_mistake_is_one_sentence(capsys, arguments, message):
    assert main(["--demo", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_said_before_a_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "no/such", "--port", str(port)]) == 2
    assert f"port {port} of 127.0.0.1 cannot be listened on" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_sentence(capsys, tmp_path):
    assert main(["--model", str(tmp_path / "nothing"), "--port", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_of_the_hub_brings_its_card(monkeypatch, tmp_path):
    shutil.copytree(DEMO, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# From the Hub")

    def make_app(*_, card, **__):
        raise ValueError(card)

    monkeypatch.setattr(server, "fetch", lambda *_, card, **__: tmp_path / "model")
    monkeypatch.setattr(server, "make_app", make_app)
    with pytest.raises(ValueError, match="# From the Hub"):
        server.serve("owner/name", port=0)


@pytest.mark.parametrize("arguments", [["--demo", "--model", "m"], ["--port", "70000"], ["--port", "x"], ["cat.jpg"]])
def test_wrong_usage_is_told_with_status_2(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    from mlx_convnextv2 import serving

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("mlx_convnextv2.serving.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r'pip install "mlx-convnextv2\[serve\]"'):
        serving.serve  # noqa: B018
