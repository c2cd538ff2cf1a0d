"""The C++ library and command of native/: built with warnings as errors, and run beside the Python package."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import PIL
import pytest
from conftest import ROOT, SMALL, randomize
from PIL import Image

from mlx_convnextv2 import (
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    ImageClassifier,
    save,
)
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.graphs.trace import export_model

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("C++")]  # which is built once

SOURCE = ROOT / "native"
PILLOW = int(PIL.__version__.split(".")[0])
OK, INVALID_ARGUMENT, NOT_FOUND, BAD_DESCRIPTION, WRONG_VERSION, WRONG_DEVICE = range(6)
DAMAGED, WRONG_SHAPE, STREAM_TAKEN, BAD_IMAGE, NO_MEMORY, FAILED = range(6, 12)
ADDRESS_SANITIZED = ("convnextv2-classify", "probe", "lifetime")
PROBABILITIES = {"name": "probabilities", "dtype": "float32", "shape": ["batch", 10]}


def tool(name: str) -> str:
    """The path of a program, from this Python's environment if it is there."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"the C++ library is built with {name}")
    assert found is not None, f"{name} is missing"
    return found


def build(folder: Path, *options: str, targets: tuple[str, ...] = ("all",)) -> Path:
    tool("c++")
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    for command in (
        ["-S", SOURCE, "-B", folder, python, "-DCONVNEXTV2_TESTS=ON", *options],
        ["--build", folder, "--parallel", "--target", *targets],
    ):
        done = program(tool("cmake"), *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def sanitized(folder: Path, what: str, *targets: str) -> Path:
    flags = f"-fsanitize={what} -fno-sanitize-recover=all"
    options = ("-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}")
    return build(folder, *options, targets=targets)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="session")
def built_with_address_sanitizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sanitized(tmp_path_factory.mktemp("asan"), "address,undefined", *ADDRESS_SANITIZED)


@pytest.fixture(scope="session")
def demo_graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as a graph for 1 or 4 images. Tests must not change it."""
    from mlx_convnextv2 import load

    folder = tmp_path_factory.mktemp("graphs") / "demo"
    model, processor = load(DEMO)
    export_model(model, processor, folder, batches=[4, 1], features=True)
    return folder


def program(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=1800, **options)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth enough to look like a photo to a resizing filter, and full of edges."""
    values = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    values[: height // 2] = 255 * (values[: height // 2] > 127)
    return Image.fromarray(values)


def classify(built: Path, folder: Path, *images: Path, top_k: int = 5) -> list[list[dict[str, Any]]]:
    done = program(built / "convnextv2-classify", "--json", "--top-k", top_k, folder, *images)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line)["predictions"] for line in done.stdout.splitlines()]


def assert_same(ours: list[dict[str, Any]], python: list[dict[str, Any]]) -> None:
    assert [(p["index"], p["label"]) for p in ours] == [(p["index"], p["label"]) for p in python]
    for mine, theirs in zip(ours, python, strict=True):
        assert abs(mine["score"] - theirs["score"]) <= 1e-5


# The command beside Python


@pytest.mark.parametrize("bits", [None, 8, 4])
def test_the_demo_gets_python_s_labels(bits: int | None, built: Path, run, tmp_path: Path) -> None:
    quantized = ["-q", "--q-bits", bits] if bits else []
    assert run("export", "--demo", "--output", tmp_path / "graph", *quantized).returncode == 0
    checkpoint = DEMO
    if bits:
        checkpoint = tmp_path / "checkpoint"
        converted = run("convert", "--hf-path", DEMO, "--mlx-path", checkpoint, *quantized)
        assert converted.returncode == 0, converted.stderr
    images = []
    for image in sorted((DEMO / "images").glob("*.png")):
        images.append(tmp_path / f"{image.stem}.ppm")
        Image.open(image).convert("RGB").save(images[-1])
    ours = classify(built, tmp_path / "graph", *images)
    python = ImageClassifier(checkpoint)(images, top_k=5)
    for digit, (mine, theirs) in enumerate(zip(ours, python, strict=True)):
        assert_same(mine, theirs)
        assert mine[0]["label"] == str(digit)


