"""convert --labels: the classes of a checkpoint that carries no names get them, in config.json both ways."""

from __future__ import annotations

import json
import re

import pytest
from checkpoint_files import as_original, assert_same_weights
from conftest import SMALL, randomize
from safetensors.numpy import save_file

from mlx_convnextv2 import ConvNextV2Config, ConvNextV2Model, ImageClassifier, load, save
from mlx_convnextv2.conversion.convert import convert
from mlx_convnextv2.convert import main

NAMES = ["Katze", "Hund", "Maus", "a, b", "\u732b", "n01440764", "7"]


@pytest.fixture
def names_file(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return tmp_path / "names.txt"


def test_the_classes_are_named_both_ways_and_the_weights_are_as_they_were(
    small_model, names_file, tmp_path, capsys, photo
):
    unnamed, out = tmp_path / "original.safetensors", tmp_path / "out"
    save_file(as_original(small_model), unnamed)  # without a configuration or labels
    with pytest.warns(UserWarning, match="no preprocessor"):
        before, _ = load(unnamed)
    assert main(["--hf-path", str(unnamed), "--mlx-path", str(out), "--labels", str(names_file)]) == 0
    assert "Named 7 classes: Katze, Hund, Maus, a, b, \u732b and 2 more" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {str(i): name for i, name in enumerate(NAMES)}
    assert config["label2id"] == {name: i for i, name in enumerate(NAMES)}
    assert {p["label"] for p in ImageClassifier(out)(photo, top_k=7)} == set(NAMES)
    assert_same_weights(load(out)[0], before)


def test_a_program_may_give_a_list_and_naming_is_reason_enough_to_convert_what_is_converted(mlx_folder, tmp_path):
    assert convert(mlx_folder, tmp_path / "out", labels=NAMES).labels == tuple(NAMES)
    assert list(load(tmp_path / "out")[0].config.id2label.values()) == NAMES


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (NAMES[:6], "6 labels are given and the head of .* has 7 classes"),
        ([*NAMES[:6], ""], "label 7 of 7 is '': each needs a name"),
        ("absent.txt", "no such file of labels: absent.txt"),
    ],
)
def test_labels_that_do_not_fit_are_an_error_and_nothing_is_written(labels, message, hf_folder, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(hf_folder, tmp_path / "out", labels=labels)
    assert not (tmp_path / "out").exists()


def test_what_has_no_head_has_no_classes_to_name(tmp_path, names_file, small_processor, capsys):
    save(randomize(ConvNextV2Model(ConvNextV2Config(**SMALL))), tmp_path / "body", small_processor)
    options = ["--hf-path", str(tmp_path / "body"), "--mlx-path", str(tmp_path / "out")]
    assert main([*options, "--labels", str(names_file)]) == 2
    assert re.search(r"^convert: error: .* has no head whose classes could be named", capsys.readouterr().err)
