"""Every source scheme and file type, run by its own library and by `load`: the same numbers.

`-s` prints a line of README's table for each case.
"""

import json

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from source_keys import original_key
from timm_reference import import_timm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
timm = import_timm()

from safetensors.torch import save_file  # noqa: E402
from timm.data import create_transform, resolve_data_config  # noqa: E402
from timm.models import save_for_hf  # noqa: E402

from mlx_convnextv2 import ConvNextV2Backbone, ConvNextV2ForImageClassification, ConvNextV2Model, load  # noqa: E402
from mlx_convnextv2.conversion.convert import convert  # noqa: E402
from mlx_convnextv2.model.config import SIZES  # noqa: E402
from mlx_convnextv2.model.labels import imagenet_1k, imagenet_1k_synsets  # noqa: E402

pytestmark = pytest.mark.parity

SIDE = 64  # pixels: two positions after the last stage; the numbers at 224 are test_model_parity's
LARGE = {"large", "huge"}
ALONE = (pytest.mark.slow, pytest.mark.xdist_group("large models"))  # which fit into memory one at a time
ALL_SIZES = [pytest.param(size, marks=ALONE if size in LARGE else ()) for size in SIZES]


def randomize(model):
    """Random values everywhere, GRN and the norms too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight") and "grn" not in name
            spread = parameter.shape[1:].numel() ** -0.5 if parameter.ndim > 1 and "grn" not in name else 0.2
            parameter.normal_(1 if is_norm else 0, spread)
    return model.eval()


def make_timm(size, **options):
    return randomize(timm.create_model(f"convnextv2_{size}", **options))


def make_transformers(size, num_labels=1000, **options):
    config = transformers.ConvNextV2Config(**SIZES[size], num_labels=num_labels, **options)
    return randomize(transformers.ConvNextV2ForImageClassification(config))


def original_keys(state):
    """A transformers state dictionary under the names of the authors' repository."""
    return {original_key(key): value for key, value in state.items()}


def check(model, theirs, label, tolerance=1e-5):
    """Run both on one random image, print the largest difference, and fail past the tolerance."""
    pixel_values = np.random.RandomState(0).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)
    with torch.inference_mode():
        outputs = theirs(torch.tensor(pixel_values.transpose(0, 3, 1, 2)))
    expected = (outputs if isinstance(outputs, torch.Tensor) else outputs.logits).numpy()
    ours = model(mx.array(pixel_values))
    ours = np.array(ours.pooler_output if isinstance(model, ConvNextV2Model) else ours.logits)
    assert ours.shape == expected.shape
    difference = np.abs(ours - expected).max() / np.abs(expected).max()
    print(f"{label} | {difference:.1e}")
    assert difference <= tolerance


def tolerance_of(size):
    return 2e-5 if size == "huge" else 1e-5


@pytest.mark.parametrize("size", ALL_SIZES)
def test_a_timm_folder(tmp_path, size):
    theirs = make_timm(size)
    save_for_hf(theirs, tmp_path)
    model, _ = load(tmp_path)
    check(model, theirs, f"timm | {size} | folder with model.safetensors", tolerance_of(size))


@pytest.mark.parametrize("size", ALL_SIZES)
def test_an_original_pt_file(tmp_path, size):
    theirs = make_transformers(size, layer_norm_eps=1e-6)
    file = tmp_path / f"convnextv2_{size}_1k_224_ema.pt"
    torch.save({"model": original_keys(theirs.state_dict())}, file)
    model, _ = load(file)
    check(model, theirs, f"original | {size} | .pt", tolerance_of(size))


