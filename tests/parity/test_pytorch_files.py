"""PyTorch's own files: what training leaves in them, and what is never run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from checkpoint_files import as_original, assert_same_weights  # noqa: E402
from conftest import assert_fails  # noqa: E402

from mlx_convnextv2 import ConvNextV2Model, load  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*images are prepared")]


@pytest.fixture(scope="module")
def state(small_model):
    return {name: torch.tensor(array) for name, array in as_original(small_model).items()}


def test_training_leftovers_are_listed_as_they_are_dropped(tmp_path, run, state, small_model):
    leftovers = {"optimizer": {"step": torch.zeros(3)}, "epoch": 7, "args": argparse.Namespace(lr=0.1)}
    torch.save({"model": state, **leftovers}, tmp_path / "last.pt")
    result = run("convert", "--hf-path", tmp_path / "last.pt", "--mlx-path", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "Left out of what the file holds: optimizer, epoch, args\n" in result.stdout
    assert_same_weights(load(tmp_path / "out")[0], small_model)


@pytest.mark.parametrize("key", ["net", "network", "model_state_dict", "student", "teacher", "ema_model"])
def test_the_places_where_scripts_put_weights_are_known(tmp_path, state, small_model, key):
    torch.save({"epoch": 3, key: state}, tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


def test_the_averaged_weights_are_preferred_and_averages_that_are_none_hide_no_others(tmp_path, state, small_model):
    other = {key: value + 1 for key, value in state.items()}
    for content in ({"model": other, "model_ema": state}, {"model": state, "model_ema": {}}):
        torch.save(content, tmp_path / "weights.pt")
        assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


def test_a_student_beside_its_teacher_is_refused(tmp_path, state):
    torch.save({"student": state, "teacher": state}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="a student and a teacher"):
        load(tmp_path / "weights.pt")


def test_files_of_before_pytorch_1_6_are_read(tmp_path, state, small_model):
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_weights(load(tmp_path / "old.pt")[0], small_model)


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_cannot_run_code(tmp_path, run, state):
    torch.save({"model": state, "attack": Attack(tmp_path / "attacked")}, tmp_path / "evil.pt")
    result = run("convert", "--hf-path", tmp_path / "evil.pt", "--mlx-path", tmp_path / "out")
    assert_fails(result, "never unpickled")
    assert not (tmp_path / "attacked").exists()


def test_a_truncated_file_is_named(tmp_path, state):
    torch.save({"model": state}, tmp_path / "whole.pt")
    for kept in (0, 10, 1000, 50_000):
        (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:kept])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            load(tmp_path / "cut.pt")


def test_without_pytorch_the_error_names_the_extra(tmp_path, run, state, monkeypatch):
    torch.save({"model": state}, tmp_path / "weights.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("convert", "--hf-path", tmp_path / "weights.pt", "--mlx-path", tmp_path / "out")
    assert_fails(result, 'pip install "mlx-convnextv2[torch]"')


def test_a_mixture_of_schemes_shows_keys(tmp_path, state):
    torch.save({**state, "stem.0.weight": torch.zeros(1)}, tmp_path / "mixed.pt")
    with pytest.raises(ValueError, match="mixes the tensor names of timm and the original repository"):
        load(tmp_path / "mixed.pt")


def test_numbers_for_names_are_left_out(tmp_path, state, small_model):
    torch.save({**state, 0: torch.zeros(1)}, tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)
    torch.save({0: torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no tensors"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor[:1].clone().expand(tensor.shape),  # a file of kilobytes could ask for gigabytes
    ],
    ids=["sparse", "meta", "expanded"],
)
def test_tensors_without_all_their_values_are_refused(tmp_path, state, spoil):
    torch.save({**state, "norm.weight": spoil(state["norm.weight"])}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"does not hold every value of norm\.weight"):
        load(tmp_path / "weights.pt")


def test_a_dictionary_that_holds_itself_ends(tmp_path):
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="without end"):
        load(tmp_path / "weights.pt")


def test_a_head_for_no_classes_is_no_head(tmp_path, run, state):
    width = len(state["norm.weight"])
    torch.save({**state, "head.weight": torch.zeros(0, width), "head.bias": torch.zeros(0)}, tmp_path / "weights.pt")
    result = run("convert", "--hf-path", tmp_path / "weights.pt", "--mlx-path", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "Left out of what the file holds: head.weight, head.bias\n" in result.stdout
    assert isinstance(load(tmp_path / "out")[0], ConvNextV2Model)
