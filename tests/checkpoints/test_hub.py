"""Checkpoints by Hub id: the real huggingface_hub client against a Hub on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_files import INDEX, SHARD_BYTES, assert_same_weights, edit_json
from conftest import ROOT, SMALL, Finished, assert_fails, randomize, variables
from hub_server import Fault, HubServer, Request

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, load, save
from mlx_convnextv2.checkpoints.hub import PUBLISHED
from mlx_convnextv2.model.layers import no_init_weights

REPO = "somebody/small-net"
NEEDED = ["config.json", "preprocessor_config.json", "model.safetensors"]
ATTEMPTS = 6  # the first and five more


def sharded(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("model-*.safetensors"))


@pytest.fixture(scope="session")
def sharded_folder(tmp_path_factory, small_model, small_processor) -> Path:
    """`hf_folder` in shards."""
    folder = tmp_path_factory.mktemp("checkpoints") / "sharded"
    save(small_model, folder, small_processor, format="huggingface", max_shard_bytes=SHARD_BYTES)
    assert len(sharded(folder)) >= 3
    return folder


@pytest.fixture
def hub(tmp_path) -> Iterator[HubServer]:
    server = HubServer(tmp_path / "hub")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def image(tmp_path_factory, photo) -> str:
    path = tmp_path_factory.mktemp("images") / "photo.png"
    photo.save(path)
    return str(path)


@pytest.fixture
def env(hub, tmp_path) -> dict[str, str]:
    return hub.environment(tmp_path / "home")


@pytest.fixture
def no_waiting(monkeypatch) -> None:
    """Leave out the seconds between two attempts."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def no_second_attempt(monkeypatch) -> None:
    """Whoever waits before another attempt ends with status 99."""
    monkeypatch.setattr(time, "sleep", lambda seconds: sys.exit(99))


@pytest.fixture
def classify(run, env, image):
    """`classify photo.png --model REPO --format json` with some more arguments and variables."""

    def classify(*arguments: object, **variables: str) -> Finished:
        return run("classify", image, "--model", REPO, "--format", "json", *arguments, env={**env, **variables})

    return classify


def predictions(result: Finished) -> list[dict]:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)["predictions"]


@pytest.fixture(scope="session")
def expected(run, hf_folder, image) -> list[dict]:
    """What classify says with the folder that most repositories here are made of."""
    return predictions(run("classify", image, "--model", hf_folder, "--format", "json"))


# --- what is downloaded ---------------------------------------------------------------------------------------------


def test_classify_by_hub_id_says_what_it_says_of_the_folder(hub, env, run_process, hf_folder, image, expected):
    hub.commit(REPO, hf_folder)
    result = run_process("classify", image, "--model", REPO, "--format", "json", env=env)
    assert predictions(result) == expected
    assert result.stderr == ""


@pytest.fixture
def crowded_folder(tmp_path, hf_folder) -> Path:
    """`hf_folder` among the other files that repositories have."""
    folder = Path(shutil.copytree(hf_folder, tmp_path / "crowded"))
    for name in ("pytorch_model.bin", "tf_model.h5", "training_args.bin", "model.fp16.safetensors", ".gitattributes"):
        (folder / name).write_bytes(b"not needed")
    return folder


def test_classify_asks_for_the_needed_files_alone_and_once(hub, classify, crowded_folder, expected):
    hub.commit(REPO, crowded_folder)
    assert predictions(classify()) == expected
    assert hub.fetched() == NEEDED
    assert {request.file for request in hub.requests} == set(NEEDED)
    hub.requests.clear()
    assert predictions(classify()) == expected
    assert [request for request in hub.requests if request.method == "GET"] == []


