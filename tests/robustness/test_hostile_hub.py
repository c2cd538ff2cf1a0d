"""A Hub that never ends, asks for a day, or names paths: one sentence in a bounded time, nothing written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, variables
from hub_server import Fault, HubServer

from mlx_convnextv2.checkpoints.hub import fetch, in_time

REPO = "somebody/small-net"
LIMIT = "MLX_CONVNEXTV2_HUB_TIMEOUT"  # seconds for a small file, a tenth of those for weights that do not grow
WEIGHTS = "model.safetensors"


@pytest.fixture
def hub(tmp_path, hf_folder) -> Iterator[HubServer]:
    server = HubServer(tmp_path / "hub")
    server.commit(REPO, hf_folder)
    yield server
    server.stop()


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "a" / "b" / "home"


@pytest.fixture
def env(hub, home) -> dict[str, str]:
    return hub.environment(home)


@pytest.fixture
def no_sleep(monkeypatch) -> None:
    """Whoever sleeps between attempts ends with status 99."""
    monkeypatch.setattr(time, "sleep", lambda seconds: sys.exit(99))


@pytest.fixture
def error(run, env):
    """The one line on standard error of `classify` with a model that cannot be had."""

    def error(*arguments: object, model: str = REPO, **variables: str) -> str:
        result = run("classify", "photo.png", f"--model={model}", *arguments, env={**env, **variables})
        assert (result.returncode, result.stdout) == (2, ""), result
        (line,) = result.stderr.splitlines()
        return line

    return error


@pytest.fixture
def all_but_weights(hub, env) -> tuple[str, str]:
    """The options for the commit whose small files are in the cache."""
    with variables(env):
        fetch(REPO, weights=False)
    return "--revision", hub.repositories[REPO].branches["main"]


# --- for ever -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        Fault("config.json", drips="headers"),
        Fault("config.json", methods=("GET",), length=10, drips="body"),
        pytest.param(Fault("config.json", methods=("GET",), drips="headers"), marks=pytest.mark.slow),
        pytest.param(Fault("config.json", methods=("GET",), length=10, drips="nothing"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_small_file_has_a_time_limit_in_all(hub, error, fault):
    hub.faults = [fault]
    assert "within 0.3 seconds" in (line := error(**{LIMIT: "0.3"}))
    assert f"raise {LIMIT}" in line


@pytest.mark.parametrize(
    "fault",
    [
        Fault(WEIGHTS, methods=("GET",), length=1000, drips="body"),
        Fault(WEIGHTS, methods=("GET",), status=429, headers={"Retry-After": "86400"}),
        pytest.param(Fault(WEIGHTS, drips="headers"), marks=pytest.mark.slow),
        pytest.param(Fault(WEIGHTS, methods=("GET",), length=1000, drips="nothing"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_weights_that_do_not_grow_are_given_up(hub, error, all_but_weights, fault):
    hub.faults = [fault]
    line = error(*all_but_weights, **{LIMIT: "0.1"})
    assert "has not grown within 1 seconds" in line
    assert f"raise {LIMIT}" in line


def test_a_download_may_take_any_time_as_long_as_it_grows():
    done, size = threading.Event(), iter(range(10**6))

    def grown() -> int:
        if (now := next(size)) == 20:  # windows of 0.01 seconds
            done.set()
        return now

    def download() -> Path:
        assert done.wait(600)
        return Path("weights")

    assert in_time(download, 0.01, grown) == Path("weights")


def test_a_time_limit_that_is_no_number_is_an_error(error):
    assert f"{LIMIT} must be a number of seconds" in error(**{LIMIT: "soon"})


def test_ctrl_c_ends_a_download_that_drips_and_removes_what_there_is_of_it(hub, env, home, all_but_weights):
    began = threading.Event()
    hub.on_request = lambda request: began.set() if (request.method, request.file) == ("GET", WEIGHTS) else None
    hub.faults = [Fault(WEIGHTS, methods=("GET",), length=1000, drips="body")]
    command = [sys.executable, "-m", "mlx_convnextv2.classify", "photo.png", "--model", REPO, *all_but_weights]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stderr=subprocess.PIPE)
    assert began.wait(600)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=600)[1] == b""  # where the time limit is ten minutes
    assert process.returncode == 130
    assert list(home.rglob("*.incomplete")) == []


# --- later ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_sleep")
def test_a_hub_that_wants_to_be_asked_tomorrow_is_not_waited_for(hub, error):
    hub.faults = [Fault("config.json", status=429, headers={"Retry-After": "86400"})]
    line = error()
    assert "status 429" in line
    assert "try again in 86400 seconds" in line


@pytest.mark.usefixtures("no_sleep")
def test_a_redirect_to_itself_ends(hub, error):
    hub.faults = [Fault("config.json", status=302, headers={"Location": f"/{REPO}/resolve/main/config.json"})]
    assert "redirects" in error()


# --- nobody there ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_sleep")
@pytest.mark.parametrize("how", ["refused", "no such host", "offline"])
def test_a_hub_that_cannot_be_reached_is_asked_once(hub, error, how):
    variables = {"offline": {"HF_HUB_OFFLINE": "1"}, "no such host": {"HF_ENDPOINT": "http://hub.invalid"}}
    if how == "refused":
        hub.stop()
    assert "cannot be reached" in error(**variables.get(how, {}))


# --- names that are paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "header", "name"),
    [
        ("config.json", "ETag", '"../../../../outside"'),
        ("config.json", "ETag", '".."'),
        ("config.json", "X-Repo-Commit", "../../../../outside"),
        (WEIGHTS, "ETag", '"../../../../outside"'),
        (WEIGHTS, "X-Linked-Etag", '"{folder}/outside"'),
    ],
)
def test_a_name_that_leads_out_of_the_cache_is_refused_before_it_is_used(hub, error, tmp_path, file, header, name):
    hub.faults = [Fault(file, headers={header: name.format(folder=tmp_path)})]
    assert "not downloaded" in error()
    assert not list(tmp_path.rglob("*outside*"))
    assert (file, "GET") not in {(request.file, request.method) for request in hub.requests}


def test_a_missing_file_of_a_commit_that_is_a_path_is_not_noted_there(hub, error, tmp_path):
    headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "../../../../outside"}
    hub.faults = [Fault("config.json", status=404, headers=headers)]
    assert "not downloaded" in error()
    assert not list(tmp_path.rglob("*outside*"))