@pytest.mark.parametrize("bits", [None, 8, 4])
@pytest.mark.parametrize("size", ["atto", "tiny"])
def test_random_checkpoints_get_python_s_labels(size: str, bits: int | None, built: Path, run, tmp_path: Path) -> None:
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config.from_size(size)))
    model.classifier.weight = model.classifier.weight * 0.2  # or one class would take all of the probability
    quantized = ["-q", "--q-bits", bits] if bits else []
    save(model, tmp_path / "float32", ConvNextImageProcessor(size=224))
    checkpoint = tmp_path / "float32"
    if bits:
        checkpoint = tmp_path / "quantized"
        converted = run("convert", "--hf-path", tmp_path / "float32", "--mlx-path", checkpoint, *quantized)
        assert converted.returncode == 0, converted.stderr
    exported = run("export", "--model", checkpoint, "--output", tmp_path / "graph")
    assert exported.returncode == 0, exported.stderr
    noise(300, 260).save(tmp_path / "image.ppm")
    (ours,) = classify(built, tmp_path / "graph", tmp_path / "image.ppm")
    python = ImageClassifier(checkpoint)(tmp_path / "image.ppm", top_k=5)
    assert python[0]["score"] < 0.9  # or five labels in order would say little
    assert_same(ours, python)


@pytest.mark.parametrize(
    "processor",
    [
        ConvNextImageProcessor(size=48, crop_pct=0.8),
        ConvNextImageProcessor(size=384, resample=Image.Resampling.BILINEAR),
        ConvNextImageProcessor(size=40, crop_pct=0.9, crop_mode="squash"),
        ConvNextImageProcessor(size=39, crop_pct=0.9, crop_mode="center", resample=Image.Resampling.LANCZOS),
    ],
    ids=["crop", "squeeze", "timm-squash", "timm-center"],
)
def test_images_are_prepared_as_the_description_says(
    processor: ConvNextImageProcessor, built: Path, tmp_path: Path
) -> None:
    model = randomize(ConvNextV2ForImageClassification(ConvNextV2Config(**SMALL, num_labels=7)))
    save(model, tmp_path / "checkpoint", processor)
    export_model(model, processor, tmp_path / "graph")
    images = [tmp_path / f"{i}.ppm" for i in range(3)]
    for image, size in zip(images, [(90, 61), (61, 97), (70, 70)], strict=True):
        noise(*size).save(image)
    for ours, python in zip(
        classify(built, tmp_path / "graph", *images), ImageClassifier(tmp_path / "checkpoint")(images), strict=True
    ):
        assert_same(ours, python)


def test_what_a_reader_sees(built: Path, demo_graph: Path) -> None:
    """The same table as Python's, word for word."""
    arguments = [SOURCE / "digit-7.ppm"]
    ours = program(built / "convnextv2-classify", demo_graph, *arguments)
    theirs = program(sys.executable, "-m", "mlx_convnextv2.classify", "--demo", *arguments, env=os.environ)
    assert ours.stdout == theirs.stdout
    assert "7" in ours.stdout.splitlines()[1]


def test_scores_that_are_no_numbers(built: Path, demo_graph: Path, tmp_path: Path) -> None:
    """As float16 can make them; a bar of their length was a gigabyte."""
    graph = tmp_path / "model.mlxfn"
    with mx.exporter(str(graph), lambda pixels: (mx.full((1, 10), mx.nan) + pixels[:, 0, 0, :1],)) as exporter:
        exporter(mx.zeros((1, 32, 32, 3), mx.uint8))
    content = graph.read_bytes()
    sums = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    folder = changed(demo_graph, tmp_path / "graph", outputs=[PROBABILITIES], batches=[1], **sums)
    shutil.copy(graph, folder)
    done = program(built / "convnextv2-classify", folder, SOURCE / "digit-7.ppm")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) < 1000


