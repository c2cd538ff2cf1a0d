"""PyTorch's own files: what training leaves in them, what is never run, and files that say what is not so."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from checkpoint_files import as_original, assert_same_weights  # noqa: E402
from conftest import assert_fails  # noqa: E402

from mlx_convnextv2 import ConvNextV2Model, load  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*images are prepared")]

State = dict[Any, Any]


@pytest.fixture(scope="module")
def state(small_model) -> State:
    """The small model's weights as the authors' repository has them."""
    return {name: torch.tensor(array) for name, array in as_original(small_model).items()}


@pytest.fixture
def file(state, tmp_path) -> Path:
    torch.save({"model": state}, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def refused(file: Path, *words: str) -> None:
    with pytest.raises(ValueError, match=file.name) as caught:
        load(file)
    assert len(str(caught.value)) < 1000
    for word in words:
        assert word in str(caught.value)


# --- what a file holds ----------------------------------------------------------------------------------------------


def larger(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def under(key: str) -> Callable[[State], State]:
    return lambda state: {"epoch": 3, key: state}


def flat(state: State) -> State:
    """The same tensors, all cut from one storage."""
    values, begin, views = torch.cat([tensor.flatten() for tensor in state.values()]), 0, {}
    for key, tensor in state.items():
        views[key] = values[begin : begin + tensor.numel()].view(tensor.shape)
        begin += tensor.numel()
    return views


BESIDE = {
    "best_acc": np.float64(0.8),
    "epoch": np.int64(3),
    "done": np.bool_(True),
    "losses": np.arange(3.0),
    "rng": ("MT19937", np.zeros(624, np.uint32), 3, 0, 0.0),
    "dtype": np.dtype("float32"),
}
READ: dict[str, Callable[[State], object]] = {
    **{key: under(key) for key in ("net", "network", "model_state_dict", "student", "teacher", "ema_model")},
    "the averaged weights are preferred": lambda state: {"model": larger(state), "model_ema": state},
    "averages that are none hide no others": lambda state: {"model": state, "model_ema": {}},
    "an average that still is the weights": lambda state: {
        f"{copy}.{key}": value for copy in ("model", "ema") for key, value in state.items()
    },
    "numbers for names are left out": lambda state: {**state, 0: torch.zeros(1)},
    "tensors cut from one storage": flat,
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_the_weights_are_found(tmp_path, state, small_model, content):
    torch.save(content(state), tmp_path / "weights.pt")
    assert_same_weights(load(tmp_path / "weights.pt")[0], small_model)


def itself(_: State) -> State:
    content: State = {}
    content["model"] = content
    return content


def shared_beyond_measure(state: State) -> State:
    values = torch.zeros(max(tensor.numel() for tensor in state.values()))
    shared = {key: values[: tensor.numel()].view(tensor.shape) for key, tensor in state.items()}
    return {**shared, **{f"more.{i}": values for i in range(100)}}


INCOMPLETE = "does not hold every value of norm.weight"
REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "a student beside its teacher": (lambda state: {"student": state, "teacher": state}, "a student and a teacher"),
    "no tensors": (lambda _: {0: torch.zeros(1)}, "holds no tensors"),
    "sparse": (lambda state: {**state, "norm.weight": state["norm.weight"].to_sparse()}, INCOMPLETE),
    "meta": (lambda state: {**state, "norm.weight": state["norm.weight"].to("meta")}, INCOMPLETE),
    "expanded": (  # a file of kilobytes could ask for gigabytes
        lambda state: {**state, "norm.weight": state["norm.weight"][:1].clone().expand(33)},
        INCOMPLETE,
    ),
    "a dictionary that holds itself": (itself, "without end"),
    "values shared beyond measure": (shared_beyond_measure, "share their values"),
}


@pytest.mark.parametrize(("content", "word"), REFUSED.values(), ids=REFUSED)
def test_what_are_no_weights_is_refused(tmp_path, state, content, word):
    torch.save(content(state), tmp_path / "weights.pt")
    refused(tmp_path / "weights.pt", word)


def test_training_leftovers_are_listed_as_they_are_dropped(tmp_path, run, state, small_model):
    leftovers = {"optimizer": {"step": torch.zeros(3)}, "epoch": 7, "args": argparse.Namespace(lr=0.1)}
    torch.save({"model": state, **leftovers}, tmp_path / "last.pt")
    result = run("convert", "--hf-path", tmp_path / "last.pt", "--mlx-path", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "Left out of what the file holds: optimizer, epoch, args\n" in result.stdout
    assert_same_weights(load(tmp_path / "out")[0], small_model)


@pytest.mark.parametrize("written", ["numpy 2", "numpy 1", "before zip"])
def test_what_numpy_left_beside_the_weights_is_left_out(tmp_path, state, small_model, written):
    file = tmp_path / "model_best.pth.tar"
    torch.save({"model": state, **BESIDE}, file, _use_new_zipfile_serialization=written != "before zip")
    if written != "before zip":
        core = b"numpy._core." if written == "numpy 2" else b"numpy.core."
        rewritten(file, lambda _, data: data.replace(b"numpy._core.", core))
    assert_same_weights(load(file)[0], small_model)


def test_a_head_for_no_classes_is_no_head(tmp_path, run, state):
    width = len(state["norm.weight"])
    torch.save({**state, "head.weight": torch.zeros(0, width), "head.bias": torch.zeros(0)}, tmp_path / "weights.pt")
    result = run("convert", "--hf-path", tmp_path / "weights.pt", "--mlx-path", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "Left out of what the file holds: head.weight, head.bias\n" in result.stdout
    assert isinstance(load(tmp_path / "out")[0], ConvNextV2Model)


def test_without_pytorch_the_error_names_the_extra(file, run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("convert", "--hf-path", file, "--mlx-path", tmp_path / "out")
    assert_fails(result, 'pip install "mlx-convnextv2[torch]"')


# --- what is never run ----------------------------------------------------------------------------------------------


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


def test_nothing_of_numpy_s_is_called_for_a_file(tmp_path, state, small_model):
    """A dtype takes the flags that a file states for it, and with some of them its scalar reads another's memory."""
    torch.save({"model": state, "best_acc": np.float64(0.8)}, tmp_path / "net.pt")
    rewritten(tmp_path / "net.pt", in_pickle(b"f8", b"??"))  # of which numpy has no dtype
    assert_same_weights(load(tmp_path / "net.pt")[0], small_model)


