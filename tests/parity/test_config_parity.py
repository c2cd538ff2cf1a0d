"""The configuration beside transformers' own: what follows from what, at construction and at assignment."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlx_convnextv2 import ConvNextV2Config  # noqa: E402

pytestmark = pytest.mark.parity

SHARED = ["num_labels", "id2label", "label2id", "out_features", "out_indices", "stage_names", "is_decoder"]
LABELS = {0: "ash", 1: "elm", 2: "fir"}
GIVEN = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}

CASES: list[
    tuple[dict[str, Any], list[tuple[str, Any]]]
] = [  # keywords, and what is assigned then, one after the other
    ({}, []),
    ({"num_labels": 5}, []),
    ({"num_labels": 0}, []),
    ({"num_labels": 5}, [("num_labels", 3)]),
    (GIVEN, []),
    (GIVEN, [("num_labels", 3)]),
    (GIVEN, [("num_labels", 2)]),
    (GIVEN, [("id2label", {0: "a", 1: "b"}), ("label2id", {"a": 0, "b": 1})]),
    (GIVEN, [("label2id", {"a": 0, "b": 1}), ("id2label", {0: "a", 1: "b"})]),
    ({"out_features": ["stem", "stage2"]}, []),
    ({"out_indices": [0, 2]}, []),
    ({"out_indices": [-3, -1]}, []),
    ({"out_features": ["stem", "stage2"], "out_indices": [0, 2]}, []),
    ({"out_features": ["stem"]}, [("out_features", ["stage1", "stage4"])]),
    ({"out_features": ["stem"]}, [("out_indices", [1, 4])]),
    ({"out_features": ["stem"]}, [("out_features", None)]),
    ({"out_features": ["stem"]}, [("out_indices", None)]),
    ({"is_decoder": False}, []),
    ({}, [("is_decoder", False)]),
]


def values(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in SHARED}


@pytest.mark.parametrize(("keywords", "assigned"), CASES, ids=str)
def test_fields_follow_from_one_another_as_there(keywords, assigned):
    ours, theirs = ConvNextV2Config(**keywords), transformers.ConvNextV2Config(**keywords)
    for name, value in assigned:
        setattr(ours, name, value)
        setattr(theirs, name, value)
    assert values(ours) == values(theirs)
    written = json.loads(json.dumps(ours.to_dict()))
    assert values(transformers.ConvNextV2Config.from_dict(written)) == values(theirs)
    assert values(ConvNextV2Config.from_dict(json.loads(theirs.to_json_string()))) == values(theirs)


EVERYTHING = ConvNextV2Config(
    num_channels=1,
    patch_size=[2, 3],
    num_stages=3,
    hidden_sizes=[7, 9, 11],
    depths=[0, 2, 1],
    hidden_act="gelu_new",
    initializer_range=0.1,
    layer_norm_eps=1e-5,
    drop_path_rate=0.2,
    image_size=[64, 32],
    out_features=["stem", "stage2"],
    num_labels=5,
    problem_type="regression",
    return_dict=False,
    output_hidden_states=True,
)
CONFIGS = {"defaults": ConvNextV2Config(), "large": ConvNextV2Config.from_size("large"), "everything": EVERYTHING}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_reads_every_field_of_the_other(config, tmp_path):
    theirs = transformers.ConvNextV2Config.from_dict(config.to_dict())
    assert {name: getattr(theirs, name) for name in config.to_dict()} == config.to_dict()
    theirs.save_pretrained(tmp_path)  # what differs from their defaults, no more
    for ours in (
        ConvNextV2Config.from_dict(theirs.to_dict()),
        ConvNextV2Config.from_json_file(tmp_path / "config.json"),
    ):
        assert {name: getattr(ours, name) for name in config.to_dict()} == config.to_dict()