# Resizing


class CImage(ctypes.Structure):
    _fields_ = [
        ("pixels", ctypes.c_char_p),
        *((name, ctypes.c_size_t) for name in ("width", "height", "row_bytes", "pixel_bytes")),
    ]


class CPreparation(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("resizes", "filter", "pillow")),
        *((name, ctypes.c_size_t) for name in ("short_side", "width", "height", "crop_width", "crop_height")),
        ("halves_to_even", ctypes.c_int),
    ]


@pytest.fixture(scope="session")
def prepare(built: Path) -> Callable[..., np.ndarray]:
    """The C function, on the image's rows with a gap behind each, and with 4 bytes a pixel where `padded`."""
    library = ctypes.CDLL(str(next(built.glob("libconvnextv2_image.*"))))
    library.convnextv2_message.restype = ctypes.c_char_p

    def prepare(image: Image.Image, processor: ConvNextImageProcessor, padded: bool = False) -> np.ndarray:
        side, square = processor.size["shortest_edge"], processor.resizes_to_square() or 0
        how = CPreparation(
            1, processor.resample, PILLOW, 0 if square else processor.short_side(), square, square, side, side,
            processor.crop_mode is not None,
        )  # fmt: skip
        width, height = image.size
        pixels = np.asarray(image.convert("RGBX" if padded else "RGB"))
        rows = np.pad(pixels.reshape(height, -1), ((0, 0), (0, 5)), constant_values=99)
        view = CImage(rows.tobytes(), width, height, rows.shape[1], pixels.shape[2])
        result = np.empty((side, side, 3), np.uint8)
        status = library.convnextv2_prepare(
            ctypes.byref(view), ctypes.byref(how), result.ctypes.data_as(ctypes.c_void_p)
        )
        if status != OK:
            raise ValueError(f"{status} {library.convnextv2_message().decode()}")
        return result

    return prepare


@pytest.mark.parametrize("resample", [1, 2, 3, 4, 5], ids=["lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_fifty_shapes_are_resized_to_pillow_s_pixels(resample: int, prepare: Callable[..., np.ndarray]) -> None:
    random = np.random.RandomState(resample)
    for i in range(50):
        width, height = (int(2 ** random.uniform(0, 10)) + 1 for _ in range(2))
        processor = ConvNextImageProcessor(
            size=int(random.choice([32, 99, 224, 384])),
            crop_pct=float(random.choice([0.8, 0.875, 0.95, 1.0])),
            crop_mode=[None, "center", "squash"][random.randint(3)],
            resample=resample,
        )
        image = noise(width, height, i)
        ours = prepare(image, processor, padded=i % 2 == 1)
        assert np.array_equal(ours, np.asarray(processor.resize(image))), (width, height, vars(processor))


@pytest.mark.parametrize("size", [(1, 200_000), (200_000, 1)])
def test_a_strip_is_refused_as_in_python(size: tuple[int, int], prepare: Callable[..., np.ndarray]) -> None:
    image, processor = noise(*size), ConvNextImageProcessor(size=32)
    for resize, status in ((processor.resize, ""), (lambda strip: prepare(strip, processor), f"{BAD_IMAGE} ")):
        with pytest.raises(ValueError, match=f"^{status}an image of {size[0]} x {size[1]} pixels is too narrow"):
            resize(image)


def test_hamming_s_constants_are_pillow_s(prepare: Callable[..., np.ndarray]) -> None:
    """Numbers of 24 bits: with 53 this image differs, and few others."""
    image, processor = noise(5, 19), ConvNextImageProcessor(size=383, crop_pct=0.95, crop_mode="center", resample=5)
    assert np.array_equal(prepare(image, processor), np.asarray(processor.resize(image)))


# Mistakes and damage


def changed(exported: Path, folder: Path, /, **fields: Any) -> Path:
    """A copy of an exported folder with other fields in its model.json."""
    shutil.copytree(exported, folder)
    description = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**description, **fields}))
    return folder


