"""What the tests share: small checkpoints with reproducible random weights, and commands run as a user runs them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

import mlx_convnextv2.model  # noqa: F401 # isort: skip - before mlx.core, so that MLX has the BLAS that users' have
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import proof
import pytest
from hypothesis import HealthCheck, settings
from mlx.utils import tree_flatten
from pictures import make_pictures
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save
from mlx_convnextv2.ops import tuning

# Before MLX multiplies anything: on Apple's M5 and on CUDA it would round the factors of float32 products.
os.environ["MLX_ENABLE_TF32"] = "0"

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads: there are as many workers as cores

# The shell of a background job has it ignored, which commands would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# huggingface_hub reads these once, and whichever test comes first would decide; commands set them themselves.
QUIET_HUB = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "error"}
os.environ.update(QUIET_HUB)

# Nor does a slow or busy machine make a test fail.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Parity tests import PyTorch and transformers, which takes seconds in every worker: not where none is chosen."""
    return True if collection_path.name == "parity" and "not parity" in config.option.markexpr else None


ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"hidden_sizes": [8, 12, 20, 33], "depths": [1, 2, 1, 1]}
Model = TypeVar("Model", bound=nn.Module)


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return cast("dict[str, mx.array]", dict(tree_flatten(model.parameters())))


def randomize(model: Model, seed: int = 0) -> Model:
    """The model with a random value for every parameter, GRN and the norms too, so that no term hides behind a zero.

    numpy's RandomState is frozen, so the values are the same everywhere.
    """
    random = np.random.RandomState(seed)
    weights = []
    for name, parameter in sorted(parameters(model).items()):
        values = random.standard_normal(parameter.shape).astype(np.float32) * 0.2
        weights.append((name, mx.array(values + 1 if name.endswith("norm.weight") else values)))
    model.load_weights(weights)
    return model


def small_classifier(seed: int = 0, **config: Any) -> ConvNextV2ForImageClassification:
    """A classifier of the small configuration, with random weights, in inference mode."""
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**{**SMALL, **config})), seed)
    model.eval()
    return model