@pytest.mark.parametrize("size", ALL_SIZES)
def test_a_hugging_face_folder_with_a_bin_file(tmp_path, size):
    theirs = make_transformers(size)
    theirs.config.save_pretrained(tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    model, _ = load(tmp_path)
    check(model, theirs, f"Hugging Face | {size} | folder with pytorch_model.bin", tolerance_of(size))


def write_single(state, file):
    if file.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    else:
        torch.save(state, file)
    return file


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt", ".pth"])
@pytest.mark.parametrize("scheme", ["Hugging Face", "timm", "original"])
def test_a_single_file_of_each_scheme_and_type(tmp_path, scheme, suffix):
    # without a config.json the final epsilon is the scheme's: 1e-12 for Hugging Face, 1e-6 for the others
    if scheme == "timm":
        theirs = make_timm("atto", num_classes=7)
        state = theirs.state_dict()
    else:
        theirs = make_transformers("atto", 7, layer_norm_eps=1e-12 if scheme == "Hugging Face" else 1e-6)
        state = theirs.state_dict() if scheme == "Hugging Face" else original_keys(theirs.state_dict())
    model, processor = load(write_single(state, tmp_path / f"atto_1k_384{suffix}"))
    assert model.config.num_labels == 7
    assert processor.size == {"shortest_edge": 384}  # from the file's name
    check(model, theirs, f"{scheme} | atto | {suffix}")


@pytest.mark.parametrize("sharded", ["safetensors", "bin"])
def test_a_sharded_folder(tmp_path, sharded):
    theirs = make_transformers("atto", 7)
    if sharded == "safetensors":
        theirs.save_pretrained(tmp_path, max_shard_size="2MB")
    else:
        theirs.config.save_pretrained(tmp_path)
        state = theirs.state_dict()
        halves = [dict(list(state.items())[i::2]) for i in range(2)]
        names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
        for name, half in zip(names, halves, strict=True):
            torch.save(half, tmp_path / name)
        weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert len(list(tmp_path.glob(f"*.{sharded}"))) > 1
    model, _ = load(tmp_path)
    check(model, theirs, f"Hugging Face | atto | sharded .{sharded}")


def test_timm_without_classes_is_a_headless_model(tmp_path):
    theirs = make_timm("pico", num_classes=0)
    save_for_hf(theirs, tmp_path)
    model, _ = load(tmp_path)
    assert isinstance(model, ConvNextV2Model)
    check(model, theirs, "timm | pico | without classes")


@pytest.mark.parametrize("scheme", ["timm", "original"])
def test_pre_training_alone_loads_as_a_headless_model_and_a_backbone(tmp_path, scheme):
    theirs = make_timm("atto", num_classes=0)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    if scheme == "original":
        headless = transformers.ConvNextV2Model(transformers.ConvNextV2Config(**SIZES["atto"]))
        randomize(headless)
        state = {k: v for k, v in original_keys(headless.state_dict()).items() if not k.startswith("norm.")}
    file = write_single(state, tmp_path / "convnextv2_atto_1k_224_fcmae.pt")
    with pytest.warns(UserWarning, match="no final norm"):
        model, _ = load(file)
    with pytest.raises(ValueError, match="no classifier"):
        load(file, model_class=ConvNextV2ForImageClassification)
    backbone, _ = load(file, model_class=ConvNextV2Backbone)
    pixel_values = np.random.RandomState(0).standard_normal((1, SIDE, SIDE, 3)).astype(np.float32)
    nchw = torch.tensor(pixel_values.transpose(0, 3, 1, 2))
    with torch.inference_mode():
        expected = (theirs.forward_features(nchw) if scheme == "timm" else headless(nchw).last_hidden_state).numpy()
    ours = np.array(model(mx.array(pixel_values)).last_hidden_state).transpose(0, 3, 1, 2)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    hidden = np.array(backbone(mx.array(pixel_values), output_hidden_states=True).hidden_states[-1])
    assert (hidden.transpose(0, 3, 1, 2) == ours).all()


@pytest.mark.parametrize(
    ("crop_mode", "crop_pct", "size", "interpolation"),
    [
        ("center", 0.875, 224, "bicubic"),
        ("center", 0.95, 288, "bilinear"),
        ("center", 1.0, 384, "bicubic"),
        ("squash", 1.0, 384, "bicubic"),
        ("squash", 0.9, 64, "lanczos"),
    ],
)
def test_timm_pixels(tmp_path, crop_mode, crop_pct, size, interpolation):
    theirs = make_timm("atto", num_classes=3)
    theirs.pretrained_cfg.update(
        input_size=(3, size, size), crop_mode=crop_mode, crop_pct=crop_pct, interpolation=interpolation
    )
    save_for_hf(theirs, tmp_path)
    config = resolve_data_config({}, model=theirs)
    transform = create_transform(**config)
    _, processor = load(tmp_path)
    random = np.random.RandomState(0)
    for height, width in ((97, 161), (500, 333), (size, size + 1), (301, 300)):
        image = Image.fromarray(random.randint(0, 256, (height, width, 3)).astype(np.uint8))
        expected = transform(image).numpy().transpose(1, 2, 0)
        assert np.abs(processor.preprocess(image) - expected).max() <= 1e-6


def test_verify_runs_timm_on_what_timm_wrote(tmp_path):
    save_for_hf(make_timm("atto", num_classes=7), tmp_path / "source")
    verification = convert(tmp_path / "source", tmp_path / "out", verify=True).verification
    assert verification is not None
    assert verification.reference == "timm"
    assert verification.passed
    assert (verification.top1, verification.top5) == (1, 1)


def test_imagenets_numbers_and_names_are_timms():
    info = timm.data.ImageNetInfo("imagenet-1k")
    assert info.label_names() == list(imagenet_1k_synsets())
    assert info.label_descriptions() == list(imagenet_1k())