# --- zip files that say what is not so ------------------------------------------------------------------------------

Change = Callable[[str, bytes], bytes]


def rewritten(
    file: Path,
    change: Change = lambda name, data: data,
    compressed: Callable[[str], bool] = lambda name: False,
    more: Sequence[tuple[str, bytes]] = (),
) -> Path:
    """The zip file with each entry passed through `change`, and with more entries."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            kind = zipfile.ZIP_DEFLATED if compressed(name) else zipfile.ZIP_STORED
            archive.writestr(name, change(name, data), kind)
        for name, data in more:
            archive.writestr(name, data)
    return file


def in_pickle(old: bytes, new: bytes) -> Change:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        assert old in data
        return data.replace(old, new, 1)

    return change


def number(value: int) -> bytes:
    return b"M" + struct.pack("<H", value)  # BININT2


def test_a_file_that_is_packed_again_as_it_was_is_read(file, small_model):
    assert_same_weights(load(rewritten(file))[0], small_model)


@pytest.mark.parametrize("which", ["", "data/0"])
def test_compressed_entries_are_refused(file, which):
    """Mapped into memory they would be read as they lie: other numbers, and no error."""
    refused(rewritten(file, compressed=lambda name: name.endswith(which)), "compressed", "torch.save")


@pytest.mark.parametrize("claimed", [2**15, 2**31 - 1, -1, -(2**31), 2**40])
def test_storages_that_claim_other_sizes_than_their_entries_are_refused(file, state, claimed):
    """The first tensor's, which the others lie behind: what it claims may well be there."""
    elements = next(iter(state.values())).numel()
    size = b"\x8a\x06" + claimed.to_bytes(6, "little") if claimed >= 2**31 else b"J" + struct.pack("<i", claimed)
    refused(rewritten(file, in_pickle(number(elements) + b"t", size + b"t")))


