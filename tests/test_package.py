"""The package as a whole: what importing it costs, what it exports, and habits that hold everywhere in it."""

import ast
import importlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from conftest import ROOT

import mlx_convnextv2
from mlx_convnextv2 import classify
from mlx_convnextv2.__main__ import COMMANDS, main

PACKAGE = ROOT / "mlx_convnextv2"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("mlx", "numpy", "PIL", "huggingface_hub", "safetensors", "torch", "transformers")


def imported_by(code: str, modules: Sequence[str] = HEAVY) -> list[str]:
    """The heavy modules that a fresh process has imported after some code."""
    check = f"{code}\nimport sys; print(*[name for name in {modules} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by("import mlx_convnextv2") == []


def test_help_and_version_import_nothing_heavy():
    calls = [(command, option) for command in ("__main__", *COMMANDS) for option in ("--help", "--version")]
    code = f"""
import contextlib, importlib
for command, option in {calls}:
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"mlx_convnextv2.{{command}}").main([option])
"""
    assert imported_by(code) == []


def test_loading_a_model_imports_neither_torch_nor_the_hub_client():
    code = "from mlx_convnextv2 import ImageClassifier\nfrom mlx_convnextv2.classify import DEMO\nImageClassifier(DEMO)"
    assert set(imported_by(code)) == {"mlx", "numpy", "PIL", "safetensors"}


def test_classifying_one_png_imports_only_what_it_needs():
    others = [
        "tqdm",
        "huggingface_hub",
        "PIL.WebPImagePlugin",
        "PIL.GifImagePlugin",
        "PIL.PdfImagePlugin",
        "ssl",
        "onnxruntime",
    ]
    ours = [
        "graphs",
        "training",
        "serving",
        "evaluation",
        "checkpoints.save",
        "inference.tuned",
        "files.pytorch_files",
        "collections.addresses",
        "collections.runs",
    ]
    unneeded = [*others, *(f"mlx_convnextv2.{name}" for name in ours)]
    code = (
        "from mlx_convnextv2.classify import DEMO, main\n"
        "main([str(DEMO / 'images' / 'digit-3.png'), '--model', str(DEMO), '--top-k', '1'])"
    )
    assert imported_by(code, [*unneeded, "PIL.PngImagePlugin"]) == ["PIL.PngImagePlugin"]


def test_a_short_process_starts_no_threads_of_numpys_blas_and_leaves_the_environment_alone():
    code = (
        "import os, sys; from mlx_convnextv2.runtime.quick_start import import_numpy; before = dict(os.environ)\n"
        "import_numpy(); assert 'numpy' in sys.modules and dict(os.environ) == before\n"
        "from mlx_convnextv2.runtime.numpy_blas import find_blas; blas = find_blas()\n"
        "print('threads', 1 if blas is None else blas._get_threads())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "threads 1\n"


@pytest.mark.parametrize(
    ("module", "script", "ours"),
    [
        ("mlx_convnextv2.classify", "classify.py", True),
        (None, "/usr/bin/mlx_convnextv2", True),
        (None, "/usr/bin/mlx_convnextv2.classify", True),
        (None, "program.py", False),
        ("pytest", "mlx_convnextv2", False),
    ],
)
def test_a_program_that_calls_a_command_keeps_its_own_ways(module, script, ours, monkeypatch):
    ends: list[str] = []
    monkeypatch.setattr(classify, "end_quickly", lambda: ends.append(script))
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=module and SimpleNamespace(name=module)))
    assert classify.main(["--demo", "--top-k", "1"]) == 0
    assert bool(ends) is ours


def test_every_public_name_is_there():
    names = {"load", "save", "fuse", "ImageClassifier", "ConvNextImageProcessor", "ConvNextV2Config", "ConvNextV2Model"}
    names |= {"ConvNextV2ForImageClassification", "ConvNextV2Backbone"}
    assert names <= set(mlx_convnextv2.__all__) <= set(dir(mlx_convnextv2))
    for name in names:
        assert callable(getattr(mlx_convnextv2, name))
    with pytest.raises(AttributeError, match="gone"):
        _ = mlx_convnextv2.gone


def test_console_scripts_are_the_commands():
    pyproject = (ROOT / "pyproject.toml").read_text()
    scripts = re.findall(r'^"?(mlx_convnextv2[.\w]*)"? = "([\w.]+):(\w+)"$', pyproject, re.MULTILINE)
    assert {name for name, _, _ in scripts} == {"mlx_convnextv2", *(f"mlx_convnextv2.{name}" for name in COMMANDS)}
    assert COMMANDS.keys() == {path.stem for path in PACKAGE.glob("*.py") if "terminal.run(" in path.read_text()}
    for _, module, function in scripts:
        assert callable(getattr(importlib.import_module(module), function))


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for name, purpose in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(purpose)}$", out, re.MULTILINE)


@pytest.mark.parametrize("argv", [[], *([name] for name in COMMANDS)], ids=str)
def test_every_command_says_its_version(argv, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([*argv, "--version"])
    assert capsys.readouterr().out == f"mlx_convnextv2 {mlx_convnextv2.__version__}\n"


def test_a_command_does_the_same_by_its_name_and_as_a_module(capsys):
    arguments = ["--demo", "--top-k", "2", "--format", "json"]
    assert main(["classify", *arguments]) == 0
    by_name = capsys.readouterr().out
    assert classify.main(arguments) == 0
    assert capsys.readouterr().out == by_name != ""


def test_a_command_that_there_is_not_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["clasify"])
    assert "'classify'" in capsys.readouterr().err


def committed() -> set[str]:
    """The files of this repository, or a skip where it is none, as in an unpacked source distribution."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_source_distribution_has_all_but_what_is_for_the_repository_alone(tmp_path):
    sources = {name for name in committed() if not name.startswith(".")}
    for name in sources:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, "dist"], cwd=tmp_path, capture_output=True, check=True)
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {member.name.partition("/")[2] for member in files if member.isfile()}
    assert sources - held == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_module_keeps_the_habits(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), "errors are raised, not asserted"
    imports = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    imports |= {(node.module or "").split(".")[0] for node in froms}
    assert not imports & {"torch", "transformers", "timm", "pillow_heif"}, "extras are imported where they are needed"
