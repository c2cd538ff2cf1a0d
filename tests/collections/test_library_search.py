"""A search compares with every picture, and its results are those of plain numpy in float64."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from libraries import exact, picture, write
from PIL import Image

from mlx_convnextv2 import ConvNextV2ForImageClassification, ImageClassifier, ImageEmbedder, Library, embed_folder
from mlx_convnextv2.collections import search_library
from mlx_convnextv2.collections.library import duplicates as grouping, library as searching, writer as writing
from mlx_convnextv2.collections.library.duplicates import linked
from mlx_convnextv2.collections.library.nearest import SCALE, cosines, nearest, rough_scores, unscaled
from mlx_convnextv2.collections.library.update import Update
from mlx_convnextv2.demo import DEMO


def unit_rows(count: int, width: int, seed: int = 0) -> np.ndarray:
    rows = np.random.RandomState(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f2")


def brute_force(features: np.ndarray, query: np.ndarray) -> np.ndarray:
    rows, query = features.astype(np.float64), query.astype(np.float64)
    return rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)


def test_every_finite_float16_becomes_the_same_float32():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = every[np.isfinite(every)].reshape(2, -1)
    found = unscaled(values, np.empty(values.shape, np.float32)) * SCALE
    assert np.array_equal(found.view(np.int32), values.astype(np.float32).view(np.int32))


@settings(max_examples=60)
@given(
    count=st.sampled_from([1, 2, 50, 3000]),
    width=st.sampled_from([1, 2, 33, 320]),
    wanted=st.sampled_from([1, 7, 10_000]),
    copies=st.integers(0, 20),
    seed=st.integers(0, 3),
)
def test_the_nearest_are_those_of_a_search_in_float64(count, width, wanted, copies, seed):
    features = unit_rows(count, width, seed)
    features[: min(copies, count)] = features[-1]  # so that there are ties
    query = unit_rows(1, width, 9)[0].astype(np.float32)
    expected = brute_force(features, query)
    rows, scores = nearest(features, query, rough_scores(features, query), wanted)
    np.testing.assert_allclose(scores, expected[rows], atol=1e-12)
    assert len(rows) >= min(wanted, count)
    others = np.setdiff1d(np.arange(count), rows)
    assert not len(others) or expected[others].max() < scores.min() + 1e-12


def test_no_cosine_is_above_one():
    rows, lengths = unit_rows(100_000, 2), np.random.RandomState(1).rand(100_000, 1)
    assert cosines(rows, rows.astype(np.float64) * lengths).max() == 1


@settings(max_examples=40)
@given(count=st.sampled_from([1, 5, 200]), spread=st.sampled_from([0.02, 0.1, 1.0]), seed=st.integers(0, 5))
def test_groups_are_the_connected_parts_of_the_graph_of_all_close_pairs(count, spread, seed):
    random = np.random.RandomState(seed)
    rows = unit_rows(8, 12)[random.randint(0, 8, count)] + spread * random.standard_normal((count, 12))
    features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f2")
    exactly = np.stack([brute_force(features, row) for row in features])
    threshold = float(np.sort(exactly, axis=None)[-max(1, count * count // 20)]) - 1e-9  # just below some pair
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "_BLOCK", 64)
        patch.setattr(grouping, "_PAIRS", 5)
        first = linked(lambda indices: features[indices], count, 12, threshold)
    for start in range(count):  # all that can be reached from a row
        reached, waiting = {start}, [start]
        while waiting:
            near = set(np.flatnonzero(exactly[waiting.pop()] >= threshold).tolist()) - reached
            reached |= near
            waiting += near
        assert set(np.flatnonzero(first == first[start]).tolist()) == reached
        assert first[start] == min(reached)


# --- a library ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(small_model, small_processor):
    return exact(ImageEmbedder(small_model, small_processor))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(30):
        write(folder / f"{number:02}.png", picture(number))
    for number in (3, 4):
        shutil.copy(folder / f"{number:02}.png", folder / f"copy-{number}.png")
    return folder


@pytest.fixture(scope="module")
def library(photos, embedder, tmp_path_factory):
    out = tmp_path_factory.mktemp("library") / "library"
    embed_folder(photos, out, embedder)
    return Library(out, embedder)


def names(found):
    return [Path(picture["path"]).name for picture in found]


def test_a_library_finds_what_numpy_finds(library, photos, embedder):
    files = sorted(photos.iterdir())
    features = np.stack([embedder(file) for file in files])
    rounded = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)
    expected = brute_force(rounded, features[5])
    found = library.search(files[5], top_k=12)
    assert names(found) == [
        files[i].name for i in sorted(range(32), key=lambda i: (-round(float(expected[i]), 9), files[i]))[:12]
    ]
    np.testing.assert_allclose([one["score"] for one in found], np.sort(expected)[::-1][:12], atol=1e-7)
    assert found[0] == {**found[0], "width": 32, "height": 32, "taken": None, "size": files[5].stat().st_size}
    assert library.search_features(4 * features[5], 12) == library.search(Image.open(files[5]), 12) == found
    assert len(library) == len(list(library)) == 32
    assert names(library.search(photos / "03.png", 2)) == ["03.png", "copy-3.png"]


def test_shards_are_searched_as_one(library, photos, embedder, tmp_path):
    for shard in ("2/3", "1/3"):
        embed_folder(photos, tmp_path / "library", embedder, shard=shard)
    with pytest.warns(UserWarning, match="3 shards, of which only 1/3, 2/3 are there"):
        Library(tmp_path / "library", embedder)
    embed_folder(photos, tmp_path / "library", embedder, shard="3/3")
    parts = Library(tmp_path / "library", embedder)
    assert [str(shard) for shard in parts.shards] == ["1/3", "2/3", "3/3"]
    assert parts.search(photos / "07.png", 32) == library.search(photos / "07.png", 32)
    assert parts.duplicates(0.9) == library.duplicates(0.9)
    assert parts.labelled(2) == library.labelled(2)


def test_copies_are_duplicates_and_the_largest_picture_comes_first(library, photos, embedder, tmp_path):
    assert [names(group) for group in library.duplicates(1 - 1e-9)] == [
        ["03.png", "copy-3.png"],
        ["04.png", "copy-4.png"],
    ]
    large = Image.open(photos / "08.png").convert("RGB")
    write(tmp_path / "photos" / "a.png", picture(8))
    large.resize((large.width * 2, 64), Image.Resampling.NEAREST).save(tmp_path / "photos" / "b.png")
    embed_folder(tmp_path / "photos", tmp_path / "library", embedder)
    ((first, second),) = Library(tmp_path / "library").duplicates(0.6)
    assert names([first, second]) == ["b.png", "a.png"]
    assert first["score"] == pytest.approx(1)
    assert 0.6 <= second["score"] < 1


def test_a_search_beside_a_writer_names_each_picture_rightly(photos, embedder, tmp_path, monkeypatch):
    """A whole update, which writes the matrix anew, comes between the scores and the names."""
    monkeypatch.setattr(writing, "_SPARED", 0)
    for number in range(6):
        write(tmp_path / "photos" / f"{number}.png", picture(number))
    embed_folder(tmp_path / "photos", tmp_path / "library", embedder)
    library, real = Library(tmp_path / "library", embedder), searching.nearest
    updates: list[Update] = []

    def slowly(*arguments):
        found = real(*arguments)
        if not updates:
            for number in range(4):
                (tmp_path / "photos" / f"{number}.png").unlink()
            updates.append(embed_folder(tmp_path / "photos", tmp_path / "library", embedder))
        return found

    monkeypatch.setattr(searching, "nearest", slowly)
    found = library.search(photos / "05.png", 1)
    assert updates[0].removed == 4
    assert names(found) == ["5.png"]
    assert found[0]["score"] == pytest.approx(1)


def test_pictures_that_are_gone_do_not_push_others_out(photos, embedder, tmp_path):
    for number in range(30):
        write(tmp_path / "photos" / f"{number}.png", picture(number))
    embed_folder(tmp_path / "photos", tmp_path / "library", embedder)
    library = Library(tmp_path / "library", embedder)
    for gone in names(library.search(photos / "01.png", 14)):
        (tmp_path / "photos" / gone).unlink()
    embed_folder(tmp_path / "photos", tmp_path / "library", embedder)
    assert len(library.search(photos / "01.png", 4)) == 4


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The bundled digits, each as it is and in versions that are harder to tell."""
    folder, random = tmp_path_factory.mktemp("digits"), np.random.RandomState(0)
    for file in sorted((DEMO / "images").glob("*.png")):
        pixels = np.asarray(Image.open(file).convert("L"), np.float64)
        for number in range(6):
            noisy = np.clip(pixels + random.normal(0, 25 * number, pixels.shape), 0, 255)
            Image.fromarray(noisy.astype(np.uint8)).save(folder / f"{file.stem}-{number}.png")
    embed_folder(folder, folder / "library", DEMO)
    return folder


