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
from checkpoint_files import INDEX, SHARD_BYTES, assert_same_weights
from conftest import ROOT, SMALL, Finished, randomize, variables
from hub_server import Fault, HubServer

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, load, save
from mlx_convnextv2.checkpoints.hub import PUBLISHED

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
    """The variables of a user whose Hub is `hub`, with an empty cache and no token."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@pytest.fixture
def as_user(env):
    """A context in which this process has the user's variables."""
    return lambda: variables(env)


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


def assert_fails(result: Finished, *words: str) -> None:
    """Status 2 and one line on stderr, which has these words."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert ": error: " in result.stderr
    for word in words:
        assert word in result.stderr


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


def test_classify_asks_for_the_needed_files_alone(hub, classify, crowded_folder, expected):
    hub.commit(REPO, crowded_folder)
    assert predictions(classify()) == expected
    assert hub.fetched() == NEEDED
    assert {request.file for request in hub.requests} == set(NEEDED)


def test_convert_asks_for_the_model_card_as_well(hub, env, run, crowded_folder, tmp_path):
    hub.commit(REPO, crowded_folder)
    result = run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", env=env)
    assert result.returncode == 0, result.stderr
    assert sorted(hub.fetched()) == sorted([*NEEDED, "README.md"])
    assert {request.file for request in hub.requests} == {*NEEDED, "README.md"}


def test_the_image_processor_alone_needs_no_weights(hub, as_user, hf_folder, small_processor):
    hub.commit(REPO, hf_folder)
    with as_user():
        assert ConvNextImageProcessor.from_pretrained(REPO).to_dict() == small_processor.to_dict()
    assert not any("model" in name for name in hub.fetched())


@pytest.mark.parametrize("folder", ["hf_folder", "sharded_folder"])
def test_a_second_run_fetches_nothing_again(hub, classify, folder, expected, request):
    hub.commit(REPO, request.getfixturevalue(folder))
    assert predictions(classify()) == expected
    hub.requests.clear()
    assert predictions(classify()) == expected
    assert [request for request in hub.requests if request.method == "GET"] == []


def test_a_sharded_repository_is_fetched_by_its_index(hub, classify, sharded_folder, expected):
    hub.commit(REPO, sharded_folder)
    assert predictions(classify()) == expected
    wanted = ["config.json", "preprocessor_config.json", INDEX, *sharded(sharded_folder)]
    assert hub.fetched() == wanted


def test_a_shard_that_the_repository_lacks_is_named(hub, classify, sharded_folder, tmp_path):
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    missing = sharded(folder)[1]
    (folder / missing).unlink()
    hub.commit(REPO, folder)
    assert_fails(classify(), REPO, missing)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/secret.safetensors", "..%2fsecret.safetensors"])
def test_an_index_cannot_ask_for_files_elsewhere(hub, classify, sharded_folder, tmp_path, name):
    folder = Path(shutil.copytree(sharded_folder, tmp_path / "copy"))
    (folder / INDEX).write_text(json.dumps({"weight_map": {"classifier.weight": name}}))
    hub.commit(REPO, folder)
    assert_fails(classify(), INDEX, name)
    assert not any("secret" in request.file for request in hub.requests)


def test_without_a_preprocessor_file_images_are_prepared_as_published_and_a_warning_says_so(
    hub, classify, run, hf_folder, image, tmp_path
):
    folder = Path(shutil.copytree(hf_folder, tmp_path / "copy"))
    (folder / "preprocessor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_size": 64}))
    hub.commit(REPO, folder)
    result = classify()
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("classify: warning: ")
    assert "preprocessor_config.json" in warning
    assert "64" in warning
    # The published checkpoints' file, at the config's image_size.
    explicit = {"size": {"shortest_edge": 64}, "resample": 3, "crop_pct": 0.875}
    explicit |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(explicit))
    assert predictions(result) == predictions(run("classify", image, "--model", folder, "--format", "json"))


def test_a_converted_repository_is_loaded_as_it_is(hub, classify, mlx_folder, expected):
    hub.commit(REPO, mlx_folder)
    assert predictions(classify()) == expected


def test_convert_writes_the_source_and_its_licence_into_the_model_card(hub, env, run, hf_folder, image, tmp_path):
    folder = Path(shutil.copytree(hf_folder, tmp_path / "copy"))
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags:\n- vision\n---\n# A card\n")
    hub.commit(REPO, folder)
    result = run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", env=env)
    assert result.returncode == 0, result.stderr
    header = (tmp_path / "out" / "README.md").read_text().split("---")[1].splitlines()
    assert f"base_model: {REPO}" in header
    assert "license: cc-by-nc-4.0" in header


# --- revisions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_commits(hub, hf_folder, tmp_path, small_processor) -> tuple[str, str]:
    """A repository whose main is `hf_folder`, and whose branch `next` has other weights and labels."""
    other = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, id2label={i: f"other {i}" for i in range(7)}))
    randomize(other, seed=1)
    save(other, tmp_path / "other", small_processor, format="huggingface")
    return hub.commit(REPO, hf_folder), hub.commit(REPO, tmp_path / "other", branch="next")


@pytest.mark.parametrize("by", ["branch", "commit"])
def test_a_revision_is_a_branch_or_a_commit(two_commits, classify, run, image, tmp_path, expected, by):
    revision = "next" if by == "branch" else two_commits[1]
    assert predictions(classify("--revision", revision)) == predictions(
        run("classify", image, "--model", tmp_path / "other", "--format", "json")
    )
    assert predictions(classify()) == expected


def test_convert_takes_a_revision(two_commits, run, env, image, tmp_path):
    run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", "--revision", "next", env=env)
    ours, _ = load(tmp_path / "out")
    assert ours.config.id2label[0] == "other 0"
    assert_same_weights(ours, load(tmp_path / "other")[0])


def test_a_missing_revision_is_named(hub, classify, hf_folder):
    hub.commit(REPO, hf_folder)
    assert_fails(classify("--revision", "no-such-branch"), REPO, "no-such-branch")


@pytest.mark.parametrize("folder", ["hf_folder", "sharded_folder"])
def test_all_files_are_of_one_commit_even_if_the_branch_moves_between_them(
    hub, classify, small_model, small_processor, tmp_path, expected, folder, request
):
    first = hub.commit(REPO, request.getfixturevalue(folder))
    other = ConvNextV2ForImageClassification(small_model.config)
    randomize(other, seed=1)
    size = SHARD_BYTES if folder == "sharded_folder" else 5_000_000_000
    save(other, tmp_path / "other", small_processor, format="huggingface", max_shard_bytes=size)
    second = hub.commit(REPO, tmp_path / "other", branch="next")

    def move_the_branch(request) -> None:
        if request.file != "config.json":
            hub.repositories[REPO].branches["main"] = second

    hub.on_request = move_the_branch
    assert predictions(classify()) == expected
    assert hub.repositories[REPO].branches["main"] == second
    assert {request.revision for request in hub.requests if request.file != "config.json"} == {first}


# --- what is not there, or not for everybody ------------------------------------------------------------------------


def test_a_missing_repository_is_named(classify):
    assert_fails(classify(), REPO, "HF_TOKEN")


@pytest.mark.parametrize("lacks", ["config.json", "model.safetensors"])
def test_a_file_that_the_repository_lacks_is_named(hub, classify, hf_folder, tmp_path, lacks):
    folder = Path(shutil.copytree(hf_folder, tmp_path / "copy"))
    (folder / lacks).unlink()
    hub.commit(REPO, folder)
    assert_fails(classify(), REPO, lacks)


def test_another_architecture_is_named_before_its_weights_are_fetched(hub, classify, hf_folder, tmp_path):
    folder = Path(shutil.copytree(hf_folder, tmp_path / "copy"))
    (folder / "config.json").write_text(json.dumps({"model_type": "resnet", "depths": [3, 4, 6, 3]}))
    hub.commit(REPO, folder)
    assert_fails(classify(), "resnet")
    assert "model.safetensors" not in hub.fetched()


def test_hf_token_is_sent_and_opens_a_private_repository(hub, classify, hf_folder, expected):
    hub.commit(REPO, hf_folder, token="hf_secret")
    assert predictions(classify(HF_TOKEN="hf_secret")) == expected
    assert {request.token for request in hub.requests} == {"hf_secret"}


@pytest.mark.parametrize("token", ["", "hf_of_somebody_else"])
def test_a_private_repository_without_the_right_token_says_which_variable_to_set(hub, classify, hf_folder, token):
    hub.commit(REPO, hf_folder, token="hf_secret")
    result = classify(HF_TOKEN=token)
    assert_fails(result, REPO, "private", "HF_TOKEN")
    assert "hf_of_somebody_else" not in result.stderr


@pytest.mark.parametrize("token", ["", "hf_of_somebody_else"])
def test_a_gated_repository_says_that_its_terms_have_to_be_accepted(hub, classify, hf_folder, token):
    hub.commit(REPO, hf_folder, token="hf_secret", gated=True)
    assert_fails(classify(HF_TOKEN=token), REPO, "gated", "terms", "HF_TOKEN")


def test_a_gated_repository_opens_for_those_who_accepted(hub, classify, hf_folder, expected):
    hub.commit(REPO, hf_folder, token="hf_secret", gated=True)
    assert predictions(classify(HF_TOKEN="hf_secret")) == expected


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


@pytest.mark.parametrize("folder", ["hf_folder", "sharded_folder", "without preprocessor"])
@pytest.mark.parametrize("how", ["down", "status 500", "offline"])
@pytest.mark.usefixtures("no_second_attempt")
def test_what_is_cached_is_used_without_waiting_for_a_hub_that_fails(
    hub, classify, request, hf_folder, tmp_path, folder, how
):
    if folder == "without preprocessor":
        path = Path(shutil.copytree(hf_folder, tmp_path / "copy"))
        (path / "preprocessor_config.json").unlink()
    else:
        path = request.getfixturevalue(folder)
    hub.commit(REPO, path)
    before = predictions(classify())
    if how != "offline":
        break_down(hub, how)
    assert predictions(classify(HF_HUB_OFFLINE="1" if how == "offline" else "0")) == before


def test_a_cached_commit_needs_no_hub(hub, classify, hf_folder, expected):
    commit = hub.commit(REPO, hf_folder)
    classify()
    hub.stop()
    assert predictions(classify("--revision", commit)) == expected


def test_what_classify_cached_can_be_converted_offline(hub, classify, env, run, hf_folder, tmp_path):
    hub.commit(REPO, hf_folder)
    predictions(classify())
    result = run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "out", env={**env, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


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
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=100_000))
    save(model, tmp_path / "large", ConvNextImageProcessor(size=32), format="huggingface")
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    hub.commit(REPO, tmp_path / "large")
    hub.faults = [Fault("model.safetensors", methods=("GET",), length=size - 1000, times=1)]
    result = classify()
    assert predictions(result) == predictions(run("classify", image, "--model", tmp_path / "large", "--format", "json"))
    statuses = [r.status for r in hub.requests if (r.method, r.file) == ("GET", "model.safetensors")]
    assert statuses == [200, 206]


@pytest.mark.usefixtures("no_waiting")
def test_after_a_failed_download_the_next_run_starts_afresh(hub, classify, hf_folder, expected):
    hub.commit(REPO, hf_folder)
    hub.faults = [Fault("model.safetensors", methods=("GET",), length=1000)]
    assert classify().returncode == 2
    hub.faults = []
    assert predictions(classify()) == expected


@pytest.mark.parametrize("status", [400, 403, 404, 500, 503])
def test_a_status_in_the_middle_is_one_line_that_says_what_the_hub_said(hub, classify, hf_folder, status):
    hub.commit(REPO, hf_folder)
    hub.faults = [Fault("model.safetensors", methods=("GET",), status=status)]
    assert_fails(classify(), REPO, "model.safetensors", str(status))


def test_convert_leaves_nothing_behind_when_the_download_fails(hub, env, run, hf_folder, tmp_path):
    hub.commit(REPO, hf_folder)
    hub.faults = [Fault("model.safetensors", methods=("GET",), status=500)]
    (tmp_path / "results").mkdir()
    result = run("convert", "--hf-path", REPO, "--mlx-path", tmp_path / "results" / "out", env=env)
    assert_fails(result, REPO)
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "revision"), [("somebody/nothing", None), (REPO, "nothing"), ("somebody/private", None)]
)
def test_load_raises_what_it_documents(hub, as_user, hf_folder, name, revision):
    hub.commit(REPO, hf_folder)
    hub.commit("somebody/private", hf_folder, token="hf_secret")
    with as_user(), pytest.raises(FileNotFoundError, match=name):
        load(name, revision=revision)


@pytest.mark.parametrize(
    "name", ["no/such/folder", "./folder", "../folder", "/no/folder", "-x", "a" * 200, "my folder"]
)
def test_a_name_that_is_no_hub_id_is_not_looked_for_on_the_hub(hub, env, run, image, name):
    result = run("classify", image, f"--model={name}", env=env)
    assert_fails(result, "no folder", name)
    assert hub.requests == []


def test_an_empty_name_is_not_the_default_model(hub, env, run, image):
    assert_fails(run("classify", image, "--model=", env=env))
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


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_half_an_id_suggests_the_whole_one(classify, variables):
    result = classify("--model", "facebook/convnextv2-atto", **variables)
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
