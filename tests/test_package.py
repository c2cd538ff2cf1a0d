"""The package as a whole: what importing it costs, what it exports, and habits that hold everywhere in it."""

import ast
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import mlx_convnextv2

MODULES = sorted((ROOT / "mlx_convnextv2").rglob("*.py"))
HEAVY = ("mlx", "numpy", "PIL", "huggingface_hub", "safetensors", "torch", "transformers")


def imported_by(code):
    """The heavy modules that a fresh process has imported after some code."""
    check = f"{code}\nimport sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by("import mlx_convnextv2") == []


@pytest.mark.parametrize("command", ["classify", "convert", "benchmark"])
def test_help_imports_nothing_heavy(command):
    code = f"import contextlib, mlx_convnextv2.{command} as c\nwith contextlib.suppress(SystemExit): c.main(['--help'])"
    assert imported_by(code) == []


def test_loading_a_model_imports_neither_torch_nor_the_hub_client():
    code = "from mlx_convnextv2 import ImageClassifier\nfrom mlx_convnextv2.classify import DEMO\nImageClassifier(DEMO)"
    assert set(imported_by(code)) == {"mlx", "numpy", "PIL", "safetensors"}


def test_every_public_name_is_there():
    names = [
        *("load", "save", "fuse", "ImageClassifier", "ConvNextImageProcessor", "ConvNextV2Config", "ConvNextV2Model"),
        *("ConvNextV2ForImageClassification", "ConvNextV2Backbone"),
    ]
    for name in names:
        assert callable(getattr(mlx_convnextv2, name))
        assert name in dir(mlx_convnextv2)
        assert name in mlx_convnextv2.__all__
    with pytest.raises(AttributeError, match="gone"):
        _ = mlx_convnextv2.gone


def test_console_scripts_are_the_commands():
    pyproject = (ROOT / "pyproject.toml").read_text()
    scripts = re.findall(r'^"(mlx_convnextv2\.\w+)" = "([\w.]+):(\w+)"$', pyproject, re.MULTILINE)
    assert {name for name, _, _ in scripts} == {
        f"mlx_convnextv2.{name}" for name in ("classify", "convert", "benchmark", "export")
    }
    for _, module, function in scripts:
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_module_keeps_the_habits(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), "errors are raised, not asserted"
    imports = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module.split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert not imports & {"torch", "transformers", "timm", "pillow_heif"}, "extras are imported where they are needed"
