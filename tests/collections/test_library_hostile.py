"""A library that is damaged, or made by somebody else, ends in a sentence and not in a crash."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from libraries import exact, picture, write

from mlx_convnextv2 import ImageEmbedder, Library, embed_folder
from mlx_convnextv2.collections.library import files as layout, writer as writing
from mlx_convnextv2.pages import pictures

ERRORS = (ValueError, OSError)


@pytest.fixture(scope="module")
def embedder(small_model, small_processor):
    return exact(ImageEmbedder(small_model, small_processor))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(5):
        write(folder / f"{number}.png", picture(number))
    return folder


@pytest.fixture(scope="module")
def original(photos, embedder, tmp_path_factory):
    embed_folder(photos, tmp_path_factory.mktemp("original") / "library", embedder)
    return next(tmp_path_factory.getbasetemp().glob("original*")) / "library"


@pytest.fixture
def library(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "library"))


def use(library: Path, photos: Path, embedder: ImageEmbedder) -> None:
    opened = Library(library, embedder)
    opened.search(photos / "1.png")
    opened.duplicates(0.5)
    opened.labelled(1)
    list(opened)
    embed_folder(photos, library, embedder)


def index(library: Path) -> Path:
    return library / "1-of-1.sqlite"


def matrix(library: Path) -> Path:
    return library / "1-of-1.0.features"


def sql(*statements: str):
    def damage(library: Path) -> None:
        connection = sqlite3.connect(index(library))
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


def replaced_by_link(find):
    def damage(library: Path) -> None:
        find(library).rename(library.parent / "elsewhere")
        find(library).symlink_to(library.parent / "elsewhere")

    return damage


def replaced_by_folder(find):
    def damage(library: Path) -> None:
        find(library).unlink()
        find(library).mkdir()

    return damage


def rewritten(old: bytes, new: bytes):
    """Replace bytes of the index, past SQLite's own checks."""
    return lambda library: index(library).write_bytes(index(library).read_bytes().replace(old, new))


