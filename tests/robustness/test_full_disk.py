"""A disk that fills is one sentence, and what was there before stays, whichever writer meets it and wherever."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlx_convnextv2 import benchmark, benchmarking, convert, export, load, save
from mlx_convnextv2.benchmarking.findings import ColdStart, Spread
from mlx_convnextv2.benchmarking.report import Report
from mlx_convnextv2.demo import DEMO
from mlx_convnextv2.files import output_files
from mlx_convnextv2.graphs.trace import export_model


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what is written past them fails as on a full disk, with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def write(kind: str, out: Path) -> int:
    if kind == "Core ML":
        pytest.importorskip("coremltools")
        return export.main(["--demo", "--format", "coreml", "--output", str(out.with_suffix(".mlpackage"))])
    if kind == "ONNX":
        pytest.importorskip("onnx")
        return export.main(["--demo", "--format", "onnx", "--output", str(out)])
    if kind.startswith("export"):
        return export.main(["--demo", "--output", str(out), "--overwrite"])
    options = ["-q", "--q-bits", "8"] if kind == "quantize" else ["--dtype", "float16"]
    return convert.main(["--hf-path", str(DEMO), "--mlx-path", str(out), *options])


# Inside the header or the weights, and where the weights are whole and what comes after them is not.
WRITERS = {
    "export": (0, 100, 50_000, 200_000),
    "export over another": (100, 200_000),
    "convert": (0, 1_000, 50_000),
    "quantize": (0, 100_000),
    "Core ML": (1_000, 100_000),
    "ONNX": (0, 100_000),
}
CASES = [
    pytest.param(kind, size, marks=pytest.mark.slow if kind == "Core ML" else ())
    for kind, sizes in WRITERS.items()
    for size in sizes
]


def assert_said(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    (line,) = capsys.readouterr().err.splitlines()
    assert str(out) in line
    assert "for lack of space" in line


@pytest.mark.parametrize(("kind", "size"), CASES)
def test_a_file_that_cannot_grow_is_a_sentence_and_leaves_what_was_there(kind, size, tmp_path, capsys):
    out = tmp_path / "a" / "b" / "out"
    if "over" in kind:
        assert write(kind, out) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*")}
    capsys.readouterr()
    with files_of_at_most(size):
        status = write(kind, out)
    assert status == 2
    assert_said(capsys, out)
    assert {path.name: path.read_bytes() for path in out.glob("*")} == before
    assert list(tmp_path.rglob("*.partial")) == []
    assert list(tmp_path.iterdir()) == ([tmp_path / "a"] if before else [])  # not even the folders above


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 100 kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False, capture_output=True)


@pytest.mark.parametrize("kind", ["export", "convert"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(kind, small_disk, capsys):
    assert write(kind, small_disk / "out") == 2
    assert_said(capsys, small_disk / "out")
    assert list(small_disk.iterdir()) == []


def test_a_program_gets_an_os_error(tmp_path):
    model, processor = load(DEMO)
    with files_of_at_most(1_000):
        with pytest.raises(OSError, match="for lack of space"):
            save(model, tmp_path / "out", processor)
        with pytest.raises(OSError, match="for lack of space"):
            export_model(model, processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# --- while something is measured ------------------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch, tmp_path) -> None:
    """Let no file below the test's folder be written whole; what is elsewhere may."""
    write_bytes = Path.write_bytes

    def refuse(file: Path, data: bytes) -> int:
        if tmp_path not in file.parents:
            return write_bytes(file, data)
        write_bytes(file, bytes(data)[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", refuse)


@pytest.mark.parametrize("option", ["--json", pytest.param("--plot", marks=pytest.mark.slow)])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_report_that_does_not_fit_is_a_sentence_and_leaves_what_was_there(option, old, tmp_path, monkeypatch, capsys):
    if option == "--plot":
        pytest.importorskip("matplotlib")
    file = tmp_path / "out.png"
    if old:
        file.write_bytes(old)

    def cold_start(*, watch: Any, **_: object) -> Report[ColdStart]:
        report: Report[ColdStart] = Report("cold-start", "m", watch=watch)
        report.add(ColdStart("mlx_convnextv2", Spread(1, 1, 1), Spread(1, 1, 1), 1, 1, True))
        return report

    monkeypatch.setattr(benchmarking, "cold_start", cold_start, raising=False)
    with files_of_at_most(3):
        assert benchmark.main(["cold-start", option, str(file)]) == 2
    out, error = capsys.readouterr()
    assert "mlx_convnextv2" in out, "what was measured is printed all the same"
    assert error.startswith(f"benchmark: error: {file}: it cannot be written for lack of space (")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([old] if old else [])


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("mode", ["compare", "cold-start", "scale"])
def test_a_temporary_folder_that_is_full_is_a_sentence(mode, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert benchmark.main([mode, "--size", "atto"]) == 2
    sentence = f"{tmp_path} cannot take the temporary files, for lack of space: set TMPDIR to a folder with more"
    assert capsys.readouterr().err.splitlines()[-1] == f"benchmark: error: {sentence}"
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_there_is_the_same_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with files_of_at_most(50_000):
        assert benchmark.main(["compare", "--model", str(DEMO)]) == 2
    assert "set TMPDIR to a folder with more" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_written_as_it_is(tmp_path):
    output_files.check(Path(os.devnull))
    output_files.write(Path(os.devnull), b"x")
    assert Path(os.devnull).is_char_device()
    (tmp_path / "link").symlink_to("file")
    output_files.write(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"