@pytest.fixture(scope="session", autouse=True)
def _own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests find out about kernels is not kept where a user's programs would read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path_factory.mktemp("user cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _numpy_computes_on_a_cpu() -> Iterator[None]:
    """Whether or not ONNX Runtime is installed; test_onnxruntime_classifier.py has it compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_convnextv2.inference.onnxruntime_classifier.is_installed", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _share_compiled_kernels(tmp_path_factory) -> None:
    """The workers of pytest-xdist compile each kernel once."""
    own = tmp_path_factory.getbasetemp()
    proof.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def small_model() -> ConvNextV2ForImageClassification:
    """A classifier of seven classes with random weights, in inference mode. Tests must not change it."""
    return small_classifier(id2label={i: f"thing {i}" for i in range(7)})


@pytest.fixture(scope="session")
def small_processor() -> ConvNextImageProcessor:
    return ConvNextImageProcessor(size=32)


@pytest.fixture(scope="session")
def mlx_folder(tmp_path_factory, small_model, small_processor) -> Path:
    """`small_model` as a converted checkpoint. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "mlx"
    save(small_model, folder, small_processor)
    return folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory, small_model, small_processor) -> Path:
    """`small_model` as a Hugging Face checkpoint. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "huggingface"
    save(small_model, folder, small_processor, format="huggingface")
    return folder


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A smooth synthetic RGB picture of 90 x 70 pixels."""
    y, x = np.mgrid[0:70, 0:90]
    channels = [128 + 100 * np.sin(x / 9 + phase) * np.cos(y / 7 - phase) for phase in (0, 1, 2)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Twelve pictures of each of three classes, in folders, to train on. Tests must not change them."""
    return make_pictures(tmp_path_factory.mktemp("data") / "photos", 12)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A converted checkpoint with two blocks, to train from: an epoch of `photos` takes a tenth of a second."""
    model = ConvNextV2ForImageClassification(ConvNextV2Config(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2))
    randomize(model)
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save(model, folder, ConvNextImageProcessor(size=32))
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training draws no pictures, which take longer than the runs of most tests."""
    monkeypatch.setattr("mlx_convnextv2.training.run.pictures_of", lambda *_: {})


@pytest.fixture
def copy(hf_folder, tmp_path) -> Path:
    """`small_model` as a Hugging Face checkpoint that a test may change, alone in a folder."""
    return Path(shutil.copytree(hf_folder, tmp_path / "sources" / "copy"))


@pytest.fixture(params=["proof", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[Callable[[], contextlib.AbstractContextManager[None]]]:
    """How kernels are run: a context to call them in, which executes their text here, or a GPU's."""
    if request.param == "proof":
        proof.require_compiler()
        yield proof.executed
        return
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        pytest.skip("MLX has no GPU here")
    before = mx.default_device()
    mx.set_default_device(mx.gpu)
    yield contextlib.nullcontext
    mx.set_default_device(before)


@pytest.fixture
def nothing_tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is known of any kernel yet, neither on this machine nor in this process."""
    monkeypatch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path / "cache"))
    for name in ("MLX_CONVNEXTV2_OPS", "MLX_CONVNEXTV2_TUNE"):
        monkeypatch.delenv(name, raising=False)
    shared = tuning.shared  # which a test may replace
    shared.cache_clear()
    yield
    shared.cache_clear()


@pytest.fixture
def as_everybody() -> Iterator[None]:
    """Let the rights of files count for root as for everybody, in this thread."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root may read and write everything")
    libc, this_thread = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0)  # linux/capability.h
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and their upper halves
    assert libc.capget(this_thread, sets) == 0
    before = sets[0]
    override_rights, read_all = 1 << 1, 1 << 2
    sets[0] &= ~(override_rights | read_all)
    assert libc.capset(this_thread, sets) == 0
    yield
    sets[0] = before
    assert libc.capset(this_thread, sets) == 0


@dataclass
class Finished:
    """What a command left: its exit status, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def assert_fails(result: Finished, *words: str) -> None:
    """Status 2 and one line on standard error, which is the command's and has these words."""
    assert (result.returncode, result.stdout) == (2, ""), result
    assert re.fullmatch(r"\w+: error: .*\n", result.stderr), result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture(scope="session")
def run() -> Callable[..., Finished]:
    """Run a command in this process, without a terminal: `run("classify", "cat.jpg", "--top-k", 1)`.

    What a command changes in its process is undone: variables, the working folder, streams, what handles signals.
    """

    def run(
        command: str,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] = ROOT,
        stdin: bytes = b"",
    ) -> Finished:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.MonkeyPatch.context() as patch, variables({"HF_HUB_OFFLINE": "1", **(env or {})}):
            patch.chdir(cwd)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                status = importlib.import_module(f"mlx_convnextv2.{command}").main(list(map(str, arguments)))
            except SystemExit as ended:
                status = ended.code
            finally:
                signal.signal(signal.SIGTERM, handler)
        for stream in (out, err):
            stream.flush()
        return Finished(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))

    return run


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which huggingface_hub reads once: it is made to read them again."""

    def read_again() -> None:
        if constants := sys.modules.get("huggingface_hub.constants"):
            importlib.reload(constants)

    try:
        with mock.patch.dict(os.environ, values):
            read_again()
            yield
    finally:
        read_again()


@pytest.fixture(scope="session")
def run_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run`, in a process of its own: `python -m mlx_convnextv2.COMMAND ARGUMENTS...`."""

    def run_process(
        command: str, *arguments: object, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if name not in QUIET_HUB}
        words = [sys.executable, "-m", f"mlx_convnextv2.{command}", *map(str, arguments)]
        options = {"cwd": ROOT, "env": {**inherited, "HF_HUB_OFFLINE": "1", **(env or {})}, **options}
        return subprocess.run(words, capture_output=True, text=True, timeout=600, **options)

    return run_process
