"""The figures of an evaluation are those that transformers' answers give, on folders as ImageNet's owners have them."""

import numpy as np
import pytest
from conftest import SMALL, randomize
from PIL import Image

from mlx_convnextv2 import ConvNextImageProcessor, ConvNextV2Config, ConvNextV2ForImageClassification, save
from mlx_convnextv2.evaluation import evaluate
from mlx_convnextv2.images.class_folders import read_class_folders
from mlx_convnextv2.model.labels import imagenet_1k_synsets

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
metrics = pytest.importorskip("sklearn.metrics")

pytestmark = pytest.mark.parity

CLASSES = 1000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=CLASSES)))
    processor = ConvNextImageProcessor(size=64, image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
    folder = tmp_path_factory.mktemp("parity") / "model"
    save(model, folder, processor, format="huggingface")
    return folder


@pytest.fixture(scope="module")
def theirs(checkpoint):
    """From files to logits (N, K), by transformers with Pillow."""
    model = transformers.ConvNextV2ForImageClassification.from_pretrained(checkpoint).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, use_fast=False)

    def logits(files):
        images = [Image.open(file).convert("RGB") for file in files]
        with torch.no_grad():
            return model(**processor(images, return_tensors="pt")).logits.double().numpy()

    return logits


def test_the_figures_are_those_of_transformers_answers(checkpoint, theirs, tmp_path):
    random = np.random.RandomState(0)
    pictures = [random.randint(0, 256, (9, 7, 3)).astype(np.uint8) for _ in range(60)]
    pool = tmp_path / "pool"
    pool.mkdir()
    files = []
    for number, pixels in enumerate(pictures):
        files.append(pool / f"{number}.png")
        Image.fromarray(pixels).resize((97, 121), Image.Resampling.BICUBIC).save(files[-1])
    # each picture goes to the folder of its first, third or ninth answer, so that all figures are between 0 and 1
    order = np.argsort(-theirs(files), axis=1)
    for number, file in enumerate(files):
        folder = tmp_path / "imagenet" / "val" / imagenet_1k_synsets()[order[number, (0, 2, 8)[number % 3]]]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)

    found = evaluate(checkpoint, tmp_path / "imagenet")
    folders = read_class_folders(tmp_path / "imagenet" / "val")
    targets = [imagenet_1k_synsets().index(folders.classes[label]) for label in folders.labels]
    logits = theirs(folders.files)
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    answers = logits.argmax(axis=1)
    assert found.targets.tolist() == targets
    assert found.predictions.tolist() == answers.tolist()
    assert found.top1 == metrics.accuracy_score(targets, answers) == pytest.approx(1 / 3)
    assert found.top5 == metrics.top_k_accuracy_score(targets, probabilities, k=5, labels=range(CLASSES))
    assert found.top5 == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(metrics.log_loss(targets, probabilities, labels=range(CLASSES)), rel=1e-4)
    expected = metrics.precision_recall_fscore_support(
        targets, answers, labels=sorted(set(targets)), average="macro", zero_division=0
    )
    assert found.classes.macro() == pytest.approx(expected[:3])
