"""The figures in docs/ are what the scripts print."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image


def output(script: str, *arguments: str) -> str:
    command = [sys.executable, ROOT / "figures" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def test_the_table_of_sizes_is_the_scripts() -> None:
    text = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- sizes -->\n(.*?)\n<!-- end -->", text, re.DOTALL)
    assert block is not None
    assert block[1] == output("model_sizes.py")


def test_the_page_of_bytes_and_bounds_is_the_scripts() -> None:
    page = (ROOT / "docs" / "metal-figures.md").read_text(encoding="utf-8")
    assert page == f"{output('metal_figures.py')}\n"


@pytest.mark.parametrize("arguments", [[], ["--dtype", "float32", "--batch", "8"], ["--resolution", "384"]])
def test_a_block_is_six_launches_and_a_fifth_of_the_plain_bytes(arguments: list[str]) -> None:
    """The limits are 7 launches and 40 % of the plain graph's bytes, matrix operands aside."""
    rows = re.findall(r"\((\d+)\) \| (\d+)% \| \d+% \|", output("block_traffic.py", *arguments))
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
