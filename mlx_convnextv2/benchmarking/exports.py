"""The checkpoint in PyTorch, ONNX, timm and Core ML.

`python -m mlx_convnextv2.benchmarking.exports FORMAT FOLDER FILE DTYPE BATCH HEIGHT WIDTH` writes a file. It runs in a
process of its own, so that PyTorch's memory is not counted as ONNX Runtime's or Core ML's.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# From transformers' names. The converter has its own map, which goes the other way.
TIMM_NAMES = (
    (r"^(convnextv2\.)?(encoder\.)?", ""),
    (r"^embeddings\.patch_embeddings", "stem.0"),
    (r"^embeddings\.layernorm", "stem.1"),
    (r"^layernorm", "head.norm"),
    (r"^classifier", "head.fc"),
    (r"downsampling_layer", "downsample"),
    (r"\.layers\.(\d+)", r".blocks.\1"),
    (r"dwconv", "conv_dw"),
    (r"layernorm", "norm"),
    (r"pwconv([12])", r"mlp.fc\1"),
    (r"grn", "mlp.grn"),
)


def export(kind: str, folder: Path, file: Path, dtype: str, shape: Sequence[int]) -> None:
    """Write the model of `folder` to `file`, as "onnx" or "coreml", for images (batch, height, width).

    Raises:
        ValueError: the exporter failed. The message is its last line.
    """
    command = [sys.executable, "-m", __name__, kind, str(folder), str(file), dtype, *map(str, shape)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"the export failed: {last_line(done.stderr) or f'status {done.returncode}'}")


def last_line(text: str) -> str:
    """The last line that is not blank; in a traceback this is the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def torch_model(folder: Path, dtype: str) -> Any:
    """The checkpoint in transformers, on the CPU, in inference mode."""
    import torch
    from transformers import ConvNextV2ForImageClassification

    return ConvNextV2ForImageClassification.from_pretrained(folder).to(getattr(torch, dtype)).eval()


def timm_model(folder: Path, dtype: str) -> Any:
    """The checkpoint in timm, on the CPU, in inference mode."""
    import timm.models.convnext
    import torch
    from safetensors.torch import load_file

    weights: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            for pattern, replacement in TIMM_NAMES:
                name = re.sub(pattern, replacement, name)
            weights[name] = tensor.flatten() if ".grn." in name else tensor
    config = json.loads((folder / "config.json").read_text())
    if len(config["depths"]) != 4:
        raise ValueError(f"timm's models have four stages, and this one {len(config['depths'])}")
    model = timm.models.convnext.ConvNeXt(
        in_chans=config["num_channels"],
        num_classes=weights["head.fc.weight"].shape[0],
        patch_size=config["patch_size"],
        depths=config["depths"],
        dims=config["hidden_sizes"],
        use_grn=True,
        ls_init_value=None,
    )
    model.load_state_dict(weights)
    return model.to(getattr(torch, dtype)).eval()


def _logits_model(folder: Path, dtype: str) -> Any:
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch_model(folder, dtype)

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).logits

    return Logits().eval()


def _write_onnx(folder: Path, file: str, dtype: str, shape: Sequence[int]) -> None:
    """Write with the older exporter, which needs no package but onnx. Batch, height and width stay free."""
    import torch

    model = _logits_model(folder, dtype)
    batch, height, width = shape
    pixel_values = torch.zeros(batch, model.model.config.num_channels, height, width, dtype=getattr(torch, dtype))
    axes: Any = {"pixel_values": {0: "batch", 2: "height", 3: "width"}, "logits": {0: "batch"}}
    names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"]}
    torch.onnx.export(model, (pixel_values,), file, dynamic_axes=axes, dynamo=False, **names)


def _write_coreml(folder: Path, file: str, dtype: str, shape: Sequence[int]) -> None:
    """Write as `export --format coreml` does, but for normalised images (batch, height, width)."""
    from ..checkpoints.load import load
    from ..graphs.coreml import write_logits_program
    from ..model.convnextv2 import ConvNextV2ForImageClassification

    model, _ = load(folder, model_class=ConvNextV2ForImageClassification)
    batch, height, width = shape
    write_logits_program(model, file, (batch, model.config.num_channels, height, width), dtype)


_WRITERS = {"onnx": _write_onnx, "coreml": _write_coreml}

if __name__ == "__main__":
    kind, folder, file, dtype, *shape = sys.argv[1:]
    _WRITERS[kind](Path(folder), file, dtype, [int(part) for part in shape])
