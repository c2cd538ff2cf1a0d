"""Options: from the command, from a file, from a program, checked once."""

from dataclasses import fields

import pytest

from mlx_convnextv2.files.yaml_files import write_yaml
from mlx_convnextv2.training.options import Options, read_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"epochs must be a whole number from 1 to 100000, not 0"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"lr": "fast"}, r"lr must be a number from 0 to 10, not 'fast'"),
        ({"lr": float("nan")}, "lr must be a number"),
        ({"val_split": 1}, "val_split must be a number between 0 and 1, not 1"),
        ({"l2": -1}, "l2 must be a number of at least 0, not -1"),
        ({"augment": "autoaugment"}, "augment must be one of randaugment, trivialaugment, none, not 'autoaugment'"),
        ({"dtype": 16}, "dtype must be one of float32, bfloat16, float16, not 16"),
        ({"full": "yes"}, "full must be true or false, not 'yes'"),
        ({"report_to": 3}, "report_to must be text, not 3"),
        ({"epoch": 3}, r"there is no option 'epoch': the options are revision, full, .*epochs"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        Options.of(values)


def test_none_is_what_the_size_decides_and_nothing_else():
    for option in fields(Options):
        if option.default is None:
            Options.of({option.name: None})
        else:
            with pytest.raises(ValueError, match=f"^{option.name} must be"):
                Options.of({option.name: None})


def test_a_file_says_the_same_as_a_program(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("epochs: 5\nbatch-size: 16\nfull: true\nlr: 1.0e-3\n")
    assert read_config(file) == {"epochs": 5, "batch_size": 16, "full": True, "lr": 1e-3}
    write_yaml(file, Options(epochs=7).to_dict())
    assert Options.of(read_config(file)) == Options(epochs=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- epochs\n- 5\n", "must have one option a line, as in epochs: 30"),
        ("epochs: [5\n", "is not valid YAML, line 2: write one option a line"),
        ("", "must have one option a line"),
        ("5: 5\n", "must have one option a line"),
        ("a: &a [1]\nb: *a\n", "refers to itself"),
        ("epochs: !!python/object:os.system x\n", "is not valid YAML"),
        ("x: " + "[" * 3000, "must have one option a line"),
        ("a: " + "b" * 200_000, "has more than 100 kB"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, message):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(file)
