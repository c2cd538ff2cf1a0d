"""A disk that fills is one sentence, and leaves nothing behind, whichever writer meets it and wherever in its file."""

from __future__ import annotations

import importlib.util
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlx_convnextv2 import convert, export, load, save
from mlx_convnextv2.demo import DEMO

WRITERS: dict[str, Callable[[Path], int]] = {
    "export": lambda out: export.main(["--demo", "--output", str(out)]),
    "export over another": lambda out: export.main(["--demo", "--output", str(out), "--overwrite"]),
    "convert": lambda out: convert.main(["--hf-path", str(DEMO), "--mlx-path", str(out), "--dtype", "float16"]),
    "quantize": lambda out: convert.main(["--hf-path", str(DEMO), "--mlx-path", str(out), "-q", "--q-bits", "8"]),
}
if importlib.util.find_spec("coremltools"):
    WRITERS["Core ML"] = lambda out: export.main(
        ["--demo", "--format", "coreml", "--output", str(out.with_suffix(".mlpackage"))]
    )
if importlib.util.find_spec("onnx"):
    WRITERS["ONNX"] = lambda out: export.main(["--demo", "--format", "onnx", "--output", str(out)])
# Inside the header or the weights, and where the weights are whole and what comes after them is not.
BYTES = {
    "export": (0, 100, 50_000, 200_000),
    "export over another": (100, 200_000),
    "convert": (0, 1_000, 50_000),
    "quantize": (0, 100_000),
    "Core ML": (1_000, 100_000),
    "ONNX": (0, 100_000),
}


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """No file may grow beyond so many bytes: what is written past them fails as on a full disk, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def assert_said(capsys, out: Path) -> None:
    (line,) = capsys.readouterr().err.splitlines()
    assert str(out) in line
    assert "for lack of space" in line


@pytest.mark.parametrize(("writer", "size"), [(writer, size) for writer in WRITERS for size in BYTES[writer]])
def test_a_file_that_cannot_grow_is_a_sentence_and_leaves_what_was_there(
    writer, size, limit_file_size, tmp_path, capsys
):
    out = tmp_path / "a" / "b" / "out"
    if "over" in writer:
        assert WRITERS[writer](out) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*")}
    capsys.readouterr()
    limit_file_size(size)
    try:
        status = WRITERS[writer](out)
    finally:
        limit_file_size(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert status == 2
    assert_said(capsys, out)
    assert {path.name: path.read_bytes() for path in out.glob("*")} == before
    assert list(tmp_path.rglob("*.partial")) == []
    assert list(tmp_path.iterdir()) == ([tmp_path / "a"] if before else [])  # not even the folders above


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        return disk

    yield mount
    subprocess.run(["umount", "-l", str(disk)], check=False, capture_output=True)


@pytest.mark.parametrize("kilobytes", [4, 100, 300])
@pytest.mark.parametrize("writer", [writer for writer in WRITERS if "over" not in writer])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(writer, kilobytes, small_disk, capsys):
    disk = small_disk(kilobytes)
    (disk / "filler").write_bytes(b"x" * max(0, kilobytes - 100) * 1000)
    status = WRITERS[writer](disk / "out")
    assert status == 2
    assert_said(capsys, disk / "out")
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_program_gets_an_os_error(small_disk):
    disk = small_disk(100)
    model, processor = load(DEMO)
    with pytest.raises(OSError, match="for lack of space"):
        save(model, disk / "out", processor)
    from mlx_convnextv2.graphs.trace import export_model

    with pytest.raises(OSError, match="for lack of space"):
        export_model(model, processor, disk / "out")
    assert list(disk.iterdir()) == []