def test_the_head_on_stored_features_answers_as_the_classifier_does(digits):
    classifier, library = ImageClassifier(DEMO), Library(digits / "library")
    files = sorted(digits.glob("*.png"))
    answers = {str(file): best[0] for file, best in zip(files, classifier(files, top_k=1), strict=True)}
    assert len({answer["label"] for answer in answers.values()}) == 10
    found = {one["path"]: one for label in classifier.labels for one in library.labelled(label)}
    assert {path: one["label"] for path, one in found.items()} == {path: one["label"] for path, one in answers.items()}
    for path, one in found.items():
        assert one["score"] == pytest.approx(answers[path]["score"], abs=0.01)
    sevens = library.labelled("7")
    assert [one["score"] for one in sevens] == sorted((one["score"] for one in sevens), reverse=True)
    assert library.labelled(7, top_k=2) == sevens[:2]


def test_another_head_on_the_same_body_names_the_pictures_anew(library, small_model, small_processor, photos):
    other = ConvNextV2ForImageClassification(small_model.config)
    other.update(small_model.parameters())
    other.classifier.weight = -other.classifier.weight
    other.classifier.bias = -other.classifier.bias
    again = Library(library.path, ImageEmbedder(other, small_processor))
    counts = [len(again.labelled(index)) for index in range(7)]
    assert sum(counts) == 32
    assert counts != [len(library.labelled(index)) for index in range(7)]


