"""Publishing: `--upload-repo` through the real huggingface_hub client, against the Hub on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import assert_fails
from hub_server import HubServer


@pytest.fixture
def hub(tmp_path) -> Iterator[HubServer]:
    server = HubServer(tmp_path / "hub")
    server.root.mkdir()
    server.upload_token = "hf_secret"
    yield server
    server.stop()


@pytest.fixture
def env(hub, tmp_path) -> dict[str, str]:
    return {**hub.environment(tmp_path / "home"), "HF_TOKEN": "hf_secret"}


def test_a_converted_checkpoint_is_published_and_loads_from_there(hub, env, run, hf_folder, photo, tmp_path):
    out = tmp_path / "out"
    result = run("convert", "--hf-path", hf_folder, "--mlx-path", out, "--upload-repo", "somebody/small", env=env)
    assert result.returncode == 0, result.stderr
    (published,) = hub.repositories["somebody/small"].commits.values()
    assert {f.name: f.read_bytes() for f in published.iterdir()} == {f.name: f.read_bytes() for f in out.iterdir()}

    photo.save(tmp_path / "photo.png")
    answers = [
        run("classify", tmp_path / "photo.png", "--format", "json", "--model", model, env=env)
        for model in (out, "somebody/small")
    ]
    local, from_hub = (json.loads(answer.stdout)["predictions"] for answer in answers)
    assert from_hub == local


def test_an_upload_that_fails_keeps_the_folder_and_blames_the_token_where_it_is_refused(
    hub, env, run, hf_folder, tmp_path
):
    arguments = ["convert", "--hf-path", hf_folder, "--upload-repo", "somebody/small", "--mlx-path"]
    hub.upload_token = "another"
    assert_fails(run(*arguments, tmp_path / "refused", env=env), "somebody/small", "HF_TOKEN")
    hub.upload_token, hub.upload_status = "hf_secret", 409
    result = run(*arguments, tmp_path / "failed", env=env)
    assert_fails(result, "somebody/small", "409")
    assert "HF_TOKEN" not in result.stderr
    for name in ("refused", "failed"):
        assert (tmp_path / name / "model.safetensors").is_file()


@pytest.mark.parametrize("repo", ["not a repo", "a/b/c", "somebody/"])
def test_a_name_that_no_repository_can_have_is_refused_before_anything_is_written(env, run, hf_folder, tmp_path, repo):
    result = run("convert", "--hf-path", hf_folder, "--mlx-path", tmp_path / "out", "--upload-repo", repo, env=env)
    assert_fails(result, repo, "owner/name")
    assert not (tmp_path / "out").exists()
