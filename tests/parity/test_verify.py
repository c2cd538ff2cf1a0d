"""`convert --verify`, and the plain-PyTorch reference that it falls back to."""

import re
import sys

import mlx.core as mx
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from checkpoint_files import change  # noqa: E402
from conftest import SMALL  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from source_keys import original_key  # noqa: E402

from mlx_convnextv2.checkpoints.checkpoint import Checkpoint  # noqa: E402
from mlx_convnextv2.conversion.convert import convert  # noqa: E402
from mlx_convnextv2.conversion.verify import verify  # noqa: E402
from mlx_convnextv2.ops.tolerances import CONVERTED  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:.*images are prepared")]

FORMATS = ["mlx", "huggingface"]


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.ConvNextV2Config(**SMALL, num_labels=7, layer_norm_eps=1e-6)
    model = transformers.ConvNextV2ForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=["transformers", "original"])
def source(request, theirs, tmp_path):
    """A checkpoint, and who should run it."""
    if request.param == "transformers":
        theirs.save_pretrained(tmp_path / "source")
        return tmp_path / "source", "transformers"
    state = {original_key(key): value for key, value in theirs.state_dict().items()}
    torch.save({"model": state}, tmp_path / "source.pt")
    return tmp_path / "source.pt", "plain PyTorch"


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("dtype", list(CONVERTED))
def test_a_conversion_passes(source, tmp_path, dtype, to):
    path, reference = source
    verification = convert(path, tmp_path / "out", dtype=dtype, to=to, verify=True).verification
    assert verification is not None
    assert verification.reference == reference
    assert verification.passed
    assert verification.tolerance == CONVERTED[dtype]
    assert verification.top1 == 1


@pytest.mark.parametrize("to", FORMATS)
def test_a_changed_result_fails(source, tmp_path, to):
    path, _ = source
    convert(path, tmp_path / "out", to=to)
    larger = mx.array([0, 0, 0, 0, 0, 0, 0.01])
    change(tmp_path / "out", lambda weights: weights.update({"classifier.bias": weights["classifier.bias"] + larger}))
    assert not verify(Checkpoint.open(path), Checkpoint.open(tmp_path / "out")).passed


@pytest.mark.parametrize("options", [{"to": "huggingface"}, {"dtype": "float16"}, {"quantize": True, "q_bits": 8}])
def test_a_conversion_of_a_conversion_is_verified_against_mlx(source, tmp_path, options, monkeypatch):
    convert(source[0], tmp_path / "mlx")
    verification = convert(tmp_path / "mlx", tmp_path / "out", **options, verify=True).verification
    assert verification is not None
    assert verification.reference == "MLX"
    assert verification.passed
    monkeypatch.setitem(sys.modules, "torch", None)
    assert verify(Checkpoint.open(tmp_path / "mlx"), Checkpoint.open(tmp_path / "out")).passed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"to": "huggingface"}, {"quantize": True, "q_bits": 8}], ids=str)
def test_outputs_that_are_no_numbers_agree_in_nothing(theirs, tmp_path, value, options):
    theirs.save_pretrained(tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    weights["convnextv2.layernorm.bias"][0] = value
    save_file(weights, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    verification = convert(tmp_path / "source", tmp_path / "out", **options, verify=True).verification
    assert verification is not None
    assert not verification.passed
    assert (verification.top1, verification.top5) == (0, 0)
    assert "infinite or not a number" in str(verification)


def test_the_command_prints_it(run, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "source")
    result = run("convert", "--hf-path", tmp_path / "source", "--mlx-path", tmp_path / "out", "--verify")
    assert result.returncode == 0, result.stderr
    assert re.search(r"Verified against transformers on 8 images:\n  largest difference [\d.e-]+ ", result.stdout)
    assert "top-1 agreement 100%, top-5 agreement 100%" in result.stdout


def test_what_training_left_is_not_reported_a_second_time_by_transformers(run, theirs, tmp_path):
    weights = {**theirs.state_dict(), "optimizer.step": torch.tensor(3.0)}
    theirs.save_pretrained(tmp_path / "source")
    save_file(weights, tmp_path / "source" / "model.safetensors", {"format": "pt"})
    result = run("convert", "--hf-path", tmp_path / "source", "--mlx-path", tmp_path / "out", "--verify")
    assert "Verified against transformers" in result.stdout
    assert "Left out of what the file holds: optimizer.step\n" in result.stdout
    assert "optimizer" not in result.stderr
