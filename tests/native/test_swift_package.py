"""The Swift package: it takes what Python has now, its parameters have Python's names, its part without MLX works."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from checkpoint_files import parameters, read
from conftest import ROOT

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2Config, ConvNextV2ForImageClassification, ConvNextV2Model

SWIFT = ROOT / "swift"
MODEL = SWIFT / "Sources" / "MLXConvNeXtV2"
FIXTURES = SWIFT / "Tests" / "Fixtures"
MANIFEST = (ROOT / "Package.swift").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """swift/generate.py."""
    spec = importlib.util.spec_from_file_location("generate", SWIFT / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(generate: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures as they would be written now, computed by MLX's operations as the committed ones are."""
    folder = tmp_path_factory.mktemp("fixtures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_CONVNEXTV2_OPS", "plain")
        generate.fixtures(folder)
    return folder


def test_no_file_is_a_link() -> None:
    """Archives and Windows lose links."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    command = ["git", "ls-files", "--stage"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in files if line.startswith("120000")] == []


def test_every_path_of_the_manifest_exists() -> None:
    paths = re.findall(r'path: "([^"]+)"', MANIFEST)
    assert paths
    for path in paths:
        assert (ROOT / path).is_dir(), path


def test_every_source_belongs_to_one_target() -> None:
    folders = {ROOT / path for path in re.findall(r'path: "(swift/[^"]+)"', MANIFEST)}
    folders.add(SWIFT / "ClassifierApp")  # a package of its own
    sources = list(SWIFT.glob("**/*.swift"))
    assert sources
    for source in sources:
        assert len(folders.intersection(source.parents)) == 1, source


def test_the_c_target_is_made_of_files_that_exist() -> None:
    target = re.search(r'name: "CConvNeXtV2Image",\s+path: "native",(.*?)\]\),', MANIFEST, re.DOTALL)
    assert target is not None
    named = re.findall(r'"(.*?)"', target[1])
    assert named == ["src/prepare.cpp", "src/image_c.cpp", "swift", "include", "src"]
    assert all((ROOT / "native" / path).exists() for path in named)
    included = re.search(r'#include "(.*)"', (ROOT / "native" / "swift" / "shim.h").read_text())
    assert included is not None
    assert (ROOT / "native" / "swift" / included[1]).is_file()


def test_the_part_without_mlx_imports_none_of_it() -> None:
    allowed = {"Foundation", "CConvNeXtV2Image", "ConvNeXtV2Core", "CoreGraphics", "CoreImage", "CoreVideo", "ImageIO"}
    sources = [path for name in ("ConvNeXtV2Core", "ClassifyCommand") for path in (SWIFT / "Sources" / name).iterdir()]
    assert len(sources) > 10
    for source in sources:
        assert set(re.findall(r"^import (\w+)", source.read_text("utf-8"), re.MULTILINE)) <= allowed, source


def test_the_generated_sources_are_fresh(generate: ModuleType) -> None:
    """The kernels' text above all: Swift launches what Python launches."""
    for path, text in generate.sources().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run python swift/generate.py"


def test_the_fixtures_are_fresh(written: Path) -> None:
    """Files are equal, but for what processors round in their own way: quantized weights, pixel values and outputs."""
    names = sorted(str(path.relative_to(written)) for path in written.glob("**/*") if path.is_file())
    assert names == sorted(str(path.relative_to(FIXTURES)) for path in FIXTURES.glob("**/*") if path.is_file())
    for name in names:
        committed, now = FIXTURES / name, written / name
        if name.endswith(".safetensors"):
            before, after = (
                {key: (array.shape, array.dtype) for key, array in read(file)[0].items()} for file in (committed, now)
            )
            assert before == after, name
        if not name.startswith(("affine", "mxfp", "nvfp", "outputs.", "processing.")):
            assert committed.read_bytes() == now.read_bytes(), f"{name} is out of date: run python swift/generate.py"


def test_what_python_makes_of_the_fixtures_is_fresh(written: Path) -> None:
    committed, now = (json.loads((folder / "processing.json").read_text("utf-8")) for folder in (FIXTURES, written))
    for before, after in zip(committed, now, strict=True):
        assert {**before, "values": None} == {**after, "values": None}
        assert np.allclose(_floats(before), _floats(after), atol=0.02)  # a step of a byte
    tolerances = {"float16": 0.02, "bfloat16": 0.16}
    committed, now = (json.loads((folder / "outputs.json").read_text("utf-8")) for folder in (FIXTURES, written))
    assert committed.keys() == now.keys()
    for checkpoint, images in now.items():
        assert committed[checkpoint].keys() == images.keys()
        for image, arrays in images.items():
            assert committed[checkpoint][image].keys() == arrays.keys()
            for key, array in arrays.items():
                expected, found = _floats(committed[checkpoint][image][key]), _floats(array)
                tolerance = tolerances.get(checkpoint, 2e-3) * np.abs(expected).max()
                assert np.abs(found - expected).max() <= tolerance, (checkpoint, image, key)