def test_convert_asks_for_the_model_card_as_well_and_names_the_source_and_its_licence(
    hub, env, run, crowded_folder, tmp_path
):
    (crowded_folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags:\n- vision\n---\n# A card\n")
    hub.commit(REPO, crowded_folder)
    result = run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", env=env)
    assert result.returncode == 0, result.stderr
    assert sorted(hub.fetched()) == sorted([*NEEDED, "README.md"])
    header = (tmp_path / "out" / "README.md").read_text().split("---")[1].splitlines()
    assert {f"base_model: {REPO}", "license: cc-by-nc-4.0"} <= set(header)


def test_the_image_processor_alone_needs_no_weights(hub, env, hf_folder, small_processor):
    hub.commit(REPO, hf_folder)
    with variables(env):
        assert ConvNextImageProcessor.from_pretrained(REPO).to_dict() == small_processor.to_dict()
    assert not any("model" in name for name in hub.fetched())


def test_a_sharded_repository_is_fetched_by_its_index(hub, classify, sharded_folder, expected):
    hub.commit(REPO, sharded_folder)
    assert predictions(classify()) == expected
    assert hub.fetched() == ["config.json", "preprocessor_config.json", INDEX, *sharded(sharded_folder)]


def test_a_shard_that_the_repository_lacks_is_named(hub, classify, sharded_folder, tmp_path):
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    missing = sharded(folder)[1]
    (folder / missing).unlink()
    hub.commit(REPO, folder)
    assert_fails(classify(), REPO, missing)


def test_an_index_cannot_ask_for_files_elsewhere(hub, classify, sharded_folder, tmp_path):
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"classifier.weight": "../../secret.safetensors"}}))
    hub.commit(REPO, folder)
    assert_fails(classify(), INDEX, "../../secret.safetensors")
    assert not any("secret" in request.file for request in hub.requests)


def test_without_a_preprocessor_file_images_are_prepared_as_published_and_a_warning_says_so(hub, classify, copy):
    (copy / "preprocessor_config.json").unlink()
    edit_json(copy / "config.json", image_size=64)
    hub.commit(REPO, copy)
    (warning,) = classify().stderr.splitlines()
    assert re.match(r"classify: warning: .*preprocessor_config.json.*64", warning)


# --- revisions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_folder(hub, small_processor, tmp_path) -> Path:
    """A checkpoint in shards with other weights and labels."""
    config = ConvNextV2Config(**SMALL, id2label={i: f"other {i}" for i in range(7)})
    other = randomize(ConvNextV2ForImageClassification(config), seed=1)
    save(other, tmp_path / "other", small_processor, format="huggingface", max_shard_bytes=SHARD_BYTES)
    return tmp_path / "other"


def test_a_revision_is_a_branch_or_a_commit(
    hub, hf_folder, other_folder, classify, run, image, env, tmp_path, expected
):
    hub.commit(REPO, hf_folder)
    commit = hub.commit(REPO, other_folder, branch="next")
    other = predictions(run("classify", image, "--model", other_folder, "--format", "json"))
    assert predictions(classify("--revision", "next")) == other
    assert predictions(classify("--revision", commit)) == other
    assert predictions(classify()) == expected
    assert_fails(classify("--revision", "no-such-branch"), REPO, "no-such-branch")
    run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", "--revision", "next", env=env)
    assert_same_weights(load(tmp_path / "out")[0], load(other_folder)[0])


def test_all_files_are_of_one_commit_even_if_the_branch_moves_between_them(
    hub, classify, sharded_folder, other_folder, expected
):
    first = hub.commit(REPO, sharded_folder)
    second = hub.commit(REPO, other_folder, branch="next")

    def move_the_branch(request: Request) -> None:
        if request.file != "config.json":
            hub.repositories[REPO].branches["main"] = second

    hub.on_request = move_the_branch
    assert predictions(classify()) == expected
    assert hub.repositories[REPO].branches["main"] == second
    assert {request.revision for request in hub.requests if request.file != "config.json"} == {first}


# --- what is not there, or not for everybody ------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors"])
def test_a_repository_or_a_file_of_it_that_is_missing_is_named(hub, classify, copy, lacks):
    assert_fails(classify(), REPO, "HF_TOKEN")
    (copy / lacks).unlink()
    hub.commit(REPO, copy)
    assert_fails(classify(), REPO, lacks)


def test_another_architecture_is_named_before_its_weights_are_fetched(hub, classify, copy):
    edit_json(copy / "config.json", model_type="resnet")
    hub.commit(REPO, copy)
    assert_fails(classify(), "resnet")
    assert "model.safetensors" not in hub.fetched()


