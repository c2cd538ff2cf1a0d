"""PyTorch's own files: what training leaves in them, and what is never run."""

import argparse
import os
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from checkpoint_files import as_original, assert_same_weights  # noqa: E402
from conftest import ROOT  # noqa: E402

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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "ema.", "module._orig_mod."])
def test_what_wrappers_put_before_the_names_goes(tmp_path, state, small_model, prefix):
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "weights.pth")
    assert_same_weights(load(tmp_path / "weights.pth")[0], small_model)


def test_the_averaged_weights_are_preferred(tmp_path, state, small_model):
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"model": other, "model_ema": state}, tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


def test_averaged_weights_that_are_none_hide_no_others(tmp_path, state, small_model):
    torch.save({"model": state, "model_ema": {}}, tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


@pytest.mark.parametrize("key", ["net", "network", "model_state_dict", "student", "teacher", "ema_model"])
def test_the_places_where_scripts_put_weights_are_known(tmp_path, state, small_model, key):
    torch.save({"epoch": 3, key: state}, tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


def test_a_student_beside_its_teacher_is_refused(tmp_path, state):
    torch.save({"student": state, "teacher": state}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="a student and a teacher"):
        load(tmp_path / "weights.pt")


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ValueError, match=r"weights\.pt is truncated or corrupt \(it is empty\)"):
        load(tmp_path / "weights.pt")


def test_flat_leftovers_and_the_plain_copy_are_dropped(tmp_path, state, small_model):
    flat = {f"model.{key}": value + 1 for key, value in state.items()} | {f"ema.{k}": v for k, v in state.items()}
    torch.save({**flat, "optimizer.step": torch.tensor(3)}, tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


def test_files_of_before_pytorch_1_6_are_read(tmp_path, state, small_model):
    torch.save({"model": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_same_weights(load(tmp_path / "old.pt")[0], small_model)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_cannot_run_code(tmp_path, run, state):
    torch.save({"model": state, "attack": Attack(tmp_path / "attacked")}, tmp_path / "evil.pt")
    result = run("convert", "--hf-path", tmp_path / "evil.pt", "--mlx-path", tmp_path / "out")
    assert result.returncode == 2
    assert "never unpickled" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, 50_000])
def test_a_truncated_file_is_named(tmp_path, state, kept):
    torch.save({"model": state}, tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cut\.pt"):
        load(tmp_path / "cut.pt")


def test_without_pytorch_the_error_names_the_extra(tmp_path, state):
    torch.save({"model": state}, tmp_path / "weights.pt")
    code = (
        "import sys; sys.modules['torch'] = None\nfrom mlx_convnextv2.convert import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--hf-path", tmp_path / "weights.pt", "--mlx-path", tmp_path / "out"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert 'pip install "mlx-convnextv2[torch]"' in result.stderr


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
    content = {}
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
