"""The configuration: Hugging Face's fields and defaults, the eight sizes, round trips, values that make no sense."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from mlx_convnextv2 import ConvNextV2Config
from mlx_convnextv2.model.config import ACTIVATIONS, PROBLEM_TYPES, SIZES

# What `transformers.ConvNextV2Config()` holds under these names (5.23; tests/parity asks it).
DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "patch_size": 4,
    "num_stages": 4,
    "hidden_sizes": [96, 192, 384, 768],
    "depths": [3, 3, 9, 3],
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "drop_path_rate": 0.0,
    "image_size": 224,
    "out_features": ["stage4"],
    "out_indices": [4],
    "num_labels": 2,
    "problem_type": None,
    "return_dict": True,
    "output_hidden_states": False,
}

# A config.json as the Hub has them, with keys that no model reads.
PUBLISHED = {
    "architectures": ["ConvNextV2ForImageClassification"],
    "depths": [2, 2, 6, 2],
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_sizes": [40, 80, 160, 320],
    "id2label": {"0": "crane", "1": "tench, Tinca tinca", "2": "crane"},
    "image_size": 224,
    "initializer_range": 0.02,
    "label2id": {"crane": 2, "tench, Tinca tinca": 1},
    "layer_norm_eps": 1e-12,
    "model_type": "convnextv2",
    "num_channels": 3,
    "num_stages": 4,
    "patch_size": 4,
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "torch_dtype": "float32",
    "transformers_version": "4.24.0.dev0",
}

MISSING = object()  # not equal to anything that a config holds


def test_fields_and_defaults_are_hugging_faces():
    config, written = ConvNextV2Config(), ConvNextV2Config().to_dict()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert {name: written.get(name) for name in DEFAULTS} == DEFAULTS
    assert {field.name for field in fields(ConvNextV2Config)} == {*DEFAULTS, "id2label", "label2id", "extra"}
    assert written["model_type"] == "convnextv2"
    assert written["stage_names"] == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_a_change_of_one_config_leaves_the_defaults_and_the_sizes_alone():
    for config in (ConvNextV2Config(), ConvNextV2Config.from_size("tiny")):
        config.depths.append(1)
        config.hidden_sizes.append(1)
    assert ConvNextV2Config().depths == SIZES["tiny"]["depths"] == [3, 3, 9, 3]
    assert ConvNextV2Config().hidden_sizes == SIZES["tiny"]["hidden_sizes"] == [96, 192, 384, 768]


class TestSizes:  # test_readme.py counts their parameters
    def test_overrides_win(self):
        config = ConvNextV2Config.from_size("atto", num_labels=5, drop_path_rate=0.1, depths=[1, 1, 1, 1])
        assert (config.num_labels, config.drop_path_rate, config.depths) == (5, 0.1, [1, 1, 1, 1])
        assert config.hidden_sizes == [40, 80, 160, 320]
        assert ConvNextV2Config.from_size("atto", id2label={0: "a", 1: "b", 2: "c"}).num_labels == 3
        assert ConvNextV2Config.from_size("atto", label2id={"cat": 0}).num_labels == 1

    @pytest.mark.parametrize("size", ["small", "", "Tiny", None])
    def test_an_unknown_size_is_an_error_that_lists_the_eight(self, size):
        with pytest.raises(ValueError, match="atto, femto, pico, nano, tiny, base, large, huge") as error:
            ConvNextV2Config.from_size(size)
        assert repr(size) in str(error.value)


class TestFiles:
    def test_a_published_config_is_read_and_written_without_loss(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
        config = ConvNextV2Config.from_json_file(tmp_path / "config.json")
        assert config.num_labels == 3
        assert config.id2label == {0: "crane", 1: "tench, Tinca tinca", 2: "crane"}
        assert (config.depths, config.hidden_sizes) == ([2, 2, 6, 2], [40, 80, 160, 320])
        written = json.loads(json.dumps(config.to_dict()))
        assert {name: written.get(name, MISSING) for name in PUBLISHED} == PUBLISHED

    def test_null_means_the_default(self):
        # label2id and id2label have none of their own; extra is no key of the file
        nulls = dict.fromkeys([*DEFAULTS, "id2label", "label2id"])
        assert ConvNextV2Config.from_dict(nulls) == ConvNextV2Config()

    def test_reading_does_not_change_what_is_read(self):
        values = copy.deepcopy(PUBLISHED)
        ConvNextV2Config.from_dict(values)
        assert values == PUBLISHED

    def test_labels_are_ordered_by_their_index(self):
        config = ConvNextV2Config.from_dict({"id2label": {"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}}})
        assert list(config.id2label.items()) == list(enumerate("abcdefghijk"))
        assert config.label2id["k"] == 10

    @pytest.mark.parametrize("content", [[], "convnextv2", 3, None])
    def test_json_that_is_no_object_is_an_error(self, content):
        with pytest.raises(ValueError, match="JSON object"):
            ConvNextV2Config.from_dict(content)

    def test_another_architecture_is_an_error_that_names_it(self):
        with pytest.raises(ValueError, match=r"'resnet'.*'convnextv2'"):
            ConvNextV2Config.from_dict({**PUBLISHED, "model_type": "resnet"})


@st.composite
def configs(draw) -> dict:
    """Arguments of a valid configuration, as JSON has them."""
    num_stages = draw(st.integers(1, 6))
    names = ["stem", *(f"stage{i + 1}" for i in range(num_stages))]
    side_or_pair = st.integers(1, 1000) | st.lists(st.integers(1, 1000), min_size=2, max_size=2)
    labels = draw(st.none() | st.lists(st.text(), min_size=1, max_size=5))
    values = {
        "num_stages": num_stages,
        "hidden_sizes": draw(st.lists(st.integers(1, 5000), min_size=num_stages, max_size=num_stages)),
        "depths": draw(st.lists(st.integers(0, 50), min_size=num_stages, max_size=num_stages)),
        "num_channels": draw(st.integers(1, 20)),
        "patch_size": draw(side_or_pair),
        "image_size": draw(side_or_pair),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "initializer_range": draw(st.floats(0, 1)),
        "layer_norm_eps": draw(st.floats(0, 1e-3)),
        "drop_path_rate": draw(st.floats(0, 0.99)),
        "problem_type": draw(st.sampled_from([None, *PROBLEM_TYPES])),
        "return_dict": draw(st.booleans()),
        "output_hidden_states": draw(st.booleans()),
    }
    chosen = sorted(draw(st.sets(st.integers(0, num_stages), min_size=1)))
    which = draw(st.sampled_from(["neither", "out_features", "out_indices", "both"]))
    if which in ("out_features", "both"):
        values["out_features"] = [names[index] for index in chosen]
    if which in ("out_indices", "both"):
        values["out_indices"] = [index - len(names) if draw(st.booleans()) else index for index in chosen]
    if labels is not None:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
    else:
        values["num_labels"] = draw(st.integers(0, 2000))
    return values


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
READ = {*DEFAULTS, "id2label", "label2id", "model_type", "stage_names"}


@settings(max_examples=50)
@given(values=configs(), extra=st.dictionaries(st.text().filter(lambda name: name not in READ), JSON, max_size=4))
def test_a_round_trip_loses_nothing(values, extra):
    config = ConvNextV2Config.from_dict({**values, **extra})
    written = json.loads(json.dumps(config.to_dict()))
    given = {name: value for name, value in values.items() if value is not None}
    assert {name: written.get(name, MISSING) for name in given} == given
    assert {name: written.get(name, MISSING) for name in extra} == extra
    again = ConvNextV2Config.from_dict(written)
    assert again.to_dict() == config.to_dict()
    assert again == config


def test_out_features_and_out_indices_follow_from_each_other():
    assert ConvNextV2Config(out_features=["stem", "stage3"]).out_indices == [0, 3]
    assert ConvNextV2Config(out_indices=[0, 3]).out_features == ["stem", "stage3"]
    assert ConvNextV2Config(out_indices=(1, -1)).out_features == ["stage1", "stage4"]
    assert ConvNextV2Config(out_features=("stage2",), out_indices=(2,)).out_features == ["stage2"]


STAGE_NAMES = "stem, stage1, stage2, stage3, stage4"
NUMBERS = (0, -3, 3.0, "3", None, True)  # what is no whole number from 1
# (field that the message names, what it says is allowed, arguments)
NONSENSE = [
    ("hidden_sizes", "num_stages = 4 entries", {"hidden_sizes": [8, 16]}),
    ("depths", "num_stages = 4 entries", {"depths": [1, 1, 1, 1, 1]}),
    ("hidden_sizes", "num_stages = 3 entries", {"num_stages": 3}),
    *(("depths", "list", {"depths": value}) for value in ("3393", None)),
    *(("depths", "whole number from 0", {"depths": [3, 3, value, 3]}) for value in (-1, 9.0, True)),
    ("depths", r"whole number from 0 to \d+", {"depths": [3, 3, 10**9, 3]}),
    ("hidden_sizes", "list", {"hidden_sizes": 96}),
    *(("hidden_sizes", "whole number from 1", {"hidden_sizes": [96, value, 384, 768]}) for value in (0, "96")),
    ("hidden_sizes", r"whole number from 1 to \d+", {"hidden_sizes": [96, 192, 384, 10**9]}),
    *((name, "whole number from 1", {name: value}) for name in ("num_channels", "num_stages") for value in NUMBERS),
    ("num_stages", "whole number from 1", {"num_stages": 10**9}),
    *(
        (name, "whole number", {name: value})
        for name in ("patch_size", "image_size")
        for value in (*NUMBERS, (), (4, 4, 4), (4, 0), (4, "4"), {"height": 4, "width": 4})
    ),
    *(("hidden_act", ", ".join(ACTIVATIONS), {"hidden_act": value}) for value in ("tanh", "GELU", "", None, ["gelu"])),
    *(
        (name, "number from 0", {name: value})
        for name in ("initializer_range", "layer_norm_eps", "drop_path_rate")
        for value in (-0.1, float("nan"), float("inf"), "0.1", None, True)
    ),
    ("drop_path_rate", "less than 1", {"drop_path_rate": 1.0}),
    *(("out_features", STAGE_NAMES, {"out_features": [value]}) for value in ("stage5", 4)),
    ("out_features", "list", {"out_features": "stage4"}),
    ("out_features", "once", {"out_features": ["stage1", "stage1"]}),
    ("out_features", "in order", {"out_features": ["stage2", "stage1"]}),
    ("out_indices", "from -5 to 4", {"out_indices": [5]}),
    ("out_indices", "whole number", {"out_indices": [1.0]}),
    ("out_indices", "list", {"out_indices": 4}),
    ("out_indices", "once", {"out_indices": [4, -1]}),
    ("out_indices", "in order", {"out_indices": [2, 1]}),
    ("out_indices", "different stages", {"out_features": ["stage1"], "out_indices": [1, 2]}),
    *(("num_labels", "whole number from 0", {"num_labels": value}) for value in (-1, 2.0, "2", True, 10**9)),
    *(("id2label", "map", {"id2label": value}) for value in ("cat", 3, {"cat"})),
    *(("id2label", "text", {"id2label": value}) for value in (["cat", None], {0: {"cat": "dog"}})),
    *(("id2label", "whole numbers", {"id2label": {key: "cat"}}) for key in (0.5, float("nan"), True, "cat")),
    ("id2label", r"whole number from 0 to \d+", {"id2label": ["cat"] * 100_001}),
    ("id2label", "without a gap", {"id2label": {0: "cat", 2: "dog"}}),
    ("id2label", "from 0", {"id2label": {1: "cat", 2: "dog"}}),
    ("label2id", "whole numbers", {"label2id": {"cat": "a"}}),
    ("label2id", "without a gap", {"label2id": {"cat": 0, "dog": 0}}),
    ("label2id", "from 0", {"label2id": {"cat": 1}}),
    ("label2id", "map", {"id2label": {0: "cat"}, "label2id": ["cat"]}),
    ("num_labels", "agree", {"id2label": {0: "cat", 1: "dog"}, "num_labels": 3}),
    ("extra", "mapping", {"extra": ["architectures"]}),
    ("use_cache", "JSON", {"use_cache": object}),
    *((name, "no field", {name: "resnet"}) for name in ("model_type", "stage_names", "to_dict")),
    *(("problem_type", ", ".join(PROBLEM_TYPES), {"problem_type": value}) for value in ("classification", "", 1)),
    *((name, "(?i)true or false", {name: "no"}) for name in ("return_dict", "output_hidden_states")),
]


@pytest.mark.parametrize(("field", "allowed", "values"), NONSENSE, ids=[str(values)[:60] for _, _, values in NONSENSE])
def test_a_value_that_makes_no_sense_is_named_with_what_is_allowed_and_an_assignment_of_it_changes_nothing(
    field, allowed, values
):
    with pytest.raises(ValueError, match=allowed) as error:
        ConvNextV2Config(**values)
    assert field in str(error.value)
    config = ConvNextV2Config()
    with pytest.raises(ValueError, match=allowed) as error:
        setattr(config, *next(iter(values.items()))) if len(values) == 1 else config.update(values)
    assert field in str(error.value)
    assert config == ConvNextV2Config()


class TestAssignment:
    """Fields that follow from one another change with the one that is assigned."""

    def labelled(self) -> ConvNextV2Config:
        return ConvNextV2Config(id2label=["cat", "dog", "cat"], label2id={"cat": 2, "dog": 1})

    @pytest.mark.parametrize("labels", [["ash", "elm"], ("ash", "elm"), {0: "ash", 1: "elm"}, {"1": "elm", "0": "ash"}])
    def test_labels_tell_their_number_and_the_reverse(self, labels):
        config = self.labelled()
        config.id2label = labels
        assert config.id2label == {0: "ash", 1: "elm"}
        assert (config.label2id, config.num_labels) == ({"ash": 0, "elm": 1}, 2)
        assert config == ConvNextV2Config(id2label=labels)

    def test_another_number_of_labels_makes_them_placeholders(self):
        config = self.labelled()
        config.num_labels = 2
        assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
        assert config.label2id == {"LABEL_0": 0, "LABEL_1": 1}
        assert config == ConvNextV2Config(num_labels=2)
        config = self.labelled()
        config.num_labels = 3  # which it has
        assert config == self.labelled()

    def test_the_reverse_tells_the_labels(self):
        config = self.labelled()
        config.label2id = {"elm": 1, "ash": 0}
        assert config == ConvNextV2Config(id2label=["ash", "elm"])

    def test_a_reverse_that_fits_the_labels_leaves_them(self):
        config = self.labelled()
        config.label2id = {"cat": 0, "dog": 1}
        assert (config.id2label, config.label2id) == (self.labelled().id2label, {"cat": 0, "dog": 1})

    def test_a_reverse_of_other_labels_is_worked_out_anew(self):
        config = ConvNextV2Config.from_dict({"id2label": {"0": "cat"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}})
        assert config.label2id == {"cat": 0}

    @pytest.mark.parametrize("values", [{"out_features": ["stem", "stage3"]}, {"out_indices": [0, 3]}], ids=str)
    def test_out_features_and_out_indices_change_together(self, values):
        config = ConvNextV2Config(out_features=["stage2"])
        config.update(values)
        assert (config.out_features, config.out_indices) == (["stem", "stage3"], [0, 3])
        config.update(dict.fromkeys(values))  # None is the default
        assert config == ConvNextV2Config()

    def test_classes_that_nobody_named_are_written_as_their_number(self):
        for config in (ConvNextV2Config(num_labels=100_000), ConvNextV2Config(id2label={})):
            values = config.to_dict()
            assert values["num_labels"] == config.num_labels
            assert values.keys().isdisjoint({"id2label", "label2id"})
            assert ConvNextV2Config.from_dict(values) == config


class TestUnknownFields:
    def test_keywords_and_attributes_are_kept_and_written(self):
        config = ConvNextV2Config(is_decoder=False)
        config.use_cache = {"size": [1]}
        assert (config.is_decoder, config.use_cache) == (False, {"size": [1]})
        assert config.extra == {"is_decoder": False, "use_cache": {"size": [1]}}
        again = ConvNextV2Config.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert again.use_cache == {"size": [1]}

    def test_a_name_that_was_never_given_is_no_attribute(self):
        with pytest.raises(AttributeError, match="'use_cache'"):
            _ = ConvNextV2Config().use_cache


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, replace, lambda config: pickle.loads(pickle.dumps(config))],
    ids=["copy", "deepcopy", "replace", "pickle"],
)
def test_a_copy_is_equal_and_of_its_own(copied):
    config = ConvNextV2Config.from_dict(PUBLISHED)
    other = copied(config)
    assert other == config
    other.num_labels = 5
    other.use_cache = False
    assert config == ConvNextV2Config.from_dict(PUBLISHED) != other


def test_replace_aligns_labels_too():
    assert replace(ConvNextV2Config(), num_labels=5) == ConvNextV2Config(num_labels=5)
    named = ConvNextV2Config(id2label=["cat", "dog"])
    assert replace(named, id2label={0: "ash", 1: "elm"}).label2id == {"ash": 0, "elm": 1}


def test_as_many_labels_as_imagenet_22k_has_are_read_both_ways():
    labels = {str(i): f"thing {i}, Latin name {i}, another name {i}" for i in range(21_841)}
    values = {"model_type": "convnextv2", "id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    assert ConvNextV2Config.from_dict(values).num_labels == 21_841