@pytest.mark.parametrize("gated", [False, True])
def test_hf_token_is_sent_and_opens_a_private_or_gated_repository(hub, classify, hf_folder, expected, gated):
    hub.commit(REPO, hf_folder, token="hf_secret", gated=gated)
    assert predictions(classify(HF_TOKEN="hf_secret")) == expected
    assert {request.token for request in hub.requests} == {"hf_secret"}
    for token in ("", "hf_of_somebody_else"):
        result = classify(HF_TOKEN=token, HF_HUB_CACHE=f"{hub.root}/empty")
        assert_fails(result, REPO, "HF_TOKEN", *(("gated", "terms") if gated else ("private",)))
        assert "hf_of_somebody_else" not in result.stderr


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "Invalid credentials in Authorization header"),  # an expired or mistyped token
        (403, "Your token has no permission to read this repository"),  # a fine-grained one
    ],
)
def test_a_token_that_the_hub_refuses_is_said_to_be_refused(hub, classify, hf_folder, status, message):
    hub.commit(REPO, hf_folder)
    hub.faults = [Fault("config.json", status=status, headers={"X-Error-Message": message})]
    result = classify(HF_TOKEN="hf_bad")
    assert_fails(result, REPO, "HF_TOKEN")
    assert "cannot be reached" not in result.stderr


# --- a Hub that fails -----------------------------------------------------------------------------------------------


def break_down(hub: HubServer, how: str) -> None:
    if how == "down":
        hub.stop()
    elif how == "status 500":
        hub.faults = [Fault(name, status=500) for name in NEEDED]
    else:
        hub.faults = [Fault("model.safetensors", methods=("GET",), length=0)]


@pytest.mark.parametrize("how", ["down", "status 500", "breaks off"])
@pytest.mark.usefixtures("no_waiting")
def test_a_hub_that_fails_with_nothing_cached_is_one_line_after_a_few_attempts(hub, classify, hf_folder, how):
    hub.commit(REPO, hf_folder)
    break_down(hub, how)
    assert_fails(classify(), REPO, "config.json" if how != "breaks off" else "model.safetensors")
    method, file = ("HEAD", "config.json") if how == "status 500" else ("GET", "model.safetensors")
    if how != "down":
        assert 2 <= len([r for r in hub.requests if (r.method, r.file) == (method, file)]) <= ATTEMPTS


def test_a_hub_that_accepts_and_never_answers_is_waited_for_once(classify):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        variables = {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "2"}
        assert_fails(classify(**variables), REPO, "not answered for 2 seconds", "HF_HUB_ETAG_TIMEOUT")
        silent.setblocking(False)
        asked = []
        with contextlib.suppress(BlockingIOError):
            while True:
                with silent.accept()[0] as connection:
                    asked.append(connection.recv(100).split(b" HTTP")[0])
    assert asked.count(f"HEAD /{REPO}/resolve/main/config.json".encode()) == 1


def test_offline_with_nothing_cached_is_an_error_that_names_the_variable(hub, classify, hf_folder):
    hub.commit(REPO, hf_folder)
    assert_fails(classify(HF_HUB_OFFLINE="1"), REPO, "HF_HUB_OFFLINE")
    assert hub.requests == []


@pytest.mark.parametrize("how", ["down", "status 500", "offline"])
@pytest.mark.usefixtures("no_second_attempt")
def test_what_is_cached_is_used_without_waiting_for_a_hub_that_fails(
    hub, classify, env, run, sharded_folder, tmp_path, expected, how
):
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    commit = hub.commit(REPO, folder)
    (folder / "preprocessor_config.json").unlink()  # and that it lacks this file is remembered
    hub.commit(REPO, folder, branch="bare")
    assert predictions(classify()) == expected
    bare = predictions(classify("--revision", "bare"))
    offline = {"HF_HUB_OFFLINE": "1" if how == "offline" else "0"}
    if how != "offline":
        break_down(hub, how)
    for revision, answer in {"main": expected, commit: expected, "bare": bare}.items():
        assert predictions(classify("--revision", revision, **offline)) == answer
    result = run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", env={**env, **offline})
    assert result.returncode == 0, result.stderr  # its model card is missing, and may be


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub, classify, hf_folder, expected, method):
    hub.commit(REPO, hf_folder)
    hub.faults = [Fault("config.json", status=429, methods=(method,), times=2)]
    assert predictions(classify()) == expected
    assert [request.status for request in hub.requests if request.status != 200] == [429, 429]