def opened(built: Path, folder: Path) -> tuple[int, str]:
    """The status and the sentence that opening a folder gives."""
    done = program(built / "probe", folder)
    assert done.returncode == 0, (done.returncode, done.stderr)
    match = re.fullmatch(r"open (\d+) (.*)\n", done.stdout)
    assert match is not None
    return int(match[1]), match[2]


def test_a_folder_that_is_not_there(built: Path, tmp_path: Path) -> None:
    status, sentence = opened(built, tmp_path / "nothing")
    assert status == NOT_FOUND
    assert "mlx_convnextv2.export" in sentence


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"mlx_version": "0.31.0"}, WRONG_VERSION, r"for MLX 0\.31\.0 and this is MLX \d"),
        ({"device": "metal"}, WRONG_DEVICE, "metal"),
        ({"device": "cuda"}, WRONG_DEVICE, "cuda"),
        ({"device": "abacus"}, WRONG_DEVICE, "abacus"),
        ({"sha256": "0" * 64}, DAMAGED, "another checksum"),
        ({"bytes": 5}, DAMAGED, "not the size"),
        ({"graph": "other.mlxfn"}, NOT_FOUND, "other.mlxfn"),
        ({"graph": "../demo/model.mlxfn"}, BAD_DESCRIPTION, "same folder"),
        ({"format": "something"}, BAD_DESCRIPTION, "does not describe"),
        ({"format_version": 2}, BAD_DESCRIPTION, "newer"),
        ({"labels": ["one"]}, BAD_DESCRIPTION, "each label"),
        ({"batches": []}, BAD_DESCRIPTION, "no batch"),
        ({"batches": [0]}, BAD_DESCRIPTION, "out of bounds"),
        ({"batches": [3]}, FAILED, "No imported function"),
        ({"stream": 99}, BAD_DESCRIPTION, "stream"),
        ({"stream": 2**32}, BAD_DESCRIPTION, "stream"),
        ({"stream": 0.5}, BAD_DESCRIPTION, "stream"),
        ({"preprocessing": {"resize": {"filter": "Pillow's nearest"}}}, BAD_DESCRIPTION, "in the app"),
        ({"outputs": [PROBABILITIES]}, BAD_DESCRIPTION, "outputs"),
        ({"outputs": [PROBABILITIES] * 2}, BAD_DESCRIPTION, "embedding"),
    ],
)  # fmt: skip
def test_a_description_that_does_not_fit(
    fields: dict[str, Any], status: int, said: str, built: Path, demo_graph: Path, tmp_path: Path
) -> None:
    found, sentence = opened(built, changed(demo_graph, tmp_path / "graph", **fields))
    assert found == status, sentence
    assert re.search(said, sentence)


def test_every_field_is_needed_and_checked(
    built_with_address_sanitizer: Path, demo_graph: Path, tmp_path: Path
) -> None:
    """Each value of model.json taken out or replaced by another kind: an answer, and never a crash."""
    description = json.loads((demo_graph / "model.json").read_text())

    def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
        if not path:
            return value  # () becomes an empty list
        copy = dict(node) if isinstance(node, dict) else list(node)
        if len(path) == 1 and value is KeyError:
            del copy[path[0]]
        else:
            copy[path[0]] = replaced(copy[path[0]], path[1:], value)
        return copy

    def paths(node: Any) -> list[tuple[Any, ...]]:
        keys = node if isinstance(node, dict) else range(min(len(node), 2)) if isinstance(node, list) else ()
        return [(key, *rest) for key in keys for rest in [(), *paths(node[key])]]

    inert = {"package_version", "weights_dtype", "quantization", "operations", "name", "model"}
    harmless = {(("batches", i), KeyError) for i in (0, 1)}  # the other batch is left
    folder = changed(demo_graph, tmp_path / "graph")
    for path in paths(description):
        for value in (KeyError, (), -1):
            (folder / "model.json").write_text(json.dumps(replaced(description, path, value)))
            status, sentence = opened(built_with_address_sanitizer, folder)
            if value is KeyError and path[-1] in inert - {"name", "model"}:
                assert status == OK, (path, sentence)
            elif path[-1] not in inert and (path, value) not in harmless:
                assert status != OK, (path, value)
    deep = b'{"format": ' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}"
    for content in (b"", b"{", b"[]", b"null", b'"' * 100, b"\xff\xfe", b"[" * 100_000, deep):
        (folder / "model.json").write_bytes(content)
        assert opened(built_with_address_sanitizer, folder)[0] == BAD_DESCRIPTION


