"""A label is found by the name that a user would give it."""

import pytest

from mlx_convnextv2.heatmaps import find_label

NAMES = ["tench, Tinca tinca", "crane", "tabby, tabby cat", "crane", "7", "8"]


@pytest.mark.parametrize(
    ("wanted", "index"),
    [(2, 2), ("2", 2), ("tabby, tabby cat", 2), ("Tabby Cat", 2), (" tench ", 0), ("7", 4), ("8", 5), ("5", 5)],
)
def test_a_label_has_a_name_a_synonym_or_an_index(wanted, index):
    assert find_label(NAMES, wanted) == index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("crane", "several labels are called 'crane': give the index instead, such as 1 .crane. and 3 .crane."),
        ("taby", "no label is called 'taby': did you mean 'tabby'"),
        ("", "no label is called '': this model has tench, Tinca tinca, crane, tabby, tabby cat and 3 more"),
        ("6", "labels 0 to 5, but no 6"),
        ("²", "no label is called"),
        ("9" * 5000, "no label is called"),
        (6, "labels 0 to 5, but no 6"),
    ],
)
def test_another_is_a_sentence_that_helps(wanted, message):
    with pytest.raises(ValueError, match=message) as error:
        find_label(NAMES, wanted)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("wanted", [True, 1.0, None])
def test_what_is_no_label_is_a_type_error(wanted):
    with pytest.raises(TypeError, match="an index or a name"):
        find_label(NAMES, wanted)


def test_what_is_longer_than_a_name_is_not_compared_with_each():
    with pytest.raises(ValueError, match="this model has "):
        find_label(["x" * 300], "x" * 299)