def test_mistakes_are_sentences(library, photos, mlx_folder, tmp_path):
    with pytest.raises(ValueError, match="no label is called 'cat'"):
        library.labelled("cat")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        library.search(photos / "01.png", 0)
    with pytest.raises(ValueError, match="at least 1, not -1"):
        library.labelled(2, -1)
    with pytest.raises(ValueError, match="at least 1, not -1"):
        search_library(library.path, duplicates=0.5, top_k=-1)
    with pytest.raises(ValueError, match=r"shape \(33,\), not \(5,\)"):
        library.search_features(np.ones(5))
    with pytest.raises(ValueError, match="all zero"):
        library.search_features(np.zeros(33))
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        library.duplicates(1.5)
    with pytest.raises(ValueError, match="loaded before: pass it as model"):
        Library(library.path).search(photos / "01.png")
    with pytest.raises(FileNotFoundError, match="there is no library in"):
        Library(tmp_path)
    with pytest.raises(ValueError, match="the weights are others"):
        Library(library.path, DEMO).search(photos / "01.png")


def test_a_model_that_has_moved_is_asked_for(photos, tmp_path):
    shutil.copytree(DEMO, tmp_path / "model")
    embed_folder(photos / "01.png", tmp_path / "library", tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    for use in (lambda: Library(tmp_path / "library").embedder, lambda: embed_folder(photos, tmp_path / "library")):
        with pytest.raises(FileNotFoundError, match=r"model'.* was made with it: say where it is now \(--model\)"):
            use()
    assert len(Library(tmp_path / "library", tmp_path / "moved").search(photos / "01.png")) == 1