@pytest.mark.parametrize("how", ["cut", "emptied", "flipped", "lost", "folder"])
def test_a_damaged_graph_never_reaches_mlx(how: str, built: Path, demo_graph: Path, tmp_path: Path) -> None:
    folder = changed(demo_graph, tmp_path / "graph")
    graph = folder / "model.mlxfn"
    content = graph.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    graph.unlink()
    if how == "folder":
        graph.mkdir()
    elif how != "lost":
        graph.write_bytes({"cut": content[:1000], "emptied": b"", "flipped": flipped}[how])
    status, sentence = opened(built, folder)
    assert status == (NOT_FOUND if how in ("lost", "folder") else DAMAGED)
    assert "model.mlxfn" in sentence


def test_shapes_that_were_not_exported(built: Path, demo_graph: Path) -> None:
    exported, others = [(1, 32, 32), (4, 32, 32)], [(3, 32, 32), (1, 33, 32), (0, 32, 32)]
    for shape, status in [(shape, OK) for shape in exported] + [(shape, WRONG_SHAPE) for shape in others]:
        done = program(built / "probe", demo_graph, *shape)
        assert done.stdout.splitlines()[1].startswith(f"run {status} ")
        if status == WRONG_SHAPE:
            assert "(1, 32, 32, 3) or (4, 32, 32, 3), not (" in done.stdout