def test_the_fixtures_hold_every_kind_of_checkpoint(generate: ModuleType) -> None:
    """Each has quantized layers and others where it is quantized, and more than one file where it is sharded."""
    for name in generate.checkpoints():
        weights = {key for file in (FIXTURES / name).glob("*.safetensors") for key in read(file)[0]}
        scales = {key.removesuffix(".scales") for key in weights if key.endswith(".scales")}
        linear = {key.removesuffix(".weight") for key in weights if re.search(r"(pwconv.|classifier)\.weight$", key)}
        if name.startswith(("affine", "mxfp", "nvfp")):
            assert scales
            assert scales < linear
        else:
            assert not scales
    assert len(list((FIXTURES / "sharded").glob("*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("model_class", "swift_class"),
    [
        (ConvNextV2ForImageClassification, "ConvNeXtV2ForImageClassification"),
        (ConvNextV2Model, "ConvNeXtV2Model"),
        (ConvNextV2Backbone, "ConvNeXtV2Backbone"),
    ],
)
def test_parameters_have_pythons_names(model_class: Any, swift_class: str) -> None:
    config = ConvNextV2Config(
        depths=[1, 2, 1], hidden_sizes=[8, 16, 24], num_stages=3, num_labels=2, out_features=["stem", "stage2"]
    )
    expected = set(parameters(model_class(config)))
    assert set(_parameters(swift_class, config, _members())) == expected


def _members() -> dict[str, dict[str, str]]:
    """The stored properties of each Swift module that hold parameters or modules: their types by their keys."""
    text = "\n".join((MODEL / name).read_text("utf-8") for name in ("ConvNeXtV2Model.swift", "Layers.swift"))
    classes = re.split(r"^(?:public )?final class (\w+): Module\b", text, flags=re.MULTILINE)
    member = re.compile(r'^    (?:@ModuleInfo(?:\(key: "(\w+)"\))? )?(?:let|var) (\w+): ([\w\[\]: ]+)$', re.MULTILINE)
    members = {
        "LayerNorm": {"weight": "MLXArray", "bias": "MLXArray"},
        "Linear": {"weight": "MLXArray", "bias": "MLXArray"},
    }
    for name, body in zip(classes[1::2], classes[2::2], strict=True):
        body = re.split(r"^}", body, flags=re.MULTILINE)[0]
        members[name] = {
            key or property_name: kind.strip()
            for key, property_name, kind in member.findall(body)
            if not kind.startswith("ConvNeXtV2Configuration")
        }
    return members


def _parameters(name: str, config: ConvNextV2Config, members: dict[str, dict[str, str]], stage: int = 0) -> list[str]:
    """The parameters' names of a Swift module with as many stages, blocks and norms as the configuration says."""
    names = []
    for key, kind in members[name].items():
        if kind == "MLXArray":
            names.append(key)
        elif kind == "[ConvNeXtV2Stage]":
            for index in range(config.num_stages):
                names += _under(f"{key}.{index}", _parameters("ConvNeXtV2Stage", config, members, index))
        elif kind == "[ConvNeXtV2Layer]":
            for index in range(config.depths[stage]):
                names += _under(f"{key}.{index}", _parameters("ConvNeXtV2Layer", config, members))
        elif kind == "[UnaryLayer]":
            for index, layer in enumerate(("LayerNorm", "ConvNeXtV2Convolution") if stage else ()):
                names += _under(f"{key}.{index}", _parameters(layer, config, members))
        elif kind == "[String: LayerNorm]":
            for feature in config.out_features:
                names += _under(f"{key}.{feature}", _parameters("LayerNorm", config, members))
        else:
            names += _under(key, _parameters(kind, config, members))
    return names


def _under(prefix: str, names: list[str]) -> list[str]:
    return [f"{prefix}.{name}" for name in names]


def _floats(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["values"]), "<f4").reshape(array["shape"])


@pytest.mark.slow
def test_what_needs_no_mlx_builds_and_passes_its_tests_in_swift(tmp_path: Path) -> None:
    """Configuration, image processor, labels, the checks of files and the kernels' geometry, in Swift 6."""
    swift = shutil.which("swift")
    if swift is None:
        pytest.skip("there is no swift")
    environment = {**os.environ, "CONVNEXTV2_WITHOUT_MLX": "1"}
    command = [swift, "test", "--package-path", str(ROOT), "--scratch-path", str(tmp_path / "build")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Executed [1-9]\d* tests, with 0 failures", done.stdout + done.stderr)


@pytest.mark.slow
def test_swift_sources_are_formatted() -> None:
    swift = shutil.which("swift")
    if swift is None or subprocess.run([swift, "format", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no swift format")
    command = [swift, "format", "lint", "--strict", "--recursive", "Package.swift", "swift"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
