"""The Swift packages name what is there. Nothing here compiles Swift."""

import re
import subprocess

import pytest
from conftest import ROOT

MANIFESTS = ["Package.swift", "swift/MLXSwift/Package.swift"]


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    command = ["git", "-C", ROOT, "ls-files", "--stage"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_no_file_is_a_link() -> None:
    """Archives and Windows lose links."""
    assert [line for line in tracked() if line.startswith("120000")] == []


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_every_path_of_a_manifest_exists(manifest: str) -> None:
    text = (ROOT / manifest).read_text(encoding="utf-8")
    paths = re.findall(r'path: "([^"]+)"', text)
    assert paths
    for path in paths:
        assert (ROOT / manifest).parent.joinpath(path).is_dir(), path


def test_the_c_target_is_made_of_files_that_exist() -> None:
    text = (ROOT / "Package.swift").read_text(encoding="utf-8")
    target = re.search(r'name: "CConvNeXtV2Image",\s+path: "native",(.*?)\]\),', text, re.DOTALL)
    assert target is not None
    named = re.findall(r'"(.*?)"', target[1])
    assert named == ["src/prepare.cpp", "src/image_c.cpp", "swift", "include", "src"]
    assert all((ROOT / "native" / path).exists() for path in named)
    included = re.search(r'#include "(.*)"', (ROOT / "native" / "swift" / "shim.h").read_text())
    assert included is not None
    assert (ROOT / "native" / "swift" / included[1]).is_file()


def test_every_source_belongs_to_one_target() -> None:
    text = (ROOT / "Package.swift").read_text(encoding="utf-8")
    folders = {ROOT / path for path in re.findall(r'path: "(swift/[^"]+)"', text)}
    for source in (ROOT / "swift").glob("[ST]*/**/*.swift"):
        assert len(folders.intersection(source.parents)) == 1, source


def test_the_root_needs_no_other_package() -> None:
    """SwiftPM fetches what any product needs for everyone who takes one."""
    assert ".package(" not in (ROOT / "Package.swift").read_text(encoding="utf-8")