def test_what_a_caller_can_get_wrong(built_with_address_sanitizer: Path, tmp_path: Path, small_model) -> None:
    export_model(small_model, ConvNextImageProcessor(size=32), tmp_path / "graph")
    done = program(built_with_address_sanitizer / "probe", tmp_path / "graph", "mistakes")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert lines.pop("open") == "0 "
    assert lines.pop("label") == "none"
    assert lines.pop("run-overflow").startswith(f"{WRONG_SHAPE} ")
    assert lines.pop("metallib-missing").startswith(f"{NOT_FOUND} /nowhere/mlx.metallib is not there")
    assert len(lines) == 17
    for call, answer in lines.items():
        assert re.match(rf"{INVALID_ARGUMENT} \w.{{20,}}", answer), (call, answer)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a binary PPM"),
        (b"P5 2 2 255\n" + bytes(4), "not a binary PPM"),
        (b"P3 1 1 255\n0 0 0", "not a binary PPM"),
        (b"\x89PNG\r\n\x1a\n", "not a binary PPM"),
        (b"P6 2 2 65535\n" + bytes(24), "8 bits"),
        (b"P6 2 2 15\n" + bytes(12), "8 bits"),
        (b"P6 2 2", "width and a height"),
        (b"P6 0 2 255\n", "width and a height"),
        (b"P6 -1 2 255\n", "width and a height"),
        (b"P6 99999999999999999999 1 255\n", "width and a height"),
        (b"P6 2 x 255\n" + bytes(12), "width and a height"),
        (b"P6 2x 2 255\n" + bytes(12), "width and a height"),
        (b"P62 2 255\n" + bytes(12), "not a binary PPM"),
        (b"P6 2 2 255#c\n" + bytes(12), "8 bits"),
        (b"P6 2 2 255", "width and a height"),
        (b"P6 2 2 255\n" + bytes(11), "ends before its last pixel"),
        (b"P6 262144 262144 255\n" + bytes(11), "ends before its last pixel"),
        (b"P6 1 200000 255\n" + bytes(200000 * 3), "too narrow"),
    ],
)
def test_images_that_cannot_be_read(
    content: bytes, said: str, built_with_address_sanitizer: Path, demo_graph: Path, tmp_path: Path
) -> None:
    (tmp_path / "image.ppm").write_bytes(content)
    done = program(built_with_address_sanitizer / "convnextv2-classify", demo_graph, tmp_path / "image.ppm")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("convnextv2-classify: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_comments_in_a_header(built: Path, demo_graph: Path, tmp_path: Path) -> None:
    header, pixels = b"P6\n64 64\n255\n", (SOURCE / "digit-7.ppm").read_bytes()[-64 * 64 * 3 :]
    assert (SOURCE / "digit-7.ppm").read_bytes() == header + pixels
    (tmp_path / "image.ppm").write_bytes(b"P6#one\n # two\n64\t#three 9\n64\n255\n" + pixels)
    ours, plain = classify(built, demo_graph, tmp_path / "image.ppm", SOURCE / "digit-7.ppm")
    assert ours == plain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give an exported folder and at least one image"),
        (["GRAPH"], "give an exported folder and at least one image"),
        (["--top-k", "0", "GRAPH", "x.ppm"], "not '0'"),
        (["--top-k", "2x", "GRAPH", "x.ppm"], "not '2x'"),
        (["GRAPH", "x.ppm", "--top-k"], "not ''"),
        (["--verbose", "GRAPH", "x.ppm"], "no option --verbose"),
        (["/nowhere", "x.ppm"], "/nowhere/model.json is not there"),
        (["GRAPH", "/nowhere.ppm"], "/nowhere.ppm is not a file"),
        (["GRAPH", "."], ". is not a file"),
        (["--", "GRAPH", "--json"], "--json is not a file"),
    ],
)
def test_wrong_arguments_are_a_sentence(arguments: list[str], said: str, built: Path, demo_graph: Path) -> None:
    words = [str(demo_graph) if word == "GRAPH" else word for word in arguments]
    done = program(built / "convnextv2-classify", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr.splitlines()[-1]


def test_one_bad_image_does_not_stop_the_rest(built: Path, demo_graph: Path) -> None:
    done = program(built / "convnextv2-classify", "--json", demo_graph, "/nowhere.ppm", SOURCE / "digit-7.ppm")
    assert done.returncode == 1
    failed, classified = map(json.loads, done.stdout.splitlines())
    assert "nowhere" in failed["error"]
    assert classified["predictions"][0]["label"] == "7"
    with open("/dev/full", "w") as full:
        lost = subprocess.run(
            [built / "convnextv2-classify", demo_graph, SOURCE / "digit-7.ppm"], stdout=full, stderr=subprocess.PIPE
        )
    assert lost.returncode == 2
    assert b"cannot be written" in lost.stderr


# Text of others on a terminal


def escaped(code: int) -> str:
    """How a character is shown; tests/ has the rule once more, so that a slip in either is seen."""
    harmful = {*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)}
    return ascii(chr(code))[1:-1] if code in harmful else chr(code)


def shown(built: Path, argument: bytes) -> str:
    """What the command makes of text that it is given, as it complains about it."""
    done = subprocess.run([built / "convnextv2-classify", "--top-k", argument, "x", "y"], capture_output=True)
    return done.stderr.decode().splitlines()[-1].partition("not '")[2][:-1]


def test_a_character_is_shown_unless_it_could_steer_a_terminal(built: Path) -> None:
    codes = [*range(1, 0x3000), 0xFEFF, 0xFFFD, 0x1F600, 0x10FFFF]
    text = "".join(map(chr, codes))
    assert shown(built, text.encode()) == "".join(map(escaped, codes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", r"\xff"),
        (b"caf\xe9.ppm", r"caf\xe9.ppm"),  # Latin 1
        (b"\xc3", r"\xc3"),  # cut short
        (b"\xe2\x80", r"\xe2\x80"),
        (b"\xc0\x8a", r"\xc0\x8a"),  # a line feed, longer than it has to be
        (b"\xe0\x80\x9b", r"\xe0\x80\x9b"),
        (b"\xf0\x82\x80\xae", r"\xf0\x82\x80\xae"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),  # a surrogate
        (b"\xf4\x90\x80\x80", r"\xf4\x90\x80\x80"),  # beyond Unicode
        (b"\x9b31m", r"\x9b31m"),  # a C1 control as a single byte
        (b"\xc3\x1b[2J", r"\xc3\x1b[2J"),
    ],
)
def test_what_is_not_utf_8_is_escaped(text: bytes, said: str, built: Path) -> None:
    assert shown(built, text) == said


