"""What the checks rely on: versions that are written twice are the same, and commands are README's own."""

import re
import subprocess

import pytest
from conftest import ROOT


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def block(marker: str, page: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / ".ci" / "block", marker, page], cwd=ROOT, capture_output=True, text=True)


def test_the_hooks_run_the_versions_of_the_extra_dev() -> None:
    (extra,) = re.findall(r"^dev = \[(.*)\]$", read("pyproject.toml"), re.MULTILINE)
    pinned = set(re.findall(r"[\w-]+==[\d.]+", extra))
    assert {name.partition("==")[0] for name in pinned} == {"ruff", "mypy", "clang-format", "check-jsonschema"}
    assert pinned <= set(re.findall(r"[\w-]+==[\d.]+", read(".pre-commit-config.yaml")))


@pytest.mark.parametrize("script", [".github/workflows/ci.yml", ".ci/run"])
def test_the_commands_come_from_the_pages(script: str) -> None:
    calls = re.findall(r'\.ci/block (\w+|"[^"]+") (?:\.\./)?([\w/]+\.md)', read(script))
    assert ("test", "README.md") in calls
    for marker, page in calls:
        found = block(marker.strip('"'), page)
        assert found.returncode == 0, found.stderr
        assert f"\n{found.stdout}```\n" in read(page)


def test_the_workflow_copies_no_command_of_readme() -> None:
    commands = block("demo", "README.md").stdout + block("test", "README.md").stdout
    assert len(commands.splitlines()) == 2
    for part in re.split(r" && |\n", commands):
        assert not part.startswith(".venv/bin/python -m") or part not in read(".github/workflows/ci.yml")


def test_a_block_that_is_not_there_is_an_error() -> None:
    missing = block("nowhere", "README.md")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "there is no block <!-- nowhere -->" in missing.stderr


def test_no_two_test_files_have_one_name() -> None:
    """pytest could not collect them together."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()
