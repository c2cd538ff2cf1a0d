"""Files of labels: text and JSON, in the order of the classes."""

import json
import re

import pytest

from mlx_convnextv2.checkpoints.label_files import read_labels


@pytest.fixture
def written(tmp_path):
    def written(content, name="labels.txt"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return written


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("cat\ndog\n", ["cat", "dog"]),
        ("cat\r\ndog", ["cat", "dog"]),
        ("\ufeffcat\ndog\n\n\n", ["cat", "dog"]),
        ("  a, b \n\u732b\n", ["a, b", "\u732b"]),
        ("n01440764 tench, Tinca tinca\nn01443537\tgoldfish\n", ["tench, Tinca tinca", "goldfish"]),
        ("n01440764\nn01443537\n", ["n01440764", "n01443537"]),
        ("crane\ncrane\n", ["crane", "crane"]),  # as ImageNet has it
    ],
)
def test_text_has_one_label_a_line(written, content, labels):
    assert read_labels(written(content)) == labels


@pytest.mark.parametrize(
    "content",
    [["cat", "dog"], {"0": "cat", "1": "dog"}, {"1": "dog", "0": "cat"}, {"dog": 1, "cat": 0}]
    + [{"id2label": {"0": "cat", "1": "dog"}, "label2id": {}}],
)
def test_json_is_a_list_a_map_either_way_or_a_configuration(written, content):
    assert read_labels(written(json.dumps(content), "labels.json")) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.txt", "", "holds no labels: write one a line"),
        ("labels.txt", "cat\n\ndog\n", "label 2 of 3 is '': each needs a name"),
        ("labels.txt", "cat\nd\x1bog\n", "label 2 of 2 cannot be printed"),
        ("labels.txt", b"caf\xe9\n", "is not text in UTF-8"),
        ("labels.txt", b"a" * 4_000_001, "more than 4 MB"),
        ("labels.txt", "a\n" * 100_001, "100,001 labels, and a model has at most 100,000"),
        ("labels.json", "{", "is not valid JSON"),
        ("labels.json", "3", "must hold a list of labels"),
        ("labels.json", "[1, 2]", "must hold a list of labels"),
        ("labels.json", "[]", "holds no labels"),
        ("labels.json", '{"0": "cat", "2": "dog"}', "must number its 2 labels from 0 without a gap"),
        ("labels.json", '{"0": "cat", "00": "dog"}', "must number its 2 labels"),
        ("labels.json", '{"cat": 0, "dog": 0}', "must number its 2 labels"),
        ("labels.json", '{"cat": 0, "dog": "x"}', "must number its 2 labels"),
    ],
)
def test_what_is_no_list_of_labels_is_an_error_that_names_the_file(written, name, content, message):
    file = written(content, name)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_labels(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of labels"):
        read_labels(tmp_path / "absent.txt")
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path)