HOSTILE = "seven\n  100.0%  forged\x1b]0;title\x07\u202egnp\x9b2J"
SHOWN = r"seven\n  100.0%  forged\x1b]0;title\x07\u202egnp\x9b2J"


def test_names_and_labels_cannot_steer_a_terminal(built: Path, demo_graph: Path, tmp_path: Path) -> None:
    labels = [f"{HOSTILE} {digit}" for digit in range(10)]
    graph = changed(demo_graph, tmp_path / "graph", labels=labels)
    image = tmp_path / f"{HOSTILE}.ppm"
    shutil.copy(SOURCE / "digit-7.ppm", image)
    done = program(built / "convnextv2-classify", "--top-k", 1, graph, image, f"/nowhere/{HOSTILE}")
    first, second = done.stdout.splitlines()
    assert first == f"{tmp_path}/{SHOWN}.ppm"
    assert second.endswith(f"  {SHOWN} 7")
    assert done.stderr == f"convnextv2-classify: /nowhere/{SHOWN} is not a file that can be read\n"
    (line,) = program(built / "convnextv2-classify", "--json", "--top-k", 1, graph, image).stdout.splitlines()
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["predictions"][0]["label"] == labels[7]
    done = program(built / "convnextv2-classify", f"/nowhere/{HOSTILE}", image)
    assert done.stderr.startswith(f"convnextv2-classify: error: /nowhere/{SHOWN}/model.json is not there")
    assert done.stderr.count("\n") == 1


# Threads and memory


def test_threads_get_the_right_answers_without_a_race(demo_graph: Path, tmp_path: Path, small_model) -> None:
    built = sanitized(tmp_path / "tsan", "thread", "threads")
    export_model(small_model, ConvNextImageProcessor(size=32), tmp_path / "graph", batches=[1])
    options = f"suppressions={SOURCE / 'tests' / 'tsan.supp'} halt_on_error=1"
    command: list[str | Path] = [built / "threads", demo_graph, tmp_path / "graph"]
    if sys.platform == "linux":  # some kernels place memory where the sanitizer does not expect it
        command = [tool("setarch"), "-R", *command]
    done = program(*command, env={**os.environ, "TSAN_OPTIONS": options})
    assert (done.returncode, done.stdout) == (0, "0 wrong of 56\n"), done.stderr


def test_nothing_leaks(built: Path, built_with_address_sanitizer: Path, demo_graph: Path, tmp_path: Path) -> None:
    broken = changed(demo_graph, tmp_path / "broken", outputs=[PROBABILITIES])
    done = program(built_with_address_sanitizer / "lifetime", demo_graph, broken, 5)
    assert done.returncode == 0, done.stderr
    if sys.platform == "linux":
        weights = (demo_graph / "model.mlxfn").stat().st_size
        grown = int(program(built / "lifetime", demo_graph, broken, 100).stdout)
        assert grown < 10 * weights  # of 300 times that they were loaded


def test_mlx_was_used_before(built: Path, demo_graph: Path) -> None:
    """A sentence instead of an answer from another thread's stream, and no stream left behind by each."""
    done = program(built / "process", "late", demo_graph)
    assert done.returncode == 0
    for line in done.stdout.splitlines():
        assert line.startswith(f"{STREAM_TAKEN} MLX's stream 0")
        assert "before anything else uses MLX" in line
    assert done.stdout.count("\n") == 2


