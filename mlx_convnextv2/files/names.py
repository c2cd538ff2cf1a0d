"""The names of the files in a checkpoint folder."""

from __future__ import annotations

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
CARD_FILE = "README.md"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# In order of preference.
WEIGHTS_FILES = (WEIGHTS_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")
PYTORCH_SUFFIXES = (".bin", ".pt", ".pth", ".pth.tar")  # the last is timm's, and is not a tar file

# The files by which an export is told from a checkpoint.
GRAPH_FILE = "model.mlxfn"
PROGRAM_FILE = "Data/com.apple.CoreML/model.mlmodel"
ONNX_FILE = "model.onnx"
EXPORTED = {
    GRAPH_FILE: "an exported graph, which MLX runs without this package, as its README.md shows",
    PROGRAM_FILE: "a Core ML program, which Xcode and Vision run",
    ONNX_FILE: "an ONNX model, which ONNX Runtime runs",
}
