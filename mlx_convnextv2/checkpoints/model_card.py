"""The model card: the README.md of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Any

from .._version import __version__
from ..files.json_files import read_json
from ..files.names import CARD_FILE
from ..model.config import ConvNextV2Config

_MAX_CARD = 50_000  # characters that are read; the rest is ignored
_MAX_ENTRY = 300  # characters

_IDENTIFIER = r"[\w.-]{1,50}"

# By format, and by whether there is a classification head.
_USE = {
    ("mlx", True): """\
from mlx_convnextv2 import ImageClassifier

classifier = ImageClassifier("$name")
classifier("cat.jpg", top_k=5)""",
    ("mlx", False): """\
from mlx_convnextv2 import load

model, processor = load("$name")
outputs = model(processor("cat.jpg"), output_hidden_states=True)""",
    ("huggingface", True): """\
from transformers import pipeline

classifier = pipeline("image-classification", "$name")
classifier("cat.jpg", top_k=5)""",
    ("huggingface", False): """\
from transformers import AutoModel

model = AutoModel.from_pretrained("$name")""",
}

_CARD = Template("""\
---
$header
---

# $name

$origin mlx_convnextv2 $version.

- Architecture: ConvNeXt V2 ([arXiv:2301.00808](https://arxiv.org/abs/2301.00808)), depths $depths, hidden sizes
  $hidden_sizes, $classes
- Weights: $megabytes MB, $stored

```python
$use
```

## Licence of the weights

$terms
""")

_CAVEAT = """
For the published ConvNeXt V2 weights the statements differ: the authors' repository and timm say CC BY-NC 4.0 (no
commercial use), the Hub's cards of facebook/convnextv2-* say Apache-2.0."""


def model_card(
    config: ConvNextV2Config,
    name: str,
    *,
    dtype: str,
    size: int,
    quantized: bool = False,
    classifies: bool = True,
    format: str = "mlx",
    base_model: str | None = None,
    licence: str | None = None,
) -> str:
    """The README.md of a checkpoint: its origin, content, use and terms.

    Args:
        config: the model's configuration.
        name: a Hub id or the folder's name.
        dtype: the name of the weights' dtype.
        size: the size of the weights in bytes.
        quantized: whether linear layers are quantized, as `config`'s `quantization` entry says.
        classifies: whether there is a classification head.
        format: "mlx" or "huggingface".
        base_model: the checkpoint that it was converted from.
        licence: the Hub's identifier of the licence that the source states.
    """
    stored = dtype
    if quantized:
        entry = config.extra["quantization"]
        stored += f"; linear layers quantized ({entry['mode']}, {entry['bits']} bits, groups of {entry['group_size']})"
    on_hub = base_model is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base_model)
    stated = (
        f"{licence}, as the source states."
        if licence and base_model
        else f"{licence}."
        if licence
        else "None is stated."
    )
    from huggingface_hub import ModelCardData

    library = "mlx" if format == "mlx" else "transformers"
    licences: Any = licence.split(", ") if licence and ", " in licence else licence or None  # one, several or none
    header = ModelCardData(
        library_name=library,
        pipeline_tag="image-classification" if classifies else "image-feature-extraction",
        license=licences,
        base_model=base_model if on_hub else None,
        tags=[library, "convnextv2", "vision"],
    )
    return _CARD.substitute(
        header=header.to_yaml(),
        name=name,
        origin=f"Converted from `{base_model}` with" if base_model else "Written by",
        version=__version__,
        depths=config.depths,
        hidden_sizes=config.hidden_sizes,
        classes=f"{config.num_labels} classes" if classifies else "without a classification head",
        megabytes=f"{size / 1e6:,.1f}",
        stored=stored,
        use=Template(_USE[format, classifies]).substitute(name=name),
        terms=stated + (_CAVEAT if base_model else ""),
    )


def weights_terms(licence: str | None) -> str:
    """The terms of weights for a file without a card: the source's statement and the caveat on published weights."""
    stated = f"{licence}, as the source states." if licence else "None is stated."
    return f"{stated} {' '.join(_CAVEAT.split())}"


def read_base_model(source: Path) -> str | None:
    """The checkpoint that a folder was converted from, if its card says that we converted it."""
    told = r"^Converted from `([\w./-]{1,200})` with mlx_convnextv2 "
    converted = re.search(told, _beginning(source / CARD_FILE), re.MULTILINE)
    return converted[1] if converted else None


def read_licence(source: Path) -> str | None:
    """The licence that a checkpoint folder states: `license` in the model card's header or in a timm config.json."""
    stated, config = _stated_in_card(source / CARD_FILE), source / "config.json"
    if stated is None and config.is_file():
        values = read_json(config)
        pretrained_cfg = values.get("pretrained_cfg") if isinstance(values, dict) else None
        stated = pretrained_cfg.get("license") if isinstance(pretrained_cfg, dict) else None
    licences = stated if isinstance(stated, list) else [stated]
    # only the Hub's identifiers: anything else would be foreign text in our header
    found = [licence for licence in licences if isinstance(licence, str) and re.fullmatch(_IDENTIFIER, licence)]
    return ", ".join(found) or None


def _stated_in_card(card: Path) -> Any:
    """`license` in a model card's header, or None.

    YAML can take minutes to parse kilobytes of brackets or references. So it gets only this entry, and only if the
    entry is short and has no references.
    """
    header = re.match(r"\s*---\n(.*?\n)---[ \t]*(\n|$)", _beginning(card), re.DOTALL)
    entry = re.search(r"^license:.*\n([ -].*\n)*", header[1], re.MULTILINE) if header else None
    if entry is None or len(entry[0]) > _MAX_ENTRY or "&" in entry[0]:
        return None
    from huggingface_hub import ModelCard

    try:
        return ModelCard(f"---\n{entry[0]}---\n", ignore_metadata_errors=True).data.to_dict().get("license")
    except Exception:  # YAML raises many kinds of errors; an unreadable entry states nothing
        return None


def _beginning(card: Path) -> str:
    """The first characters of a model card, with plain line ends, or "" if there is no card."""
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(_MAX_CARD)