DAMAGES = {
    "no matrix": lambda library: matrix(library).unlink(),
    "a short matrix": lambda library: os.truncate(matrix(library), 100),
    "an empty matrix": lambda library: os.truncate(matrix(library), 0),
    "a linked matrix": replaced_by_link(matrix),
    "a linked index": replaced_by_link(index),
    "a matrix that is a folder": replaced_by_folder(matrix),
    "an index that is a folder": replaced_by_folder(index),
    "an index of text": lambda library: index(library).write_text("no database" * 1000),
    "a short index": lambda library: os.truncate(index(library), 5000),
    "a longer row count": sql("UPDATE about SET rows = 1000000000000"),
    "a row count below zero": sql("UPDATE about SET rows = -1"),
    "a row count of text": sql("UPDATE about SET rows = 'many'"),
    "no description": sql("DELETE FROM about"),
    "two descriptions": sql("INSERT INTO about SELECT * FROM about"),
    "a description of no JSON": sql("UPDATE about SET made = '{'"),
    "a description of another kind": sql("UPDATE about SET made = '[1]'"),
    "a deep description": sql("UPDATE about SET made = replace(hex(zeroblob(40000)), '0', '[')"),
    "no features": sql("""UPDATE about SET made = json_set(made, '$.features', 0)"""),
    "endless features": sql("""UPDATE about SET made = json_set(made, '$.features', 1e99)"""),
    "other features": sql("""UPDATE about SET made = json_set(made, '$.features', 16)"""),
    "a model that is a number": sql("""UPDATE about SET made = json_set(made, '$.model', 1)"""),
    "an unknown field": sql("""UPDATE about SET made = json_set(made, '$.extra', 1)"""),
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON pictures BEGIN DELETE FROM pictures; END"),
    "a view": sql("DROP TABLE pictures", "CREATE VIEW pictures AS SELECT randomblob(1000000000)"),
    "another table": sql("CREATE TABLE more (x)"),
    "an endless path": sql("UPDATE pictures SET path = zeroblob(100000) WHERE row = 1"),
    "a path of text": sql("UPDATE pictures SET path = 'x' WHERE row = 1"),
    "a width of text": sql("UPDATE pictures SET width = 'x' WHERE row = 1"),
    "a norm of text": sql("UPDATE pictures SET norm = 'x' WHERE row = 1"),
    "a row below zero": sql("UPDATE pictures SET row = -1 WHERE row = 1"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_library_is_a_sentence(library, photos, embedder, damage):
    damage(library)
    with pytest.raises(ERRORS, match=r"library|1-of-1") as raised:
        use(library, photos, embedder)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("find", [index, matrix])
def test_a_library_cut_anywhere_is_read_or_a_sentence(original, tmp_path, photos, embedder, find):
    size = find(original).stat().st_size
    for length in {0, 1, 99, 100, size // 3, size // 2, size - 4096, size - 1} & set(range(size)):
        library = Path(shutil.copytree(original, tmp_path / f"{length}"))
        os.truncate(find(library), length)
        try:
            Library(library, embedder).search(photos / "1.png")
        except ERRORS:
            continue


def test_features_that_are_no_numbers_are_found_last(library, photos, embedder):
    """No search stops or warns because of them."""
    data = bytearray(matrix(library).read_bytes())
    data[: 2 * embedder.width] = b"\x00\x7e" * embedder.width  # NaN
    matrix(library).write_bytes(data)
    found = Library(library, embedder).search(photos / "1.png")
    assert len(found) == 5
    assert found[-1]["score"] == -1
    assert found[0]["path"] == str(photos / "1.png")
    assert Library(library, embedder).search(photos / "1.png", 1) == found[:1]


def test_rows_that_are_not_there_are_a_sentence_when_the_matrix_is_written_anew(library, photos, embedder, monkeypatch):
    monkeypatch.setattr(writing, "_SPARED", 0)
    sql("DELETE FROM pictures WHERE row < 3", "UPDATE pictures SET row = 10 WHERE row = 3")(library)
    with pytest.raises(ValueError, match="names rows that are not there"):
        embed_folder(photos / "4.png", library, embedder)


def test_a_library_of_a_newer_version_is_not_called_damaged(library):
    sql("PRAGMA user_version = 99", "ALTER TABLE pictures ADD COLUMN place TEXT")(library)
    with pytest.raises(ValueError, match=r"newer version of mlx-convnextv2: update this one$"):
        Library(library)


def test_the_page_waits_for_no_pipe_that_a_path_names(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "open_image", lambda _: pytest.fail("it waits"))
    assert "cannot be read" in pictures.thumbnail(str(tmp_path / "a.png"))


def test_a_row_that_is_not_written_yet_is_not_there(library, photos, embedder):
    sql("UPDATE pictures SET row = 10 WHERE row = 1")(library)
    assert len(Library(library, embedder).search(photos / "1.png")) == 4


def test_shards_of_different_models_or_divisions_are_not_mixed(library, photos, embedder, tmp_path, small_model):
    other = type(small_model)(small_model.config)
    embed_folder(photos, tmp_path / "other", exact(ImageEmbedder(other, embedder.processor)), shard="1/2")
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, library)
    with pytest.raises(ValueError, match="is divided into 1 and into 2 shards"):
        Library(library)
    for file in library.glob("1-of-1*"):
        file.unlink()
    embed_folder(photos, tmp_path / "third", embedder, shard="2/2")
    for file in (tmp_path / "third").iterdir():
        shutil.copy(file, library)
    with pytest.raises(ValueError, match="the weights are others"):
        Library(library)


def test_the_schema_is_all_that_sqlite_holds(original):
    connection = sqlite3.connect(index(original))
    assert dict(connection.execute("SELECT name, sql FROM sqlite_master")) == layout.SCHEMA


def test_a_folder_without_rights_is_a_sentence(library, photos, embedder, as_everybody):
    library.chmod(0o500)
    try:
        assert len(Library(library, embedder).search(photos / "1.png")) == 5  # reading needs none
        write(photos / "9.png", picture(9))
        with pytest.raises(OSError, match=r"library|1-of-1"):
            embed_folder(photos, library, embedder)
    finally:
        (photos / "9.png").unlink()
        library.chmod(0o700)
