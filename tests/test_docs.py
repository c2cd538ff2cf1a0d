"""The figures in docs/metal.md are what the scripts print."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT

METAL = (ROOT / "docs" / "metal.md").read_text(encoding="utf-8")


def output(script: str, *arguments: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


@pytest.mark.parametrize(("marker", "script"), [("traffic", "block_traffic.py"), ("bounds", "lower_bounds.py")])
def test_the_tables_are_the_scripts(marker: str, script: str) -> None:
    block = re.search(rf"<!-- {marker} -->\n(.*?)\n<!-- end -->", METAL, re.DOTALL)
    assert block is not None
    assert block[1] == output(script)


@pytest.mark.parametrize("arguments", [[], ["--dtype", "float32", "--batch", "8"], ["--resolution", "384"]])
def test_a_block_is_six_launches_and_a_fifth_of_the_plain_bytes(arguments: list[str]) -> None:
    """The limits are 7 launches and 40 % of the plain graph's bytes, matrix operands aside."""
    rows = re.findall(r"\((\d+)\) \| (\d+)% \| \d+% \|", output("block_traffic.py", *arguments))
    assert len(rows) == 8 * 4
    assert {int(launches) for launches, _ in rows} == {6}
    assert max(int(percent) for _, percent in rows) <= 20
