"""The labels of the classes: whose names are used when."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mlx_convnextv2 import ConvNextV2Config
from mlx_convnextv2.model.labels import class_labels, imagenet_1k, imagenet_1k_synsets


def placeholders(count: int) -> dict[int, str]:
    """What transformers writes for classes that nobody named."""
    return {index: f"LABEL_{index}" for index in range(count)}


def test_there_are_1000_imagenet_names():
    assert len(imagenet_1k()) == 1000
    assert all(name and name == name.strip() for name in imagenet_1k())
    # Two synsets share the lemma "crane", the bird and the machine; all the others differ.
    assert len(set(imagenet_1k())) == 999


# As in the config.json of the published checkpoints and in WordNet 3.0; one line too many or too few moves all that
# follow. tests/parity compares them all with timm's.
KNOWN = {
    0: ("n01440764", "tench, Tinca tinca"),
    134: ("n02012849", "crane"),
    281: ("n02123045", "tabby, tabby cat"),
    517: ("n03126707", "crane"),
    639: ("n03710721", "maillot, tank suit"),
    999: ("n15075141", "toilet tissue, toilet paper, bathroom tissue"),
}


def test_imagenet_names_and_numbers_stand_at_their_index():
    assert {i: (imagenet_1k_synsets()[i], imagenet_1k()[i]) for i in KNOWN} == KNOWN


def test_the_numbers_of_imagenet_are_1000_in_their_order():
    assert len(imagenet_1k_synsets()) == len(set(imagenet_1k_synsets())) == 1000
    assert list(imagenet_1k_synsets()) == sorted(imagenet_1k_synsets())
    assert all(re.fullmatch(r"n[0-9]{8}", number) for number in imagenet_1k_synsets())


def test_a_checkpoints_own_labels_win_in_the_order_of_the_logits_and_as_they_are_spelled():
    # JSON has strings as keys, and writers sort them as such: "10" before "2"
    config = ConvNextV2Config.from_dict({"id2label": {str(i): f"thing {i}" for i in (0, 1, 10, 11, *range(2, 10))}})
    assert class_labels(config) == [f"thing {i}" for i in range(12)]
    own = {index: f"thing {index}" for index in range(1000)}
    assert class_labels(ConvNextV2Config(id2label=own)) == list(own.values())
    labels = ["überraschend", "猫", "a, b", ' "quoted" ', "", "crane", "crane", "LABEL_1"]
    assert class_labels(ConvNextV2Config(id2label=dict(enumerate(labels)))) == labels


def test_a_label_that_only_looks_like_a_placeholder_among_others_is_kept():
    labels = {**placeholders(1000), 5: "my cat"}
    assert class_labels(ConvNextV2Config(id2label=labels)) == list(labels.values())


@pytest.mark.parametrize("fields", [{"num_labels": 1000}, {"id2label": placeholders(1000)}])
def test_1000_classes_without_labels_get_imagenets_names(fields: dict[str, Any]) -> None:
    assert class_labels(ConvNextV2Config(**fields)) == list(imagenet_1k())


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1001])
def test_other_numbers_of_classes_without_labels_get_placeholders(count):
    for fields in ({"num_labels": count}, {"id2label": placeholders(count)}):
        assert class_labels(ConvNextV2Config(**fields)) == list(placeholders(count).values())
