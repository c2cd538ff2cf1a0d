"""A library is what its folders are, whatever happened to them and to the process that writes it."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from libraries import content, exact, picture, sha256, write
from PIL import Image

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2ForImageClassification,
    ImageEmbedder,
    Library,
    embed_folder,
)
from mlx_convnextv2.collections import Shard
from mlx_convnextv2.collections.library import update as updating, writer as writing
from mlx_convnextv2.collections.library.files import ShardFiles
from mlx_convnextv2.collections.library.reader import RenumberedError, View
from mlx_convnextv2.demo import DEMO

PICTURES = [picture(number) for number in range(6)]


@pytest.fixture(autouse=True, scope="module")
def _small_steps():
    """Commit after every picture, and write the matrix anew as soon as half of it is unused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updating, "_SECONDS", -1.0)
        patch.setattr(writing, "_SPARED", 0)
        yield


@pytest.fixture(scope="module")
def embedder(small_model, small_processor):
    return exact(ImageEmbedder(small_model, small_processor, batch_size=2))


@pytest.fixture
def photos(tmp_path):
    """Three pictures in two folders, each with something else in it too."""
    for number, name in enumerate(("one.png", "two.png", "trip/three.png")):
        write(tmp_path / "photos" / name, PICTURES[number])
    for folder in ("", "trip"):
        write(tmp_path / "photos" / folder / "notes.txt", b"")
    return tmp_path / "photos"


def counts(update):
    return {name: value for name, value in vars(update).items() if value}


# --- what is read and what is computed ------------------------------------------------------------------------------


def test_a_picture_is_known_by_path_size_time_hash_size_and_date(tmp_path, embedder):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    exif.get_ifd(0x8769)[0x9003] = "2024:05:31 18:30:00"
    file = tmp_path / "photos" / "a.jpg"
    file.parent.mkdir()
    Image.new("RGB", (40, 30), "red").save(file, exif=exif)
    embed_folder(tmp_path / "photos", tmp_path / "library", embedder)
    ((found, features),) = [(entry[:8], entry[8]) for entry in content(tmp_path / "library").values()]
    status = file.stat()
    said = (os.fsencode(file), status.st_size, status.st_mtime_ns, sha256(file.read_bytes()), 30, 40)
    assert found[:7] == (*said, "2024-05-31T18:30:00")
    row = np.frombuffer(features, np.float16).astype(np.float64)
    assert np.linalg.norm(row) == pytest.approx(1, abs=2**-11)
    np.testing.assert_allclose(row * found[7], embedder(file), atol=found[7] * 2**-11)


def test_only_what_is_new_is_read_and_only_new_content_is_computed(photos, tmp_path, embedder, monkeypatch):
    out = tmp_path / "library"
    assert counts(embed_folder(photos, out, embedder)) == {"added": 3}
    (photos / "two.png").rename(photos / "trip" / "moved.png")
    shutil.copy(photos / "one.png", photos / "copy.png")
    write(photos / "trip" / "three.png", PICTURES[3])
    read, embedder.images, real = [], 0, updating._read

    def count_reads(picture, *rest):
        read.append(Path(picture.image).name)
        return real(picture, *rest)

    monkeypatch.setattr(updating, "_read", count_reads)
    update = embed_folder(photos, out, embedder)
    assert counts(update) == {"changed": 1, "recognised": 2, "removed": 1, "unchanged": 1}
    assert set(read) == {"moved.png", "copy.png", "three.png"}
    assert embedder.images == 1


def test_an_image_that_cannot_be_read_is_named_and_leaves_the_library(photos, tmp_path, embedder):
    embed_folder(photos, tmp_path / "library", embedder)
    write(photos / "one.png", b"no image")
    (photos / "link.png").symlink_to("nowhere.png")
    update = embed_folder(photos, tmp_path / "library", embedder)
    assert {Path(failed.path).name for failed in update.failures} == {"one.png", "link.png"}
    assert all(failed.error.count(failed.path) == 1 for failed in update.failures)
    assert {Path(os.fsdecode(path)).name for path in content(tmp_path / "library")} == {"two.png", "three.png"}


