"""Model cards: what they say, and what is read of others', which may be made to take minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoint_files import edit_json
from hypothesis import given, settings, strategies as st

from mlx_convnextv2 import save
from mlx_convnextv2.checkpoints.model_card import read_licence
from mlx_convnextv2.conversion.convert import convert


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """A card's header, and its text."""
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_a_card_says_where_the_model_is_from_and_on_what_terms(tmp_path, small_model):
    save(small_model, tmp_path / "my-net", base_model="somebody/net", licence="apache-2.0")
    header, text = card(tmp_path / "my-net")
    assert header == {
        "library_name": "mlx",
        "pipeline_tag": "image-classification",
        "license": "apache-2.0",
        "base_model": "somebody/net",
        "tags": ["mlx", "convnextv2", "vision"],
    }
    for words in ("# my-net", "somebody/net", "[1, 2, 1, 1]", "[8, 12, 20, 33]", "7 classes", "float32", "apache-2.0"):
        assert words in text
    assert "CC BY-NC 4.0" in text  # what the authors say, whatever the source's card says


def test_a_card_for_transformers_says_so_and_a_folder_is_no_base_model(tmp_path, small_model):
    save(small_model, tmp_path / "my-net", format="huggingface", base_model="my-finetune")
    header, text = card(tmp_path / "my-net")
    assert header["library_name"] == "transformers"
    assert header.keys() == {"library_name", "pipeline_tag", "tags"}
    assert "my-finetune" in text
    assert "None is stated" in text


@pytest.mark.parametrize(
    ("licence", "stated", "read"),
    [
        ("mit", "mit", "mit"),
        ("mit, apache-2.0", ["mit", "apache-2.0"], "mit, apache-2.0"),
        ('own: "terms" # 1', 'own: "terms" # 1', None),  # only the Hub's identifiers are taken over from a card
        ("a\n---\nb: c", "a\n---\nb: c", None),
    ],
)
def test_any_licence_leaves_the_header_well_formed(tmp_path, small_model, licence, stated, read):
    from huggingface_hub.repocard import metadata_load

    save(small_model, tmp_path / "saved", licence=licence)
    header = metadata_load(tmp_path / "saved" / "README.md")
    assert header is not None
    assert header["license"] == stated
    assert header["library_name"] == "mlx"
    assert read_licence(tmp_path / "saved") == read


@pytest.fixture
def given_to_yaml(monkeypatch) -> list[str]:
    """What is handed to PyYAML, whose time grows with the square of nested brackets, and without end with aliases."""
    given: list[str] = []
    safe_load = yaml.safe_load

    def note(text: str) -> Any:
        given.append(text)
        return safe_load(text)

    monkeypatch.setattr(yaml, "safe_load", note)
    return given


# Nine times nine ... lists of one another, 9**9 letters when written out; and merges that double at every line.
ALIASES = "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))])
DOUBLING = "\n".join(["a0: &a0 {k: v}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))])
CARDS = {  # and the licence that is read
    "---\nlicense: apache-2.0\ntags:\n- vision\n---\n# Net\n": "apache-2.0",
    "---\ntags:\n- vision\nlicense: 'cc-by-nc-4.0'\n---\n": "cc-by-nc-4.0",
    '---\r\nlicense: "mit"\r\n---\r\n': "mit",
    "---\nlicense: mit # as upstream\n---\n": "mit",
    "---\nlicense:\n- mit\ntags:\n- vision\n---\n": "mit",
    "---\nlicense:\ntags:\n- vision\n---\n": None,
    "---\ntags:\n- vision\n---\nlicense: mit\n": None,
    "# Net\n\nlicense: mit\n": None,
    "---\nlicense_name: own\n---\n": None,
    "": None,
    f"---\n{ALIASES}\nlicense: mit\nwidget:\n{ALIASES}\n---\n": "mit",
    f"---\n{DOUBLING}\nlicense: mit\n---\n": "mit",
    "---\nlicense:\n  a0: &a0 {k: v}\n  a1: &a1 {<<: [*a0, *a0]}\n---\n": None,
    **{
        f"---\nlicense: {text}\n---\n": None
        for text in (
            *("3", "{a: b}", "2001-99-99", "!!python/name:os.system", "*nothing", "[" * 5000, '"a\\n---\\nbase: b"'),
            *('"\\e[2J"', "'" + "x" * 50_000 + "'", "<<: 3", "9" * 5000),
        )
    },
}


@pytest.mark.parametrize(("text", "licence"), CARDS.items(), ids=lambda text: repr(text)[:40])
def test_the_licence_of_a_card_is_a_short_entry_of_its_header_or_none(tmp_path, text, licence, given_to_yaml):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_licence(tmp_path) == licence
    assert all(len(text) <= 300 and "&" not in text for text in given_to_yaml)


@settings(max_examples=50)
@given(header=st.text(max_size=60) | st.binary(max_size=60))
def test_any_card_states_a_short_line_or_nothing(tmp_path_factory, header):
    content = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    folder = tmp_path_factory.getbasetemp()
    (folder / "README.md").write_bytes(b"---\nlicense: " + content + b"\n---\n")
    stated = read_licence(folder)
    assert stated is None or (stated.isprintable() and len(stated) < 500)


def test_a_conversion_takes_the_licence_over_from_the_card_or_from_timm_s_configuration(copy, tmp_path):
    (copy / "README.md").write_text("---\nlicense: [a, [b]]\n---\n")  # no reason not to convert
    edit_json(copy / "config.json", pretrained_cfg={"license": "ignored, for the card states one"})
    convert(copy, tmp_path / "odd")
    assert card(tmp_path / "odd")[0]["license"] == "a"
    (copy / "README.md").unlink()
    edit_json(copy / "config.json", pretrained_cfg={"license": "mit"})
    convert(copy, tmp_path / "timm's")
    assert card(tmp_path / "timm's")[0]["license"] == "mit"
