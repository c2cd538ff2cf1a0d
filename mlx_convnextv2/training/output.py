"""The output of a run: an ordinary checkpoint folder, with an account of its training."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.processor import ConvNextImageProcessor
from ..checkpoints.save import save
from ..files.atomic_folder import new_folder
from ..files.names import CARD_FILE
from ..files.yaml_files import write_yaml
from ..images.class_folders import Splits
from ..messages import printable
from ..model.convnextv2 import ConvNextV2ForImageClassification
from .plan import Plan
from .progress import Row
from .start import Origin

RESULTS_FILE, ARGS_FILE = "results.csv", "args.yaml"
_LICENCE = "## Licence of the weights"
_MAX_NAMED = 20  # classes that the card lists


def write_checkpoint(
    output: str | os.PathLike[str],
    model: ConvNextV2ForImageClassification,
    processor: ConvNextImageProcessor,
    *,
    rows: Sequence[Row],
    args: Mapping[str, Any],
    account: str,
    pictures: Mapping[str, bytes],
    origin: Origin,
    overwrite: bool = False,
) -> None:
    """Write the folder, whole or not at all: the checkpoint, results.csv, args.yaml and pictures."""
    with new_folder(output, overwrite) as folder:
        inner = folder / "checkpoint"
        name = Path(output).absolute().name
        save(model, inner, processor, name=name, base_model=origin.base_model, licence=origin.licence)
        for file in sorted(inner.iterdir()):
            file.rename(folder / file.name)
        inner.rmdir()
        (folder / RESULTS_FILE).write_bytes(results(rows))
        write_yaml(folder / ARGS_FILE, args)
        card = folder / CARD_FILE
        card.write_text(with_account(card.read_text(encoding="utf-8"), account), encoding="utf-8")
        for picture, content in pictures.items():
            (folder / picture).write_bytes(content)


def results(rows: Sequence[Row]) -> bytes:
    """The file results.csv: a header with the names of `Row`'s fields, then a line for each row. None is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_dict() for row in rows)
    return text.getvalue().encode()


def with_account(card: str, account: str) -> str:
    """The model card with the account of the training, placed before the licence."""
    card = card.replace("\nConverted from `", "\nTrained from `", 1)
    before, mark, after = card.partition(_LICENCE)
    return f"{before}{account}\n\n{mark}{after}"


def account_of(plan: Plan, splits: Splits, how: str, rows: Sequence[Row], best: Row) -> str:
    """The section "Training" of a model card, in Markdown: data, recipe, curve, accuracy, and the command."""
    data = Path(plan.data).absolute().name
    each = zip(splits.train.counts(), splits.val.counts(), strict=True)
    counts = dict(zip(splits.train.classes, each, strict=True))
    train, val = (sum(column) for column in zip(*counts.values(), strict=True))
    named = [f"`{printable(name).replace('`', ' ')}` ({a} + {b})" for name, (a, b) in list(counts.items())[:_MAX_NAMED]]
    more = f" and {len(counts) - _MAX_NAMED} more" if len(counts) > _MAX_NAMED else ""
    lines = [
        "## Training",
        "",
        f"- Data: `{printable(data)}`, {train:,} images to train with and {val:,} to validate with, of {len(counts)} "
        f"classes (train + val): {', '.join(named)}{more}",
        f"- Recipe: {how}",
        f"- On the images set aside: top-1 {best.val_top1:.2%}, top-5 {best.val_top5:.2%}, loss {best.val_loss:.4f}. "
        "They chose between the rows of `results.csv`, so that new images may be answered a little worse",
        "",
        "| | train loss | val loss | top-1 | top-5 |",
        "|---|---|---|---|---|",
    ]
    for row in _shown(rows, best):
        first = f"l2 {row.l2:.0e}" if row.l2 is not None else f"epoch {row.epoch}"
        loss = "" if row.train_loss is None else f"{row.train_loss:.4f}"
        mark = " (kept)" if row == best else ""
        lines.append(f"| {first}{mark} | {loss} | {row.val_loss:.4f} | {row.val_top1:.2%} | {row.val_top5:.2%} |")
    return "\n".join([*lines, "", "```", printable(plan.command()), "```"])


def _shown(rows: Sequence[Row], best: Row) -> list[Row]:
    """At most about a dozen rows, from the first to the last, and the best."""
    stride = max(1, len(rows) // 10)
    return [row for i, row in enumerate(rows) if i % stride == 0 or row == best or i == len(rows) - 1]