@pytest.mark.parametrize(("value", "why"), [(np.nan, "not finite"), (np.inf, "not finite"), (0.0, "all zero")])
def test_features_without_a_direction_are_that_images_error(photos, tmp_path, embedder, monkeypatch, value, why):
    embed, calls = embedder.embed, []

    def bad_first(pixel_values):
        calls.append(1)
        return embed(pixel_values) * value if len(calls) == 1 else embed(pixel_values)

    monkeypatch.setattr(embedder, "embed", bad_first)
    update = embed_folder(photos, tmp_path / "library", embedder)
    assert len(update.failures) == 2  # a batch
    assert all(why in failed.error and failed.path in failed.error for failed in update.failures)
    assert update.added == 1


def test_a_file_that_changes_while_it_is_read_is_left_for_the_next_time(photos, tmp_path, embedder, monkeypatch):
    real = embedder.preprocess

    def change(image):
        if image.filename.endswith("one.png"):
            write(photos / "one.png", PICTURES[5])
        return real(image)

    monkeypatch.setattr(embedder, "preprocess", change)
    update = embed_folder(photos, tmp_path / "library", embedder)
    assert "one.png: it was being changed while it was read" in update.failures[0].error
    monkeypatch.undo()
    embed_folder(photos, tmp_path / "library", embedder)
    embed_folder(photos, tmp_path / "afresh", embedder)
    assert content(tmp_path / "library") == content(tmp_path / "afresh")


def test_an_empty_name_is_not_the_current_folder(photos, tmp_path, embedder, monkeypatch):
    monkeypatch.chdir(photos)
    with pytest.raises(FileNotFoundError, match="no such folder or image: ''"):
        embed_folder("", tmp_path / "library", embedder)
    with pytest.raises(ValueError, match="needs a name"):
        embed_folder(photos, "", embedder)


# --- what is forgotten ----------------------------------------------------------------------------------------------


def test_a_missing_disk_empties_no_library(photos, tmp_path, embedder):
    out = tmp_path / "library"
    embed_folder(photos, out, embedder)
    before = content(out)
    shutil.rmtree(photos / "trip")
    (photos / "trip").mkdir()  # where a disk was mounted
    assert counts(embed_folder(photos, out, embedder)) == {"unchanged": 2, "kept": 1}
    shutil.rmtree(photos)
    with pytest.raises(FileNotFoundError, match="photos"):
        embed_folder(photos, out, embedder)
    photos.mkdir()
    assert counts(embed_folder(photos, out, embedder)) == {"kept": 3}
    assert content(out) == before
    photos.rmdir()  # for good
    assert counts(embed_folder(photos, out, embedder, prune=True)) == {"removed": 3}
    assert content(out) == {}


def test_a_removed_folder_is_forgotten_and_folders_that_were_not_scanned_are_not(photos, tmp_path, embedder):
    out = tmp_path / "library"
    other = write(tmp_path / "photos2" / "four.png", PICTURES[4])  # its name begins like the other's
    embed_folder([photos, other], out, embedder)
    shutil.rmtree(photos / "trip")
    other.unlink()
    assert counts(embed_folder(photos, out, embedder)) == {"unchanged": 2, "removed": 1}
    assert os.fsencode(other) in content(out)


@pytest.mark.parametrize(("mode", "kept"), [(0, 1), (0o400, 0)])  # 0o400: its names may be read, its files not
def test_a_folder_that_may_not_be_read_keeps_its_pictures(photos, tmp_path, embedder, as_everybody, mode, kept):
    embed_folder(photos, tmp_path / "library", embedder)
    before = content(tmp_path / "library")
    (photos / "trip").chmod(mode)
    try:
        update = embed_folder(photos, tmp_path / "library", embedder)
    finally:
        (photos / "trip").chmod(0o755)
    assert (update.kept, len(update.failures)) == (kept, 1)
    assert content(tmp_path / "library") == before


