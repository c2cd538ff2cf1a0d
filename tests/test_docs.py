"""The figures in docs/ are what the scripts print."""

from __future__ import annotations

import re
import runpy
import shlex

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mlx_convnextv2.classify import build_parser


@pytest.fixture
def output(capsys, monkeypatch):
    """What a script of figures/ prints."""
    monkeypatch.syspath_prepend(str(ROOT / "figures"))
    monkeypatch.chdir(ROOT)

    def output(script: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [script, *arguments])
        runpy.run_path(str(ROOT / "figures" / script), run_name="__main__")
        return capsys.readouterr().out.strip()

    return output


def test_the_table_of_sizes_is_the_scripts(output):
    text = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- sizes -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert block is not None
    assert block[1] == output("model_sizes.py")


@pytest.mark.slow
def test_the_page_of_bytes_and_bounds_is_the_scripts(output):
    page = (ROOT / "docs" / "metal-figures.md").read_text(encoding="utf-8")
    assert page == f"{output('metal_figures.py')}\n"
    assert_few_launches_and_bytes(page)


def test_the_tables_of_speed_are_the_measured_figures():
    for file, table in runpy.run_path(str(ROOT / "figures" / "speed_tables.py"))["tables"]().items():
        text = (ROOT / file).read_text(encoding="utf-8")
        block = re.search(r"<!-- speed -->\n(.*?)\n<!-- end of speed -->", text, re.DOTALL)
        assert block is not None
        assert block[1] == table


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--dtype", "float32", "--batch", "8"], ["--resolution", "384"]])
def test_other_batches_dtypes_and_resolutions_are_as_good(output, arguments):
    assert_few_launches_and_bytes(output("block_traffic.py", *arguments))


def assert_few_launches_and_bytes(table: str) -> None:
    """Six launches a block and a fifth of the plain graph's bytes. The limits are 7 and 40 %, matrix operands aside."""
    rows = re.findall(r"\((\d+)\) \| (\d+)% \| \d+% \|", table)
    assert len(rows) == 8 * 4
    assert {int(launches) for launches, _ in rows} == {6}
    assert max(int(percent) for _, percent in rows) <= 20


@pytest.mark.parametrize("name", ["digits", "heat_maps"])
def test_the_picture_in_readme_is_the_scripts(name):
    drawn = runpy.run_path(str(ROOT / "figures" / f"{name}.py"))["draw"]()
    with Image.open(ROOT / "docs" / f"{name}.png") as shown:
        assert shown.size == drawn.size
        difference = np.abs(np.asarray(shown.convert("RGB"), np.int16) - np.asarray(drawn, np.int16))
    assert difference.mean() < 1  # letters are drawn a little differently from version to version


def test_the_commands_of_the_page_on_many_pictures_are_understood() -> None:
    page = (ROOT / "docs" / "collections.md").read_text(encoding="utf-8")
    commands = re.findall(r"python -m mlx_convnextv2\.classify (.*?)(?: +#.*)?$", page, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        build_parser().parse_args(shlex.split(command))
