"""README.md does what it says: every command and every piece of Python in it is run."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from checkpoint_files import as_original, as_timm, parameters
from conftest import ROOT, SMALL, randomize, variables
from hub_server import HubServer
from PIL import Image
from safetensors.numpy import save_file

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save
from mlx_convnextv2.benchmark import build_parser
from mlx_convnextv2.model.layers import no_init_weights

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line for language, block in BLOCKS if language == "bash" for line in block.splitlines()]
# These set up an environment of their own, or run this very suite.
SETUP = [command for command in COMMANDS if "venv" in command]
PYTEST = [command for command in COMMANDS if "-m pytest" in command and command not in SETUP]
# These run for minutes, with the peers that are installed; tests/test_benchmark.py runs the like on a small model.
BENCHMARKS = [command for command in COMMANDS if "mlx_convnextv2.benchmark" in command]
BENCHMARKS += re.findall(r"^python -m mlx_convnextv2.benchmark .*", (ROOT / "docs/speed.md").read_text(), re.MULTILINE)
SERVERS = [command for command in COMMANDS if "mlx_convnextv2.serve" in command]  # which run until they are stopped
EXAMPLES = [command for command in COMMANDS if command not in SETUP + PYTEST + BENCHMARKS + SERVERS]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the files that README speaks of, and a Hub with its models, each a small one of the real kind."""
    root = tmp_path_factory.mktemp("readme")
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=1000)))
    source = root / "source"
    save(model, source, ConvNextImageProcessor(size=224), format="huggingface")
    hub = HubServer(root / "hub")
    for name in ("facebook/convnextv2-tiny-1k-224", "facebook/convnextv2-base-22k-224"):
        hub.commit(name, source)
    (root / "timm").mkdir()
    save_file(as_timm(model), root / "timm" / "model.safetensors", {"format": "pt"})
    (root / "timm" / "config.json").write_text('{"architecture": "convnextv2_nano", "num_classes": 1000}')
    hub.commit("timm/convnextv2_nano.fcmae_ft_in1k", root / "timm")
    folder = root / "folder"
    photos = ("cat.jpg", "dog.jpg", "photos/cat.jpg", *(f"pets/{pet}/{i}.jpg" for pet in ("cat", "dog") for i in "123"))
    for name in (*photos, "imagenet/val/n01440764/1.jpg", "imagenet/val/n15075141/2.jpg"):
        make_photo(folder / name)
    if importlib.util.find_spec("torch"):
        import torch

        weights = {name: torch.tensor(array) for name, array in as_original(model).items()}
        torch.save({"model": weights}, folder / "convnextv2_atto_1k_224_ema.pt")
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "home"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    yield folder, {"PYTHONPATH": str(ROOT), "PATH": path, **env}
    hub.stop()


def make_photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").convert("RGB").resize((320, 240)).save(path)


def shown() -> str:
    """The output of the demo in README."""
    (block,) = re.findall(r"<!-- demo output -->\n```\n(.*?)```", README, re.DOTALL)
    return block


def test_every_command_is_of_a_kind_that_is_tested_here():
    assert len(SETUP) == 2
    assert all(command.startswith(("python -m mlx_convnextv2.", "cat cat.jpg | python")) for command in EXAMPLES)


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_run_in_order_word_for_word(world, run, tmp_path, large):
    """Those that need a large extra, where it is installed, only among the slow tests: importing it takes seconds."""
    folder, env = Path(shutil.copytree(world[0], tmp_path / "folder")), world[1]
    for command in EXAMPLES:
        if ".pt " in command and not (large and importlib.util.find_spec("torch")):
            continue  # needs the extra `torch`, as README says
        if "--format coreml" in command and not (large and importlib.util.find_spec("coremltools")):
            continue  # needs the extra `coreml`
        if "--format onnx" in command and not importlib.util.find_spec("onnx"):
            continue  # needs the extra `onnx`
        if re.search("[|>]", command):
            everything = {**os.environ, **env}
            result = subprocess.run(command, shell=True, cwd=folder, env=everything, capture_output=True, text=True)
        else:
            program, *arguments = shlex.split(command)[2:]
            result = run(program.removeprefix("mlx_convnextv2."), *arguments, env=env, cwd=folder)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert (folder / "labels.csv").read_text().startswith("image,rank,label,index,score,error\n")
    assert "tench, Tinca tinca" in (folder / "report.html").read_text()
    assert "Most like cat.jpg" in (folder / "found.html").read_text()


def test_the_server_starts_and_is_where_it_says():
    (command,) = SERVERS
    command = f"{Path(sys.executable).parent}/{command} --port 0"
    with subprocess.Popen(command.split(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("Serving the bundled digits model at http://127.0.0.1:")
            (url,) = re.findall(r"http://[\d.:]+", line)
            urllib.request.urlopen(url, timeout=600).close()  # until it is there
        finally:
            server.terminate()
    assert server.returncode == 0


def test_the_benchmarks_are_commands_that_exist():
    assert BENCHMARKS
    for command in BENCHMARKS:
        program, _, arguments = command.partition("mlx_convnextv2.benchmark")
        assert program == "python -m "
        build_parser().parse_args(arguments.split())


def test_the_python_runs(world, monkeypatch):
    folder, env = world
    monkeypatch.chdir(folder)
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert len(blocks) == 2
    for block in blocks:
        with variables(env):
            exec(compile(block, "README.md", "exec"), {})


def test_the_demo_prints_what_readme_shows(run):
    assert run("classify", "--demo", "--top-k", "2").stdout == shown()


def test_the_table_of_checkpoints_counts_the_parameters():
    rows = re.findall(r"^\| (\w+) \| ([\d,]+) \|", README, re.MULTILINE)
    assert [size for size, _ in rows] == ["atto", "femto", "pico", "nano", "tiny", "base", "large", "huge"]
    for size, shown in rows:
        with no_init_weights():
            model = ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size))
        assert sum(array.size for array in parameters(model).values()) == int(shown.replace(",", ""))


@pytest.mark.slow
def test_the_first_command_works_in_a_fresh_clone(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(SETUP[0], shell=True, cwd=clone, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == shown()