# --- whatever happened ----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a.png", "b.png", "c/d.png", "c/e.png"])
WRITES = st.tuples(st.just("write"), NAMES, st.integers(0, 4))
MOVES = st.tuples(st.just("move"), NAMES, NAMES)
DELETIONS = st.tuples(st.just("delete"), NAMES)
UPDATES = st.tuples(st.just("update"))


def act(photos: Path, step: tuple) -> None:
    kind, name, *rest = step
    if kind == "write":
        write(photos / name, PICTURES[rest[0]] if rest[0] else b"no image")
    elif (photos / name).exists():
        (photos / name).unlink() if kind == "delete" else (photos / name).rename(photos / rest[0])


CHANGES = {
    "steps": st.lists(WRITES | WRITES | MOVES | DELETIONS | UPDATES, min_size=4, max_size=16),
    "count": st.sampled_from([1, 2]),
}


@settings(max_examples=10)
@given(**CHANGES)
def test_after_some_changes_a_library_equals_one_built_afresh(steps, count, embedder):
    check_changes(steps, count, embedder)


@pytest.mark.slow
@settings(max_examples=100)
@given(**CHANGES)
def test_after_any_changes_a_library_equals_one_built_afresh(steps, count, embedder):
    check_changes(steps, count, embedder)


def check_changes(steps, count, embedder):
    shards = [Shard(index + 1, count) for index in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        photos, out, afresh = (Path(folder) / name for name in ("photos", "library", "afresh"))
        for inside in ("", "c"):
            write(photos / inside / "notes.txt", b"")
        write(photos / "always.png", PICTURES[5])
        seen = []
        for step in [*steps, ("update",)]:
            if step[0] != "update":
                act(photos, step)
                continue
            for shard in shards:
                embed_folder(photos, out, embedder, shard=shard)
                view = View.of(ShardFiles(out, shard))
                assert view is not None
                seen.append((view, view.features.copy()))
        for shard in shards:
            embed_folder(photos, afresh, embedder, shard=shard)
        assert content(out) == content(afresh)
        for view, features in seen:  # what a reader holds never changes under it
            assert np.array_equal(view.features, features)


def test_a_matrix_that_is_half_unused_is_written_anew_and_readers_notice(photos, tmp_path, embedder):
    out = tmp_path / "library"
    embed_folder(photos, out, embedder)
    view = View.of(ShardFiles(out, Shard()))
    assert view is not None
    for name in ("one.png", "two.png"):
        (photos / name).unlink()
    embed_folder(photos, out, embedder)
    assert [file.name for file in out.glob("*.features")] == ["1-of-1.1.features"]
    assert (out / "1-of-1.1.features").stat().st_size == 2 * embedder.width
    with pytest.raises(RenumberedError):
        view.entries([0])
    assert [Path(found["path"]).name for found in Library(out)] == ["three.png"]


# --- a process that dies --------------------------------------------------------------------------------------------


def moments(library: Path, where: Path, run: Callable[[], object]) -> list[Path]:
    """What `run` has written at each line of the writing modules: a kill -9 there would leave this."""
    watched = {module.__file__ for module in (updating, writing)}
    seen: dict[tuple, Path] = {}

    def trace(frame, event, _):
        if frame.f_code.co_filename not in watched:
            return None
        if event == "line":
            state = tuple((file.name, file.read_bytes()) for file in sorted(library.iterdir()))
            if state not in seen:
                seen[state] = where / str(len(seen))
                shutil.copytree(library, seen[state])
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(None)
    return list(seen.values())


def test_a_writer_may_die_at_any_line(photos, tmp_path, embedder):
    for number in (3, 4):
        write(photos / f"{number}.png", PICTURES[number])
    before, out, afresh = (tmp_path / name for name in ("before", "out", "afresh"))
    embed_folder(photos, before, embedder)
    shutil.copytree(before, out)
    for name in ("one.png", "two.png", "3.png"):
        (photos / name).unlink()
    (photos / "4.png").rename(photos / "five.png")
    write(photos / "trip" / "three.png", PICTURES[5])
    embed_folder(photos, afresh, embedder)
    expected = content(afresh)
    features = {entry[3]: entry[-1] for name in (before, afresh) for entry in content(name).values()}
    left = moments(out, tmp_path / "moments", lambda: embed_folder(photos, out, embedder))
    assert content(out) == expected
    for library in left:
        for entry in content(library).values():  # readable, and each picture has its own features
            assert entry[-1] == features[entry[3]]
        embed_folder(photos, library, embedder)
        assert content(library) == expected
        assert len(list(library.iterdir())) == 3  # no leftovers
    assert len(left) > 8


def test_a_reader_rolls_back_what_a_killed_writer_had_half_committed(photos, tmp_path, embedder):
    out, killed = tmp_path / "library", tmp_path / "killed"
    embed_folder(photos, out, embedder)
    before = content(out)
    with closing(sqlite3.connect(out / "1-of-1.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that changes reach the file before they are committed
        connection.execute("BEGIN")
        rows = [(f"{number}".encode(), bytes(1000)) for number in range(100)]
        connection.executemany("INSERT INTO pictures (path, hash) VALUES (?, ?)", rows)
        connection.execute("DELETE FROM pictures WHERE row = 1")
        shutil.copytree(out, killed)
        connection.execute("ROLLBACK")
    assert (killed / "1-of-1.sqlite").stat().st_size > (out / "1-of-1.sqlite").stat().st_size
    assert content(killed) == before


def test_a_full_disk_is_named_and_what_was_there_stays(photos, tmp_path, embedder, monkeypatch):
    out, full = tmp_path / "library", OSError(errno.ENOSPC, "No space left on device")
    embed_folder(photos, out, embedder)
    before = content(out)
    write(photos / "four.png", PICTURES[4])
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "pwrite", mock.Mock(side_effect=full))
        with pytest.raises(OSError, match=r"it cannot be written \(No space left on device\).*features"):
            embed_folder(photos, out, embedder)
    assert content(out) == before
    assert embed_folder(photos, out, embedder).added == 1


# --- one writer, one model ------------------------------------------------------------------------------------------


def test_two_processes_do_not_write_one_shard(photos, tmp_path, embedder):
    embed_folder(photos, tmp_path / "library", embedder)

    def watch(*_):
        with pytest.raises(OSError, match="another process is writing"):
            embed_folder(photos, tmp_path / "library", embedder)

    write(photos / "four.png", PICTURES[4])
    assert embed_folder(photos, tmp_path / "library", embedder, watch=watch).added == 1


def test_another_model_or_preparation_is_refused_and_another_head_is_not(
    photos, tmp_path, small_model, small_processor
):

    out = tmp_path / "library"
    embed_folder(photos, out, ImageEmbedder(small_model, small_processor))
    other = ConvNextV2ForImageClassification(small_model.config)
    with pytest.raises(ValueError, match="made with the model, and the weights are others"):
        embed_folder(photos, out, ImageEmbedder(other, small_processor))
    with pytest.raises(ValueError, match="prepared in another way"):
        embed_folder(photos, out, ImageEmbedder(small_model, ConvNextImageProcessor(size=48)))
    embed_folder(photos, tmp_path / "demo", DEMO)
    with pytest.raises(ValueError, match=r"the weights are others in .* in float16: leave --model and --dtype out"):
        embed_folder(photos, tmp_path / "demo", dtype="float16")
    other.update(small_model.parameters())
    other.classifier.weight = other.classifier.weight + 1
    assert embed_folder(photos, out, ImageEmbedder(other, small_processor)).unchanged == 3


def test_a_library_keeps_its_number_of_shards(photos, tmp_path, embedder):
    embed_folder(photos, tmp_path / "library", embedder, shard="1/2")
    with pytest.raises(ValueError, match="has 2 shards: give one of its own, such as --shard 1/2"):
        embed_folder(photos, tmp_path / "library", embedder)


def test_a_folder_of_other_things_is_not_made_a_library(photos, embedder):
    with pytest.raises(FileExistsError, match="other things"):
        embed_folder(photos, photos, embedder)
    assert not list(photos.glob("1-of-1*"))
