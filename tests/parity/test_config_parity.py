"""The configuration beside transformers' own: what follows from what, at construction and at assignment."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mlx_convnextv2 import ConvNextV2Config  # noqa: E402

pytestmark = pytest.mark.parity

SHARED = ["num_labels", "id2label", "label2id", "out_features", "out_indices", "stage_names", "is_decoder"]
LABELS = {0: "ash", 1: "elm", 2: "fir"}
GIVEN = {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}

CASES = [  # keywords, and what is assigned then, one after the other
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


def values(config) -> dict:
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


NONSENSE = [("out_features", ["stage9"]), ("out_features", ["stage1", "stage1"]), ("out_indices", [9])]
NONSENSE += [("out_features", ["stage2", "stage1"]), ("out_indices", [4, -1]), ("out_indices", [2, 1])]


@pytest.mark.parametrize(("name", "value"), NONSENSE, ids=str)
def test_stages_that_make_no_sense_are_errors_in_both(name, value):
    for config in (ConvNextV2Config(), transformers.ConvNextV2Config()):
        with pytest.raises(ValueError, match=r"out_(features|indices)"):
            setattr(config, name, value)
