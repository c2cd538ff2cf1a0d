"""What the tests share: small checkpoints with reproducible random weights, and commands run as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from mlx.utils import tree_flatten
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save

# Before MLX multiplies anything: on Apple's M5 and on CUDA it would round the factors of float32 products.
os.environ["MLX_ENABLE_TF32"] = "0"

# The shell of a background job has it ignored, which commands would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor does a slow or busy machine make a test fail.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
SMALL = {"hidden_sizes": [8, 12, 20, 33], "depths": [1, 2, 1, 1]}


def randomize(model: ConvNextV2ForImageClassification, seed: int = 0) -> None:
    """Give every parameter a random value, GRN and the norms too, so that no term of the model hides behind a zero.

    numpy's RandomState is frozen, so the values are the same everywhere.
    """
    random = np.random.RandomState(seed)
    weights = []
    for name, parameter in sorted(tree_flatten(model.parameters())):
        values = random.standard_normal(parameter.shape).astype(np.float32) * 0.2
        weights.append((name, mx.array(values + 1 if name.endswith("norm.weight") else values)))
    model.load_weights(weights)


@pytest.fixture(scope="session", autouse=True)
def _own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests find out about kernels is not kept where a user's programs would read it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_CONVNEXTV2_CACHE", str(tmp_path_factory.mktemp("user cache")))
        yield


@pytest.fixture(scope="session")
def small_model() -> ConvNextV2ForImageClassification:
    """A classifier of seven classes with random weights, in inference mode. Tests must not change it."""
    labels = {i: f"thing {i}" for i in range(7)}
    model = ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, id2label=labels))
    randomize(model)
    return model.eval()


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
def run() -> Callable[..., subprocess.CompletedProcess]:
    """Run `python -m mlx_convnextv2.COMMAND ARGUMENTS...` in a process of its own, without a terminal."""

    def run(
        command: str, *arguments: object, env: dict[str, str] | None = None, **options
    ) -> subprocess.CompletedProcess:
        options.setdefault("text", True)
        return subprocess.run(
            [sys.executable, "-m", f"mlx_convnextv2.{command}", *map(str, arguments)],
            capture_output=True,
            timeout=600,
            cwd=options.pop("cwd", ROOT),
            env={**os.environ, "HF_HUB_OFFLINE": "1", **(env or {})},
            **options,
        )

    return run