@pytest.mark.usefixtures("no_waiting")
def test_a_download_that_breaks_off_goes_on_where_it_was(hub, classify, run, image, tmp_path):
    # The client keeps what came in pieces of 10 MiB: 33 features x 100 000 classes x 4 bytes make one and some more.
    with no_init_weights():
        model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=100_000))
    save(model, tmp_path / "large", ConvNextImageProcessor(size=32), format="huggingface")
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    hub.commit(REPO, tmp_path / "large")
    hub.faults = [Fault("model.safetensors", methods=("GET",), length=size - 1000, times=1)]
    result = classify()
    assert predictions(result) == predictions(run("classify", image, "--model", tmp_path / "large", "--format", "json"))
    statuses = [r.status for r in hub.requests if (r.method, r.file) == ("GET", "model.safetensors")]
    assert statuses == [200, 206]


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
def test_a_status_in_the_middle_is_one_line_that_says_what_the_hub_said(hub, env, run, hf_folder, tmp_path, status):
    hub.commit(REPO, hf_folder)
    hub.faults = [Fault("model.safetensors", methods=("GET",), status=status)]
    (tmp_path / "results").mkdir()
    arguments = ["convert", "--hf-path", REPO, "--mlx-path", tmp_path / "results" / "out"]
    assert_fails(run(*arguments, env=env), REPO, "model.safetensors", str(status))
    assert list((tmp_path / "results").iterdir()) == []
    hub.faults = []
    assert run(*arguments, env=env).returncode == 0  # the next run starts afresh


@pytest.mark.parametrize(
    ("name", "revision"), [("somebody/nothing", None), (REPO, "nothing"), ("somebody/private", None)]
)
def test_load_raises_what_it_documents(hub, env, hf_folder, name, revision):
    hub.commit(REPO, hf_folder)
    hub.commit("somebody/private", hf_folder, token="hf_secret")
    with variables(env), pytest.raises(FileNotFoundError, match=name):
        load(name, revision=revision)


@pytest.mark.parametrize("name", ["no/such/folder", "./folder", "/no/folder", "-x", "a" * 200, "my folder", ""])
def test_a_name_that_is_no_hub_id_is_not_looked_for_on_the_hub(hub, env, run, image, name):
    assert_fails(run("classify", image, f"--model={name}", env=env), *(["no folder", name] if name else []))
    assert hub.requests == []


# --- names that are nearly right ------------------------------------------------------------------------------------


def test_the_published_checkpoints_are_those_of_the_readme():
    rows = re.findall(r"^\| (\w+) \| [\d,]+ \|(.+)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    kinds = ("1k-224", "22k-224", "22k-384", "22k-512")
    table = {
        size: [k for k, top1 in zip(kinds, cells.split("|"), strict=True) if any(map(str.isdigit, top1))]
        for size, cells in rows
    }
    assert table == {size: kinds.split() for size, kinds in PUBLISHED.items()}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("convnextv2-tiny-1k-224", "facebook/convnextv2-tiny-1k-224"),
        ("tiny-1k-224", "facebook/convnextv2-tiny-1k-224"),
        ("atto", "facebook/convnextv2-atto-1k-224"),
        (
            "convnextv2_huge",
            "facebook/convnextv2-huge-1k-224 or facebook/convnextv2-huge-22k-384 or facebook/convnextv2-huge-22k-512",
        ),
    ],
)
def test_a_name_without_its_owner_or_the_rest_suggests_the_published_ids(hub, env, run, image, name, ids):
    assert_fails(run("classify", image, "--model", name, env=env), f"no folder called {name}; did you mean {ids}?")
    assert hub.requests == []


def test_half_an_id_suggests_the_whole_one(classify):
    result = classify("--model", "facebook/convnextv2-atto", HF_HUB_OFFLINE="1")
    assert_fails(result, "did you mean facebook/convnextv2-atto-1k-224?")


# --- the screen -----------------------------------------------------------------------------------------------------


def test_the_first_word_is_on_the_screen_before_the_hub_answers(hub, env, image, hf_folder):
    hub.commit(REPO, hf_folder)
    seen = threading.Event()
    hub.on_request = lambda request: seen.wait(600)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_convnextv2.classify", image, "--model", REPO],
        env={**os.environ, **env},
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
    )
    try:
        assert select.select([ours], [], [], 600)[0]
        assert REPO in os.read(ours, 1000).decode()
        assert process.poll() is None
    finally:
        seen.set()
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)