def test_an_entry_or_a_file_that_was_cut_is_refused(file, tmp_path):
    content, cut = file.read_bytes(), tmp_path / "cut.pt"
    for kept in (0, 10, 1000, 50_000, *range(len(content) - 130, len(content), 7)):
        cut.write_bytes(content[:kept])
        refused(cut)
    refused(rewritten(file, lambda name, data: data[:-4] if name.endswith("data/0") else data))


@pytest.fixture
def _not_unpickled(monkeypatch):
    """PyTorch is not asked to load anything."""
    monkeypatch.setattr(torch, "load", None)


@pytest.mark.usefixtures("_not_unpickled")
@pytest.mark.filterwarnings("ignore:Duplicate name")
class TestBeforeItIsRead:
    def test_what_is_long_beside_the_tensors_is_refused(self, file):
        whole, brackets = file.read_bytes(), b"\x80\x02" + b"]" * 4_100_000 + b"."
        refused(rewritten(file, lambda name, data: brackets if name.endswith("data.pkl") else data), "bytes beside")
        file.write_bytes(whole)
        refused(rewritten(file, more=[("net/extra/byteorder", b"\0" * 4_100_000)]), "bytes beside")

    def test_a_directory_of_many_entries_is_refused_before_it_is_read(self, file, monkeypatch):
        more = 1_000 * (b"PK\1\2" + b"\0" * 30_000)  # of the right size for the records behind it
        content = file.read_bytes()
        end = bytearray(content[-22:])
        struct.pack_into("<2L", end, 12, len(more), len(content) - 22)
        file.write_bytes(content[:-22] + more + end)
        monkeypatch.setattr(zipfile, "ZipFile", None)
        refused(file, "too many entries")

    @pytest.mark.parametrize("twin", ["net/data.pkl", "net/DATA.PKL"])
    def test_an_entry_twice_is_refused(self, file, twin):
        refused(rewritten(file, more=[(twin, b"")]), "twice")

    def test_a_second_directory_or_a_comment_behind_it_is_refused(self, file):
        """zipfile looks for the directory before its end, PyTorch where the end says that it is."""
        content = file.read_bytes()
        (directory,) = struct.unpack("<L", content[-6:-2])
        file.write_bytes(content[:-22] + content[directory:-22] + content[-22:])
        refused(file, "directory")
        file.write_bytes(content)
        with zipfile.ZipFile(file, "a") as archive:
            archive.comment = b"x" * 100
        refused(file, "directory")


# --- files from before PyTorch 1.6 ----------------------------------------------------------------------------------


@pytest.fixture
def old(state, tmp_path) -> Path:
    torch.save({"model": state, "epoch": 3}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    return tmp_path / "old.pt"


def test_files_of_before_pytorch_1_6_are_read(old, small_model):
    assert_same_weights(load(old)[0], small_model)


def test_a_long_pickle_or_string_in_an_old_file_is_not_read(old):
    content = old.read_bytes()
    begin = content.index(b"\x80\x02}", 40)  # behind the magic number, the version and what the system is like
    old.write_bytes(content[:begin] + b"\x80\x02" + b"]" * 4_200_000 + b".")
    refused(old, "pickles of more than")
    old.write_bytes(content[:begin] + b"\x80\x02X" + struct.pack("<I", 2**31 - 1))
    os.truncate(old, 2**32)  # a file of holes
    refused(old, "pickles of more than")


def test_a_storage_of_2_to_the_40_elements_in_an_old_file_is_refused(old, state):
    elements = number(next(iter(state.values())).numel())
    content = old.read_bytes()
    assert elements in content
    old.write_bytes(content.replace(elements, b"\x8a\x06" + (2**40).to_bytes(6, "little"), 1))
    refused(old)


def test_a_tensor_larger_than_its_storage_in_an_old_file_is_refused(tmp_path):
    torch.save({"stem": torch.arange(7.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    size = b"K\x07\x85"  # the shape (7,)
    assert content.count(size) == 1
    (tmp_path / "old.pt").write_bytes(content.replace(size, b"J\xff\xff\xff\x0f\x85"))
    refused(tmp_path / "old.pt", "corrupt")


def test_a_tar_file_of_2016_is_refused(tmp_path):
    with tarfile.open(tmp_path / "old.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(0, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    refused(tmp_path / "old.pt", "corrupt")