def test_a_fork_is_told_instead_of_hanging(built: Path, demo_graph: Path) -> None:
    done = program(built / "process", "fork", demo_graph)
    assert done.returncode == 0
    first, *answers = done.stdout.splitlines()
    assert first == f"{OK} "
    assert len(answers) == 2
    for answer in answers:  # to the parent's classifier and to one of its own
        assert answer.startswith(f"{FAILED} MLX was used before this process was forked")


def test_the_process_may_end_while_threads_classify(built: Path, demo_graph: Path) -> None:
    """It crashed in one of five."""
    for _ in range(20):
        assert program(built / "process", "exit", demo_graph).returncode == 0


def test_there_is_not_enough_memory(built: Path) -> None:
    """A result of 200 MB, in a process that may have 100 MB more than it has."""
    library = next(built.glob("libconvnextv2_image.*"))
    code = f"""
import ctypes, resource, sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests" / "native")!r}]
from test_cpp import CImage, CPreparation
library = ctypes.CDLL({str(library)!r})
library.convnextv2_message.restype = ctypes.c_char_p
pixel = CImage(bytes(3), 1, 1, 3, 3)
how = CPreparation(1, 3, 13, 0, *[8192] * 4, 0)
result = ctypes.create_string_buffer(8192 * 8192 * 3)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
print(library.convnextv2_prepare(ctypes.byref(pixel), ctypes.byref(how), result), library.convnextv2_message().decode())
"""
    if sys.platform != "linux":
        pytest.skip("how much a process has is read from /proc")
    done = program(sys.executable, "-c", code)
    assert done.stdout == f"{NO_MEMORY} there is not enough memory\n", done.stderr


def test_a_graph_that_was_traced_on_another_stream(built: Path, demo_graph: Path, tmp_path: Path) -> None:
    """model.json says which, and the library makes it."""
    code = (
        "import sys; import mlx.core as mx\n"
        "from mlx_convnextv2 import load; from mlx_convnextv2.graphs.trace import export_model\n"
        "mx.eval(mx.ones(3) + 1)\n"
        "with mx.stream(mx.new_stream(mx.default_device())):\n"
        "    export_model(*load(sys.argv[1]), sys.argv[2])\n"
    )
    done = program(sys.executable, "-c", code, DEMO, tmp_path / "graph")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "graph" / "model.json").read_text())["stream"] == 1
    (other,), (usual,) = (classify(built, graph, SOURCE / "digit-7.ppm") for graph in (tmp_path / "graph", demo_graph))
    assert_same(other, usual)


def test_the_checksum_is_sha_256(demo_graph: Path) -> None:
    description = json.loads((demo_graph / "model.json").read_text())
    assert description["sha256"] == hashlib.sha256((demo_graph / "model.mlxfn").read_bytes()).hexdigest()


# What docs/embedding.md shows


def test_the_program_in_the_docs(built: Path, demo_graph: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```cpp\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "program.cpp").write_text(code)
    shutil.copytree(demo_graph, tmp_path / "digits")
    shutil.copy(SOURCE / "digit-7.ppm", tmp_path)
    assert program(tool("cmake"), "--install", built, "--prefix", tmp_path / "installed").returncode == 0
    libraries = tmp_path / "installed" / "lib"
    compiled = program(
        tool("c++"), "-std=c++20", "-Wall", "-Wextra", "-Werror", "program.cpp", "-o", "program",
        f"-I{tmp_path / 'installed' / 'include'}", f"-L{libraries}", "-lconvnextv2", "-lconvnextv2_image",
        f"-Wl,-rpath,{libraries}", cwd=tmp_path,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    done = program(tmp_path / "program", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, " 99.9%  7")
    (tmp_path / "digits" / "model.json").unlink()
    assert program(tmp_path / "program", cwd=tmp_path).returncode == NOT_FOUND


def test_one_version(built: Path) -> None:
    from mlx_convnextv2 import __version__

    assert f"project(convnextv2 VERSION {__version__} " in (SOURCE / "CMakeLists.txt").read_text()
